"""The book of a sweep on one machine: which training is next, and what became of each, in the folder's journal.

`shared` has the same methods for a sweep that several machines work at.
"""

from __future__ import annotations

import time
from typing import Any

from dltrain.config.schema.sweep import Sweep
from dltrain.sweep.journal import Journal, Trial, TrialRun, apply, trials_of
from dltrain.sweep.points import Points, num_trials


class Book:
    """Trials of one coordinator; each method writes down what happened before anybody acts on it."""

    waits = False
    """Whether there are trainings that may yet come back, because others have them."""

    def __init__(self, journal: Journal, settings: Sweep, points: Points) -> None:
        self.folder = journal.path.parent
        self.trials = trials_of(journal.events, settings.seeds)
        self.total = max(num_trials(settings), len(self.trials))
        """How many trials there are to be; a journal that was written anew may have more than are asked for."""
        self._journal, self._settings, self._points = journal, settings, points
        for trial in self.trials.values():
            points.restore(trial)
        self._open = [trial for trial in self.trials.values() if trial.state == "open"]

    def next_run(self) -> tuple[Trial, int] | None:
        """Return the next training and call it running: a trial and the index of a seed; None if none can begin."""
        found = next_open(self._open, self._settings)
        if found is None and len(self.trials) < self.total:
            number = len(self.trials) + 1
            self._write({"event": "asked", "trial": number, "params": self._points.ask(number)})
            self._open.append(self.trials[number])
            found = self.trials[number], 0
        if found is not None:
            trial, index = found
            trial.runs[index].state = "running"
        return found

    def note(self, trial: Trial, index: int, kind: str, facts: dict[str, Any]) -> bool:
        """Write down what became of a training; return whether it counts, which it does here."""
        was_open = trial.state == "open"
        self._write({"event": kind, "trial": trial.number, "seed_index": index, **facts})
        if was_open and trial.state != "open":
            self._open.remove(trial)
            self._points.tell(trial)
        return True

    def is_hopeless(self, trial: Trial, evaluation: int, value: float | None) -> bool:
        """Report the objective of a trial's first seed; return whether the trial should end there."""
        return self._points.is_hopeless(trial.number, evaluation, value)

    def place_of(self, run: TrialRun) -> str:
        """Return the run directory of a training."""
        return str(self.folder / run.folder)

    def refresh(self) -> None:
        """Hear from the others; here there are none."""

    @property
    def how_to_resume(self) -> str:
        """The command that goes on with the sweep."""
        return f"dltrain sweep --resume {self.folder}"

    def _write(self, event: dict[str, Any]) -> None:
        event["time"] = time.time()
        self._journal.append(event)
        apply(self.trials, event, self._settings.seeds)


def next_open(trials: list[Trial], settings: Sweep) -> tuple[Trial, int] | None:
    """Return the first training that is open; of a trial that may be pruned the first seed is waited for."""
    for trial in trials:
        for index, run in enumerate(trial.runs):
            waits = index > 0 and settings.pruner != "none" and trial.runs[0].state != "finished"
            if run.state == "open" and not waits and trial.state == "open":
                return trial, index
    return None
