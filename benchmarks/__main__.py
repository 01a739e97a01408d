"""Measure dltrain against the hand-tuned loop and other tools, or another TOPIC; print tables of ratios.

All figures go to benchmarks/results/ as JSON, plots beside it. Exit code 1: a result is not the one it must be.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import comparison, gpu, growth, images, larger_than_memory, memory, neighbours, plots, startup, sweeps
from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.options import Options
from benchmarks.tables import show
from benchmarks.works import WORKS

RESULTS = Path(__file__).parent / "results"
TOPICS: dict[str, Callable[[Options], dict[str, Any]]] = {
    "gpu": gpu.run,
    "startup": startup.run,
    "images": images.run,
    "larger_than_memory": larger_than_memory.run,
    "growth": growth.run,
    "memory": memory.run,
    "neighbours": neighbours.run,
    "sweeps": sweeps.run,
}


def main() -> int:
    """Measure, print tables, write figures and plots; return the exit code."""
    arguments = _arguments()
    console, errors = Console(width=max(200, Console().width), highlight=False), Console(stderr=True)
    RESULTS.mkdir(exist_ok=True)
    options = Options(
        repeat=arguments.repeat,
        env={} if arguments.threads is None else {"OMP_NUM_THREADS": str(arguments.threads)},
        say=errors.print,
        show=partial(show, console),
        results=RESULTS / time.strftime("%Y-%m-%d-%H%M%S"),
        device=arguments.device,
    )
    figures: list[dict[str, Any]] = []
    comparisons: list[comparison.Comparison] = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["DLTRAIN_CACHE"] = cache
        for name in arguments.works or list(WORKS):
            if name in TOPICS:
                figures.append({name: TOPICS[name](options)})
                continue
            work = replace(WORKS[name], steps=arguments.steps or WORKS[name].steps)
            compared = comparison.compare(work, ["dltrain", *arguments.peers], options.repeat, options.env, options.say)
            options.show(comparison.table(compared), "")
            comparisons.append(compared)
            figures.append(compared.to_json())
    if comparisons:
        options.show(comparison.summary(comparisons))
        plots.ratios(comparisons, options.results.with_suffix(".png"))
    path = options.results.with_suffix(".json")
    path.write_text(json.dumps({"environment": _environment(), "results": figures}, indent=1) + "\n", encoding="utf-8")
    options.say(f"figures of all rounds in {path}")
    return any(compared.equality("dltrain") == "DIFFERENT" for compared in comparisons)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    possible = [*WORKS, *TOPICS]
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"{', '.join(possible)}; default: {', '.join(WORKS)}")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="rounds, all once in each; default: 5")
    peers = ",".join(name for name, implementation in IMPLEMENTATIONS.items() if not implementation.exact)
    parser.add_argument("--peers", default=peers, help="names with commas; none for none; default: %(default)s")
    parser.add_argument("--threads", type=int, metavar="N", help="OMP_NUM_THREADS of all processes; default: as it is")
    parser.add_argument("--steps", type=int, metavar="N", help="instead of the work's own")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="of gpu alone; cpu: that it works")
    arguments = parser.parse_args()
    arguments.peers = [] if arguments.peers == "none" else arguments.peers.split(",")
    for given, known in ((arguments.works, possible), (arguments.peers, peers.split(","))):
        for name in given:
            if name not in known:
                parser.error(f"'{name}' is unknown; possible: {', '.join(known)}")
    return arguments


def _environment() -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "num_cores": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
    }


if __name__ == "__main__":
    sys.exit(main())
