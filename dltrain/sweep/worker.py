"""A process that trains one trial after the other, as `dltrain fit` would, and dies with the process that started it.

What a training needs that others had before it (imports, prepared data) is there already: that is what makes a trial
cost little more than its steps.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from dltrain.build import Builder, is_users, user_failure
from dltrain.config.validate import ConfigFile
from dltrain.data.prepare import Prepared, prepare
from dltrain.data.progress import hide_progress
from dltrain.device import limit_threads
from dltrain.errors import ConfigError, Diverged, DltrainError, Stopped, TrainingError
from dltrain.metrics import HIGHER_IS_BETTER
from dltrain.names import did_you_mean, first_line
from dltrain.plan import Plan, make_plan
from dltrain.run import read_metrics
from dltrain.signals import die_with
from dltrain.state import State
from dltrain.sweep.journal import finite
from dltrain.sweep.space import SPACE, trial_file
from dltrain.train import fit

OUTPUT = "workers.log"
"""What trainings print, in the sweep's folder."""
OF_TRAINING = ("elapsed_s", "num_parameters")
"""Objectives that are no metrics; less is better."""
_MAX_PREPARED = 4


@dataclass(frozen=True)
class Trainer:
    """What a worker is started with."""

    file: ConfigFile
    """The config of the sweep."""
    preparations: Preparations
    threads: int
    """CPU threads that a training may use: the share of this worker."""
    parent: int
    """Process id of the coordinator."""
    trusted: Sequence[str] | None
    """None if the user gave the config; else the code named by it that may run."""


@dataclass(frozen=True)
class Job:
    """One training to do."""

    options: list[str]
    """The `key=value` overrides that make it the trial's."""
    folder: Path
    """Of the sweep."""
    objectives: list[str]
    asks: bool
    """Whether the coordinator decides after each evaluation if it goes on."""


class Preparations:
    """Prepares data and remembers what it has prepared for which settings."""

    def __init__(self) -> None:
        self._prepared: dict[str, Prepared] = {}

    def __call__(self, builder: Builder, *, raw_targets: bool) -> Prepared:
        """Return the data of a config, as `prepare` does."""
        sections = builder.file.config.model_dump(include={"data", "split", "task"})
        key = json.dumps([sections, raw_targets], sort_keys=True, default=str)
        if key not in self._prepared:
            if len(self._prepared) >= _MAX_PREPARED:
                del self._prepared[next(iter(self._prepared))]
            self._prepared[key] = prepare(builder, raw_targets=raw_targets)
        return self._prepared[key]


class _Observer:
    """Stands where `fit` shows its progress, and tells the coordinator of it instead."""

    def __init__(self, connection: Connection, job: Job) -> None:
        self._connection, self._job = connection, job
        self._total_steps = 0
        self.num_parameters = 0
        self.reports: list[float | None] = []
        self.is_pruned = False

    def begin(self, folder: Path, plan: Plan) -> None:
        self.num_parameters = sum(parameter.numel() for parameter in plan.network.model.parameters())
        self._connection.send(("started", {"run": os.path.relpath(folder, self._job.folder)}))

    def row(self, row: dict[str, Any]) -> None:
        value, share = finite(row.get(self._job.objectives[0])), row["step"] / self._total_steps
        self.reports.append(value)
        self._connection.send(("row", {"evaluation": len(self.reports), "value": value, "share": share}))
        if self._job.asks and not self._connection.recv() and share < 1:
            self.is_pruned = True
            raise Stopped(f"pruned after {len(self.reports)} evaluations", signal.SIGTERM)

    def step(self, state: State) -> None:
        self._total_steps = state.total_steps

    def say(self, text: str) -> None:
        pass

    def __enter__(self) -> _Observer:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


def run_worker(connection: Connection, trainer: Trainer, inherited: Sequence[Connection]) -> None:
    """Do what comes through `connection`: "try" the config, or a Job; the answers are (kind, facts).

    `inherited` are connections of others, which a forked process has too.
    """
    _belong_to(trainer.parent)
    for other in inherited:
        other.close()
    if "OMP_NUM_THREADS" not in os.environ:
        limit_threads(trainer.threads)
    hide_progress()
    output: Path | None = None
    with contextlib.suppress(EOFError, BrokenPipeError):  # the coordinator is gone, or wants no more
        while True:
            job = connection.recv()
            if isinstance(job, Job):
                if output is None:
                    output = _write_output_to(job.folder / OUTPUT)
                connection.send(train(connection, trainer, job))
            else:
                connection.send(try_config(trainer, job))


def train(connection: Connection, trainer: Trainer, job: Job) -> tuple[str, dict[str, Any]]:
    """Train as the job says; return how it ended: finished, pruned, stopped or failed, with what the journal keeps."""
    observer: Any = _Observer(connection, job)
    try:
        file = trial_file(trainer.file, job.options)
        summary = fit(
            file,
            root=job.folder,
            progress=observer,
            trusted=trainer.trusted,
            preparation=trainer.preparations,
            curves=False,
        )
        rows = read_metrics(Path(summary["run"]))
        best: dict[str, Any] = next((row for row in reversed(rows) if row.get("best")), {})
        known = {**best, "elapsed_s": summary["elapsed_s"], "num_parameters": observer.num_parameters}
        values = [finite(known.get(name)) for name in job.objectives]
        if None in values:
            raise Diverged(f"{job.objectives[values.index(None)]} is not finite at any evaluation")
    except Stopped:
        return "pruned" if observer.is_pruned else "stopped", {"reports": observer.reports}
    except (EOFError, BrokenPipeError):
        raise
    except Exception as error:  # whatever a training does: the others go on
        return "failed", {**_failure(error), "reports": observer.reports}
    facts = {"values": values, "metrics": best, "reports": observer.reports, "elapsed_s": summary["elapsed_s"]}
    return "finished", facts


def _failure(error: Exception) -> dict[str, Any]:
    """Return what is said of an error, and whether the same training would fail in the same way again."""
    if isinstance(error, DltrainError):
        return {"error": str(error), "diverged": isinstance(error, Diverged), "would_repeat": True}
    traceback.print_exc()
    text = user_failure(error) if is_users(error) else f"{type(error).__name__}: {first_line(error)}"
    return {"error": text, "diverged": False, "would_repeat": False}


def try_config(trainer: Trainer, objectives: Sequence[str]) -> tuple[str, Any]:
    """Make the plan of the config itself; return ("goal", facts) or ("error", it).

    The facts are goals, [(objective, whether higher is better)], and data, which tells whether they are the same.
    """
    try:
        file = trial_file(trainer.file, ())
        plan = make_plan(Builder(file, trainer.trusted), trainer.preparations)
        names = list(objectives) or [plan.goal.metric]
        possible = ["loss", *plan.data.task.metrics(torch.device("cpu")).compute()]
        for name in names:
            split, _, metric = name.partition("/")
            if name not in OF_TRAINING and (metric not in possible or split not in plan.data.splits):
                splits = " or ".join(plan.data.splits)
                raise ConfigError(
                    f"{trainer.file.place(SPACE[0], 'objective')}: is '{name}'; possible for this task: "
                    f"{', '.join(possible)} after {splits} and '/', or {', '.join(OF_TRAINING)}"
                    f"{did_you_mean(metric, possible)}"
                )
    except DltrainError as error:
        return "error", (type(error), error.args if not isinstance(error, ConfigError) else tuple(error.problems))
    except Exception as error:
        traceback.print_exc()
        return "error", (TrainingError, (f"the config fails: {type(error).__name__}: {first_line(error)}",))
    goals = [(name, HIGHER_IS_BETTER.get(name.partition("/")[2], False)) for name in names]
    return "goal", {"goals": goals, "data": {key: plan.data.facts[key] for key in ("fingerprint", "num_samples")}}


def _belong_to(parent: int) -> None:
    """Leave signals of the terminal to the coordinator, and die when it does, however it dies."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with(parent)


def _write_output_to(path: Path) -> Path:
    """Send stdout and stderr of this process to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.close(handle)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    return path
