"""The command: `python -m benchmarks [WORK...] [--repeat N] [--peers NAMES] [--threads N]`; see `--help`."""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import comparison, startup
from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.works import WORKS

RESULTS = Path(__file__).parent / "results"
STARTUP = "startup"


def main() -> None:
    """Measure, print tables, and write all figures to a JSON file."""
    options = _options()
    console, errors = Console(width=max(180, Console().width), highlight=False), Console(stderr=True)
    env = {} if options.threads is None else {"OMP_NUM_THREADS": str(options.threads)}
    names = list(dict.fromkeys(["dltrain", *options.peers]))
    results: list[Any] = []
    for name in options.works or list(WORKS):
        if name == STARTUP:
            timings = startup.measure_startup(options.repeat, env, errors.print)
            console.print(startup.table(timings), "")
            results.append({"startup": [timing.to_json() for timing in timings]})
        else:
            work = replace(WORKS[name], epochs=options.epochs or WORKS[name].epochs)
            compared = comparison.compare(work, names, options.repeat, env, errors.print)
            console.print(comparison.table(compared), "")
            results.append(compared.to_json())
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{time.strftime('%Y-%m-%d-%H%M%S')}.json"
    path.write_text(json.dumps({"environment": _environment(), "results": results}, indent=1) + "\n", encoding="utf-8")
    errors.print(f"figures of all rounds in {path}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"{', '.join([*WORKS, STARTUP])}; default: all works")
    parser.add_argument(
        "--repeat", type=int, default=5, metavar="N", help="rounds, each with every implementation once"
    )
    parser.add_argument("--peers", default=",".join(IMPLEMENTATIONS), help="names with commas; default: %(default)s")
    parser.add_argument("--threads", type=int, metavar="N", help="OMP_NUM_THREADS of all processes; default: as it is")
    parser.add_argument("--epochs", type=int, metavar="N", help="instead of the work's own")
    options = parser.parse_args()
    options.peers = options.peers.split(",")
    for given, possible in ((options.works, [*WORKS, STARTUP]), (options.peers, IMPLEMENTATIONS)):
        for name in given:
            if name not in possible:
                parser.error(f"'{name}' is unknown; possible: {', '.join(possible)}")
    return options


def _environment() -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "num_threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    main()
