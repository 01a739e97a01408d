"""All implementations at one work, in turns; ratios are taken within a round, so that noise hits all alike."""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from benchmarks import tensors
from benchmarks.implementations import IMPLEMENTATIONS, TRAINED, cross_entropy
from benchmarks.processes import Usage, interpreter, measure
from benchmarks.tables import new_table
from benchmarks.tensors import Data
from benchmarks.works import Work

REFERENCE = "bare_mem"
LOSS_TOLERANCE = 1e-5
_JUDGED_AT_ONCE = 256


@dataclass(frozen=True)
class Figures:
    """One training."""

    loop_s: float
    samples_per_s: float
    process_s: float
    cpu_s: float
    peak_mib: float


@dataclass(frozen=True)
class Comparison:
    """The trainings of one work: figures of each round, and what came out in the last."""

    work: Work
    num_threads: dict[str, int]
    rounds: list[dict[str, Figures]]
    losses: dict[str, float]
    """Of the final weights over training samples."""
    distances: dict[str, float]
    """Largest difference of a final weight from the reference's; 0: bit-equal."""

    def ratio(self, name: str, figure: str, reference: str = REFERENCE) -> tuple[float, float, float]:
        """Return the median over rounds of a figure divided by the reference's, with the quartiles around it."""
        ratios = [getattr(row[name], figure) / getattr(row[reference], figure) for row in self.rounds]
        return statistics.median(ratios), *_quartiles(ratios)

    def median(self, name: str, figure: str) -> float:
        """Return the median of a figure over rounds."""
        return float(statistics.median(getattr(row[name], figure) for row in self.rounds))

    def equality(self, name: str) -> str:
        """Return whether the result is the reference's: "bit-equal", "same loss", or "DIFFERENT" where it must not be.

        Whoever draws another order of samples is not held to it ("other order"), and with another number of threads
        sums have other last bits, which grow from step to step ("other threads").
        """
        if self.distances[name] == 0:
            return "bit-equal"
        if not IMPLEMENTATIONS[name].exact:
            return "other order"
        near = abs(self.losses[name] - self.losses[REFERENCE]) <= LOSS_TOLERANCE * max(1.0, self.losses[REFERENCE])
        if near:
            return "same loss"
        return "DIFFERENT" if self.num_threads[name] == self.num_threads[REFERENCE] else "other threads"

    def to_json(self) -> dict[str, Any]:
        """Return all figures and the ratios."""
        names = list(self.rounds[0])
        fields = [field.name for field in dataclasses.fields(Figures)]
        return {
            "work": self.work.name,
            "about": self.work.about,
            "batch_size": self.work.batch_size,
            "steps": self.work.steps,
            "num_threads": self.num_threads,
            "losses": self.losses,
            "distances": self.distances,
            "results": {name: self.equality(name) for name in names},
            "median_ratios": {name: {field: self.ratio(name, field)[0] for field in fields} for name in names},
            "rounds": [{name: dataclasses.asdict(figures) for name, figures in row.items()} for row in self.rounds],
        }


def compare(
    work: Work, names: Sequence[str], repeat: int, env: Mapping[str, str], say: Callable[[str], None]
) -> Comparison:
    """Train `repeat` times with those of `names`, the order turned around in every other round.

    The prepared data are in dltrain's cache, as from the second run on, if they took it long enough to prepare.
    """
    names = [REFERENCE, *(name for name in names if name != REFERENCE)]
    pythons = {name: interpreter(name, IMPLEMENTATIONS[name].requires) for name in names}
    rounds: list[dict[str, Figures]] = []
    weights: dict[str, dict[str, Tensor]] = {}
    num_threads: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = tensors.load(tensors.save(work, folder)[1])
        for index in range(repeat):
            say(f"{work.name}: round {index + 1} of {repeat}")
            row = {}
            for name in names if index % 2 == 0 else reversed(names):
                out = folder / f"{index}-{name}"
                usage, trained = train(work, name, folder, out, env, pythons[name])
                rate = work.samples_trained(len(data)) / trained["loop_s"]
                row[name] = Figures(trained["loop_s"], rate, **dataclasses.asdict(usage))
                weights[name] = read_weights(Path(trained["weights"]))
                num_threads[name] = trained["num_threads"]
            rounds.append({name: row[name] for name in names})
    losses = {name: final_loss(work, own, data) for name, own in weights.items()}
    distances = {name: distance(own, weights[REFERENCE]) for name, own in weights.items()}
    return Comparison(work, {name: num_threads[name] for name in names}, rounds, losses, distances)


def train(
    work: Work, name: str, folder: Path, out: Path, env: Mapping[str, str], python: Path | None = None
) -> tuple[Usage, dict[str, Any]]:
    """Do a work once, in a process of its own; return what that took and what it wrote of itself."""
    out.mkdir()
    command = [python or interpreter(name, None), "-m", "benchmarks.implementations", name, work.name, str(work.steps)]
    usage = measure([*command, folder, out], env)
    trained: dict[str, Any] = json.loads((out / TRAINED).read_text(encoding="utf-8"))
    return usage, trained


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the final weights in `path` by their names, without the "layers." of dltrain's plain models."""
    if path.suffix == ".pt":
        weights: dict[str, Tensor] = torch.load(path, weights_only=True)
    else:
        from dltrain import checkpoint

        weights = checkpoint.load(path).part("model")
    return {name.removeprefix("layers."): tensor for name, tensor in weights.items()}


def distance(weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> float:
    """Return the largest difference between two sets of weights; exactly 0 only if all bits are equal."""
    assert weights.keys() == others.keys()
    if all(torch.equal(tensor, others[name]) for name, tensor in weights.items()):
        return 0.0
    return max(float((tensor - others[name]).abs().max()) for name, tensor in weights.items())


@torch.no_grad()
def final_loss(work: Work, weights: Mapping[str, Tensor], data: Data) -> float:
    """Return the mean loss over the first training samples, at most `work.num_judged`."""
    model = work.model(data.sizes).eval()
    model.load_state_dict({name: weights[name.removeprefix("layers.")] for name in model.state_dict()})
    losses = []
    for indices in torch.arange(min(len(data), work.num_judged)).split(_JUDGED_AT_ONCE):
        *inputs, target = data.batch(indices)
        losses.append(float(cross_entropy(model(*inputs), target)) * len(indices))
    return sum(losses) / min(len(data), work.num_judged)


def table(comparison: Comparison) -> Table:
    """Return the comparison as one table of medians and ratios to the reference."""
    work = comparison.work
    title = (
        f"{work.name}: {work.about}; batch {work.batch_size}, {work.steps} steps; medians of "
        f"{len(comparison.rounds)} rounds; x: times {REFERENCE} in the same round (quartiles)"
    )
    columns = ("loop s", "x", "samples/s", "process s", "x", "CPU s", "x", "peak MiB", "x", "threads", "final loss")
    result = new_table(title, [""], columns)
    result.add_column("result")
    for name in comparison.rounds[0]:
        equality = comparison.equality(name)
        result.add_row(
            name,
            f"{comparison.median(name, 'loop_s'):.3f}",
            _ratio_text(comparison.ratio(name, "loop_s")),
            f"{comparison.median(name, 'samples_per_s'):,.0f}",
            f"{comparison.median(name, 'process_s'):.2f}",
            _ratio_text(comparison.ratio(name, "process_s")),
            f"{comparison.median(name, 'cpu_s'):.2f}",
            f"{comparison.ratio(name, 'cpu_s')[0]:.2f}",
            f"{comparison.median(name, 'peak_mib'):.0f}",
            f"{comparison.ratio(name, 'peak_mib')[0]:.2f}",
            f"{comparison.num_threads[name]}",
            f"{comparison.losses[name]:.6f}",
            equality if equality == "bit-equal" else f"{equality}, weights differ by {comparison.distances[name]:.1e}",
        )
    return result


def summary(comparisons: Sequence[Comparison]) -> Table:
    """Return one table of the loops of all works: times the hand-tuned loop and, in brackets, times dltrain."""
    title = f"loops: times {REFERENCE} (times dltrain), medians of the ratios within a round"
    names = [name for name in IMPLEMENTATIONS if any(name in comparison.rounds[0] for comparison in comparisons)]
    result = new_table(title, ["work"], [*names, "dltrain's process", "dltrain's peak memory"])
    result.add_column("dltrain's result")
    for comparison in comparisons:
        ran = comparison.rounds[0]
        result.add_row(
            comparison.work.name,
            *(_of_both(comparison, name) if name in ran else "" for name in names),
            f"{comparison.ratio('dltrain', 'process_s')[0]:.2f}",
            f"{comparison.ratio('dltrain', 'peak_mib')[0]:.2f}",
            comparison.equality("dltrain"),
        )
    return result


def _of_both(comparison: Comparison, name: str) -> str:
    loop = f"{comparison.ratio(name, 'loop_s')[0]:.2f}"
    if name in (REFERENCE, "dltrain"):
        return loop
    return f"{loop} ({comparison.ratio(name, 'loop_s', 'dltrain')[0]:.2f})"


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def _ratio_text(ratio: tuple[float, float, float]) -> str:
    return "{:.2f} ({:.2f}-{:.2f})".format(*ratio)
