"""What people see of a sweep: on a terminal a table that changes, elsewhere a line for each trial; then the result."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Group
from rich.markup import escape

from dltrain.config.schema.sweep import Sweep
from dltrain.console import clock_text, err_console, number_text, out_console, table
from dltrain.names import printable, shortened, spell
from dltrain.signals import let_go_of_stderr
from dltrain.sweep.journal import Trial, Trials, ranked

if TYPE_CHECKING:
    from rich.live import Live

    from dltrain.sweep.book import Book
    from dltrain.sweep.shared import SharedBook

_SECONDS_BETWEEN_DRAWS = 0.25
_NUM_BEST, _NUM_LIVE, _NUM_FAILURES = 10, 5, 5
_MAX_ERROR = 200


class Display:
    """Shows a sweep on stderr."""

    def __init__(self, mode: Literal["on", "off"] = "on") -> None:
        self._console = err_console()
        self._console.quiet = mode == "off"
        self._is_live = mode == "on" and self._console.is_terminal
        self._live: Live | None = None
        self._next_draw = 0.0
        self._running: dict[int, tuple[Trial, int, dict[str, Any]]] = {}

    def begin(self, book: Book | SharedBook, settings: Sweep, goals: list[tuple[str, bool]], num_slots: int) -> None:
        """Say what will be searched, how, and where it lies; the trials to be shown are those of the book."""
        self._book, self._settings, self._goals = book, settings, goals
        self._began_s, self._num_before = time.monotonic(), _count(book.trials)
        self.say(f"sweep    {book.folder}")
        self.say(f"space    {', '.join(settings.space)}")
        seeds = f" of {settings.seeds} seeds" if settings.seeds > 1 else ""
        pruner = "" if settings.pruner == "none" else f", pruned by {settings.pruner}"
        self.say(f"trials   {book.total}{seeds}, chosen by {settings.sampler}{pruner}; {num_slots} at a time")
        self.say(f"best     {', '.join(('highest ' if higher else 'lowest ') + name for name, higher in goals)}")
        if book.trials:
            self.say(f"resumed  after {self._num_before} trials")
        self.say("")

    def say(self, text: str) -> None:
        """Show a line, unless the output is on a disk that is full."""
        try:
            self._console.print(escape(printable(text)), soft_wrap=True)
        except OSError:
            let_go_of_stderr()

    def __enter__(self) -> Display:
        if self._is_live:
            from rich.live import Live

            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def row(self, slot: int, trial: Trial, index: int, facts: dict[str, Any]) -> None:
        """Note how far a training is."""
        self._running[slot] = trial, index, facts

    def ended(self, slot: int, trial: Trial, index: int, kind: str) -> None:
        """Show that a training has ended."""
        self._running.pop(slot, None)
        if self._is_live:
            return
        run = trial.runs[index]
        seed = f" seed {index + 1}/{len(trial.runs)}" if len(trial.runs) > 1 else ""
        if kind == "finished":
            what = ", ".join(f"{name} {number_text(v)}" for (name, _), v in zip(self._goals, run.values, strict=True))
        else:
            what = kind + (f": {_short(run.error)}" if kind == "failed" else "")
            what += "; it is tried again" if kind == "failed" and run.state == "open" else ""
        best = self._best()
        so_far = f"; best {number_text(best.values[0])} of trial {best.number}" if best is not None else ""
        ended = f"{_count(self._book.trials)}/{self._book.total}"
        self.say(f"{ended}  trial {trial.number}{seed}: {what}{so_far}  {_params(trial.params)}")

    def draw(self) -> None:
        """Draw the live table, if there is one and it is time to."""
        now = time.monotonic()
        if self._live is None or now < self._next_draw:
            return
        self._next_draw = now + _SECONDS_BETWEEN_DRAWS
        self._live.update(Group(*self._parts()), refresh=True)

    def _parts(self) -> list[Any]:
        best = ranked(self._book.trials, [higher for _, higher in self._goals])[:_NUM_LIVE]
        keys = list(self._settings.space)
        rows = [[str(t.number), "", *_value_texts(t), *_param_texts(t.params)] for t in best]
        for trial, index, facts in self._running.values():
            seed = f", seed {index + 1}" if len(trial.runs) > 1 else ""
            values = [number_text(facts["value"]), *("" for _ in self._goals[1:])]
            rows.append([str(trial.number), f"{facts['share']:.0%}{seed}", *values, *_param_texts(trial.params)])
        return [self._headline(), table(["trial", "at", *(name for name, _ in self._goals), *keys], rows)]

    def _headline(self) -> str:
        trials, total = self._book.trials, self._book.total
        elapsed_s, num_done = time.monotonic() - self._began_s, _count(trials)
        states = [trial.state for trial in trials.values()]
        counts = [f"{states.count(state)} {state}" for state in ("finished", "pruned", "failed") if state in states]
        parts = [f"{num_done} of {total} trials", *counts, f"{clock_text(elapsed_s)} so far"]
        if num_done > self._num_before:
            left_s = elapsed_s / (num_done - self._num_before) * (total - num_done)
            if self._settings.time is not None:
                left_s = min(left_s, max(0.0, self._settings.time.amount - elapsed_s))
            parts.append(f"about {clock_text(left_s)} left")
        return ", ".join(parts)

    def _best(self) -> Trial | None:
        """Return the best trial so far where one objective says which it is."""
        found = ranked(self._book.trials, [higher for _, higher in self._goals]) if len(self._goals) == 1 else []
        return found[0] if found else None


def show_result(result: dict[str, Any]) -> None:
    """Print the summary of a sweep: the best trials, or the Pareto front, and what failed."""
    console, best, folder = out_console(), result["best"], result["sweep"]
    counts = ", ".join(f"{result[state]} {state}" for state in ("finished", "pruned", "failed") if result[state])
    done = sum(result[state] for state in ("finished", "pruned", "failed"))
    console.print(
        f"{done} of {result['total']} trials ({counts or 'none ended'}) in {clock_text(result['elapsed_s'])}",
        markup=False,
    )
    if len(result["objectives"]) > 1:
        console.print("those that no other beats in all objectives:", markup=False)
    shown = best if len(result["objectives"]) > 1 else best[:_NUM_BEST]
    if shown:
        columns = ["trial", *result["objectives"], *shown[0]["params"]]
        rows = [[str(row["trial"]), *_texts_of(row), *_param_texts(row["params"])] for row in shown]
        console.print(table(columns, rows))
    for failure in result["failures"][:_NUM_FAILURES]:
        text = f"trial {failure['trial']} failed: {_short(failure['error'])}  {_params(failure['params'])}"
        console.print(printable(text), markup=False, soft_wrap=True)
    if len(result["failures"]) > _NUM_FAILURES:
        console.print(f"and {len(result['failures']) - _NUM_FAILURES} more failed; see --json", markup=False)
    console.print(f"sweep {folder}   (a run directory for each training)", markup=False, soft_wrap=True)
    if result["report"]:
        console.print(f"report {result['report']}", markup=False, soft_wrap=True)
    if best:
        console.print(f"best  {best[0]['runs'][0]}", markup=False, soft_wrap=True)
    if done < result["total"]:
        console.print(f"next  {result['resume']}", markup=False, soft_wrap=True)
    elif best and Path(best[0]["runs"][0]).is_dir():
        console.print(f"next  dltrain evaluate {best[0]['runs'][0]}", markup=False, soft_wrap=True)


def _texts_of(row: Mapping[str, Any]) -> list[str]:
    deviations = row.get("deviations", {})
    return [_with_deviation(value, deviations.get(name)) for name, value in row["values"].items()]


def _value_texts(trial: Trial) -> list[str]:
    deviations: Sequence[float | None] = trial.deviations or [None for _ in trial.values]
    return [_with_deviation(value, deviation) for value, deviation in zip(trial.values, deviations, strict=True)]


def _with_deviation(value: float, deviation: float | None) -> str:
    text = f"{value:,.0f}" if value.is_integer() and abs(value) > 1 else number_text(value)
    return text if deviation is None else f"{text} ± {number_text(deviation)}"


def _params(params: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={text}" for key, text in zip(params, _param_texts(params), strict=True))


def _param_texts(params: Mapping[str, Any]) -> list[str]:
    return [f"{value:.4g}" if isinstance(value, float) else spell(value) for value in params.values()]


def _short(text: str) -> str:
    return shortened(" ".join(text.split()), _MAX_ERROR)


def _count(trials: Trials) -> int:
    """Return how many trials have ended."""
    return sum(trial.state != "open" for trial in trials.values())
