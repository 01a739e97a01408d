"""THE SWEEP: `sweep` tries points of a config's space until it has so many trials; read it downwards.

This process, the coordinator, chooses the points and writes the journal; workers train. Nothing of a sweep is kept in
memory only: a killed one is resumed from its folder and comes to the same number of trials, none twice and none lost.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dltrain.build import Builder
from dltrain.config.schema.sweep import Sweep
from dltrain.config.validate import ConfigFile
from dltrain.curves import draw_curves
from dltrain.errors import Stopped, TrainingError
from dltrain.plan import needs_raw_targets
from dltrain.signals import StopRequest
from dltrain.sweep.display import Display
from dltrain.sweep.folder import create
from dltrain.sweep.journal import Journal, Trial, Trials, apply, ranked, trials_of
from dltrain.sweep.points import Points, num_trials
from dltrain.sweep.pool import Pool, find_slots
from dltrain.sweep.report import write_report
from dltrain.sweep.space import options_of, settings_of, trial_file
from dltrain.sweep.worker import Job, Preparations, Trainer

_WAIT_S = 0.2
_PATIENCE_S = 10.0
"""What a stopped training has to end; then it is killed."""

Goals = list[tuple[str, bool]]
"""The objectives, and of each whether higher is better."""


def sweep(
    file: ConfigFile, *, root: str | Path = "runs", resume: str | Path | None = None, display: Display | None = None
) -> dict[str, Any]:
    """Try points of the config's space and return a summary: folder, counts, the best trials, failures.

    Args:
        file: the config, from `load_config`, or from `reopened` to go on with a sweep.
        root: folder in which the sweep's folder `<name>-sweep/<n>` is made.
        resume: folder of the sweep to go on with instead.
        display: where to show what happens; None for silence.

    Raises:
        ConfigError, DataError: before anything is trained.
        TrainingError: if the same error came several times in a row, or no trial finished.
        Stopped: after a signal, with everything written that is needed to go on.
    """
    # ---- 1. What to search ------------------------------------------------------------------------------------------
    settings, display = settings_of(file), display or Display("off")
    total = num_trials(settings)
    journal = None if resume is None else Journal(Path(resume))

    # ---- 2. What all trials share: imports, the data, processes; and a look whether the config itself would train ---
    with contextlib.ExitStack() as stack:
        stack.enter_context(_one_thread())
        train = file.config.train
        slots = find_slots(train.device, train.threads, None if settings.slots == "auto" else settings.slots)
        preparations = Preparations()
        if not slots.spawn:
            builder = Builder(trial_file(file, ()))
            preparations(builder, raw_targets=needs_raw_targets(builder))
        trainer = Trainer(file, preparations, slots.threads, os.getpid())
        pool = stack.enter_context(Pool(slots, trainer))
        pool.send(0, settings.objectives)
        goals = _goals(*pool.answer(0))
        points = Points(settings, file.config.seed, [higher for _, higher in goals])

        # ---- 3. The folder: a new one, or one to go on with ---------------------------------------------------------
        if journal is None:
            journal = create(Path(root), file)
        stack.callback(journal.close)
        folder = journal.path.parent
        trials = trials_of(journal.events, settings.seeds)
        if resume is not None:
            journal.append({"event": "resumed", "set": list(file.overrides), "time": time.time()})
        for trial in trials.values():
            points.restore(trial)
        search = _Search(settings, file.config.seed, folder, journal, trials, points, goals, pool, display, total)
        display.begin(folder, settings, goals, total, len(slots.devices), trials)

        # ---- 4. The loop --------------------------------------------------------------------------------------------
        began_s = time.monotonic()
        num_slots = len(slots.devices)
        with StopRequest() as stop, display:
            while True:
                late = settings.time is not None and time.monotonic() - began_s >= settings.time.amount
                for slot in range(num_slots):
                    if slot not in search.running and stop.number is None and not late and not search.stopped_by:
                        search.start(slot)
                if not search.running or stop.number is not None or search.stopped_by:
                    break
                for slot, kind, facts in pool.messages(_WAIT_S):
                    search.hear(slot, kind, facts)
                display.draw(trials)
            search.stop()

    # ---- 5. The result ----------------------------------------------------------------------------------------------
    again = f"dltrain sweep --resume {folder}"
    num_ended = sum(trial.state != "open" for trial in trials.values())
    report = write_report(folder) if num_ended else None
    if stop.number is not None:
        raise Stopped(f"stopped after {num_ended} of {total} trials; go on with: {again}", stop.number)
    if search.stopped_by:
        raise TrainingError(
            f"stopped after {num_ended} of {total} trials: {settings.same_errors} trainings in a row failed alike: "
            f"{search.stopped_by}; once that is mended, go on with: {again}"
        )
    summary = _summary(folder, trials, goals, total, time.monotonic() - began_s) | {"report": str(report or "")}
    if not summary["best"] and num_ended == total:
        raise TrainingError(f"none of {total} trials finished; the last error: {_last_error(trials)}; see {folder}")
    if summary["best"]:
        draw_curves(Path(summary["best"][0]["runs"][0]))
    return summary


class _Search:
    """Trials and who is at which; each method writes down what happened before it acts on it."""

    def __init__(
        self,
        settings: Sweep,
        seed: int,
        folder: Path,
        journal: Journal,
        trials: Trials,
        points: Points,
        goals: Goals,
        pool: Pool,
        display: Display,
        total: int,
    ) -> None:
        self.running: dict[int, tuple[Trial, int]] = {}
        """Slot -> the trial and the index of its seed."""
        self.stopped_by = ""
        """The error that came too often in a row."""
        self._settings, self._seed, self._folder, self._journal = settings, seed, folder, journal
        self._trials, self._points, self._pool, self._display, self._total = trials, points, pool, display, total
        self._objectives = [name for name, _ in goals]
        self._open = [trial for trial in trials.values() if trial.state == "open"]
        self._last_error, self._num_equal = "", 0

    def start(self, slot: int) -> None:
        """Give a slot the next training, if there is one."""
        found = self._next_run()
        if found is None:
            return
        trial, index = found
        options = options_of(trial.params)
        if self._settings.seeds > 1:
            options.append(f"seed={self._seed + index}")
        asks = self._settings.pruner != "none" and index == 0
        trial.runs[index].state = "running"
        self.running[slot] = trial, index
        self._pool.send(slot, Job(options, self._folder, self._objectives, asks))

    def hear(self, slot: int, kind: str, facts: Any) -> None:
        """Take in what a worker says."""
        if slot not in self.running:
            return
        trial, index = self.running[slot]
        if kind == "row":
            if self._settings.pruner != "none" and index == 0:
                hopeless = self._points.is_hopeless(trial.number, facts["evaluation"], facts["value"])
                self._pool.send(slot, not hopeless)
            self._display.row(slot, trial, index, facts)
            return
        if kind == "died":
            kind, facts = "failed", {"error": facts, "diverged": False, "would_repeat": False, "reports": []}
        if kind == "failed":
            may_repeat = not facts.pop("would_repeat")
            facts["again"] = may_repeat and trial.runs[index].num_failures < self._settings.retries
        was_open = trial.state == "open"
        self._note({"event": kind, "trial": trial.number, "seed_index": index, **facts})
        if kind == "started":
            return
        del self.running[slot]
        self._count_errors(kind, facts)
        if was_open and trial.state != "open":
            self._open.remove(trial)
            self._points.tell(trial)
        self._display.ended(slot, trial, index, kind, self._trials)

    def stop(self) -> None:
        """Stop what is running."""
        self._pool.stop(list(self.running), _PATIENCE_S)
        for trial, index in self.running.values():
            self._note({"event": "stopped", "trial": trial.number, "seed_index": index})
        self.running.clear()

    def _next_run(self) -> tuple[Trial, int] | None:
        """Return the next training: of a trial that is open, or of a new one; None if nothing can begin now."""
        for trial in self._open:
            for index, run in enumerate(trial.runs):
                waits = index > 0 and self._settings.pruner != "none" and trial.runs[0].state != "finished"
                if run.state == "open" and not waits:
                    return trial, index
        number = len(self._trials) + 1
        if number > self._total:
            return None
        params = self._points.ask(number)
        self._note({"event": "asked", "trial": number, "params": params})
        self._open.append(self._trials[number])
        return self._trials[number], 0

    def _note(self, event: dict[str, Any]) -> None:
        event["time"] = time.time()
        self._journal.append(event)
        apply(self._trials, event, self._settings.seeds)

    def _count_errors(self, kind: str, facts: dict[str, Any]) -> None:
        """Remember how often the last error came in a row; trainings that diverge are what a search must expect."""
        if kind != "failed":
            self._num_equal = 0
        elif not facts["diverged"]:
            text = re.sub(r"\d+", "#", facts["error"])
            self._num_equal = self._num_equal + 1 if text == self._last_error else 1
            self._last_error = text
            if self._num_equal >= self._settings.same_errors:
                self.stopped_by = facts["error"]


def _goals(kind: str, facts: Any) -> Goals:
    """Return what a worker found that the trials are judged by, or raise the error that it met."""
    if kind == "goal":
        return list(facts)
    if kind == "error":
        error, arguments = facts
        raise error(*arguments)
    raise TrainingError(f"the config itself cannot be trained: {facts}")


def _summary(folder: Path, trials: Trials, goals: Goals, total: int, elapsed_s: float) -> dict[str, Any]:
    """Return the result of a sweep as JSON values."""
    names = [name for name, _ in goals]
    states = [trial.state for trial in trials.values()]

    def row(trial: Trial) -> dict[str, Any]:
        deviations = {"deviations": dict(zip(names, trial.deviations, strict=True))} if trial.deviations else {}
        return {
            "trial": trial.number,
            "values": dict(zip(names, trial.values, strict=True)),
            **deviations,
            "params": trial.params,
            "runs": [str(folder / run.folder) for run in trial.runs],
        }

    return {
        "sweep": str(folder),
        "objectives": names,
        "higher_is_better": [higher for _, higher in goals],
        "total": total,
        **{state: states.count(state) for state in ("finished", "pruned", "failed")},
        "best": [row(trial) for trial in ranked(trials, [higher for _, higher in goals])],
        "failures": [
            {"trial": trial.number, "params": trial.params, "error": trial.error}
            for trial in trials.values()
            if trial.state == "failed"
        ],
        "elapsed_s": round(elapsed_s, 3),
    }


def _last_error(trials: Trials) -> str:
    return next((trial.error for trial in reversed(trials.values()) if trial.error), "all were pruned")


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Context in which torch starts no threads here: a process that is forked while they wait would wait for ever."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
