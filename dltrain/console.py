"""What people see: on a terminal a live line of progress, elsewhere plain lines without control codes; all on stderr.

Results (tables, JSON) go to stdout, so that scripts can pipe them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from torch import nn

    from dltrain.data.prepare import Prepared
    from dltrain.state import State

_SECONDS_BETWEEN_DRAWS = 0.2
_SHOWN = ("epoch", "lr", "loss", "penalty", "accuracy", "micro_f1", "rmse", "r2", "samples_per_s")


def err_console() -> Console:
    """Return the console of messages: stderr; plain, and never folded, where that is no terminal."""
    console = Console(stderr=True, highlight=False)
    return console if console.is_terminal else Console(stderr=True, highlight=False, width=10_000, no_color=True)


def out_console() -> Console:
    """Return the console of results: stdout."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160, no_color=True)


class Progress:
    """Shows a training: a line for each row of metrics, and on a terminal a bar that moves between them."""

    def __init__(self, mode: Literal["on", "off"] = "on") -> None:
        self._console = err_console()
        self._console.quiet = mode == "off"
        self._live = mode == "on" and self._console.is_terminal
        self._bar: Bar | None = None
        self._widths: dict[str, int] = {}
        self._num_rows = 0
        self._total = self._steps_per_epoch = 0
        self._next_draw = 0.0

    def begin(
        self, folder: Path, data: Prepared, model: nn.Module, step: int, total: int, steps_per_epoch: int
    ) -> None:
        """Say what will be trained on what, and where the run lies."""
        counts = data.facts["num_samples"]
        shapes = " + ".join("x".join(map(str, shape)) or "1" for shape in data.facts["input_shapes"])
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.say(f"run    {folder}")
        self.say(
            f"data   {counts['train']:,} train, {counts['val']:,} val, {counts['test']:,} test samples of {shapes}"
        )
        for line in data.facts["source"].get("notes", []):
            self.say(f"       {line}")
        self.say(f"task   {data.task.type}{_outputs(data)}")
        self.say(f"model  {num_parameters:,} parameters")
        self._total, self._steps_per_epoch, self._start = total, steps_per_epoch, step
        if step:
            self.say(f"goes on at step {step} of {total}")

    def say(self, text: str) -> None:
        """Show a line."""
        self._console.print(escape(text), soft_wrap=True)

    def __enter__(self) -> Progress:
        if self._live:
            self._start_bar()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def step(self, state: State) -> None:
        """Show a step, if it is time to draw again."""
        if self._bar is None:
            return
        now = time.perf_counter()
        if now < self._next_draw:
            return
        self._next_draw = now + _SECONDS_BETWEEN_DRAWS
        weight = state.weight_sum.item()
        loss = f"loss {state.loss_sum.item() / weight:.4f}" if weight else ""
        epoch = state.step // self._steps_per_epoch + 1
        self._bar.update(self._task, completed=state.step, description=f"epoch {epoch}", loss=loss)
        self._bar.refresh()

    def row(self, row: dict[str, Any]) -> None:
        """Show a row of metrics as one line under a line of names."""
        cells = {name: _cell(name, value) for name, value in row.items() if name.split("/")[-1] in _SHOWN}
        cells["left"] = self._time_left(row)
        if cells.keys() != self._widths.keys():
            self._widths = {name: max(len(name), 8) for name in cells}
            self._num_rows = 0
        if self._num_rows % 20 == 0:
            self._line({name: name for name in cells})
        self._line(cells)
        self._num_rows += 1

    def _line(self, cells: dict[str, str]) -> None:
        self._console.print(escape("  ".join(cells[name].rjust(self._widths[name]) for name in cells)), soft_wrap=True)

    def _time_left(self, row: dict[str, Any]) -> str:
        rate_s = row["elapsed_s"] / row["step"]
        return clock_text(rate_s * (self._total - row["step"]))

    def _start_bar(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            auto_refresh=False,
        )
        self._task = self._bar.add_task("", total=self._total, completed=self._start, loss="")
        self._bar.start()


def clock_text(seconds: float) -> str:
    """Return "1:02:03" or "2:03" for a number of seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def number_text(value: Any) -> str:
    """Return a metric as a person reads it: four digits, "-" for none."""
    if value is None or value != value:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.3e}"


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> Table:
    """Return a rich table; text is shown as it is, numbers to the right."""
    rows = [list(row) for row in rows]
    result = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        numeric = any(isinstance(row[index], int | float) for row in rows)
        result.add_column(escape(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        result.add_row(*(escape(number_text(cell) if not isinstance(cell, str) else _printable(cell)) for cell in row))
    return result


def _printable(text: str) -> str:
    """Return `text` without control characters, which could command a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _cell(name: str, value: Any) -> str:
    if name == "epoch":
        return f"{value:.10g}" if value == int(value) else f"{value:.2f}"
    if name == "lr":
        return f"{value:.2e}"
    return f"{value:,.0f}" if name == "samples_per_s" else number_text(value)


def _outputs(data: Prepared) -> str:
    task = data.task
    if task.type == "regression":
        return f" of {', '.join(task.names[:5])}"  # type: ignore[union-attr]
    names = [str(name) for name in getattr(task, "classes", None) or getattr(task, "labels", [])]
    return f", {len(names)} {'classes' if task.type == 'classification' else 'labels'}: {', '.join(names[:10])}" + (
        ", ..." if len(names) > 10 else ""
    )


def fail(message: str) -> None:
    """Show an error on stderr, as it is, whatever it holds."""
    sys.stderr.write(_printable(message) + "\n")
