"""Numbers that go wrong: what is not finite never changes a weight, and each policy does what it says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dltrain import checkpoint as checkpoints
from dltrain.console import Progress
from dltrain.diagnosis import first_not_finite
from dltrain.errors import TrainingError
from dltrain.train import fit
from tests.small_runs import (
    STEPS_PER_EPOCH,
    Sections,
    fit_with_stops,
    newest_run,
    result_of,
    rows_of,
    small_config,
    train,
    weights_of,
)

# The loss is a function of the batch alone: whenever it holds the sample that is `bad`, it is not finite.
OWN = """
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    '''Says NaN, or has a gradient of NaN, in training for inputs above a limit.'''

    def __init__(self, in_features, out_features, value="output", limit=3.0):
        super().__init__()
        self.first = nn.Linear(in_features, 8)
        self.norm = nn.BatchNorm1d(8)
        self.last = nn.Linear(8, out_features)
        self.value, self.limit = value, limit

    def forward(self, x):
        bad = self.training and bool((x > self.limit).any())
        hidden = self.first(x)
        if bad and self.value == "output":
            hidden = hidden * float("nan")
        output = self.last(self.norm(hidden).relu())
        return output + (output.sum() * 0).sqrt() * 0 if bad and self.value == "gradient" else output
"""


def sections(value: str = "output", policy: str = "stop", limit: float = 4.5, **train: Any) -> Sections:
    model = {"type": "own.py:Net", "value": value, "limit": limit}
    return {"model": model, "train": {"on_nonfinite": policy, **train}}


@pytest.fixture(autouse=True)
def own_model(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("output", "the loss is not finite, first in the output of norm (BatchNorm1d); "),
        ("gradient", "the gradient is not finite, first in the gradient of first.weight; "),
    ],
)
def test_a_run_stops_before_the_update_and_says_where_it_began(value: str, message: str, tmp_path: Path) -> None:
    file = small_config(tmp_path, sections(value, checkpoint_every="1 steps"))
    with pytest.raises(TrainingError, match=r"The batch held the training samples [0-9, ]+$") as caught:
        fit(file, root=tmp_path / "runs")
    assert message in str(caught.value)
    saved = checkpoints.load(newest_run(tmp_path / "runs") / "checkpoints" / checkpoints.LAST)
    step = int(str(caught.value).split()[1])
    assert saved.meta["step"] == step > 0
    assert all(tensor.isfinite().all() for tensor in saved.tensors.values() if tensor.is_floating_point())


@pytest.mark.parametrize("value", ["output", "gradient"])
def test_skip_leaves_out_the_update_and_counts(value: str, tmp_path: Path) -> None:
    run = train(tmp_path, sections(value, "skip"))
    rows = rows_of(run)
    assert rows[-1]["skipped_steps"] > 0
    assert rows[-1]["step"] == 3 * STEPS_PER_EPOCH
    assert all(math.isfinite(row["train/loss"]) for row in rows)
    assert all(tensor.isfinite().all() for tensor in weights_of(run).values())  # batch statistics, too


def test_skip_resumes_bit_for_bit(tmp_path: Path) -> None:
    file = small_config(tmp_path, sections("output", "skip"))
    expected = result_of(Path(fit(file, root=tmp_path / "whole")["run"]))
    assert result_of(fit_with_stops(file, tmp_path / "stopped", (3, 7))) == expected


def test_skip_ends_where_every_step_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"^step 20 "):
        train(tmp_path, sections("output", "skip", limit=-100.0, duration="10 epochs"))


class Lines(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__("off")
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


DIVERGING = """
import torch.nn.functional as F


class Diverging:
    '''Cross-entropy that overflows as soon as an output is large, as it gets with a high rate.'''

    def __init__(self, limit):
        self.limit = limit

    def __call__(self, output, target):
        loss = F.cross_entropy(output, target)
        too_large = len(output) > 2 and output.detach().abs().max() > self.limit
        return loss * float("inf") if too_large and output.requires_grad else loss
"""


def diverging(limit: float) -> Sections:
    settings = {"on_nonfinite": "rollback", "checkpoint_every": "2 steps", "duration": "4 epochs"}
    loss = {"type": "diverging.py:Diverging", "limit": limit}
    return {"loss": loss, "optimizer": {"type": "sgd", "lr": 2.0}, "train": settings}


def test_rollback_goes_back_to_the_last_checkpoint_with_half_the_rate(tmp_path: Path) -> None:
    (tmp_path / "diverging.py").write_text(DIVERGING)
    lines = Lines()
    file = small_config(tmp_path, diverging(8.25))
    run = Path(fit(file, root=tmp_path / "runs", progress=lines)["run"])
    rolled_back = [line for line in lines.said if "back to step" in line]
    assert 1 <= len(rolled_back) <= 3
    assert rolled_back[0].endswith("with 0.5 of the learning rate")
    assert rolled_back[0] in (run / "log.txt").read_text()
    rows = rows_of(run)
    assert [row["step"] for row in rows] == [4, 8, 12, 16]  # no line twice
    assert rows[-1]["lr"] == 2.0 * 0.5 ** len(rolled_back)


def test_rollback_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "diverging.py").write_text(DIVERGING)
    with pytest.raises(TrainingError, match=r"3 rollbacks are enough$"):
        train(tmp_path, diverging(4.4))


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"there is no checkpoint of an earlier step to go back to$"):
        train(tmp_path, sections("output", "rollback", limit=-100.0))


def test_the_first_place_that_is_not_finite() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    x = torch.ones(4, 2)
    before = [buffer.clone() for buffer in model.buffers()]
    assert first_not_finite(model, (x,)) == ""
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))
    assert first_not_finite(model, (x * math.inf,)) == "in the augmented inputs"
    model(x).sum().backward()
    model[2].weight.grad[0, 0] = math.nan
    assert first_not_finite(model, (x,)) == "in the gradient of 2.weight"
    with torch.no_grad():
        model[0].bias[0] = math.inf
    assert first_not_finite(model, (x,)) == "in the weights 0.bias"


def test_a_loss_far_above_the_start_is_said_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A rate too high for a linear model on numbers: the loss grows without limit and stays finite for long."""
    sections_: Sections = {
        "model": {"type": "linear"},
        "optimizer": {"type": "sgd", "lr": 0.6, "momentum": 0.0},
        "loss": {"type": "mse"},
        "task": {"type": "regression"},
        "train": {"duration": "40 steps", "evaluate_every": "4 steps"},
    }
    file = small_config(tmp_path, sections_)
    fit(file, root=tmp_path / "runs", progress=Progress())
    log = (newest_run(tmp_path / "runs") / "log.txt").read_text()
    assert log.count("far above the") == 1
    assert "the training diverges; try a lower optimizer.lr" in log
    assert "far above the" in capfd.readouterr().err
