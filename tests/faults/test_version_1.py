"""A run that dltrain 0.1.0 stopped after 7 of 12 steps, kept in tests/fixtures: its format is read for ever."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dltrain import checkpoint as checkpoints
from dltrain.evaluation import evaluate
from dltrain.prediction import predict
from dltrain.run import read_metrics
from tests.small_runs import dltrain_here

pytestmark = pytest.mark.usefixtures("no_curves")

FIXTURE = Path(__file__).parents[1] / "fixtures" / "version_1"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the kept run, in a copy that may be written to."""
    shutil.copytree(FIXTURE, tmp_path / "kept")
    monkeypatch.chdir(tmp_path / "kept")
    return Path("runs", "v1", "1")


@pytest.mark.fault(44)
def test_the_first_format_is_evaluated(run: Path) -> None:
    assert checkpoints.load(run / "checkpoints" / checkpoints.LAST).meta["format_version"] == 1
    assert evaluate(run)["metrics"] == pytest.approx({"loss": 0.727128, "accuracy": 0.5, "macro_f1": 1 / 3}, abs=1e-4)


@pytest.mark.fault(44)
def test_the_first_format_predicts(run: Path) -> None:
    rows = list(predict(run, ["flowers.csv"]))
    assert len(rows) == 40
    assert {row["prediction"] for row in rows} <= {"a", "b"}


@pytest.mark.fault(44)
def test_a_run_of_the_first_format_goes_on_to_its_end(run: Path) -> None:
    result = dltrain_here("fit", "--resume", run, cwd=Path())
    assert result.returncode == 0, result.stderr
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == [3, 6, 9, 12]
    # The first where it was kept; the second on Intel's CPUs, for which torch draws dropout in another way.
    assert any(rows[-1]["val/loss"] == pytest.approx(loss, abs=1e-3) for loss in (0.489053, 0.497024))
    assert checkpoints.load(run / "checkpoints" / checkpoints.LAST).meta["step"] == 12
