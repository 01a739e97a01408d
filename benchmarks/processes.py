"""Processes measured from outside, and the environments that peers run in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
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
        shown = " ".join(map(str, command))
        raise RuntimeError(f"{shown}: exit code {done.returncode}\n{done.stderr.decode(errors='replace')}")
    return Usage(**json.loads(done.stdout))


def interpreter(name: str, requires: Sequence[str] | None) -> Path:
    """Return the Python of the environment called `name`; the first time, make it and install what it `requires`."""
    if requires is None:
        return Path(sys.executable)
    python = ENVIRONMENTS / name / "bin" / "python"
    installed = ENVIRONMENTS / name / "installed.txt"
    wanted = "\n".join(["torch", "numpy", *requires])
    if not installed.is_file() or installed.read_text(encoding="utf-8") != wanted:
        venv.create(ENVIRONMENTS / name, with_pip=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-c", ROOT / "constraints.txt", *wanted.splitlines()], check=True)
        installed.write_text(wanted, encoding="utf-8")
    return python

