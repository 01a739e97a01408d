"""Processes measured from outside, and the environments that peers run in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = ROOT / ".venv-peers"
_MEMORY = ("VmRSS", "RssAnon")


@dataclass(frozen=True)
class Usage:
    """What a process took from start to end, as the kernel counted it."""

    process_s: float
    cpu_s: float
    peak_mib: float


def measure(command: Sequence[str | Path], env: Mapping[str, str] | None = None, *, exit_code: int = 0) -> Usage:
    """Run `command` in the repository and return its usage. Raises RuntimeError, with stderr, on another exit code."""
    launcher = [sys.executable, "-S", str(ROOT / "benchmarks" / "launcher.py")]
    done = subprocess.run([*launcher, *command], cwd=ROOT, env={**os.environ, **(env or {})}, capture_output=True)
    if done.returncode != exit_code:
        raise _failure(command, done.returncode, done.stderr)
    return Usage(**json.loads(done.stdout))


def output(command: Sequence[str | Path], env: Mapping[str, str]) -> str:
    """Run `command` in the repository and return its stdout. Raises RuntimeError, with stderr, if it fails."""
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True)
    if done.returncode:
        raise _failure(command, done.returncode, done.stderr)
    return done.stdout.decode()


@dataclass(frozen=True)
class Held:
    """What a process holds at some moment; zeros once it has ended."""

    rss_mib: float
    private_mib: float
    """Anonymous memory; what is mapped from files is the system's to keep or give up."""
    num_files: int
    """Open ones."""
    read_mib: float
    """From the disk since it began, pages that it touched or asked for too."""
    num_waits: int
    """For the disk, each for a page that it touched (major faults), since it began."""


def watch(
    command: Sequence[str | Path],
    env: Mapping[str, str],
    every_s: float,
    look: Callable[[int], T],
    group: Path | None = None,
) -> tuple[float, list[T]]:
    """Run `command`, in the control group of the folder `group` if there is one; return its seconds and the looks.

    `look` is called with its process id every so many seconds. Raises RuntimeError, with stderr, if it fails.
    """
    looks = []
    began = time.perf_counter()
    pipe, join = subprocess.PIPE, None if group is None else partial(_join, group)
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **env}, stdout=subprocess.DEVNULL, stderr=pipe, preexec_fn=join
    ) as process:
        while True:
            try:
                _, err = process.communicate(timeout=every_s)
                break
            except subprocess.TimeoutExpired:
                looks.append(look(process.pid))
    if process.returncode:
        raise _failure(command, process.returncode, err)
    return time.perf_counter() - began, looks


def held(process_id: int) -> Held:
    """Return what a process holds now, as /proc/PID has it."""
    folder = Path(f"/proc/{process_id}")
    try:
        text = (folder / "status").read_text(encoding="utf-8") + (folder / "io").read_text(encoding="utf-8")
        _, _, rest = (folder / "stat").read_text(encoding="utf-8").rpartition(")")
        num_files = len(os.listdir(folder / "fd"))
    except OSError:
        return Held(0.0, 0.0, 0, 0.0, 0)
    figures = {name: value for name, _, value in (line.partition(":") for line in text.splitlines())}
    rss_mib, private_mib = (int(figures[name].split()[0]) / 1024 if name in figures else 0.0 for name in _MEMORY)
    return Held(rss_mib, private_mib, num_files, int(figures["read_bytes"]) / 2**20, int(rest.split()[9]))


@contextmanager
def memory_group(limit_mib: int) -> Iterator[Path]:
    """Give the folder of a new control group whose processes may take so much memory, pages of files included.

    It is made within the group of this process. Raises RuntimeError where that may not be done.
    """
    groups, name, root = {}, "memory", Path("/sys/fs/cgroup")
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        groups[controllers] = path.lstrip("/")
    if name in groups:  # version 1 has a tree for each controller
        parent, limit = root / name / groups[name], "memory.limit_in_bytes"
    else:
        parent, limit = root / groups[""], "memory.max"
    folder = parent / f"benchmarks-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / limit).write_text(str(limit_mib * 2**20), encoding="ascii")
    except OSError as error:
        with suppress(OSError):
            folder.rmdir()
        raise RuntimeError(f"no memory can be limited: {error}; it takes a control group that may be divided") from None
    try:
        yield folder
    finally:
        folder.rmdir()


def interpreter(name: str, requires: Sequence[str] | None) -> Path:
    """Return the Python of the environment called `name`; the first time, make it and install what it `requires`."""
    if requires is None:
        return Path(sys.executable)
    python = ENVIRONMENTS / name / "bin" / "python"
    installed = ENVIRONMENTS / name / "installed.txt"
    wanted = "\n".join([f"torch=={_own_version('torch')}", f"numpy=={_own_version('numpy')}", *requires])
    if not installed.is_file() or installed.read_text(encoding="utf-8") != wanted:
        venv.create(ENVIRONMENTS / name, with_pip=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *wanted.splitlines()], check=True)
        installed.write_text(wanted, encoding="utf-8")
    return python


def _join(group: Path) -> None:
    (group / "cgroup.procs").write_text("0", encoding="ascii")  # 0: whoever writes it


def _own_version(package: str) -> str:
    from importlib.metadata import version

    return version(package).partition("+")[0]


def _failure(command: Sequence[str | Path], exit_code: int, stderr: bytes) -> RuntimeError:
    shown = " ".join(map(str, command))
    return RuntimeError(f"{shown}: exit code {exit_code}\n{stderr.decode(errors='replace')}")
