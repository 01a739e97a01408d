"""The shipped configs: each does what it says, in a shortened training on generated data (`make configs`: in full)."""

import math
import re
import shutil
from pathlib import Path

import pytest

from dltrain.config.validate import load_config
from dltrain.evaluation import evaluate
from dltrain.inspection import check
from dltrain.metrics import HIGHER_IS_BETTER
from dltrain.train import fit
from tests.run_configs import Promise, promise_of
from tests.shipped import CONFIGS, SHORT, copy_shipped


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """Return the folder of a copy of the configs, beside generated data."""
    return copy_shipped(tmp_path_factory.mktemp("shipped"))


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def config(request, shipped):
    if request.param.stem == "spoken_digits" and not shutil.which("espeak-ng"):
        pytest.skip("configs/spoken_digits.yaml is NOT tested: install espeak-ng, which speaks its data")
    return shipped / request.param.name


def test_every_kind_of_task_and_data_has_a_config():
    names = {path.stem for path in CONFIGS}
    assert names >= {"digits", "digits_convnet", "iris", "breast_cancer", "diabetes", "people", "shapes", "own_model"}
    assert names >= {"spoken_digits", "languages", "python_code", "numbers_en_fr", "numbers_en_de"}


@pytest.mark.usefixtures("no_curves")
def test_a_shipped_config_trains_and_can_be_evaluated(config, tmp_path):
    summary = fit(load_config(config, SHORT), root=tmp_path)
    promise = promise_of(config)
    trusted = [str(path) for path in config.parent.glob("*.py")]
    result = evaluate(summary["run"], split=promise.split, trusted=trusted)
    assert summary["epoch"] == 2
    assert math.isfinite(result["metrics"][promise.metric])
    assert evaluate(summary["run"], trusted=trusted)["num_samples"] > 0  # and has test samples


def test_a_shipped_config_passes_its_check(config, capsys):
    check(load_config(config))
    assert "first batch of" in capsys.readouterr().out


def test_the_head_says_what_to_expect_how_long_it_takes_and_what_to_type(config):
    head = config.read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    assert all(line.startswith("#") for line in head)
    assert re.fullmatch(r"# [A-Z].*[.?]", head[0])
    promise = promise_of(config)
    assert (promise.comparison == ">=") == HIGHER_IS_BETTER[promise.metric]
    assert f"# Expected: {promise}" in head
    assert any(re.fullmatch(r"# Time:     \d+ s on two cores", line) for line in head)
    commands = [line.removeprefix("# Command:  ") for line in head if line.startswith("# Command:  ")]
    needs_data = "../data/" in config.read_text(encoding="utf-8")
    assert commands == [("make data && " if needs_data else "") + f"dltrain fit configs/{config.name}"]


def test_every_line_of_a_config_fits_a_screen(config):
    assert max(map(len, config.read_text(encoding="utf-8").splitlines())) <= 120


@pytest.mark.parametrize(
    "text", ["", "# Expected: accuracy >= 0.9", "# Expected: val/accuracy about 0.9", "# Expected: val/loss <= 1\n" * 2]
)
def test_a_head_without_one_clear_promise_is_refused(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"has \d lines like '# Expected: val/accuracy >= 0\.97'"):
        promise_of(path)


def test_a_promise_is_compared_in_its_direction(tmp_path):
    Path(tmp_path / "c.yaml").write_text("# Words.\n# Expected: val/rmse <= 2.5\n", encoding="utf-8")
    promise = promise_of(tmp_path / "c.yaml")
    assert promise == Promise("val", "rmse", "<=", 2.5)
    assert promise.is_kept(2.5)
    assert not promise.is_kept(2.6)
    assert Promise("val", "r2", ">=", 0.5).is_kept(0.6)
    assert not Promise("val", "r2", ">=", 0.5).is_kept(math.nan)
