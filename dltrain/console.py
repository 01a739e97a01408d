"""What people see: on a terminal a live line of progress, elsewhere plain lines without control codes; all on stderr.

Results (tables, JSON) go to stdout, so that scripts can pipe them.
"""

from __future__ import annotations

import contextlib
import itertools
import textwrap
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dltrain.names import printable
from dltrain.signals import let_go_of_stderr

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from dltrain.data.prepare import Prepared
    from dltrain.plan import Plan
    from dltrain.state import State

Function = TypeVar("Function", bound=Callable[..., Any])

_SECONDS_BETWEEN_DRAWS = 0.2
_ROWS_PER_HEADER = 20
_ORDER = ("epoch", "train", "val", "lr", "samples_per_s", "left")
_METRICS = ("loss", "penalty", "accuracy", "micro_f1", "rmse", "r2", "perplexity", "token_accuracy", "exact_match")
_DISPENSABLE = (
    "samples_per_s",
    "lr",
    *(f"train/{name}" for name in ("exact_match", "r2", "micro_f1", "accuracy", "rmse")),
    "val/token_accuracy",
    "val/r2",
    "left",
    "train/penalty",
)
"""The columns that are left out, one by one, where a row is wider than the terminal."""
_NARROW = {"epoch": 5, "left": 7}
_LABEL_WIDTH = 9
_MAX_NAMES = 10


def err_console() -> Console:
    """Return the console of messages: stderr; plain, and never folded, where that is no terminal."""
    console = _Lasting(stderr=True, highlight=False)
    return console if console.is_terminal else _Lasting(stderr=True, highlight=False, width=10_000, no_color=True)


class _Lasting(Console):
    """A console that falls silent, and no more, once its reader has left (`dltrain fit ... 2>&1 | head -1`)."""

    def on_broken_pipe(self) -> None:
        """Do not end the process, as rich would: a training goes on."""
        self.quiet = True
        let_go_of_stderr()


def out_console() -> Console:
    """Return the console of results: stdout."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160, no_color=True)


class Watcher(Protocol):
    """What looks at a training from outside, step by step, and changes none of its numbers."""

    def begin(self, run: Path, plan: Plan) -> None:
        """Be told of the training, before its first step: its run directory, and what the loop was given."""

    def part(self, name: str, function: Function) -> Function:
        """Return the form in which the loop calls `function`, a part of a step: data, forward, loss and so on."""

    def step(self, state: State, num_samples: int) -> None:
        """Be told that a step of so many samples is done; metrics and checkpoints follow."""


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

    def begin(self, folder: Path, plan: Plan) -> None:
        """Say what will be trained on what, and where the run lies."""
        self._field("run", str(folder))
        shown = ""
        for label, text in describe(plan.data):
            self._field("" if label == shown else label, text)
            shown = label
        num_parameters, state = sum(parameter.numel() for parameter in plan.network.model.parameters()), plan.state
        self._field("model", f"{num_parameters:,} parameters on {plan.device}")
        self._total, self._steps_per_epoch, self._start = state.total_steps, plan.epoch_steps, state.step
        if state.step:
            self._field("resumed", f"at step {state.step:,} of {plan.length}")
        self.say("")

    def say(self, text: str) -> None:
        """Show a line, unless the output is on a disk that is full."""
        with contextlib.suppress(OSError):
            self._console.print(escape(printable(text)), soft_wrap=True)

    def _field(self, label: str, text: str) -> None:
        width = max(self._console.width - _LABEL_WIDTH, 20)
        for line in textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False):
            self.say(f"{label:<{_LABEL_WIDTH}}{line}")
            label = ""

    def __enter__(self) -> Progress:
        if self._live:
            self._start_bar()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.stop()
            self._bar = None

    def step(self, state: State) -> None:
        """Show a step, if it is time to draw again."""
        self._total = state.total_steps
        if self._bar is None:
            return
        now = time.perf_counter()
        if now < self._next_draw:
            return
        self._next_draw = now + _SECONDS_BETWEEN_DRAWS
        weight = state.weight_sum.item()
        loss = f"loss {state.loss_sum.item() / weight:.4f}" if weight else ""
        epoch = state.step // self._steps_per_epoch + 1
        left = clock_text(state.elapsed_s / state.step * (self._total - state.step))
        self._bar.update(
            self._task, completed=state.step, total=self._total, description=f"epoch {epoch}", loss=loss, left=left
        )
        with contextlib.suppress(OSError):  # the terminal was closed, and the run told to outlive it
            self._bar.refresh()

    def row(self, row: dict[str, Any]) -> None:
        """Show a row of metrics as one line, under a line of splits and a line of names."""
        cells = {name: _cell(name, value) for name, value in row.items()} | {"left": self._time_left(row)}
        names = _fitting(cells, self._console.width)
        widths = {name: max(_width(name, cells[name]), self._widths.get(name, 0)) for name in names}
        if widths != self._widths:
            self._widths, self._num_rows = widths, 0
        if self._num_rows % _ROWS_PER_HEADER == 0:
            self.say(_splits_line(widths))
            self.say(_line({name: _heading(name) for name in names}, widths))
        self.say(_line(cells, widths))
        self._num_rows += 1

    def _time_left(self, row: dict[str, Any]) -> str:
        rate_s = row["elapsed_s"] / row["step"]
        return clock_text(rate_s * (self._total - row["step"]))

    def _start_bar(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            transient=True,
            auto_refresh=False,
        )
        self._task = self._bar.add_task("", total=self._total, completed=self._start, loss="", left="")
        self._bar.start()


def describe(data: Prepared) -> list[tuple[str, str]]:
    """Return (label, text) of what is known of the data: sizes, columns of a table, notes, the task."""
    counts = data.facts["num_samples"]
    shapes = " + ".join("x".join(map(str, shape)) for shape in data.facts["input_shapes"])
    of_shapes = f"up to {shapes} tokens" if "vocab_size" in data.facts["source"] else shapes
    sizes = ", ".join(f"{counts[name]:,} {name}" for name in counts)
    samples = "lines" if data.task.type == "language_model" else "samples"
    lines = [("data", f"{sizes} {samples}; inputs of {of_shapes}")]
    lines += [("columns", text) for text in _columns(data.facts["source"].get("columns", []))]
    lines += [("note", note) for note in data.notes]
    inferred = " (inferred)" if data.task_is_inferred else ""
    return [*lines, ("task", f"{data.task.type}{inferred} of {_outputs(data)}")]


def _columns(columns: list[dict[str, Any]]) -> list[str]:
    """Return a line for each kind of column of a table."""
    lines = []
    for kind, word in (("numeric", "numeric"), ("category", "category"), ("date", "date"), ("ignore", "ignored")):
        names = [column["name"] + _remark(column) for column in columns if column["kind"] == kind]
        if names:
            lines.append(f"{len(names)} {word}: {_some(names)}")
    return lines


def _remark(column: dict[str, Any]) -> str:
    if column["kind"] == "category":
        return f" ({len(column['values'])} values)"
    return f" ({column['note']})" if column["kind"] == "ignore" else ""


def _outputs(data: Prepared) -> str:
    task = data.task
    if task.type == "regression":
        return _some(task.names)  # type: ignore[union-attr]
    if task.type == "multilabel":
        return f"{task.num_outputs} labels: {_some(task.labels)}"  # type: ignore[union-attr]
    if task.type == "classification":
        return f"{task.num_outputs} classes: {_some(task.classes)}"  # type: ignore[union-attr]
    return f"{task.num_outputs:,} tokens"


def _some(names: Sequence[Any]) -> str:
    return ", ".join(map(str, names[:_MAX_NAMES])) + (", ..." if len(names) > _MAX_NAMES else "")


def clock_text(seconds: float) -> str:
    """Return "1:02:03", "2:03", or "4.2 s" for less than ten seconds."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def number_text(value: Any) -> str:
    """Return a number as a person reads it: four digits of a metric, thousands apart in a count, "-" for none."""
    if value is None or value != value:
        return "-"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.3e}"


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Return a rich table; text is shown as it is, numbers to the right."""
    rows = [list(row) for row in rows]
    result = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        numeric = any(isinstance(row[index], int | float) for row in rows)
        result.add_column(escape(printable(name)), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        result.add_row(*(escape(number_text(cell) if not isinstance(cell, str) else printable(cell)) for cell in row))
    return result


def _fitting(cells: dict[str, str], width: int) -> list[str]:
    """Return the names of the columns to show, in order: as many as `width` has room for."""
    shown = [name for name in cells if name in _ORDER or name.rpartition("/")[2] in _METRICS]
    names = sorted(shown, key=lambda name: _ORDER.index(name.partition("/")[0]))
    for name in _DISPENSABLE:
        if sum(_width(name, cells[name]) + 2 for name in names) - 2 <= width:
            break
        names = [other for other in names if other != name]
    return names


def _width(name: str, cell: str) -> int:
    return max(_NARROW.get(name, 8), len(_heading(name)), len(cell))


def _heading(name: str) -> str:
    return "samples/s" if name == "samples_per_s" else name.rpartition("/")[2]


def _line(cells: dict[str, str], widths: dict[str, int]) -> str:
    return "  ".join(cells[name].rjust(width) for name, width in widths.items())


def _splits_line(widths: dict[str, int]) -> str:
    """Return the line that says which columns are of train and which of val."""
    parts = []
    for split, names in itertools.groupby(widths, key=lambda name: name.rpartition("/")[0]):
        width = sum(widths[name] + 2 for name in names) - 2
        parts.append(f"-- {split} ".ljust(width, "-") if split else " " * width)
    return "  ".join(parts).rstrip()


def _cell(name: str, value: Any) -> str:
    if name == "epoch":
        return f"{value:.10g}" if value == int(value) else f"{value:.2f}"
    if name == "lr":
        return f"{value:.2e}"
    return f"{value:,.0f}" if name == "samples_per_s" else number_text(value)
