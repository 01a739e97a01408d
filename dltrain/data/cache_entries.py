"""What lies in the cache's folder: entries of prepared data, compiled code, and what killed processes left.

It is listed, removed, and kept within a limit: what was used longest ago goes first. What a process uses is held by a
shared lock, which the system gives up however the process ends. To remove it all the same does no harm: a mapped file
stays until the last who maps it has ended; but it would free nothing, and the next start would prepare the data anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from dltrain.data.storage import cache_folder
from dltrain.errors import ConfigError
from dltrain.names import did_you_mean

FORMAT_VERSION = 1
HEAD = "entry.json"
NAME_DIGITS = 10
_NAME = re.compile(rf"[0-9a-f]{{{NAME_DIGITS}}}-[0-9a-f]{{{NAME_DIGITS}}}")
_TEMPORARY, _COMPILED = ".dltrain-", "compiled"
_ABOUT_COMPILED = {"data": "code for train.compile", "use": "fit"}
_SHARE_OF_DISK = 0.1


def list_entries(names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return what is in the cache, the last used first: all, or what `names` call by the start of its name.

    Of each: entry, data, use, samples (of each split), size_bytes, created and used (local time); without data and
    samples where an entry is damaged or was never finished, without samples and created for "compiled", the code that
    torch.compile made. Raises ConfigError for a name that nothing has.
    """
    root = cache_folder()
    rows = [] if root is None else [_row(folder) for folder in folders(root)]
    for name in names:
        known = [row["entry"] for row in rows]
        if not any(entry.startswith(name) for entry in known):
            raise ConfigError(f"{name}: no such entry in the cache {root or '(off)'}{did_you_mean(name, known)}")
    chosen = [row for row in rows if not names or row["entry"].startswith(tuple(names))]
    return sorted(chosen, key=lambda row: row["used"], reverse=True)


def clear(names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Remove the entries that `list_entries` returns, and return them. Processes that use one keep what they have.

    Raises ConfigError for a name that nothing has, and where the disk refuses.
    """
    rows, root = list_entries(names), cache_folder()
    for row in rows:
        assert root is not None
        try:
            shutil.rmtree(root / row["entry"])
        except FileNotFoundError:
            pass  # another process was faster
        except OSError as error:
            raise ConfigError(f"{root / row['entry']}: cannot be removed: {error.strerror}") from None
    return rows


def limit_bytes(root: Path) -> int:
    """Return how much the cache in `root` may hold: $DLTRAIN_CACHE_LIMIT, in GiB, else a tenth of its disk.

    Raises ConfigError if that is no number.
    """
    given = os.environ.get("DLTRAIN_CACHE_LIMIT", "")
    if not given:
        existing = next(folder for folder in (root, *root.parents) if folder.exists())
        return int(_SHARE_OF_DISK * shutil.disk_usage(existing).total)
    try:
        limit_gib = float(given)
    except ValueError:
        limit_gib = math.nan
    if not 0 <= limit_gib < math.inf:
        raise ConfigError(f"DLTRAIN_CACHE_LIMIT: '{given}' is no size in GiB, such as 20 or 0.5")
    return int(limit_gib * 2**30)


def keep_within_limit(root: Path, limit: int, made: Path | None = None) -> None:
    """Remove what was used longest ago until what is left has at most `limit` bytes; `made` and what is in use stay."""
    finished = [folder for folder in folders(root) if not folder.name.startswith(_TEMPORARY)]
    usage = {folder: _usage(folder) for folder in finished}
    excess = sum(size_bytes for size_bytes, _ in usage.values()) - limit
    for folder in sorted(usage, key=lambda folder: usage[folder][1]):
        if excess <= 0:
            return
        if folder != made and not _is_held(folder):
            remove(folder)
            excess -= usage[folder][0]


def compiled_folder() -> Path | None:
    """Return the folder of compiled code, which is held until this process ends; None if there can be none."""
    root = cache_folder()
    if root is None:
        return None
    keep_within_limit(root, limit_bytes(root))
    folder = root / _COMPILED
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)  # when it was last used
        _hold_folder(folder)
    except OSError:
        return None
    return folder


def hold(file: IO[bytes] | int) -> None:
    """Have the limit spare what `file` belongs to while it, or a map of it, is open; in vain where disks know no locks.

    A lock belongs to what was opened, not to its number, and a map keeps it open.
    """
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def read_head(folder: Path) -> dict[str, Any] | None:
    """Return what `entry.json` says, or None if there is none, it is damaged or of another format."""
    try:
        head = json.loads((folder / HEAD).read_bytes())
        digest = head.pop("sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    is_whole = digest == hash_of(head) and head["format_version"] == FORMAT_VERSION
    return head if is_whole else None


def hash_of(value: Any) -> str:
    """Return the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def folders(root: Path) -> list[Path]:
    """Return the folders in `root` that are the cache's own; what else lies there is not touched."""
    try:
        names = os.listdir(root)
    except OSError:
        return []
    own = [name for name in names if _NAME.fullmatch(name) or name.startswith(_TEMPORARY) or name == _COMPILED]
    return [root / name for name in sorted(own)]


@contextlib.contextmanager
def temporary_folder(root: Path) -> Iterator[Path]:
    """Give a new folder in `root` that is this process's while it lives, and is gone after the block."""
    folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=root))
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def remove(folder: Path) -> None:
    """Remove an entry so that nobody finds half of it."""
    with contextlib.suppress(OSError), temporary_folder(folder.parent) as aside:
        os.rename(folder, aside / "old")


def remove_abandoned(root: Path) -> None:
    """Remove the temporary folders of processes that were killed, which hold no lock any more."""
    for folder in root.glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(lock).st_mtime > 1:  # one just made may be about to be locked
                    shutil.rmtree(folder)
            finally:
                os.close(lock)


@functools.cache
def _hold_folder(folder: Path) -> int:
    """Hold `folder` until this process ends; return the number of the open folder."""
    handle = os.open(folder, os.O_RDONLY)
    hold(handle)
    return handle


def _is_held(folder: Path) -> bool:
    """Return whether a process uses what lies in `folder`."""
    with contextlib.suppress(OSError):
        for path in (folder, *folder.iterdir()):
            handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            finally:
                os.close(handle)
    return False


def _row(folder: Path) -> dict[str, Any]:
    """Return what a list says of an entry."""
    size_bytes, used_s = _usage(folder)
    row: dict[str, Any] = {"entry": folder.name}
    if folder.name == _COMPILED:
        row |= _ABOUT_COMPILED
    elif (head := read_head(folder)) is not None:
        row |= {**head["about"], "samples": head["samples"], "created": _clock(head["created"])}
    return {**row, "size_bytes": size_bytes, "used": _clock(used_s)}


def _usage(folder: Path) -> tuple[int, float]:
    """Return bytes, and when it was last used."""
    size_bytes, used_s = 0, 0.0
    for parent, _, names in os.walk(folder):  # passes over what is gone meanwhile
        for name in ("", *names):
            with contextlib.suppress(OSError):
                stat = os.stat(os.path.join(parent, name))
                size_bytes += stat.st_size if name else 0
                used_s = max(used_s, stat.st_mtime)
    return size_bytes, used_s


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
