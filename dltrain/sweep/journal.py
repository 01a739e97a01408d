"""trials.jsonl: what happened in a sweep, one line an event, written by the coordinator alone and never changed.

What is known of the trials follows from the events by `apply`, in a running sweep as in a resumed one. A line is on the
disk before what it says counts. A torn last line is one that never was.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dltrain.errors import ConfigError, DataError, TrainingError
from dltrain.run import take_lock

EVENTS = "trials.jsonl"
FORMAT_VERSION = 2
_LOCK_PATIENCE_S = 1.0


@dataclass
class TrialRun:
    """One training of a trial, with one seed."""

    state: str = "open"
    """open, running, finished, pruned or failed."""
    folder: str = ""
    """Its last run directory, relative to the sweep's folder."""
    values: list[float] = field(default_factory=list)
    """Of the objectives, at the best checkpoint."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """The line of metrics of the best checkpoint."""
    reports: list[float | None] = field(default_factory=list)
    """Of the first objective, at each evaluation."""
    elapsed_s: float = 0.0
    error: str = ""
    diverged: bool = False
    num_failures: int = 0
    holder: str = ""
    """The worker that is at it, where several machines work at the sweep."""


@dataclass
class Trial:
    """A point of the space and its trainings, one for each seed."""

    number: int
    params: dict[str, Any]
    runs: list[TrialRun]

    @property
    def state(self) -> str:
        """One of open, finished, pruned or failed."""
        states = [run.state for run in self.runs]
        for ended in ("failed", "pruned"):
            if ended in states:
                return ended
        return "finished" if all(state == "finished" for state in states) else "open"

    @property
    def values(self) -> list[float]:
        """Of the objectives, the mean over the seeds."""
        return [statistics.fmean(values) for values in zip(*(run.values for run in self.runs), strict=True)]

    @property
    def deviations(self) -> list[float]:
        """Of the objectives, the standard deviation between the seeds; empty for a single one."""
        if len(self.runs) < 2:
            return []
        return [statistics.stdev(values) for values in zip(*(run.values for run in self.runs), strict=True)]

    @property
    def error(self) -> str:
        """What the training said that failed."""
        return next((run.error for run in self.runs if run.state == "failed"), "")

    @property
    def diverged(self) -> bool:
        """Whether it failed because its loss or weights were not finite."""
        return any(run.state == "failed" and run.diverged for run in self.runs)


Trials = dict[int, Trial]


class Journal:
    """The open journal of a sweep, locked by this process."""

    def __init__(self, folder: Path) -> None:
        """Open the journal in `folder`, new or not. Raises ConfigError if another process is at work there."""
        self.path = folder / EVENTS
        self._file = open(self.path, "a+b")  # noqa: SIM115 (closed by `close`)
        if not take_lock(self._file, _LOCK_PATIENCE_S):  # workers of a coordinator that was just killed hold it, too
            self._file.close()
            raise ConfigError(f"{folder}: another process is at work in this sweep")
        self.events = self._read()

    def append(self, event: dict[str, Any]) -> None:
        """Write an event; it is on the disk when this returns. Raises TrainingError where the disk refuses."""
        try:
            self._file.write(json.dumps(event, allow_nan=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise TrainingError(f"{self.path}: cannot be written: {error.strerror}") from None

    def close(self) -> None:
        """Let go of the lock."""
        self._file.close()

    def _read(self) -> list[dict[str, Any]]:
        """Return the events, and cut off a torn last line."""
        self._file.seek(0)
        data = self._file.read()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            self._file.truncate(len(whole))
        return _events_in(whole, self.path)


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Return the events of the sweep in `folder`, also while it runs. Raises ConfigError if there is none."""
    try:
        data = (folder / EVENTS).read_bytes()
    except OSError:
        raise ConfigError(
            f"{folder}: is no folder of a sweep (it has no {EVENTS}); such as runs/digits-sweep/1"
        ) from None
    return _events_in(data[: data.rfind(b"\n") + 1], folder / EVENTS)


def _events_in(whole: bytes, path: Path) -> list[dict[str, Any]]:
    events = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict) or "event" not in event:
            raise DataError(f"{path}:{number}: is no event of a sweep; the file is damaged")
        events.append(event)
    return events


def apply(trials: Trials, event: dict[str, Any], num_seeds: int) -> None:
    """Bring `trials` up to date with an event."""
    kind = event["event"]
    if kind not in _KINDS:
        return
    if kind == "asked":
        runs = [TrialRun() for _ in range(num_seeds)]
        trials[event["trial"]] = Trial(event["trial"], event["params"], runs)
        return
    run = trials[event["trial"]].runs[event["seed_index"]]
    run.folder = event.get("run", run.folder)
    run.state = _KINDS[kind]
    if kind == "finished":
        run.values, run.metrics, run.elapsed_s = event["values"], event["metrics"], event["elapsed_s"]
    if kind in ("finished", "pruned", "failed"):
        run.reports = event["reports"]
    if kind == "failed":
        run.error, run.diverged = event["error"], event["diverged"]
        run.num_failures += 1
        run.state = "open" if event["again"] else "failed"


_KINDS = {
    "asked": "open",
    "started": "running",
    "finished": "finished",
    "pruned": "pruned",
    "failed": "failed",
    "stopped": "open",
}
"""Events of trials, and the state in which each leaves a training."""


def trials_of(events: list[dict[str, Any]], num_seeds: int) -> Trials:
    """Return the trials of a sweep that ended somehow: what was running then is open again."""
    trials: Trials = {}
    for event in events:
        apply(trials, event, num_seeds)
    for trial in trials.values():
        for run in trial.runs:
            run.state = "open" if run.state == "running" else run.state
    return trials


def ranked(trials: Trials, higher_is_better: list[bool]) -> list[Trial]:
    """Return the finished trials, the best first; with several objectives those that no other beats in all."""
    finished = [trial for trial in trials.values() if trial.state == "finished"]
    signs = [-1.0 if higher else 1.0 for higher in higher_is_better]
    scores = {t.number: [sign * value for sign, value in zip(signs, t.values, strict=True)] for t in finished}
    if len(higher_is_better) > 1:
        finished = [t for t in finished if not any(_beats(other, scores[t.number]) for other in scores.values())]
    return sorted(finished, key=lambda trial: (scores[trial.number], trial.number))


def _beats(score: list[float], other: list[float]) -> bool:
    return score != other and all(a <= b for a, b in zip(score, other, strict=True))


def finite(value: Any) -> float | None:
    """Return a number that JSON can hold, or None."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
