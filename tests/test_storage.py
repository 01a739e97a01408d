"""Large arrays on the disk, the limits of memory, and bars that only long work shows."""

from __future__ import annotations

import ctypes
import io
import os
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dltrain.data import storage
from tests.small_runs import in_child

MIB = 2**20


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "memory_bytes", lambda: 64 * MIB)


def is_on_disk(array: np.ndarray) -> bool:
    """Return whether the memory of an array is that of a file."""
    address = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(number, 16) for number in line.split()[0].split("-"))
        if start <= address < end:
            return "(deleted)" in line and " rw-s " in line
    raise AssertionError("the array is nowhere")


# ---- where the cache is


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"DLTRAIN_CACHE": "/a/b"}, "/a/b"),
        ({"DLTRAIN_CACHE": "~/b"}, "/home/me/b"),
        ({"DLTRAIN_CACHE": "off"}, None),
        ({"DLTRAIN_CACHE": "", "XDG_CACHE_HOME": "/x"}, "/x/dltrain"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/dltrain"),
        ({}, "/home/me/.cache/dltrain"),
    ],
)
def test_the_folder_of_the_cache(
    variables: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DLTRAIN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **variables}.items():
        monkeypatch.setenv(name, value)
    assert storage.cache_folder() == (None if expected is None else Path(expected))


# ---- arrays


def test_a_small_array_is_memory(little_memory: None) -> None:
    array = storage.allocate((4, 1024, 1024), np.uint8)
    assert not is_on_disk(array)
    assert (array.shape, array.dtype) == ((4, 1024, 1024), np.uint8)


def test_a_large_array_is_a_file_without_a_name(
    little_memory: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLTRAIN_CACHE", str(tmp_path / "new" / "cache"))
    array = storage.allocate((5, MIB), np.float32)
    array[3] = 7
    assert is_on_disk(array)
    assert array.sum() == 7 * MIB
    assert (array.shape, array.dtype) == ((5, MIB), np.float32)
    assert list((tmp_path / "new" / "cache").iterdir()) == []
    taken = storage.gather(array, np.array([3, 0, 3, 1, 2]))
    assert is_on_disk(taken)
    np.testing.assert_array_equal(taken[:, 0], [7, 0, 7, 0, 0])


@pytest.mark.parametrize("cache", ["off", "/proc/no/folder"])
def test_without_a_cache_it_lies_where_temporary_files_do(
    cache: str, little_memory: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLTRAIN_CACHE", cache)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert is_on_disk(storage.allocate((20 * MIB,), np.uint8))


def test_on_a_full_disk_it_is_memory(little_memory: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    array = storage.allocate((20 * MIB,), np.uint8)
    array[:] = 1
    assert not is_on_disk(array)


@given(st.lists(st.integers(0, 9), max_size=20))
def test_gather_is_indexing(indices: list[int]) -> None:
    array = np.arange(30).reshape(10, 3)
    np.testing.assert_array_equal(storage.gather(array, np.array(indices, np.int64)), array[indices or []])


def test_gather_of_one_stretch_copies_nothing() -> None:
    array = np.arange(30).reshape(10, 3)
    assert storage.gather(array, np.arange(2, 8)).base is array.base
    assert not np.shares_memory(storage.gather(array, np.array([2, 4])), array)


# ---- memory


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another C library than glibc")
def test_freed_memory_goes_back_to_the_system() -> None:
    def measured() -> None:
        blocks = [bytes(100_000) for _ in range(1000)]  # each too small to be mapped alone
        kept = blocks[-1]  # and the heap cannot shrink below the last
        del blocks
        before = resident_mib()
        storage.give_back_freed()
        assert before - resident_mib() > 50
        assert len(kept) == 100_000

    assert in_child(measured) == 0


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


def test_limits_of_the_process_count() -> None:
    assert 0 < storage.memory_bytes() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (2**34, resource.RLIM_INFINITY))
        before = storage.memory_bytes()
        resource.setrlimit(resource.RLIMIT_DATA, (900 * MIB, resource.RLIM_INFINITY))
        after = storage.memory_bytes()
        assert after < 900 * MIB < before or after == before < 900 * MIB  # what is free on the machine counts, too

    assert in_child(limited) == 0


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, dict[str, str]], None]:
    """Give a function that sets which control groups the process is in, and what their files say."""
    monkeypatch.setattr(storage, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(storage, "_GROUPS", tmp_path / "groups")

    def set_groups(own: str, files: dict[str, str]) -> None:
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return set_groups


VERSION_1 = "5:memory:/docker/3f\n4:cpu,cpuacct:/docker/3f\n3:cpuset:/\n1:name=systemd:/docker/3f\n0::/\n"


@pytest.mark.parametrize(
    ("own", "files"),
    [
        ("1:cpu:/x\n0::/outer/inner\n", {"outer/memory.max": "123456\n", "outer/inner/memory.max": "max\n"}),
        ("0::/\n", {"memory.max": "123456\n"}),
        (VERSION_1, {"memory/docker/3f/memory.limit_in_bytes": "123456\n"}),
        (VERSION_1, {"memory/memory.limit_in_bytes": "123456\n"}),  # in a container, which sees its group as the root
    ],
)
def test_memory_limits_of_control_groups_count(own: str, files: dict[str, str], groups: Any) -> None:
    groups(own, files)
    assert storage.memory_bytes() == 123456


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/pod/box\n", {"pod/cpu.max": "390000 100000\n", "pod/box/cpu.max": "max 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "6400000 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "damaged\n"}, 8),
        (VERSION_1, {"cpu/docker/3f/cpu.cfs_quota_us": "250000\n", "cpu/docker/3f/cpu.cfs_period_us": "100000\n"}, 2),
        (VERSION_1, {"cpu/cpu.cfs_quota_us": "40000\n", "cpu/cpu.cfs_period_us": "10000\n"}, 4),
        (VERSION_1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
    ],
)
def test_cores_are_those_that_the_process_may_use(
    own: str, files: dict[str, str], expected: int, groups: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    groups(own, files)
    assert storage.num_cores() == expected


# ---- progress


class Clock:
    """A clock that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        monkeypatch.setattr(storage.time, "perf_counter", lambda: self.now_s)


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
    monkeypatch.setattr(storage, "_shows_progress", True)
    if is_hidden:
        storage.hide_progress()
    with storage.progress(40, "images") as advance:
        for _ in range(30):
            clock.now_s += duration_s / 30
            advance(1)
    assert ("images" in out.getvalue()) == is_shown
    assert ("/40" in out.getvalue()) == is_shown
    assert "%" in out.getvalue() or not is_shown
