"""A training whose length is a time keeps it, with schedule, last evaluation and checkpoint inside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dltrain.budget import Budget
from dltrain.errors import ConfigError
from dltrain.run import read_metrics
from dltrain.train import fit
from tests.small_runs import Sections, fit_with_stops, rows_of, small_config, write_arrays

pytestmark = pytest.mark.usefixtures("no_curves")


def simulate(seconds: float, step_s: Any, evaluation_s: float, every: int) -> tuple[int, float, list[int]]:
    """Return steps, end and parts of a training whose step k takes `step_s(k)`, on a clock that is made up."""
    budget, elapsed_s, step, parts = Budget(seconds, val_steps=10), 0.0, 0, []
    total = budget.begin(0, 0.0, has_ended=False)
    while step < total:
        parts.append(budget.part(elapsed_s))
        step += 1
        elapsed_s += step_s(step)
        total = budget.total_steps(step, elapsed_s)
        closing_s = None
        if step % every == 0 or step == total:
            elapsed_s, closing_s = elapsed_s + evaluation_s, evaluation_s
        budget.ends_step(elapsed_s, closing_s)
    return step, elapsed_s, parts


@pytest.mark.parametrize(
    ("step_s", "evaluation_s", "every"),
    [
        (lambda k: 0.01, 0.3, 100),
        (lambda k: 0.01, 3.0, 500),
        (lambda k: 2.0 if k == 1 else 0.01, 0.3, 100),  # what the first step of a process does
        (lambda k: 0.01 if k < 1000 else 0.03, 0.3, 100),  # a neighbour comes
        (lambda k: 0.01 * (1 + k % 7), 0.1, 10**9),  # no evaluation but the last, which nothing has measured
        (lambda k: 1.5, 1.0, 5),
    ],
)
def test_the_time_is_kept_and_the_schedule_reaches_its_end(step_s: Any, evaluation_s: float, every: int) -> None:
    steps, elapsed_s, parts = simulate(60.0, step_s, evaluation_s, every)
    assert elapsed_s == pytest.approx(60.0, rel=0.05)
    assert parts == sorted(parts)
    assert parts[0] == 0
    assert parts[-1] > 0.94 * Budget.parts
    assert steps > 20


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """A clock for the loop that is made up: each look at it takes half a millisecond, and nothing else does."""
    now_s = 0.0

    def look() -> float:
        nonlocal now_s
        now_s += 0.0005
        return now_s

    monkeypatch.setattr("dltrain.train.time", SimpleNamespace(perf_counter=look))
    return look


def test_a_training_keeps_its_time(tmp_path: Path, clock: Callable[[], float]) -> None:
    """The rate falls to nothing."""
    file = small_config(
        tmp_path,
        {
            "schedule": {"type": "cosine", "warmup": "10%"},
            "train": {"duration": "2 s", "evaluate_every": "100 steps", "checkpoint_every": "1 s"},
        },
    )
    summary = fit(file, root=tmp_path / "runs")
    assert summary["elapsed_s"] == pytest.approx(2.0, rel=0.05)
    assert clock() < 2.1
    rows = rows_of(Path(summary["run"]))
    assert rows[-1]["step"] == summary["step"] == summary["total_steps"]
    rates = [row["lr"] for row in rows]
    assert rates[-1] < 0.02 * max(rates)
    assert rates.index(max(rates)) < len(rates) / 3


@pytest.mark.usefixtures("clock")
def test_a_resumed_training_has_the_rest_of_its_time(tmp_path: Path) -> None:
    sections: Sections = {"train": {"duration": "2 s", "evaluate_every": "50 steps"}}
    file = small_config(tmp_path, sections)
    run = fit_with_stops(file, tmp_path / "runs", (100,))
    rows = read_metrics(run)
    assert rows[-1]["elapsed_s"] == pytest.approx(2.0, rel=0.05)
    again = fit(file, root=tmp_path / "runs", resume=run)
    assert again["step"] == rows[-1]["step"], "a run that has had its time is finished"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"schedule": {"type": "cosine", "warmup": "50 steps"}},
            "warmup: '50 steps' is no known share of a",
        ),
        ({"train": {"evaluate_every": "5%"}}, r"train.evaluate_every: '5%' of a training whose length is a time"),
        ({"train": {"checkpoint_every": "5%"}}, r"train.checkpoint_every: '5%' of a training whose length is a time"),
        (
            {"regularization": {"average": {"type": "swa", "start": "50%", "every": "1%"}}},
            "swa counts steps, and train.duration is a",
        ),
    ],
)
def test_what_a_time_does_not_tell_is_refused(changes: Sections, message: str, tmp_path: Path) -> None:
    write_arrays(tmp_path / "small.npz")
    train = {"duration": "2 s"} | changes.pop("train", {})
    with pytest.raises(ConfigError, match=message) as caught:
        fit(small_config(tmp_path, {**changes, "train": train}), root=tmp_path / "runs")
    assert str(caught.value).startswith(str(tmp_path / "small.yaml:")) or "small.yaml:" in str(caught.value)


def test_averages_of_shares_work_with_a_time(tmp_path: Path) -> None:
    file = small_config(tmp_path, {"train": {"duration": "1 s"}, "regularization": {"average": {"type": "ema"}}})
    assert np.isfinite(fit(file, root=tmp_path / "runs")["metrics"]["val/loss"])
