"""Databases for tests: a PostgreSQL server that a test starts and ends, and SQLite."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_DEBIAN = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
_AS_NOBODY = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *map(str, _DEBIAN)]))


@contextlib.contextmanager
def postgresql(*, durable: bool = False) -> Iterator[str]:
    """Context of a server of its own, without a network port; gives the URL. Skips the test where it cannot be.

    `durable` is whether it waits for the disk, as one that matters does.
    """
    programs = [_program("initdb"), _program("pg_ctl")]
    if None in programs:
        pytest.skip("NOT TESTED: PostgreSQL is missing: apt-get install postgresql")
    is_root = os.geteuid() == 0  # as whom the server refuses to run
    if is_root and shutil.which("setpriv") is None:
        pytest.skip("NOT TESTED: PostgreSQL does not run as root, and setpriv (util-linux) is missing")
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short: it holds a socket
    if is_root:
        shutil.chown(folder, "nobody")

    def run(*words: str | Path) -> None:
        line = [*(_AS_NOBODY if is_root else []), *map(str, words)]
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    initdb, pg_ctl = map(str, programs)
    try:
        run(initdb, "-D", folder / "data", "-A", "trust", "-U", "sweeps", "--no-sync")
        options = f"-k {folder} -c listen_addresses='' -c fsync={'on' if durable else 'off'}"
        # Its output must not be a pipe of this process, which the server would keep open.
        run(pg_ctl, "-D", folder / "data", "-w", "-o", options, "-l", folder / "log", "start")
        try:
            yield f"postgresql://sweeps@/postgres?host={folder}"
        finally:
            run(pg_ctl, "-D", folder / "data", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
