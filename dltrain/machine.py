"""What this process may use of the machine, memory and cores, and what it tells the system of its memory."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import resource
from collections.abc import Iterator
from pathlib import Path

_OWN_GROUPS, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def memory_bytes() -> int:
    """Return how much memory this process may still take: what is free, within its limits and those of its group."""
    possible = [page_cache_bytes()]
    sizes = _sizes_in("/proc/self/status")
    for limit, used in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            possible.append(soft - sizes.get(used, 0))
    return max(0, min(possible))


def page_cache_bytes() -> int:
    """Return how much of mapped files may stay in memory: what is free, within the limits of the process's group."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = _sizes_in("/proc/meminfo").get("MemAvailable", installed)
    return min([installed, free, *_group_memory()])


def advise(address: int, size_bytes: int, advice: int) -> None:
    """Tell the system how a stretch of memory will be used (mmap.MADV_...), which it may heed where that is a file."""
    start = address - address % mmap.PAGESIZE
    _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(address + size_bytes - start), advice)


def give_back_freed() -> None:
    """Give memory that was freed, which glibc keeps for later, back to the system; other C libraries do as they do."""
    with contextlib.suppress(AttributeError):
        _libc().malloc_trim(0)


def num_cores() -> int:
    """Return how many CPU cores this process may keep busy: those it may run on, within the quota of its group.

    Of a quota of 2.5 cores 2 are counted: a third thread would be stopped for half of the time, and the others, who
    wait for it, with it.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([cores, *_group_cores()])))


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _sizes_in(path: str) -> dict[str, int]:
    """Return the lines "name: number kB" of a file of /proc, in bytes; nothing where there is no /proc."""
    sizes = {}
    with contextlib.suppress(OSError), open(path, encoding="ascii", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            if value.endswith(" kB\n"):
                sizes[name] = int(value.split()[0]) * 1024
    return sizes


def _group_memory() -> Iterator[int]:
    """Yield the memory limits of the control groups of this process, in bytes."""
    for folder in _groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):  # version 2, version 1
            with contextlib.suppress(OSError, ValueError):  # "max" is no number
                yield int((folder / name).read_text(encoding="ascii"))


def _group_cores() -> Iterator[float]:
    """Yield the CPU quotas of the control groups of this process, in cores."""
    for folder in _groups("cpu"):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
            yield int(quota) / int(period)
        with contextlib.suppress(OSError, ValueError):
            files = (folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")
            quota, period = (file.read_text(encoding="ascii") for file in files)
            if int(quota) > 0:  # -1: none
                yield int(quota) / int(period)


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folders of the control groups of this process, and of those around them, that may limit something.

    In a container, which sees its own group as the root, the path may be that outside; then only the root is there.
    """
    with contextlib.suppress(OSError):
        for line in _OWN_GROUPS.read_text(encoding="utf-8").splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            root = _GROUPS / controller if controllers else _GROUPS  # version 2 has one tree for all
            inner = root / group.lstrip("/")
            yield from (inner, *inner.parents[: len(Path(group).parts) - 1])
