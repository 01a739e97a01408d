"""THE SWEEP: `sweep` tries points of a config's space until it has so many trials; read it downwards.

This process, the coordinator, chooses the points and keeps the book; workers train. Nothing of a sweep is kept in
memory only: a killed one is resumed from its folder and comes to the same number of trials, none twice and none lost.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Sequence
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
from dltrain.sweep.book import Book
from dltrain.sweep.display import Display
from dltrain.sweep.folder import check_data, create, folder_of_worker
from dltrain.sweep.journal import Journal, Trial, Trials, ranked
from dltrain.sweep.points import Points
from dltrain.sweep.pool import Pool, find_slots
from dltrain.sweep.report import write_report
from dltrain.sweep.shared import Database, SharedBook
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
    journal = None if resume is None else Journal(Path(resume))

    # ---- 2. What all trials share: imports, the data, processes; and a look whether the config itself would train ---
    with contextlib.ExitStack() as stack:
        pool, num_slots = stack.enter_context(workers(file))
        goals, data = look(pool, settings)
        points = Points(settings, file.config.seed, [higher for _, higher in goals])

        # ---- 3. The folder: a new one, or one to go on with ---------------------------------------------------------
        if journal is None:
            journal = create(Path(root), file, goals, data)
        stack.callback(journal.close)
        if resume is not None:
            check_data(journal, data)
            journal.append({"event": "resumed", "set": list(file.overrides), "time": time.time()})
        book = Book(journal, settings, points)
        return search(book, file, goals, pool, num_slots, display)


def work(
    file: ConfigFile,
    database: Database,
    name: str,
    *,
    new: bool,
    root: str | Path = "runs",
    trusted: Sequence[str] | None = None,
    display: Display | None = None,
) -> dict[str, Any]:
    """Work at the sweep of the study `name` together with other processes, until all its trials have ended.

    Args:
        file: the config, from `load_config`, or from `Database.config` to work at a study that is there.
        database: in which the study lies.
        name: of the study.
        new: whether it is made first.
        root: folder in which this worker's folder `<name>/<n>` is made, with the runs that it trains.
        trusted: None if the user gave the config; else the code named by it that may run (see `Builder`).
        display: where to show what happens; None for silence.

    Raises the same as `sweep`, and TrainingError if the database is lost.
    """
    settings, display = settings_of(file), display or Display("off")
    with workers(file, trusted) as (pool, num_slots):
        goals, data = look(pool, settings)
        if new:
            database.create(name, file, goals, data)
        book = SharedBook(database, name, file, settings, data, folder_of_worker(Path(root), name))
        display.say(f"study    {name}; on other machines: {book.how_to_resume}")
        return search(book, file, goals, pool, num_slots, display)


def search(
    book: Book | SharedBook, file: ConfigFile, goals: Goals, pool: Pool, num_slots: int, display: Display
) -> dict[str, Any]:
    """Train what the book says until nothing is left, and return the summary; raises as `sweep` does."""
    settings = settings_of(file)
    trainings = _Trainings(settings, file.config.seed, book, goals, pool, display)
    display.begin(book, settings, goals, num_slots)

    # ---- 4. The loop ------------------------------------------------------------------------------------------------
    began_s = time.monotonic()
    with StopRequest() as stop, display:
        while True:
            late = settings.time is not None and time.monotonic() - began_s >= settings.time.amount
            for slot in range(num_slots):
                if slot not in trainings.running and stop.number is None and not late and not trainings.stopped_by:
                    trainings.start(slot)
            done = not trainings.running and (late or not book.waits)
            if done or stop.number is not None or trainings.stopped_by:
                break
            for slot, kind, facts in pool.messages(_WAIT_S):
                trainings.hear(slot, kind, facts)
            book.refresh()
            display.draw()
        trainings.stop()

    # ---- 5. The result ----------------------------------------------------------------------------------------------
    num_ended = sum(trial.state != "open" for trial in book.trials.values())
    report = write_report(book.folder) if num_ended and isinstance(book, Book) else None
    if stop.number is not None:
        raise Stopped(
            f"stopped after {num_ended} of {book.total} trials; go on with: {book.how_to_resume}", stop.number
        )
    if trainings.stopped_by:
        raise TrainingError(
            f"stopped after {num_ended} of {book.total} trials: {settings.same_errors} trainings in a row failed "
            f"alike: {trainings.stopped_by}; once that is mended, go on with: {book.how_to_resume}"
        )
    summary = _summary(book, goals, time.monotonic() - began_s) | {"report": str(report or "")}
    if not summary["best"] and num_ended == book.total:
        last = _last_error(book.trials)
        raise TrainingError(f"none of {book.total} trials finished; the last error: {last}; see {book.folder}")
    if summary["best"] and Path(summary["best"][0]["runs"][0]).is_dir():
        draw_curves(Path(summary["best"][0]["runs"][0]))
    return summary


class _Trainings:
    """Which slot is at which training of the book."""

    def __init__(
        self,
        settings: Sweep,
        seed: int,
        book: Book | SharedBook,
        goals: Goals,
        pool: Pool,
        display: Display,
    ) -> None:
        self.running: dict[int, tuple[Trial, int]] = {}
        """Slot -> the trial and the index of its seed."""
        self.stopped_by = ""
        """The error that came too often in a row."""
        self._settings, self._seed, self._book, self._pool, self._display = settings, seed, book, pool, display
        self._objectives = [name for name, _ in goals]
        self._last_error, self._num_equal = "", 0

    def start(self, slot: int) -> None:
        """Give a slot the next training, if there is one."""
        found = self._book.next_run()
        if found is None:
            return
        trial, index = found
        options = options_of(trial.params)
        if self._settings.seeds > 1:
            options.append(f"seed={self._seed + index}")
        asks = self._settings.pruner != "none" and index == 0
        self.running[slot] = trial, index
        self._pool.send(slot, Job(options, self._book.folder, self._objectives, asks))

    def hear(self, slot: int, kind: str, facts: Any) -> None:
        """Take in what a worker says."""
        if slot not in self.running:
            return
        trial, index = self.running[slot]
        if kind == "row":
            if self._settings.pruner != "none" and index == 0:
                hopeless = self._book.is_hopeless(trial, facts["evaluation"], facts["value"])
                self._pool.send(slot, not hopeless)
            self._display.row(slot, trial, index, facts)
            return
        if kind == "died":
            kind, facts = "failed", {"error": facts, "diverged": False, "would_repeat": False, "reports": []}
        if kind == "failed":
            may_repeat = not facts.pop("would_repeat")
            facts["again"] = may_repeat and trial.runs[index].num_failures < self._settings.retries
        counts = self._book.note(trial, index, kind, facts)
        if kind == "started":
            return
        del self.running[slot]
        if counts:
            self._count_errors(kind, facts)
            self._display.ended(slot, trial, index, kind)

    def stop(self) -> None:
        """Stop what is running."""
        self._pool.stop(list(self.running), _PATIENCE_S)
        for trial, index in self.running.values():
            self._book.note(trial, index, "stopped", {})
        self.running.clear()

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


@contextlib.contextmanager
def workers(file: ConfigFile, trusted: Sequence[str] | None = None) -> Iterator[tuple[Pool, int]]:
    """Context of the processes that train, which share the data of the config; gives them and their number.

    `trusted` is None if the user gave the config, else the code named by it that may run.
    """
    settings, train = settings_of(file), file.config.train
    with _one_thread():
        slots = find_slots(train.device, train.threads, None if settings.slots == "auto" else settings.slots)
        preparations = Preparations()
        if not slots.spawn:
            builder = Builder(trial_file(file, ()), trusted)
            preparations(builder, raw_targets=needs_raw_targets(builder))
        with Pool(slots, Trainer(file, preparations, slots.threads, os.getpid(), trusted)) as pool:
            yield pool, len(slots.devices)


def look(pool: Pool, settings: Sweep) -> tuple[Goals, dict[str, Any]]:
    """Let a worker try the config itself; return what trials are judged by and the facts that tell its data apart."""
    pool.send(0, settings.objectives)
    kind, facts = pool.answer(0)
    if kind == "goal":
        return facts["goals"], facts["data"]
    if kind == "error":
        error, arguments = facts
        raise error(*arguments)
    raise TrainingError(f"the config itself cannot be trained: {facts}")


def _summary(book: Book | SharedBook, goals: Goals, elapsed_s: float) -> dict[str, Any]:
    """Return the result of a sweep as JSON values."""
    names, trials = [name for name, _ in goals], book.trials
    states = [trial.state for trial in trials.values()]

    def row(trial: Trial) -> dict[str, Any]:
        deviations = {"deviations": dict(zip(names, trial.deviations, strict=True))} if trial.deviations else {}
        return {
            "trial": trial.number,
            "values": dict(zip(names, trial.values, strict=True)),
            **deviations,
            "params": trial.params,
            "runs": [book.place_of(run) for run in trial.runs],
        }

    return {
        "sweep": str(book.folder),
        "objectives": names,
        "higher_is_better": [higher for _, higher in goals],
        "total": book.total,
        **{state: states.count(state) for state in ("finished", "pruned", "failed")},
        "best": [row(trial) for trial in ranked(trials, [higher for _, higher in goals])],
        "failures": [
            {"trial": trial.number, "params": trial.params, "error": trial.error}
            for trial in trials.values()
            if trial.state == "failed"
        ],
        "elapsed_s": round(elapsed_s, 3),
        "resume": book.how_to_resume,
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
