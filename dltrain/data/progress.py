"""How far long work is, as a bar on the terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

_FIRST_DRAW_S = 1.0
_SECONDS_BETWEEN_DRAWS = 0.2

_shows_progress = True


@contextlib.contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """Give the block a function to tell of how many more of `total` it has done; `what` is one word or two.

    On a terminal a bar appears on stderr once the work has taken a second. To be told from one thread.
    """
    line = _ProgressLine(total, what)
    try:
        yield line.advance
    finally:
        line.stop()


def hide_progress() -> None:
    """Show no bars from now on."""
    global _shows_progress
    _shows_progress = False


class _ProgressLine:
    """A bar that is drawn only for long work."""

    def __init__(self, total: int, what: str) -> None:
        self._total, self._what, self._done = total, what, 0
        self._bar: Bar | None = None
        self._next_draw = time.perf_counter() + _FIRST_DRAW_S

    def advance(self, number: int) -> None:
        self._done += number
        now = time.perf_counter()
        if not _shows_progress or now < self._next_draw:
            return
        self._next_draw = now + _SECONDS_BETWEEN_DRAWS
        if self._bar is None:
            self._start()
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
            self._bar.refresh()

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _start(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        from dltrain.console import err_console

        console = err_console()
        if not console.is_terminal:
            self._next_draw = float("inf")
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TaskProgressColumn())
        self._bar = Bar(*columns, TimeRemainingColumn(), console=console, transient=True, auto_refresh=False)
        self._task = self._bar.add_task(self._what, total=self._total)
        self._bar.start()
