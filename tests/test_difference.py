"""Two runs side by side."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from dltrain.difference import diff, show_diff
from dltrain.errors import ConfigError
from tests.small_runs import train, write_arrays

pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs that differ in the learning rate, the optimizer and a penalty."""
    folder = tmp_path_factory.mktemp("pair")
    a = train(folder)
    more = {
        "optimizer": {"type": "sgd", "lr": 0.05},
        "regularization": {"penalties": [{"type": "l1", "strength": 0.001}]},
    }
    return a, train(folder, more)


def test_diff_names_each_setting_with_both_values(pair: tuple[Path, Path]) -> None:
    settings = diff(*pair)["settings"]
    assert settings["optimizer.lr"] == {"a": 0.01, "b": 0.05}
    assert settings["optimizer.type"] == {"a": "adamw", "b": "sgd"}
    assert settings["optimizer.momentum"] == {"b": 0.9} or "a" not in settings["optimizer.momentum"]
    assert settings["regularization.penalties.0.strength"] == {"b": 0.001}
    assert not any(key.startswith(("model", "data", "train", "seed")) for key in settings)


def test_diff_sets_the_metrics_side_by_side(pair: tuple[Path, Path]) -> None:
    metrics = diff(*pair)["metrics"]
    rows = [json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]) for run in pair]
    loss = metrics["last"]["val/loss"]
    assert (loss["a"], loss["b"]) == (rows[0]["val/loss"], rows[1]["val/loss"])
    assert loss["difference"] == rows[1]["val/loss"] - rows[0]["val/loss"]
    assert metrics["last"]["train/penalty"] == {"a": None, "b": rows[1]["train/penalty"], "difference": None}
    assert metrics["best"]["val/accuracy"]["a"] >= metrics["last"]["val/accuracy"]["a"]
    assert "samples_per_s" not in metrics["last"]


def test_diff_knows_whether_the_data_are_the_same(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert diff(*pair)["data"]["same"] is True
    write_arrays(tmp_path / "data.npz", seed=5)
    other = diff(pair[0], train(tmp_path))["data"]
    assert other["same"] is False
    assert other["fingerprint"]["a"] != other["fingerprint"]["b"]
    assert other["num_samples"]["a"] == {"train": 50, "val": 20, "test": 15}


def test_diff_tells_versions_apart_and_leaves_out_what_is_the_same(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert diff(*pair)["environment"] == {}
    copy = tmp_path / "1"
    subprocess.run(["cp", "-r", pair[1], copy], check=True)
    environment = json.loads((copy / "environment.json").read_text())
    (copy / "environment.json").write_text(json.dumps({**environment, "torch": "1.0", "tags": {"who": "ana"}}))
    found = diff(pair[1], copy)
    assert found["environment"] == {"torch": {"a": environment["torch"], "b": "1.0"}}
    assert found["tags"] == {"who": {"b": "ana"}}
    assert found["settings"] == {}


def test_diff_is_shown_as_tables(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    show_diff(diff(*pair))
    out = capsys.readouterr().out
    assert re.search(r"^optimizer\.lr +0\.01 +0\.05 *$", out, re.M)
    assert re.search(r"^regularization\.penalties\.0\.type +- +l1 *$", out, re.M)
    assert "environment: the same" in out
    assert "data: the same" in out
    assert re.search(r"^best metrics +a +b +b - a", out, re.M)


def test_diff_of_damaged_runs_says_what_can_be_said(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "1" / "checkpoints").mkdir(parents=True)
    (tmp_path / "1" / "checkpoints" / "last.safetensors").write_bytes(b"\xff" * 100)
    found = diff(pair[0], tmp_path / "1")
    assert found["data"]["same"] is None
    assert found["metrics"]["last"]["val/loss"]["b"] is None
    show_diff(found)
    assert "data: cannot be compared: a run has no checkpoint" in capsys.readouterr().out


def test_diff_of_what_is_no_run_says_so(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        diff(pair[0], tmp_path)
    assert str(caught.value) == f"{tmp_path}: is no run directory (it has no checkpoints/); such as runs/digits/1"
    with pytest.raises(ConfigError) as caught:
        diff(pair[0].parent, pair[0])
    assert str(caught.value) == (
        f"{pair[0].parent}: is no run directory (it has no checkpoints/); it holds runs: {pair[0]}, {pair[1]}"
    )
