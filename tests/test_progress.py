"""Bars that only long work shows."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dltrain.data import progress


class Clock:
    """A clock that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        monkeypatch.setattr(progress.time, "perf_counter", lambda: self.now_s)


@pytest.mark.parametrize(
    ("is_terminal", "is_hidden", "duration_s", "is_shown"),
    [(True, False, 3.0, True), (True, False, 0.9, False), (False, False, 3.0, False), (True, True, 3.0, False)],
)
def test_only_long_work_on_a_terminal_shows_a_bar(
    is_terminal: bool, is_hidden: bool, duration_s: float, is_shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, out = Clock(monkeypatch), io.StringIO()
    console = Console(file=out, force_terminal=is_terminal, width=100, no_color=True)
    monkeypatch.setattr("dltrain.console.err_console", lambda: console)
    monkeypatch.setattr(progress, "_shows_progress", True)
    if is_hidden:
        progress.hide_progress()
    with progress.progress(40, "images") as advance:
        for _ in range(30):
            clock.now_s += duration_s / 30
            advance(1)
    assert ("images" in out.getvalue()) == is_shown
    assert ("/40" in out.getvalue()) == is_shown
    assert "%" in out.getvalue() or not is_shown
