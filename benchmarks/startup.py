"""What surrounds a training: help, a mistake in a config, and a whole `dltrain fit` against the bare script."""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import imports
from benchmarks.options import Options
from benchmarks.processes import Usage, measure
from benchmarks.tables import new_table

_ERRONEOUS = "data: {type: sklearn, name: digits}\nmodel: {type: mlp, hiden: [128]}\n"


@dataclass(frozen=True)
class Case:
    """A command of dltrain, and the least that a program must do to the same end."""

    name: str
    command: list[str]
    reference: list[str]
    goal: float
    """For the ratio of the two."""
    limit_s: float | None = None
    """For the command alone."""
    exit_code: int = 0


@dataclass(frozen=True)
class Timing:
    """Usage of a case's command and of its reference, one of each a round."""

    case: Case
    own: list[Usage]
    reference: list[Usage]

    def to_json(self) -> dict[str, Any]:
        """Return all figures."""
        return dataclasses.asdict(self)


def cases(folder: Path) -> list[Case]:
    """Return what is measured; files are written in `folder`."""
    from dltrain.cli import app

    config = folder / "erroneous.yaml"
    config.write_text(_ERRONEOUS, encoding="utf-8")
    dltrain = [sys.executable, "-m", "dltrain"]
    bare = [sys.executable, "-m", "benchmarks.bare"]
    fit = [*dltrain, "fit", "configs/digits.yaml", "--quiet", "--out", str(folder / "runs")]
    num_commands = str(len(app.registered_commands))
    return [
        Case("--help, bare Typer", [*dltrain, "--help"], [*bare, "typer", num_commands, "--help"], 2.0, 0.3),
        Case("config error, bare pydantic", [*dltrain, "fit", str(config)], [*bare, "pydantic"], 2.0, 0.5, exit_code=2),
        Case("fit digits, scikit-learn and bare loop", fit, [*bare, "digits"], 1.15),
        Case("fit digits, bare loop without scikit-learn", fit, [*bare, "digits-files"], 1.15),
    ]


def run(options: Options) -> dict[str, Any]:
    """Run each case and its reference in turns, print their table, and return the figures."""
    with tempfile.TemporaryDirectory() as folder:
        timings = [Timing(case, [], []) for case in cases(Path(folder))]
        for index in range(options.repeat):
            options.say(f"startup: round {index + 1} of {options.repeat}")
            for timing in timings:
                timing.own.append(measure(timing.case.command, options.env, exit_code=timing.case.exit_code))
                timing.reference.append(measure(timing.case.reference, options.env))
        profiles = imports.profiles(_commands(timings), options.env)
    options.show(table(timings), "")
    options.show(imports.table(profiles), "")
    return {"timings": [timing.to_json() for timing in timings], "imports_ms": profiles}


def table(timings: list[Timing]) -> Table:
    """Return one line a case: medians, and the median of the ratios within a round."""
    title = f"startup: medians of {len(timings[0].own)} rounds, whole processes"
    columns = ("dltrain s", "reference s", "x", "goal", "at most s", "CPU x", "peak MiB", "reference MiB")
    result = new_table(title, ["against"], columns)
    for timing in timings:
        result.add_row(
            timing.case.name,
            f"{statistics.median(usage.process_s for usage in timing.own):.2f}",
            f"{statistics.median(usage.process_s for usage in timing.reference):.2f}",
            f"{_ratio(timing, 'process_s'):.2f}",
            f"{timing.case.goal:.2f}",
            "" if timing.case.limit_s is None else f"{timing.case.limit_s:.1f}",
            f"{_ratio(timing, 'cpu_s'):.2f}",
            f"{statistics.median(usage.peak_mib for usage in timing.own):.0f}",
            f"{statistics.median(usage.peak_mib for usage in timing.reference):.0f}",
        )
    return result


def _commands(timings: list[Timing]) -> dict[str, list[str]]:
    """Return each command once, by what stands before the reference in the name of its case."""
    return {timing.case.name.partition(",")[0]: timing.case.command for timing in timings}


def _ratio(timing: Timing, figure: str) -> float:
    pairs = zip(timing.own, timing.reference, strict=True)
    return float(statistics.median(getattr(own, figure) / getattr(reference, figure) for own, reference in pairs))
