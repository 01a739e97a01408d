"""Threads that wait: whether they are kept from the cores is seen, and then there is a second team of them."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
import torch

from dltrain import waiting
from dltrain.waiting import considerate_threads

TASKS = Path("/proc/self/task")

pytestmark = pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the system does not say how long")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.zeros(2**20)  # the team of this thread
    yield
    torch.set_num_threads(before)


def num_tasks() -> int:
    return len(list(TASKS.iterdir()))


def comes_true(condition: Callable[[], bool]) -> bool:
    """Return whether a condition holds within ten seconds."""
    until = time.monotonic() + 10
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def test_there_is_a_second_team_while_threads_are_kept_waiting(
    two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = count()
    monkeypatch.setattr(waiting, "_LOOK_S", 0.01)
    monkeypatch.setattr(waiting, "_kept_waiting_s", lambda: next(waited))
    before = num_tasks()
    with considerate_threads():
        assert comes_true(lambda: num_tasks() == before + 3)  # one that looks, and a team of two
        monkeypatch.setattr(waiting, "_kept_waiting_s", lambda: 0.0)
        assert comes_true(lambda: num_tasks() == before + 1)
        monkeypatch.setattr(waiting, "_kept_waiting_s", lambda: next(waited))
        assert comes_true(lambda: num_tasks() == before + 3)
    assert comes_true(lambda: num_tasks() == before)


def test_one_thread_waits_for_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    before = num_tasks()
    with considerate_threads():
        assert num_tasks() == before
    torch.set_num_threads(threads)


def test_nothing_is_done_where_the_system_says_nothing(
    two_threads: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(waiting, "_SELF", tmp_path)
    before = num_tasks()
    with considerate_threads():
        assert num_tasks() == before


BESIDE = """
import os, subprocess, sys, time
from dltrain.waiting import _kept_waiting_s
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if sys.argv[1] == "beside" else None
began, before = time.process_time(), _kept_waiting_s()
while time.process_time() - began < 0.5:
    pass
print(_kept_waiting_s() - before)
if neighbour is not None:
    neighbour.kill()
"""


def test_a_neighbour_on_the_same_core_is_seen() -> None:
    command = [sys.executable, "-c", BESIDE, "beside"]
    kept_waiting = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(kept_waiting) > 0.2  # 0.5 s of work beside a neighbour take a second
