"""Two trainings side by side against one alone: what a neighbour costs, with several settings of threads."""

from __future__ import annotations

import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import tensors
from benchmarks.comparison import train
from benchmarks.options import Options
from benchmarks.tables import new_table
from benchmarks.works import WORKS, Work

GOAL = 5.0
WORKS_BESIDE = (replace(WORKS["digits"], steps=100 * 29), replace(WORKS["tabular"], steps=4 * 391), WORKS["convnet"])
_MANNERS = {"default": {}, "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"}, "OMP_NUM_THREADS=2": {"OMP_NUM_THREADS": "2"}}


@dataclass(frozen=True)
class Cost:
    """Seconds in the loop and of the process of one training alone, and of the slower of two, in each round."""

    work: str
    threads: str
    loops_alone_s: list[float]
    loops_beside_s: list[float]
    processes_alone_s: list[float]
    processes_beside_s: list[float]

    @property
    def loop_ratio(self) -> float:
        """Median over rounds of the slower loop of two by the loop alone; 2 is what sharing one core would give."""
        return _median_ratio(self.loops_beside_s, self.loops_alone_s)

    @property
    def process_ratio(self) -> float:
        """The same of whole processes."""
        return _median_ratio(self.processes_beside_s, self.processes_alone_s)


def run(options: Options) -> dict[str, Any]:
    """Print what a neighbour costs and return all figures."""
    costs = [_cost(work, threads, options) for work in WORKS_BESIDE for threads in _MANNERS]
    options.show(table(costs), "")
    return {"costs": [vars(cost) | {"loop_ratio": cost.loop_ratio} for cost in costs]}


def _cost(work: Work, threads: str, options: Options) -> Cost:
    env = {name: value for name, value in options.env.items() if name != "OMP_NUM_THREADS"} | _MANNERS[threads]
    cost = Cost(work.name, threads, [], [], [], [])
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(2) as pool:
        folder = Path(temporary)
        tensors.save(work, folder)

        def once(name: str) -> tuple[float, float]:
            usage, trained = train(work, "dltrain", folder, folder / name, env)
            return trained["loop_s"], usage.process_s

        for index in range(options.repeat):
            options.say(f"neighbours: {work.name}, {threads}: round {index + 1} of {options.repeat}")
            loop_s, process_s = once(f"{index}-alone")
            beside = [*pool.map(once, (f"{index}-left", f"{index}-right"))]
            cost.loops_alone_s.append(loop_s)
            cost.processes_alone_s.append(process_s)
            cost.loops_beside_s.append(max(loop for loop, _ in beside))
            cost.processes_beside_s.append(max(process for _, process in beside))
    return cost


def table(costs: list[Cost]) -> Table:
    """Return one line a work and setting of threads."""
    title = f"neighbours: the slower of two dltrain side by side against one alone; goal: below {GOAL:.0f}"
    result = new_table(title, ["work", "threads"], ["loop alone s", "loop beside s", "x", "process x"])
    for cost in costs:
        result.add_row(
            cost.work,
            cost.threads,
            f"{statistics.median(cost.loops_alone_s):.2f}",
            f"{statistics.median(cost.loops_beside_s):.2f}",
            f"{cost.loop_ratio:.2f}",
            f"{cost.process_ratio:.2f}",
        )
    return result


def _median_ratio(values: list[float], others: list[float]) -> float:
    return float(statistics.median(value / other for value, other in zip(values, others, strict=True)))
