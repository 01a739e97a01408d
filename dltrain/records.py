"""What a run writes down about itself and what it says: for people, and for the run that goes on with it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from dltrain import checkpoint as checkpoints
from dltrain.checkpoint import LAST, Checkpoint
from dltrain.config.reader import write_text
from dltrain.config.validate import ConfigFile
from dltrain.device import environment
from dltrain.errors import ConfigError, DataError
from dltrain.plan import Goal
from dltrain.run import Run, finite_or_none
from dltrain.state import State

MAY_CHANGE = (
    "name",
    "train.duration",
    "train.evaluate_every",
    "train.checkpoint_every",
    "train.eval_batch_size",
    "train.device",
)
"""Settings that a resumed run may have otherwise than the run that it goes on with."""


def begin(root: Path, file: ConfigFile, facts: dict[str, Any], device: torch.device) -> Run:
    """Make the run directory `root`/name/n, lock it, and write config.yaml, resolved.yaml and environment.json."""
    run = Run.create(root, file.name)
    with run.closed_on_error():
        describe(run, file, facts, device)
    return run


def reopen(folder: Path, file: ConfigFile, facts: dict[str, Any], state: State) -> Run:
    """Lock the run directory `folder` and put its last checkpoint into `state`; metrics past it are cut off.

    Raises ConfigError if the config differs where it may not, DataError if the data have changed, CheckpointError if
    there is no good checkpoint.
    """
    run = Run.open(folder)
    with run.closed_on_error():
        path = checkpoints.find(folder, LAST)
        saved = checkpoints.load(path)
        check_resumable(saved, file, facts, str(path))
        with checkpoints.understood(str(path)):
            state.restore(saved, str(path))
            if file.config.train.threads is None:  # on their number hang the last bits
                torch.set_num_threads(saved.meta["num_threads"])
        run.cut_metrics(state.step)
        run.write("resolved.yaml", resolved_text(file))
    return run


def describe(run: Run, file: ConfigFile, facts: dict[str, Any], device: torch.device) -> None:
    """Write config.yaml, resolved.yaml and environment.json."""
    run.write("config.yaml", file.text)
    run.write("resolved.yaml", resolved_text(file))
    host = {**environment(device), "num_samples": facts["num_samples"], "set": file.changes}
    run.write("environment.json", json.dumps(host, indent=2) + "\n")


def resolved_text(file: ConfigFile) -> str:
    """Return the config with all defaults as YAML."""
    return write_text(file.config.model_dump())


def meta(file: ConfigFile, facts: dict[str, Any], run: Path) -> dict[str, Any]:
    """Return what a checkpoint holds besides the state: what is needed to build the network again anywhere.

    The folder of the config is told from the working directory and from the run: either may have moved.
    """
    config = {**file.config.model_dump(), "name": file.name}
    versions = {"torch": torch.__version__, "num_threads": torch.get_num_threads()}
    folders = {"folder": file.folder, "folder_from_run": os.path.relpath(file.folder, run)}
    return {"config": config, "facts": facts, **folders, **versions}


def check_resumable(saved: Checkpoint, file: ConfigFile, facts: dict[str, Any], where: str) -> None:
    """Raise ConfigError if the config differs where it may not, DataError if the data have changed."""
    before, after = _flat(saved.meta["config"]), _flat({**file.config.model_dump(), "name": file.name})
    changed = [
        f"{file.place(*key.split('.'))}: is {after.get(key)!r}, the run was made with {before.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key not in MAY_CHANGE
    ]
    if changed:
        raise ConfigError(*changed, f"{where}: is not resumed with another config; may change: {', '.join(MAY_CHANGE)}")
    if any(facts.get(key) != saved.meta["facts"].get(key) for key in ("fingerprint", "num_samples")):
        raise DataError(f"{where}: is not resumed: the data have changed since")


def not_finite(what: str, state: State, lr: float, steps_per_epoch: int, run: Run) -> str:
    """Return the message about what is not finite, such as "loss is"; `lr` is the step's learning rate."""
    kept = "the last checkpoint is kept" if any(run.checkpoints.iterdir()) else "no checkpoint had been written yet"
    return (
        f"step {state.step} (epoch {state.step // steps_per_epoch + 1}): the {what} not finite; {kept} in "
        f"{run.folder}. Try a lower optimizer.lr (it was {lr:g}), schedule.warmup, or regularization.clip"
    )


def how_to_resume(step: int, total_steps: int, folder: Any) -> str:
    """Return the message of a run that was stopped."""
    return (
        f"stopped at step {step} of {total_steps}; the checkpoint is saved. Go on with: dltrain fit --resume {folder}"
    )


def summary(
    run: Run, state: State, goal: Goal, total_steps: int, steps_per_epoch: int, stopped_early: bool
) -> dict[str, Any]:
    """Return the result of a training as JSON values."""
    scores = [score for score in state.scores if score == score]
    return {
        "run": str(run.folder),
        "step": state.step,
        "total_steps": total_steps,
        "epoch": state.step / steps_per_epoch,
        "stopped_early": stopped_early,
        "best": {"metric": goal.metric, "value": min(scores) * goal.sign if scores else None},
        "metrics": {key: finite_or_none(value) for key, value in state.row.items()},
        "elapsed_s": round(state.elapsed_s, 3),
    }


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return {"a.b": value} for a tree of mappings; lists are values."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return flat
