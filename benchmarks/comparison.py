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
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.processes import interpreter, measure
from benchmarks.works import Work, load, save

REFERENCE = "bare_mem"


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
    num_threads: int
    rounds: list[dict[str, Figures]]
    losses: dict[str, float]
    """Of the final weights over all training samples."""
    distances: dict[str, float]
    """Largest difference of a final weight from the reference's; 0: bit-equal."""

    def ratio(self, name: str, figure: str) -> tuple[float, float, float]:
        """Return the median over rounds of a figure divided by the reference's, with the quartiles around it."""
        ratios = [getattr(row[name], figure) / getattr(row[REFERENCE], figure) for row in self.rounds]
        return statistics.median(ratios), *_quartiles(ratios)

    def median(self, name: str, figure: str) -> float:
        """Return the median of a figure over rounds."""
        return float(statistics.median(getattr(row[name], figure) for row in self.rounds))

    def to_json(self) -> dict[str, Any]:
        """Return all figures and the ratios."""
        names = list(self.rounds[0])
        fields = [field.name for field in dataclasses.fields(Figures)]
        return {
            "work": self.work.name,
            "epochs": self.work.epochs,
            "num_threads": self.num_threads,
            "losses": self.losses,
            "distances": self.distances,
            "median_ratios": {name: {field: self.ratio(name, field)[0] for field in fields} for name in names},
            "rounds": [{name: dataclasses.asdict(figures) for name, figures in row.items()} for row in self.rounds],
        }


def compare(
    work: Work, names: Sequence[str], repeat: int, env: Mapping[str, str], say: Callable[[str], None]
) -> Comparison:
    """Train `repeat` times with each of `names`, the order turned around in every other round."""
    names = [REFERENCE, *(name for name in names if name != REFERENCE)]
    pythons = {name: interpreter(name, IMPLEMENTATIONS[name].requires) for name in names}
    rounds, weights, num_threads = [], {}, 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = save(work, folder)
        for index in range(repeat):
            say(f"{work.name}: round {index + 1} of {repeat}")
            row = {}
            for name in names if index % 2 == 0 else reversed(names):
                own = folder / f"{index}-{name}"
                own.mkdir()
                module = "benchmarks.implementations"
                arguments = [name, work.name, str(work.epochs), str(data), str(own)]
                usage = measure([pythons[name], "-m", module, *arguments], env)
                trained = json.loads((own / "trained.json").read_text(encoding="utf-8"))
                loop_s, num_threads = trained["loop_s"], trained["num_threads"]
                rate = work.num_samples * work.epochs / loop_s
                row[name] = Figures(loop_s, rate, **dataclasses.asdict(usage))
                weights[name] = read_weights(Path(trained["weights"]))
            rounds.append({name: row[name] for name in names})
        losses = {name: final_loss(work, tensors, data) for name, tensors in weights.items()}
    distances = {name: distance(tensors, weights[REFERENCE]) for name, tensors in weights.items()}
    return Comparison(work, num_threads, rounds, losses, distances)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the final weights in `path` by the names of the work's own model."""
    if path.suffix == ".pt":
        weights: dict[str, Tensor] = torch.load(path, weights_only=True)
        return weights
    from dltrain import checkpoint

    return {name.removeprefix("layers."): tensor for name, tensor in checkpoint.load(path).part("model").items()}


def distance(weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> float:
    """Return the largest difference between two sets of weights; exactly 0 only if all bits are equal."""
    assert weights.keys() == others.keys()
    if all(torch.equal(tensor, others[name]) for name, tensor in weights.items()):
        return 0.0
    return max(float((tensor - others[name]).abs().max()) for name, tensor in weights.items())


@torch.no_grad()
def final_loss(work: Work, weights: Mapping[str, Tensor], data: Path) -> float:
    """Return the mean loss over all training samples."""
    model = work.model()
    model.load_state_dict(dict(weights))
    inputs, targets = load(data)
    return float(F.cross_entropy(model(inputs), targets))


def table(comparison: Comparison) -> Table:
    """Return the comparison as one table of medians and ratios to the reference."""
    work = comparison.work
    title = (
        f"{work.name}: {work.num_samples:,} samples, batch {work.batch_size}, {work.epochs} epochs; "
        f"{comparison.num_threads} threads, medians of {len(comparison.rounds)} rounds; "
        f"x: times {REFERENCE} in the same round (quartiles)"
    )
    result = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    result.add_column("")
    for column in ("loop s", "x", "samples/s", "process s", "x", "CPU s", "x", "peak MiB", "x", "final loss"):
        result.add_column(column, justify="right")
    result.add_column("weights")
    for name in comparison.rounds[0]:
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
            f"{comparison.losses[name]:.6f}",
            "bit-equal" if comparison.distances[name] == 0 else f"differ by {comparison.distances[name]:.1e}",
        )
    return result


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def _ratio_text(ratio: tuple[float, float, float]) -> str:
    return "{:.2f} ({:.2f}-{:.2f})".format(*ratio)
