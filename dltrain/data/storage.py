"""Where arrays lie that are large beside the memory, where the cache is, and how long work shows how far it is.

It is also asked what this process may use of the machine: memory and cores.

A large array lies in a temporary file that is mapped into memory: the system keeps there what is in use and writes
the rest to the disk. The file has no name, so nothing is left of it however the process ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

_ALWAYS_IN_MEMORY_BYTES = 16 * 2**20
_SHARE_OF_MEMORY = 1 / 8
"""An array beyond this share goes to the disk: while data are prepared there are three or four of them at a time (what
was read, the split taken from it, what is encoded), and the process itself needs the rest."""
BLOCK_BYTES = 16 * 2**20
"""Of an array that is worked on in blocks: about so much at a time."""
_OWN_GROUPS, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_FIRST_DRAW_S = 1.0
_SECONDS_BETWEEN_DRAWS = 0.2

_shows_progress = True


def cache_folder() -> Path | None:
    """Return the folder of the cache, which need not exist; None if it is switched off.

    It is $DLTRAIN_CACHE, where "off" switches it off, else dltrain in $XDG_CACHE_HOME, else ~/.cache/dltrain.
    """
    given = os.environ.get("DLTRAIN_CACHE", "")
    if given == "off":
        return None
    if given:
        return Path(os.path.abspath(os.path.expanduser(given)))
    home = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(home):  # https://specifications.freedesktop.org/basedir-spec/latest
        home = os.path.expanduser("~/.cache")
    return Path(home, "dltrain") if os.path.isabs(home) else None


def allocate(shape: Sequence[int], dtype: np.dtype | type) -> np.ndarray:
    """Return an array of `shape`, its values undefined: in memory, or on the disk if it is large beside the memory.

    Raises MemoryError where there is room for it in neither.
    """
    dtype = np.dtype(dtype)
    size_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if is_large(size_bytes):
        with contextlib.suppress(OSError), scratch_file(size_bytes) as file:
            return np.frombuffer(map_file(file, writable=True), dtype).reshape(shape)
    return np.empty(shape, dtype)


def is_large(size_bytes: int) -> bool:
    """Return whether so much belongs on the disk, since the memory is needed for other things."""
    return size_bytes > _ALWAYS_IN_MEMORY_BYTES and size_bytes > _SHARE_OF_MEMORY * memory_bytes()


@contextlib.contextmanager
def scratch_file(size_bytes: int = 0) -> Iterator[IO[bytes]]:
    """Give the block a new file without a name, of `size_bytes` for which there is room, to be written and mapped.

    It lies in the folder of the cache, or where temporary files do. Raises OSError where both are too full.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder = cache_folder()
            if folder is None:
                raise FileNotFoundError
            file = stack.enter_context(_new_file(folder, size_bytes))
        except OSError:
            file = stack.enter_context(_new_file(Path(tempfile.gettempdir()), size_bytes))
        yield file


def map_file(file: IO[bytes], *, writable: bool = False) -> mmap.mmap:
    """Return the contents of a file as memory, which outlives the file."""
    file.flush()
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ)


def gather(array: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return array[indices] (int64), allocated as `allocate` does; a view where the indices are one stretch."""
    if len(indices) and indices[-1] - indices[0] == len(indices) - 1 and (np.diff(indices) == 1).all():
        return array[indices[0] : indices[-1] + 1]
    result = allocate((len(indices), *array.shape[1:]), array.dtype)
    for rows in blocks_of_rows(result):
        result[rows] = array[indices[rows]]
    return result


def blocks_of_rows(array: np.ndarray, dtype: np.dtype | type | None = None) -> Iterator[slice]:
    """Yield slices of axis 0 that cover `array` in order, each of some 16 MiB once its values are of `dtype`."""
    item_bytes = np.dtype(array.dtype if dtype is None else dtype).itemsize
    num_rows = max(BLOCK_BYTES // max(array[:1].size * item_bytes, 1), 1)
    for start in range(0, len(array), num_rows):
        yield slice(start, start + num_rows)


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


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def num_cores() -> int:
    """Return how many CPU cores this process may keep busy: those it may run on, within the quota of its group.

    Of a quota of 2.5 cores 2 are counted: a third thread would be stopped for half of the time, and the others, who
    wait for it, with it.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([cores, *_group_cores()])))


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


@contextlib.contextmanager
def _new_file(folder: Path, size_bytes: int) -> Iterator[IO[bytes]]:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        if size_bytes:
            os.posix_fallocate(file.fileno(), 0, size_bytes)  # a full disk is an error now, later it would be a signal
        yield file


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
