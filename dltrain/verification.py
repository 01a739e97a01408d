"""`dltrain verify`: the last stretch of a run is trained again, and must give the same bits."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from dltrain import checkpoint as checkpoints
from dltrain.checkpoint import LAST, PREVIOUS, Checkpoint
from dltrain.console import Function
from dltrain.errors import CheckpointError, Stopped, TrainingError
from dltrain.network import config_of
from dltrain.plan import Plan
from dltrain.state import State
from dltrain.train import fit

_OF_THE_CLOCK = ("elapsed_s", "samples_per_s")


class _StopAt:
    """Stops the training after a step, as a signal would."""

    def __init__(self, step: int) -> None:
        self.last_step = step

    def begin(self, run: Path, plan: Plan) -> None:
        """See `Watcher`."""

    def part(self, name: str, function: Function) -> Function:
        """Leave the parts of a step as they are."""
        return function

    def step(self, state: State, num_samples: int) -> None:
        """Stop, if this was the last step."""
        if state.step == self.last_step:
            signal.raise_signal(signal.SIGTERM)


def verify(run: Path, *, trusted: Sequence[str] = ()) -> str:
    """Train from the checkpoint before the last up to the last one again, in a copy, and compare every bit.

    Return in words what was compared.

    Raises:
        CheckpointError: if there are not two checkpoints.
        TrainingError: if a tensor or a metric differs; it names them.
    """
    folder = run / "checkpoints"
    if not folder.is_dir():
        raise CheckpointError(f"{run}: is no run directory (it has no checkpoints/); such as runs/digits/1")
    missing = [name for name in (LAST, PREVIOUS) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{run}: has no {missing[0]}, and two checkpoints are needed to train from one to the other; a longer run, "
            "or a shorter train.checkpoint_every, has them"
        )
    before, expected = checkpoints.load(folder / PREVIOUS), checkpoints.load(folder / LAST)
    first, last = before.meta["step"], expected.meta["step"]
    if first >= last:
        raise CheckpointError(f"{run}: both checkpoints are of step {last}; there is nothing between them")
    found = _train_again(run, before, last, trusted)
    different = _differences(expected, found)
    if different:
        shown = ", ".join(different[:10]) + (", ..." if len(different) > 10 else "")
        raise TrainingError(
            f"{run}: steps {first} to {last}, trained again, differ in {shown}; other versions, threads or hardware "
            "than environment.json says, or code of your own that draws random numbers of its own?"
        )
    return (
        f"steps {first} to {last} trained again: {len(expected.tensors)} tensors and all metrics are equal, bit for bit"
    )


def _train_again(run: Path, before: Checkpoint, last: int, trusted: Sequence[str]) -> Checkpoint:
    """Return the checkpoint of step `last` that a resumed copy of `run` writes."""
    with tempfile.TemporaryDirectory(prefix=f"{run.resolve().name}.verify-", dir=run.resolve().parent) as parent:
        copy = Path(parent, "1")
        (copy / "checkpoints").mkdir(parents=True)
        shutil.copy(run / "checkpoints" / PREVIOUS, copy / "checkpoints" / LAST)
        for name in ("metrics.jsonl", "environment.json"):
            if (run / name).exists():
                shutil.copy(run / name, copy / name)
        file = config_of(before, os.path.join(run, "checkpoints", PREVIOUS))
        with contextlib.suppress(Stopped):
            fit(file, resume=copy, watcher=_StopAt(last), trusted=trusted, curves=False)
        return checkpoints.load(copy / "checkpoints" / LAST)


def _differences(expected: Checkpoint, found: Checkpoint) -> list[str]:
    """Return the names of the tensors and metrics that are not equal."""
    names = sorted(expected.tensors.keys() | found.tensors.keys())
    different = [name for name in names if not _are_equal(expected.tensors.get(name), found.tensors.get(name))]
    rows = [
        {key: value for key, value in checkpoint.meta["metrics"].items() if key not in _OF_THE_CLOCK}
        for checkpoint in (expected, found)
    ]
    return different + sorted(key for key in rows[0].keys() | rows[1].keys() if rows[0].get(key) != rows[1].get(key))


def _are_equal(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Return whether two tensors are equal in every bit; NaN is equal to the same NaN."""
    if one is None or other is None or one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(torch.equal(*(tensor.reshape(-1).view(torch.uint8) for tensor in (one, other))))
