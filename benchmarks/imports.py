"""Which packages a command imports, and how long each takes: nothing heavy that a run does not use."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence

from rich.table import Table

from benchmarks.processes import ROOT
from benchmarks.tables import new_table

_LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)")
_SHOWN_MS = 1.0
_STANDARD = "(standard library)"


def profiles(commands: Mapping[str, Sequence[str]], env: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Return for each of `commands`, of Python, the milliseconds that the modules of each package took to import."""
    return {name: by_package(_importtime(command, env)) for name, command in commands.items()}


def by_package(importtime: str) -> dict[str, float]:
    """Return milliseconds by top-level package of what `python -X importtime` wrote, the longest first."""
    sums: dict[str, float] = {}
    for self_us, module in _LINE.findall(importtime):
        package = module.partition(".")[0]
        if package in sys.stdlib_module_names:
            package = _STANDARD
        sums[package] = sums.get(package, 0.0) + int(self_us) / 1000
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def table(profiles: dict[str, dict[str, float]]) -> Table:
    """Return one line a package that took a millisecond or more in one command."""
    title = f"startup: ms of import by package (own modules, {_SHOWN_MS:.0f} ms and more; - for not imported)"
    result = new_table(title, ["package"], [*profiles])
    packages = dict.fromkeys(
        name for profile in reversed([*profiles.values()]) for name, ms in profile.items() if ms >= _SHOWN_MS
    )
    for package in packages:
        times = (profile.get(package) for profile in profiles.values())
        result.add_row(package, *("-" if ms is None else f"{ms:.0f}" for ms in times))
    sums = (sum(profile.values()) for profile in profiles.values())
    result.add_row("all", *(f"{ms:.0f}" for ms in sums))
    return result


def _importtime(command: Sequence[str], env: Mapping[str, str]) -> str:
    python, *arguments = command
    timed = [python, "-X", "importtime", *arguments]
    return subprocess.run(timed, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True).stderr
