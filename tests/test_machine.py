"""What a process may use of the machine."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dltrain import machine
from tests.small_runs import in_child

MIB = 2**20


# ---- memory


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another C library than glibc")
def test_freed_memory_goes_back_to_the_system() -> None:
    def measured() -> None:
        blocks = [bytes(100_000) for _ in range(1000)]  # each too small to be mapped alone
        kept = blocks[-1]  # and the heap cannot shrink below the last
        del blocks
        before = resident_mib()
        machine.give_back_freed()
        assert before - resident_mib() > 50
        assert len(kept) == 100_000

    assert in_child(measured) == 0


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


def test_limits_of_the_process_count() -> None:
    assert 0 < machine.memory_bytes() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (2**34, resource.RLIM_INFINITY))
        before = machine.memory_bytes()
        resource.setrlimit(resource.RLIMIT_DATA, (900 * MIB, resource.RLIM_INFINITY))
        after = machine.memory_bytes()
        assert after < 900 * MIB < before or after == before < 900 * MIB  # what is free on the machine counts, too

    assert in_child(limited) == 0


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, dict[str, str]], None]:
    """Give a function that sets which control groups the process is in, and what their files say."""
    monkeypatch.setattr(machine, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(machine, "_GROUPS", tmp_path / "groups")

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
    assert machine.memory_bytes() == 123456


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
    assert machine.num_cores() == expected
