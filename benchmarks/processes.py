"""Processes measured from outside, and the environments that peers run in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = ROOT / ".venv-peers"


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


def watch(
    command: Sequence[str | Path], env: Mapping[str, str], every_s: float, look: Callable[[int], None]
) -> tuple[float, str]:
    """Run `command` and call `look` with its process id every so many seconds; return seconds and its stdout.

    Raises RuntimeError, with stderr, if it fails.
    """
    began = time.perf_counter()
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, **env}, stdout=pipe, stderr=pipe) as process:
        while True:
            try:
                out, err = process.communicate(timeout=every_s)
                break
            except subprocess.TimeoutExpired:
                look(process.pid)
    if process.returncode:
        raise _failure(command, process.returncode, err)
    return time.perf_counter() - began, out.decode()


def memory_mib(process_id: int, what: str) -> float:
    """Return a figure of /proc/PID/status, such as "VmRSS" or "RssAnon" (private memory); 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process_id}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    sizes = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return int(sizes[what].split()[0]) / 1024 if what in sizes else 0.0


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


def _own_version(package: str) -> str:
    from importlib.metadata import version

    return version(package).partition("+")[0]


def _failure(command: Sequence[str | Path], exit_code: int, stderr: bytes) -> RuntimeError:
    shown = " ".join(map(str, command))
    return RuntimeError(f"{shown}: exit code {exit_code}\n{stderr.decode(errors='replace')}")
