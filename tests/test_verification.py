"""`dltrain verify`: a run is proved to be exact, and one that is not is found out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dltrain import checkpoint as checkpoints
from dltrain.checkpoint import LAST, PREVIOUS, Checkpoint
from dltrain.errors import CheckpointError, TrainingError
from dltrain.verification import verify
from tests.small_runs import Sections, dltrain_here, train

EVERY: Sections = {"train": {"checkpoint_every": "5 steps"}, "model": {"dropout": 0.3}}


def contents(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def test_a_run_is_exact_and_is_left_as_it_is(tmp_path: Path) -> None:
    run = train(tmp_path, EVERY)
    before = contents(run)
    result = dltrain_here("verify", run, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    number = len(checkpoints.load(run / "checkpoints" / LAST).tensors)
    assert result.stdout == (f"steps 10 to 12 trained again: {number} tensors and all metrics are equal, bit for bit\n")
    assert contents(run) == before
    assert [path.name for path in run.parent.iterdir()] == [run.name]


def forge(run: Path, name: str) -> None:
    """Change one value of the last checkpoint by its least bit, with sums that fit."""
    path = run / "checkpoints" / LAST
    saved = checkpoints.load(path)
    tensors = dict(saved.tensors)
    tensors[name] = torch.nextafter(tensors[name], torch.tensor(torch.inf))
    checkpoints.save(path, Checkpoint(tensors, saved.meta))


def test_one_bit_of_one_weight_is_found(tmp_path: Path) -> None:
    run = train(tmp_path, EVERY)
    forge(run, "model/layers.0.bias")
    with pytest.raises(TrainingError, match=r"steps 10 to 12, trained again, differ in model/layers\.0\.bias; other"):
        verify(run)


def test_a_run_with_one_checkpoint_says_what_is_missing(tmp_path: Path) -> None:
    run = train(tmp_path)
    (run / "checkpoints" / PREVIOUS).unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=r"has no previous\.safetensors, and two checkpoints are needed"):
        verify(run)


def test_what_is_no_run_is_an_error(tmp_path: Path) -> None:
    result = dltrain_here("verify", tmp_path, cwd=tmp_path)
    assert result.returncode == 5
    assert result.stderr == f"{tmp_path}: is no run directory (it has no checkpoints/); such as runs/digits/1\n"
