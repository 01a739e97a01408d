"""The run directory `runs/<name>/<n>/`: one training, everything that is known of it, and no absolute path inside.

A run never overwrites another, and two processes never share one: the lock is held by the process and dies with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from dltrain.errors import ConfigError, Stopped, TrainingError

_METRICS = "metrics.jsonl"
_LOCK = ".lock"
_LOCK_PATIENCE_S = 0.1
_LOCK_PAUSE_S = 0.01


class Run:
    """An open run directory, locked by this process; or another process's, in which this one writes nothing."""

    def __init__(self, folder: Path, lock: IO[str] | None = None) -> None:
        self.folder = folder
        self._lock = lock

    @classmethod
    def create(cls, root: Path, name: str) -> Run:
        """Make and lock the next free `root/name/n`, n = 1, 2, .... Raises ConfigError if the disk refuses."""
        try:
            folder = make_numbered(root / name)
            (folder / "checkpoints").mkdir()
            return cls(folder, _lock(folder))
        except OSError as error:
            raise ConfigError(f"--out {root}: no run directory can be made there: {error.strerror}") from None

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Lock an existing run directory to go on with it. Raises ConfigError if there is none or it is in use."""
        if not (folder / "checkpoints").is_dir():
            raise ConfigError(f"--resume {folder}: is no run directory (it has no checkpoints/); such as runs/digits/1")
        try:
            return cls(folder, _lock(folder))
        except OSError as error:
            raise ConfigError(f"--resume {folder}: cannot be written to: {error.strerror}") from None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Log the error or the signal that ended the run, if one did, and let go of the lock."""
        if error is not None:
            with contextlib.suppress(TrainingError):  # `error` may be the full disk
                self.log(f"ended by {_cause(error)}")
        self.close()

    @contextlib.contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Let go of the lock if the block fails."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the lock."""
        if self._lock is not None:
            self._lock.close()

    @property
    def is_written(self) -> bool:
        """Whether this process writes into it."""
        return self._lock is not None

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"

    def write(self, name: str, text: str) -> None:
        """Write a small text file of the run."""
        with writing(self.folder / name) as path:
            path.write_text(text, encoding="utf-8")

    def log(self, message: str) -> None:
        """Append a line with the time to log.txt."""
        if not self.is_written:
            return
        with writing(self.folder / "log.txt") as path, path.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl; values that are not finite become null."""
        if not self.is_written:
            return
        with writing(self.folder / _METRICS) as path, path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({key: finite_or_none(value) for key, value in row.items()}) + "\n")

    def cut_metrics(self, step: int) -> None:
        """Drop the lines of metrics.jsonl past `step`, and a torn last line: what a resumed run will write again."""
        rows = [row for row in read_metrics(self.folder) if row["step"] <= step]
        with writing(self.folder / _METRICS) as path:
            temporary = path.with_name(f"{_METRICS}.tmp")
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            os.replace(temporary, path)


def _cause(error: BaseException) -> str:
    if isinstance(error, Stopped):
        return f"Stopped ({signal.Signals(error.signal_number).name}): {error}"
    if isinstance(error, KeyboardInterrupt):
        return "Stopped (SIGINT twice): left at once; the last checkpoint is good"
    return f"{type(error).__name__}: {error}"


def make_numbered(parent: Path) -> Path:
    """Make and return the next free folder `parent`/n, n = 1, 2, ..., whoever else does the same at this moment."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(entry) for entry in os.listdir(parent) if entry.isdecimal()), default=0)
    while True:
        with contextlib.suppress(FileExistsError):
            (parent / str(number)).mkdir()
            return parent / str(number)
        number += 1


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Raise TrainingError where the disk refuses what the block writes to `path`; checkpoints stay as they are."""
    try:
        yield path
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written: {error.strerror}") from None


def _lock(folder: Path) -> IO[str]:
    file = (folder / _LOCK).open("a", encoding="utf-8")
    if take_lock(file, _LOCK_PATIENCE_S):  # `is_locked` of another process may hold it for a moment
        return file
    file.close()
    raise ConfigError(f"{folder}: another process is at work in this run directory")


def take_lock(file: IO[Any], patience_s: float) -> bool:
    """Lock an open file for this process, waiting for as long for another that holds it; return whether it worked."""
    deadline = time.monotonic() + patience_s
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOCK_PAUSE_S)


def is_locked(folder: Path) -> bool:
    """Return whether some process is at work in the run directory; write nothing there."""
    try:
        with (folder / _LOCK).open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock file: no process has worked here yet
        return False
    return False


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl, without a torn last line."""
    try:
        lines = (folder / _METRICS).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def is_metric(column: str) -> bool:
    """Return whether a column of metrics.jsonl is a metric of a split, such as val/loss, and not a step or a time."""
    return "/" in column


def find_runs(root: Path) -> Iterator[Path]:
    """Yield the run directories at or below `root`, oldest name first."""
    if (root / "checkpoints").is_dir():
        yield root
        return
    if root.is_dir():
        for entry in sorted(root.iterdir(), key=lambda path: (not path.name.isdecimal(), path.name.zfill(12))):
            if entry.is_dir() and not entry.is_symlink():
                yield from find_runs(entry)


def finite_or_none(value: Any) -> Any:
    """Return `value`, or None for a number that JSON cannot hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
