"""The same 64 trials as `dltrain sweep`, and as loops in a shell: of `dltrain fit`, and of a script with Lightning.

Loops train the first few of the trials and are scaled up, as each trial of theirs is a process like any other. All
processes have one thread, which is the quickest for networks of this size. Whatever of dltrain trains a trial must come
to the same weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import synthetic
from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.options import Options
from benchmarks.processes import ROOT, interpreter, measure
from benchmarks.tables import new_table

CONFIG = "configs/sweep_digits.yaml"
NUM_TRIALS, NUM_IN_LOOPS = 64, 8
EPOCHS = (3, 10)
"""Of each trial: few, where what surrounds a training counts, and the config's own."""
SWEEP, LOOP, PARALLEL, LIGHTNING = "dltrain sweep", "loop of dltrain fit", "parallel -j2 fit", "loop of Lightning"
SQLITE, POSTGRESQL = "dltrain sweep, SQLite", "dltrain sweep, PostgreSQL"
GOALS = {LOOP: 10.0, LIGHTNING: 20.0}
"""How many times as long as the sweep they are to take, with the fewest epochs."""
OVERHEAD_GOAL_MS = 50.0
_SLOTS = 2


@dataclass(frozen=True)
class Figures:
    """What one manner took in one round; what lies inside the time is None for what is not dltrain."""

    num_trials: int
    process_s: float
    startup_s: float | None = None
    """Until the first training began."""
    end_s: float | None = None
    """After the last training had ended: the report, the curves."""
    loops_s: float | None = None
    """Sum of the seconds in the loop of all trainings."""

    @property
    def all_s(self) -> float:
        """Time of NUM_TRIALS trials."""
        return self.process_s / self.num_trials * NUM_TRIALS

    @property
    def overhead_ms(self) -> float | None:
        """Time of a trial that is neither start-up nor steps, where trainings have all slots to themselves."""
        if self.startup_s is None or self.loops_s is None:
            return None
        return 1000 * (self.process_s - self.startup_s - self.loops_s / _SLOTS) / self.num_trials


Weights = dict[str, str]
"""The resolved config of a trial -> a hash of the bytes of its final weights."""
Rounds = list[dict[str, Figures]]


def run(options: Options) -> dict[str, Any]:
    """Train the trials in all manners, print a table for each length of trials, and return all figures.

    Raises RuntimeError if a trial has other weights in one manner than in another.
    """
    results = []
    with tempfile.TemporaryDirectory() as temporary, _postgresql(options.say) as url:
        for epochs in EPOCHS:
            rounds: Rounds = []
            weights: dict[str, Weights] = {}
            for index in range(options.repeat):
                folder = Path(temporary) / f"{epochs}-{index}"
                folder.mkdir()
                rounds.append({})
                for name, manner in manners(folder, epochs, url).items():
                    options.say(f"sweeps of {epochs} epochs: round {index + 1} of {options.repeat}: {name}")
                    rounds[-1][name] = _measured(manner, folder / name, options)
                    weights[name] = weights_of(folder / name)
            num_equal = {name: num_equal_weights(own, weights[SWEEP]) for name, own in weights.items() if own}
            options.show(table(epochs, rounds, num_equal), "")
            results.append({"epochs": epochs, "num_equal": num_equal, "rounds": _json(rounds)})
    return {"num_trials": NUM_TRIALS, "num_in_loops": NUM_IN_LOOPS, "results": results}


# ---- the manners -----------------------------------------------------------------------------------------------------

Manner = tuple[int, Callable[[Path], list[str | Path]]]
"""How many trials, and the command that trains them with their runs in a folder."""


def manners(folder: Path, epochs: int, url: str | None) -> dict[str, Manner]:
    """Return by name how the trials are trained; files that are needed for it are written into `folder`."""
    from dltrain.config.validate import load_config
    from dltrain.sweep.listing import commands
    from dltrain.sweep.points import point
    from dltrain.sweep.space import settings_of

    given = [f"train.duration={epochs} epochs", f"sweep.trials={NUM_TRIALS}", f"sweep.slots={_SLOTS}"]
    file = load_config(ROOT / CONFIG, given)
    dltrain: list[str | Path] = [sys.executable, "-m", "dltrain"]
    words = [word for option in given for word in ("--set", option)]

    def sweep(*more: str) -> Manner:
        return NUM_TRIALS, lambda out: [*dltrain, "sweep", CONFIG, "--quiet", "--out", out, *words, *more]

    def each(lines: list[str], *program: str) -> Manner:
        def command(out: Path) -> list[str | Path]:
            file = out.with_suffix(".sh")
            file.write_text("".join(f"{line} --out {shlex.quote(str(out))}\n" for line in lines), encoding="utf-8")
            return [*program, file]

        return len(lines), command

    start = shlex.join(map(str, dltrain))
    fits = [f"{start} {line.removeprefix('dltrain ')} --quiet --json" for line in commands(file, CONFIG)[:NUM_IN_LOOPS]]
    peer = interpreter("lightning", IMPLEMENTATIONS["lightning"].requires)
    data = synthetic.digits(folder)
    points = [point(settings_of(file), file.config.seed, number + 1) for number in range(NUM_IN_LOOPS)]
    scripts = [
        f"{peer} {ROOT / 'benchmarks' / 'lightning_digits.py'} --data {data} --epochs {epochs} "
        f"--lr {p['optimizer.lr']!r} --dropout {p['model.dropout']!r} --hidden {shlex.quote(str(p['model.hidden']))}"
        for p in points
    ]
    found = {SWEEP: sweep(), SQLITE: sweep("--storage", f"sqlite:///{folder}/study.db")}
    if url is not None:
        found[POSTGRESQL] = sweep("--storage", url, "--study", folder.name)
    found[LOOP] = each(fits, "/bin/sh", "-e")
    if (parallel := shutil.which("parallel")) is not None:
        found[PARALLEL] = each(fits, parallel, "--will-cite", f"-j{_SLOTS}", "-a")
    found[LIGHTNING] = each(scripts, "/bin/sh", "-e")
    return found


@contextlib.contextmanager
def _postgresql(say: Callable[[str], None]) -> Iterator[str | None]:
    """Context of a server of its own, and its URL; None, which is said, where there is none."""
    import pytest

    from tests.databases import postgresql

    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(postgresql(durable=True))
        except pytest.skip.Exception as error:
            say(f"sweeps: {POSTGRESQL}: {error}")
            url = None
        yield url


def _measured(manner: Manner, out: Path, options: Options) -> Figures:
    num_trials, command = manner
    line = command(out)
    began = time.time()
    process_s = measure(line, {"OMP_NUM_THREADS": "1", **options.env}).process_s
    runs = runs_of(out)
    if not runs:
        return Figures(num_trials, process_s)
    assert len(runs) == num_trials, f"{out.name}: {len(runs)} runs instead of {num_trials}"
    first = min((folder / "resolved.yaml").stat().st_mtime for folder in runs)
    last = max((folder / "metrics.jsonl").stat().st_mtime for folder in runs)
    loops_s = sum(json.loads((f / "metrics.jsonl").read_text().splitlines()[-1])["elapsed_s"] for f in runs)
    return Figures(num_trials, process_s, first - began, began + process_s - last, loops_s)


def runs_of(out: Path) -> list[Path]:
    """Return the run directories of dltrain anywhere below `out`."""
    return [path.parent for path in out.rglob("resolved.yaml")]


def weights_of(out: Path) -> Weights:
    """Return a hash of the final weights of each trial whose run lies below `out`."""
    from dltrain import checkpoint

    found = {}
    for folder in runs_of(out):
        tensors = checkpoint.load(folder / "checkpoints" / checkpoint.LAST).part("model")
        digest = hashlib.sha256(b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors)))
        found[(folder / "resolved.yaml").read_text(encoding="utf-8")] = digest.hexdigest()
    return found


def num_equal_weights(own: Weights, of_sweep: Weights) -> int:
    """Return how many trials there are, all with the very weights of the sweep. Raises RuntimeError if one has not."""
    if different := sum(of_sweep.get(trial) != digest for trial, digest in own.items()):
        raise RuntimeError(f"{different} of {len(own)} trials have other weights than in the sweep")
    return len(own)


# ---- the table -------------------------------------------------------------------------------------------------------


def table(epochs: int, rounds: Rounds, num_equal: dict[str, int]) -> Table:
    """Return one line a manner: medians, and the median of the ratios within a round."""
    title = (
        f"sweeps: {NUM_TRIALS} trials of {epochs} epochs of {CONFIG}, one thread a process; medians of {len(rounds)} "
        f"rounds; x: times the sweep in the same round; goals: overhead below {OVERHEAD_GOAL_MS:.0f} ms"
    )
    columns = ("trials run", "s", f"s for {NUM_TRIALS}", "x", "goal", "start-up s", "end s", "overhead ms a trial")
    result = new_table(title, [""], columns)
    result.add_column("weights")
    for name, first in rounds[0].items():
        own = [row[name] for row in rounds]
        is_loop = first.num_trials < NUM_TRIALS
        goal = GOALS.get(name) if epochs == min(EPOCHS) else None
        inside = [] if is_loop else [("startup_s", ".2f"), ("end_s", ".2f"), ("overhead_ms", ".0f")]
        result.add_row(
            name,
            f"{first.num_trials}",
            f"{statistics.median(figures.process_s for figures in own):.2f}",
            f"{statistics.median(figures.all_s for figures in own):.1f}" + (", scaled" if is_loop else ""),
            f"{statistics.median(row[name].all_s / row[SWEEP].all_s for row in rounds):.2f}",
            "" if goal is None else f">= {goal:.0f}",
            *(f"{statistics.median(getattr(figures, figure) for figures in own):{form}}" for figure, form in inside),
            *("" for _ in range(3 - len(inside))),
            "" if name not in num_equal else f"{num_equal[name]} byte-identical",
        )
    return result


def _json(rounds: Rounds) -> list[dict[str, Any]]:
    def figures(own: Figures) -> dict[str, Any]:
        return asdict(own) | {"all_s": own.all_s, "overhead_ms": own.overhead_ms}

    return [{name: figures(own) for name, own in row.items()} for row in rounds]
