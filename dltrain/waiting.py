"""How CPU threads wait for one another: they spin, but sleep while other programs want the cores.

A thread that has done its part of an operation waits for the others. Where it spins, the next operation begins at
once, which makes small models twice as fast on idle cores. Where a neighbour wants them, it keeps one from the very
thread that it waits for, and a training takes several times as long (benchmarks/LOG.md). How long threads spin libgomp
settles when it is loaded, but it lets them sleep almost at once while a process has more of them than there are cores
(https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html). So while the threads of this process are kept from the
cores there is a second team of them, which does nothing. Results do not depend on it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

_SELF = Path("/proc/self")
_LOOK_S = 0.25
_KEPT_WAITING = 0.2
"""So much of the time, all threads together: alone they come to 0.04 at most, beside another training to 0.6."""
_ENOUGH_FOR_ALL = 2**20
"""Elements of a tensor that torch divides among all threads."""


@contextlib.contextmanager
def considerate_threads() -> Iterator[None]:
    """Within the block, threads sleep rather than spin while others keep them from the cores.

    Without effect where there is one thread, and where the system does not say how long a thread waits (not Linux).
    """
    if torch.get_num_threads() == 1 or not (_SELF / "schedstat").exists():
        yield
        return
    ends = threading.Event()
    watching = threading.Thread(target=_watch, args=(ends,), daemon=True)
    watching.start()
    try:
        yield
    finally:
        ends.set()
        watching.join()


def _watch(ends: threading.Event) -> None:
    """Have a second team of threads while those of this process wait for cores."""
    before = _kept_waiting_s()
    team: _SecondTeam | None = None
    while not ends.wait(_LOOK_S):
        now = _kept_waiting_s()
        kept_waiting = now - before > _KEPT_WAITING * _LOOK_S
        before = now
        if kept_waiting and team is None:
            team = _SecondTeam()
        elif not kept_waiting and team is not None:
            team.end()
            team = None
    if team is not None:
        team.end()


class _SecondTeam:
    """As many more threads as an operation takes. They belong to a thread of Python and end with it."""

    def __init__(self) -> None:
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """End them."""
        self._ends.set()
        self._thread.join()

    def _run(self) -> None:
        torch.zeros(_ENOUGH_FOR_ALL)
        self._ends.wait()


def _kept_waiting_s() -> float:
    """Return how long the threads that there are could have run but had no core, all together."""
    waited_ns = 0
    for task in (_SELF / "task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            waited_ns += int((task / "schedstat").read_text(encoding="ascii").split()[1])
    return waited_ns / 1e9
