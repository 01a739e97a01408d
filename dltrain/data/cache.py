"""Prepared data on the disk: the first use of data writes an entry, each later one maps it into memory.

An entry is a folder `<settings>-<state of the files>` in the cache's folder: `entry.json` and a raw file for each
tensor. It is written whole or not at all, and used only while the files of the data, the settings and dltrain are what
they were; what is damaged or half-written is made anew. Only built-in sources, which name their files, are cached.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dltrain import __version__
from dltrain.data.cache_entries import (
    FORMAT_VERSION,
    HEAD,
    NAME_DIGITS,
    folders,
    hash_of,
    hold,
    keep_within_limit,
    limit_bytes,
    read_head,
    remove_abandoned,
    temporary_folder,
)
from dltrain.data.progress import progress
from dltrain.data.storage import blocks_of_rows, cache_folder, map_file

if TYPE_CHECKING:
    from torch import Tensor

    from dltrain.data.columns import Column, Columns

MIN_BUILD_S = 0.3
"""What is prepared faster is not worth its place on the disk: to look an entry up takes a hundredth of a second."""
_IN_MEMORY_BYTES = 16 * 2**20
"""Tensors up to this size are read; larger ones are mapped."""
_CLOCK_TICK_S = 0.02
"""Two changes of a file that are nearer to each other may bear the same time (4 ms on ext4, 10 ms on others)."""
_MAX_TRIES = 5


@dataclass(frozen=True)
class Entry:
    """What preparing data gives."""

    splits: dict[str, Columns]
    facts: dict[str, Any]
    notes: list[str]


def cached(
    settings: dict[str, Any],
    files: Sequence[tuple[str, str]],
    about: dict[str, str],
    build: Callable[[], Entry],
    *,
    learned: Any = None,
    checked: Iterable[str] = (),
) -> Entry:
    """Return what `build` returned when it was last called for these settings and files, else call it and keep that.

    The tensors of an entry may be memory that must not be written to. What cannot be kept is returned nevertheless,
    with a note of the reason.

    Args:
        settings: JSON values, all that decides the result beside the files: sections of the config, absolute folder.
        files: (name, path) of all files that are read; only their names, sizes and dates are looked at.
        about: what lists show: "data" (such as "images /home/me/shapes") and "use" (such as "fit").
        build: prepares the data.
        learned: JSON values that decide the result, too, and that change with the data: facts of a checkpoint.
        checked: settings that decide whether `build` raises an error and not what it returns; an entry counts only
            for those that it was built with, or for fewer.

    Raises ConfigError for a limit of the cache that is no number.
    """
    root = cache_folder()
    if root is None:
        return build()
    limit, state = limit_bytes(root), _state_of(files, learned)
    if state is None:
        return build()
    identity = {"settings": hash_of(settings), "state": state}
    folder = root / "-".join(digest[:NAME_DIGITS] for digest in identity.values())
    entry = _load(folder, identity, checked)
    if entry is not None:
        return entry
    began = time.perf_counter()
    entry = build()
    if time.perf_counter() - began < MIN_BUILD_S or _state_of(files, learned) != state:
        return entry
    try:
        _save(folder, entry, {**identity, "about": about, "checked": sorted(checked)})
    except OSError as error:
        reason = f"{error.strerror or error}; set DLTRAIN_CACHE to another folder, or to off"
        return replace(entry, notes=[*entry.notes, f"the prepared data are not kept in the cache {root}: {reason}"])
    keep_within_limit(root, limit, folder)
    return _load(folder, identity, checked) or entry


# ---- what an entry is known by ---------------------------------------------------------------------------------------


def _state_of(files: Iterable[tuple[str, str]], learned: Any) -> str | None:
    """Return a hash of names, sizes, dates and inodes, of what was learned, and of this version of dltrain.

    A file whose size and date were restored after a change still has another ctime, which nobody can set. None if a
    file is missing, or is being written to.
    """
    known = f"{FORMAT_VERSION} {__version__} {_state_of_code()} {hash_of(learned)}"
    for _ in range(_MAX_TRIES):
        digest, newest_s = hashlib.sha256(known.encode()), 0.0
        try:
            for name, path in sorted(files):
                stat = os.stat(path)
                numbers = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev)
                digest.update(os.fsencode(name) + b"\0" + repr(numbers).encode())
                newest_s = max(newest_s, stat.st_ctime)
        except OSError:
            return None
        if not 0 <= time.time() - newest_s < _CLOCK_TICK_S:
            return digest.hexdigest()
        time.sleep(_CLOCK_TICK_S)  # another change now could bear the same time
    return None


def _state_of_code() -> str:
    """Return a text that changes when the code that prepares data does, for those who work on it."""
    package = Path(__file__).parent
    files = [*sorted(package.rglob("*.py")), package.parent / "tasks.py"]
    stats = [(str(file.relative_to(package.parent)), file.stat()) for file in files if file.exists()]
    return hash_of([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])


# ---- reading ---------------------------------------------------------------------------------------------------------


def _load(folder: Path, identity: dict[str, str], checked: Iterable[str]) -> Entry | None:
    """Return the entry in `folder`; None if there is none, or it is not what it should be in any way."""
    from dltrain.data.columns import Columns

    head = read_head(folder)
    if head is None or any(head[key] != value for key, value in identity.items()):
        return None
    if not set(checked) <= set(head["checked"]):
        return None
    try:
        tensors = [_load_tensor(folder / str(index), facts) for index, facts in enumerate(head["tensors"])]
        splits = {
            name: Columns(
                tuple(_column(x, tensors) for x in split["inputs"]),
                None if split["target"] is None else _column(split["target"], tensors),
            )
            for name, split in head["splits"].items()
        }
    except (OSError, ValueError):
        return None
    with contextlib.suppress(OSError):
        os.utime(folder / HEAD)  # when it was last used
    return Entry(splits, head["facts"], head["notes"])


def _load_tensor(path: Path, facts: dict[str, Any]) -> Tensor:
    """Return a tensor, mapped if it is large. Raises OSError or ValueError if its file is not the one written.

    A file that bears the times and the inode with which it was written is the one; of any other (the cache may have
    been copied) all bytes are read and compared.
    """
    import torch

    stat = os.stat(path)
    if stat.st_size != facts["size_bytes"]:
        raise ValueError(f"{path}: has another size")
    if _written_at(stat) != facts["written"] and _sha256_of(path) != facts["sha256"]:
        raise ValueError(f"{path}: has other contents")
    dtype, shape = np.dtype(facts["dtype"]), tuple(facts["shape"])
    if stat.st_size <= _IN_MEMORY_BYTES:
        return torch.from_numpy(np.fromfile(path, dtype).reshape(shape))
    with open(path, "rb") as file:
        hold(file)
        memory = map_file(file)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.frombuffer(memory, dtype).reshape(shape))


def _column(places: dict[str, int], tensors: list[Tensor]) -> Column:
    from dltrain.data.columns import Ragged

    if "tensor" in places:
        return tensors[places["tensor"]]
    values, starts, lengths = (tensors[places[name]] for name in ("values", "starts", "lengths"))
    return Ragged(values, starts, lengths, places["padding"])


def _written_at(stat: os.stat_result) -> list[int]:
    return [stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- writing ---------------------------------------------------------------------------------------------------------


def _save(folder: Path, entry: Entry, head: dict[str, Any]) -> None:
    """Write `entry` to `folder`, and remove those of the same settings with an older state of the files.

    Raises OSError where the disk refuses; nothing is left then.
    """
    root = folder.parent
    root.mkdir(parents=True, exist_ok=True)
    remove_abandoned(root)
    with temporary_folder(root) as temporary:
        tensors = _Tensors()
        splits = {
            name: {
                "inputs": [tensors.place(x) for x in columns.inputs],
                "target": None if columns.target is None else tensors.place(columns.target),
            }
            for name, columns in entry.splits.items()
        }
        head = {
            **head,
            "format_version": FORMAT_VERSION,
            "splits": splits,
            "samples": {name: len(columns) for name, columns in entry.splits.items()},
            "tensors": _write_tensors(temporary, tensors.distinct),
            "facts": entry.facts,
            "notes": entry.notes,
            "created": time.time(),
        }
        text = json.dumps({**head, "sha256": hash_of(json.loads(json.dumps(head)))})
        with open(temporary / HEAD, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(temporary)
        _move(temporary, folder)
    _sync_folder(root)
    for other in folders(root):
        if other.name.split("-")[0] == folder.name.split("-")[0] and other != folder:
            shutil.rmtree(other, ignore_errors=True)


class _Tensors:
    """The tensors of an entry, each once, however many columns are made of it."""

    def __init__(self) -> None:
        self.distinct: list[Tensor] = []
        self._index_of: dict[Any, int] = {}

    def place(self, column: Column) -> dict[str, int]:
        """Return where the parts of a column stand in `distinct`."""
        from torch import Tensor

        if isinstance(column, Tensor):
            return {"tensor": self._add(column)}
        parts = {"values": column.values, "starts": column.starts, "lengths": column.lengths}
        return {**{name: self._add(tensor) for name, tensor in parts.items()}, "padding": column.padding}

    def _add(self, tensor: Tensor) -> int:
        known_by = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if known_by not in self._index_of:
            self._index_of[known_by] = len(self.distinct)
            self.distinct.append(tensor)
        return self._index_of[known_by]


def _write_tensors(folder: Path, tensors: list[Tensor]) -> list[dict[str, Any]]:
    """Write each tensor to a file called by its number; return what `_load_tensor` must know of each."""
    facts = []
    total = sum(tensor.nbytes for tensor in tensors) >> 20
    with progress(total, "caching (MiB)") as advance, ThreadPoolExecutor(1) as pool:
        for index, tensor in enumerate(tensors):
            path, array, digest = folder / str(index), tensor.numpy(), hashlib.sha256()
            with open(path, "wb") as file:
                for rows in blocks_of_rows(array):
                    block = np.ascontiguousarray(array[rows]).reshape(-1).view(np.uint8).data
                    hashing = pool.submit(digest.update, block)
                    file.write(block)
                    hashing.result()
                    advance(len(block) >> 20)
                file.flush()
                os.fsync(file.fileno())
            stat = os.stat(path)
            facts.append(
                {
                    "dtype": array.dtype.name,
                    "shape": list(array.shape),
                    "size_bytes": stat.st_size,
                    "written": _written_at(stat),
                    "sha256": digest.hexdigest(),
                }
            )
    return facts


def _move(temporary: Path, folder: Path) -> None:
    """Give the finished entry its name; of two processes that do it at once, the last one wins."""
    while True:
        try:
            return os.rename(temporary, folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        with temporary_folder(folder.parent) as aside, contextlib.suppress(FileNotFoundError):
            os.rename(folder, aside / "old")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
