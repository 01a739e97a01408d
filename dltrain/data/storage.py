"""Where arrays lie that are large beside the memory, and where the cache is.

A large array lies in a temporary file that is mapped into memory: the system keeps there what is in use and writes
the rest to the disk. The file has no name, so nothing is left of it however the process ends.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from dltrain.machine import memory_bytes

_ALWAYS_IN_MEMORY_BYTES = 16 * 2**20
_SHARE_OF_MEMORY = 1 / 8
"""An array beyond this share goes to the disk: while data are prepared there are three or four of them at a time (what
was read, the split taken from it, what is encoded), and the process itself needs the rest."""
BLOCK_BYTES = 16 * 2**20
"""Of an array that is worked on in blocks: about so much at a time."""


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


@contextlib.contextmanager
def _new_file(folder: Path, size_bytes: int) -> Iterator[IO[bytes]]:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        if size_bytes:
            os.posix_fallocate(file.fileno(), 0, size_bytes)  # a full disk is an error now, later it would be a signal
        yield file
