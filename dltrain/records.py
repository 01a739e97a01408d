"""What a run writes down about itself and what it says: for people, and for the run that goes on with it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from dltrain import checkpoint as checkpoints
from dltrain.checkpoint import LAST, PREVIOUS, Checkpoint
from dltrain.config.reader import write_text
from dltrain.config.validate import ConfigFile
from dltrain.device import environment
from dltrain.errors import ConfigError, DataError, Diverged, TrainingError
from dltrain.listing import flat, read_run, settings_of
from dltrain.plan import Goal
from dltrain.ranks import Ranks
from dltrain.run import Run, find_runs, finite_or_none
from dltrain.state import State

MAY_CHANGE = (
    "name",
    "train.duration",
    "train.evaluate_every",
    "train.checkpoint_every",
    "train.eval_batch_size",
    "train.device",
    "train.cuda_graphs",
    "train.on_nonfinite",
    "train.parallel",
    "train.checkpoint",
)
"""Settings that a resumed run may have otherwise than the run that it goes on with."""

MAX_ROLLBACKS = 3
_MAX_SAMPLES = 16
_FAR_ABOVE = 9.0
_NOTHING = Checkpoint({}, {})


def open_run(
    root: Path,
    resume: Path | None,
    file: ConfigFile,
    facts: dict[str, Any],
    device: torch.device,
    state: State,
    ranks: Ranks,
) -> tuple[Run, str]:
    """Begin a run, or go on with the one at `resume`: see `begin` and `reopen`.

    Of several processes the first does so. The others learn from it which run it is, take over the state, and write
    nothing; nor do they read, since it may be another machine's disk.
    """
    run, saved, damage = None, _NOTHING, ""
    if ranks.first:
        if resume is None:
            run = begin(root, file, facts, device, ranks.size)
        else:
            run, saved, damage = reopen(resume, file, facts, state)
    folder, resumed = ranks.from_first((str(run.folder) if run is not None else "", resume is not None))
    run = run or Run(Path(folder))
    if resumed:
        take_over(run, saved, state, ranks)
    if not ranks.alone and file.config.train.threads is None:
        torch.set_num_threads(ranks.from_first(torch.get_num_threads()))
    return run, damage


def take_over(run: Run, saved: Checkpoint, state: State, ranks: Ranks) -> None:
    """Put the checkpoint that the first process has put into its `state` into that of the others; all call it.

    It is sent to them, since the run may be on another machine's disk; who has slices of a model reads them there.
    """
    if ranks.alone:
        return
    if state.shards is None:
        checkpoint, where = Checkpoint(ranks.tensors_from_first(saved.tensors), ranks.from_first(saved.meta)), "the run"
    elif not ranks.first:
        path, checkpoint, _ = checkpoints.load_last(run.folder, state.rows)
        where = str(path)
    if not ranks.first:
        state.restore(checkpoint, where)
        state.metrics.reset()  # the first process has those of all


def begin(root: Path, file: ConfigFile, facts: dict[str, Any], device: torch.device, num_processes: int = 1) -> Run:
    """Make the run directory `root`/name/n, lock it, and write config.yaml, resolved.yaml and environment.json."""
    run = Run.create(root, file.name)
    with run.closed_on_error():
        _write_description(run, file, facts, device, num_processes)
    return run


def reopen(folder: Path, file: ConfigFile, facts: dict[str, Any], state: State) -> tuple[Run, Checkpoint, str]:
    """Lock the run directory `folder` and put its last good checkpoint into `state`; metrics past it are cut off.

    Return the run, the checkpoint, and what the user should be told: which checkpoint is damaged, if one is.
    Raises ConfigError if the config differs where it may not, DataError if the data have changed, CheckpointError if
    there is no good checkpoint.
    """
    run = Run.open(folder)
    with run.closed_on_error():
        path, saved, damage = checkpoints.load_last(folder, state.rows)
        check_resumable(saved, file, facts, str(path))
        with checkpoints.understood(str(path)):
            state.restore(saved, str(path))
            if file.config.train.threads is None:  # on their number hang the last bits
                torch.set_num_threads(saved.meta["num_threads"])
        if damage:
            checkpoints.set_aside(run.checkpoints / LAST)
            damage = f"{damage}; going on from the one before it, {path.name}, at step {state.step}"
            run.log(damage)
        run.cut_metrics(state.step)
        run.write("resolved.yaml", resolved_text(file))
    return run, saved, damage


def newest_unfinished(root: Path, file: ConfigFile) -> Path | None:
    """Return the run of this config in `root` to go on with: the newest with a checkpoint that was stopped or killed.

    None where there is none. Runs with other settings than those that may change, and runs at work, are passed over.
    """
    settings = _fixed(flat(file.resolved))
    for run in reversed(list(find_runs(root / file.name))):
        has_checkpoint = any((run / "checkpoints" / name).is_file() for name in (LAST, PREVIOUS))
        if has_checkpoint and read_run(run).about["state"] == "stopped" and _fixed(settings_of(run)) == settings:
            return run
    return None


def _fixed(settings: dict[str, Any]) -> dict[str, Any]:
    """Return `settings` without those that a resumed run may have otherwise."""
    return {key: value for key, value in settings.items() if key not in MAY_CHANGE}


def roll_back(run: Run, state: State, reason: str, ranks: Ranks) -> str:
    """Put the newest checkpoint of an earlier step back into `state`; return what the user is told.

    It becomes the last one; other processes than the first take it over from that. Which it is depends on when
    checkpoints were written, and so may the weights that follow. Raises Diverged with `reason` where there is none, or
    after too many times.
    """
    if state.num_rollbacks >= MAX_ROLLBACKS:
        raise Diverged(f"{reason}; {MAX_ROLLBACKS} rollbacks are enough")
    failed_at, num_rollbacks = state.step, state.num_rollbacks + 1
    if not ranks.first:
        told = ranks.from_first("")
        take_over(run, _NOTHING, state, ranks)
        state.num_rollbacks = num_rollbacks
        return told
    for path in (run.checkpoints / LAST, run.checkpoints / PREVIOUS):
        if path.exists() and (saved := checkpoints.load(path, state.rows)).meta["step"] < failed_at:
            break
    else:
        raise Diverged(f"{reason}; there is no checkpoint of an earlier step to go back to")
    state.restore(saved, str(path))
    state.num_rollbacks = num_rollbacks
    os.replace(path, run.checkpoints / LAST)
    run.cut_metrics(state.step)
    told = f"step {failed_at}: not finite; back to step {state.step} with {state.lr_factor:g} of the learning rate"
    run.log(told)
    told = ranks.from_first(told)
    take_over(run, saved, state, ranks)
    return told


def _write_description(
    run: Run, file: ConfigFile, facts: dict[str, Any], device: torch.device, num_processes: int
) -> None:
    """Write config.yaml, resolved.yaml and environment.json."""
    run.write("config.yaml", file.text)
    run.write("resolved.yaml", resolved_text(file))
    host = {**environment(device), "num_processes": num_processes}
    host |= {"num_samples": facts["num_samples"], "set": file.changes, "tags": dict(file.tags)}
    run.write("environment.json", json.dumps(host, indent=2) + "\n")


def resolved_text(file: ConfigFile) -> str:
    """Return the config with all defaults as YAML."""
    return write_text(file.config.model_dump())


def meta(file: ConfigFile, facts: dict[str, Any], run: Path) -> dict[str, Any]:
    """Return what a checkpoint holds besides the state: what is needed to build the network again anywhere.

    The folder of the config is told from the working directory and from the run: either may have moved.
    """
    versions = {"torch": torch.__version__, "num_threads": torch.get_num_threads()}
    folders = {"folder": file.folder, "folder_from_run": os.path.relpath(file.folder, run)}
    return {"config": file.resolved, "facts": facts, **folders, **versions}


def check_resumable(saved: Checkpoint, file: ConfigFile, facts: dict[str, Any], where: str) -> None:
    """Raise ConfigError if the config differs where it may not, DataError if the data have changed."""
    before, after = flat(saved.meta["config"]), flat(file.resolved)
    changed = [
        f"{file.place(*_keys(key))}: is {after.get(key)!r}, the run was made with {before.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key not in MAY_CHANGE
    ]
    if changed:
        raise ConfigError(*changed, f"{where}: is not resumed with another config; may change: {', '.join(MAY_CHANGE)}")
    if any(facts.get(key) != saved.meta["facts"].get(key) for key in ("fingerprint", "num_samples")):
        raise DataError(f"{where}: is not resumed: the data have changed since")


def _keys(dotted: str) -> tuple[str | int, ...]:
    """Return "a.0.b" as ("a", 0, "b")."""
    return tuple(int(key) if key.isdecimal() else key for key in dotted.split("."))


def not_finite(
    what: str, where: str, samples: list[int], state: State, lr: float, steps_per_epoch: int, run: Run
) -> str:
    """Return the message about what is not finite, such as "loss is".

    Args:
        what: is not finite.
        where: it began, in words; may be empty.
        samples: of the batch, by their indices in the training split.
        state: before the update.
        lr: learning rate of the step.
        steps_per_epoch: of the training.
        run: whose checkpoint is kept.
    """
    kept = "the last checkpoint is kept" if any(run.checkpoints.glob("*")) else "no checkpoint had been written yet"
    first = f", first {where}" if where else ""
    shown = ", ".join(map(str, samples[:_MAX_SAMPLES])) + (", ..." if len(samples) > _MAX_SAMPLES else "")
    return (
        f"step {state.step} (epoch {state.step // steps_per_epoch + 1}): the {what} not finite{first}; {kept} in "
        f"{run.folder}. Try a lower optimizer.lr (it was {lr:g}), schedule.warmup, or regularization.clip. "
        f"The batch held the training samples {shown}"
    )


def beginning(verb: str, step: int, length: str, device: torch.device, ranks: Ranks) -> str:
    """Return the first line of a process in the log: "start" or "resume", where, and all that its numbers depend on."""
    host = environment(device)
    versions = ", ".join(f"{name} {host[name]}" for name in ("dltrain", "torch", "python", "platform"))
    where = f"host {host['host']} ({host['device']}), process {os.getpid()}, {host['num_threads']} threads"
    devices = f"{device}" if ranks.alone else f"{ranks.size} processes on {device.type}"
    return f"{verb} at step {step} of {length} on {devices}; {versions}; {where}"


def halve(run: Run, state: State, name: str, size: int, failure: str, ranks: Ranks) -> str:
    """Let a run that memory ran out in go on with `size` samples at once; return what the user is told.

    `name` is "micro_batch_size" or "eval_batch_size". Raises TrainingError where that would change the result.
    """
    if state.shards is not None:
        raise TrainingError(
            f"out of memory: {failure}; the processes go through a model in slices together: set train.{name}: {size}"
        )
    if name == "micro_batch_size" and any(isinstance(module, _BatchNorm) for module in state.model.modules()):
        raise TrainingError(
            f"out of memory: {failure}; BatchNorm takes its statistics of a micro-batch, so a smaller one would change "
            f"the result: set train.micro_batch_size: {size} if it may, or choose a smaller train.batch_size or model"
        )
    if name == "eval_batch_size" and not ranks.alone:
        raise TrainingError(
            f"out of memory in an evaluation: {failure}; the processes share it by whole batches: set "
            f"train.eval_batch_size: {size}"
        )
    setattr(state, name, size)
    told = f"step {state.step}: out of memory; going on with a {name} of {size}, which add up to the same"
    run.log(f"{told} ({failure})")
    return told


def divergence(run: Run, state: State, loss: float) -> str:
    """Return what the user is told where the mean loss since the last line of metrics is far above the first, or ""."""
    if state.first_loss is None:
        state.first_loss = loss
    limit = state.first_loss + _FAR_ABOVE * max(abs(state.first_loss), 1.0)
    before = state.row.get("train/loss")
    if loss <= limit or (before is not None and before > limit):  # said once, where it begins
        return ""
    told = (
        f"step {state.step}: the loss is {loss:.4g}, far above the {state.first_loss:.4g} of the start: the training "
        "diverges; try a lower optimizer.lr, schedule.warmup, or regularization.clip"
    )
    run.log(told)
    return told


def how_to_resume(state: State, folder: Any) -> str:
    """Return the message of a run that was stopped."""
    reached = f"stopped at step {state.step} of {state.total_steps}; the checkpoint is saved"
    return f"{reached}. Go on with: dltrain fit --resume {folder}"


def summary(run: Run, state: State, goal: Goal, steps_per_epoch: int, stopped_early: bool) -> dict[str, Any]:
    """Return the result of a training as JSON values."""
    scores = [score for score in state.scores if score == score]
    return {
        "run": str(run.folder),
        "step": state.step,
        "total_steps": state.total_steps,
        "epoch": state.step / steps_per_epoch,
        "stopped_early": stopped_early,
        "best": {"metric": goal.metric, "value": min(scores) * goal.sign if scores else None},
        "metrics": {key: finite_or_none(value) for key, value in state.row.items()},
        "elapsed_s": round(state.elapsed_s, 3),
    }
