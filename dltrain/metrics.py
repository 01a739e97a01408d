"""Metrics from sums that add up, so they are the same for any batch size and any number of processes.

`Metrics` keeps the sums; of what they are, and which numbers follow, says its kind: ConfusionMatrix, LabelCounts,
ErrorSums or TokenSums, which have no state of their own. Only `compute` and `report` wait for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dltrain.data.columns import IGNORED

HIGHER_IS_BETTER: dict[str, bool] = {
    "loss": False,
    "accuracy": True,
    "macro_f1": True,
    "micro_f1": True,
    "exact_match": True,
    "mae": False,
    "rmse": False,
    "r2": True,
    "perplexity": False,
    "token_accuracy": True,
    "bleu": True,
    "chrf": True,
}
PRIMARY: dict[str, str] = {
    "classification": "accuracy",
    "multilabel": "micro_f1",
    "regression": "rmse",
    "language_model": "perplexity",
    "translation": "exact_match",
}

# Reducing each batch of 64 costs more than the forward pass of a small model.
_PENDING_SAMPLES = 4096
_PENDING_NUMBERS = 2**20
_LARGEST_EXPONENT = 700.0
"""Of which a float64 still holds the exponential."""


class Kind(Protocol):
    """What is summed over samples, and which metrics follow from it."""

    def zeros(self) -> Tensor:
        """Return the sums over no samples."""

    def add(self, sums: Tensor, output: Tensor, target: Tensor) -> None:
        """Add samples to `sums` in place."""

    def compute(self, sums: Tensor) -> dict[str, float]:
        """Return the numbers to follow, NaN where undefined."""

    def report(self, sums: Tensor) -> dict[str, Any]:
        """Return the details as JSON values, None where undefined."""


class Metrics:
    """The metrics of one kind over all samples since the last `reset`.

    `update` copies its tensors to the end of others that pend, and sums when thousands of samples do; those of
    sequences are large, and summed at once. It keeps no tensor: a small one that outlives a step in memory that was
    just freed leaves a hole too small for the next large one, and the process grows every step (benchmarks/LOG.md).
    """

    def __init__(self, kind: Kind, device: torch.device | str = "cpu") -> None:
        self._kind = kind
        self._sums = kind.zeros().to(device)
        self._pending: tuple[Tensor, Tensor] | None = None
        self._num_pending = 0

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch."""
        if self._pending is None and output.ndim < 3:
            self._pending = _buffers(output, target)
        number = len(target)
        if self._pending is None or number > len(self._pending[0]):
            self._kind.add(self._sums, output.detach(), target)
            return
        outputs, targets = self._pending
        if self._num_pending + number > len(outputs):
            self._reduce()
        outputs.narrow(0, self._num_pending, number).copy_(output.detach())
        targets.narrow(0, self._num_pending, number).copy_(target)
        self._num_pending += number

    @property
    def state(self) -> Tensor:
        """A copy of the sums, to be added over processes and kept in checkpoints."""
        self._reduce()
        return self._sums.clone()

    def load(self, state: Tensor) -> None:
        """Put `state` in the place of all that has been summed."""
        self._num_pending = 0
        self._sums.copy_(state)

    def reset(self) -> None:
        """Forget all samples."""
        self._num_pending = 0
        self._sums.zero_()

    def compute(self) -> dict[str, float]:
        """Return the numbers to follow, by name; NaN where undefined."""
        return self._kind.compute(self.state.cpu())

    def report(self) -> dict[str, Any]:
        """Return the details as JSON values; None where undefined."""
        return self._kind.report(self.state.cpu())

    def _reduce(self) -> None:
        if self._num_pending and self._pending is not None:
            output, target = (pending[: self._num_pending] for pending in self._pending)
            self._kind.add(self._sums, output, target)
        self._num_pending = 0


def _buffers(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return room for thousands of samples like those of `output` and `target`, or for few that are large."""
    room = max(1, min(_PENDING_SAMPLES, _PENDING_NUMBERS // max(1, output[0].numel())))
    return output.new_empty(room, *output.shape[1:]), target.new_empty(room, *target.shape[1:])


class ConfusionMatrix:
    """Accuracy and F1 of outputs (B, K) and class ids (B,). The sums are (K, K) int64: [target, prediction].

    A class that occurs neither among targets nor among predictions has no F1 and is left out of `macro_f1`.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def zeros(self) -> Tensor:
        """Return the matrix of no samples."""
        return torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64)

    def add(self, sums: Tensor, output: Tensor, target: Tensor) -> None:
        """Count samples."""
        cells = target * self.num_classes + output.argmax(1)
        # Not bincount: it waits for the device to know the size of its result.
        sums.view(-1).index_add_(0, cells, torch.ones_like(cells))

    def compute(self, sums: Tensor) -> dict[str, float]:
        """Return accuracy and macro_f1, NaN without samples."""
        return {
            "accuracy": _ratio(int(sums.trace()), int(sums.sum())),
            "macro_f1": _mean_of_defined([score["f1"] for score in self._per_class(sums)]),
        }

    def report(self, sums: Tensor) -> dict[str, Any]:
        """Return `confusion_matrix` [target][prediction] and `per_class`: precision, recall, f1, support."""
        per_class = [_without_nan(score) for score in self._per_class(sums)]
        return {"confusion_matrix": sums.tolist(), "per_class": per_class}

    def _per_class(self, sums: Tensor) -> list[dict[str, float]]:
        return _label_scores(sums.diagonal(), sums.sum(0), sums.sum(1))


class LabelCounts:
    """F1 and exact matches of K labels: outputs (B, K), positive above 0, and targets (B, K), positive above 0.5.

    The sums are (3 K + 2,) int64: true positives, predicted and actual positives of each label, exact matches,
    samples. A label that is neither predicted nor present has no F1 and is left out of `macro_f1`.
    """

    def __init__(self, num_labels: int) -> None:
        self.num_labels = num_labels

    def zeros(self) -> Tensor:
        """Return the counts of no samples."""
        return torch.zeros(3 * self.num_labels + 2, dtype=torch.int64)

    def add(self, sums: Tensor, output: Tensor, target: Tensor) -> None:
        """Count samples."""
        predicted, actual = output > 0, target > 0.5
        counts = torch.stack([predicted & actual, predicted, actual]).sum(1).flatten()
        exact = (predicted == actual).all(1).sum()
        sums += torch.cat([counts, torch.stack([exact, torch.full_like(exact, len(target))])])

    def compute(self, sums: Tensor) -> dict[str, float]:
        """Return exact_match (all labels of a sample right), micro_f1 and macro_f1, NaN where undefined."""
        exact, samples = sums[-2:].tolist()
        true_positives, predicted, actual = sums[:-2].view(3, -1).sum(1).tolist()
        return {
            "exact_match": _ratio(exact, samples),
            "micro_f1": _ratio(2 * true_positives, predicted + actual),
            "macro_f1": _mean_of_defined([score["f1"] for score in self._per_label(sums)]),
        }

    def report(self, sums: Tensor) -> dict[str, Any]:
        """Return `per_label`: precision, recall, f1, support."""
        return {"per_label": [_without_nan(score) for score in self._per_label(sums)]}

    def _per_label(self, sums: Tensor) -> list[dict[str, float]]:
        return _label_scores(*sums[:-2].view(3, -1))


class ErrorSums:
    """Errors of K targets: outputs and targets (B, K), in float64. `compute` gives means over the targets.

    `std` (K,): what standardised outputs and targets are multiplied with to have their units back (the mean
    cancels). `prediction` turns outputs to predictions first. The sums are (5, K) float64: of |error|, error^2,
    target, target^2, and samples. R2 from these sums loses digits where a target's mean is many times its deviation,
    but float64 has enough for any float32 target that still varies: 1e-6 of R2 at 1e5 deviations; it is undefined
    (NaN, None) from some 1e6 on, as for a constant target.
    """

    def __init__(
        self, num_targets: int, std: Tensor | None = None, prediction: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.std = torch.ones(num_targets, dtype=torch.float64) if std is None else std.detach().cpu().double()
        self.prediction = prediction

    def zeros(self) -> Tensor:
        """Return the sums over no samples."""
        return torch.zeros(5, len(self.std), dtype=torch.float64)

    def add(self, sums: Tensor, output: Tensor, target: Tensor) -> None:
        """Add the errors of samples."""
        predicted = output if self.prediction is None else self.prediction(output)
        actual = target.double()
        error = predicted.double() - actual
        sums += torch.stack((error.abs(), error**2, actual, actual**2, torch.ones_like(actual))).sum(1)

    def compute(self, sums: Tensor) -> dict[str, float]:
        """Return mae, rmse and r2, each the mean over targets; NaN where it is undefined for any of them."""
        targets = self._per_target(sums)
        return {name: sum(scores[name] for scores in targets) / len(targets) for name in ("mae", "rmse", "r2")}

    def report(self, sums: Tensor) -> dict[str, Any]:
        """Return `per_target`: mae, rmse, r2."""
        return {"per_target": [_without_nan(scores) for scores in self._per_target(sums)]}

    def _per_target(self, sums: Tensor) -> list[dict[str, float]]:
        absolute, squared, total, total_squared, samples = sums
        variation = total_squared - total**2 / samples
        defined = variation > 1e-12 * total_squared
        r2 = torch.where(defined, 1 - squared / variation, math.nan)
        columns = (absolute / samples * self.std, (squared / samples).sqrt() * self.std, r2)
        return [dict(zip(("mae", "rmse", "r2"), row, strict=True)) for row in torch.stack(columns, 1).tolist()]


class TokenSums:
    """Perplexity and accuracy of tokens: outputs (B, L, V), token ids (B, L), of which IGNORED ones never count.

    The sums are (5,) float64: negative log-likelihood, tokens, tokens that are the likeliest, sequences of which
    every token is the likeliest, sequences. With `whole_sequences` the last two give exact_match: each token is
    predicted from the true ones before it, and if all are right, greedy decoding gives just this sequence.
    """

    def __init__(self, whole_sequences: bool) -> None:
        self.whole_sequences = whole_sequences

    def zeros(self) -> Tensor:
        """Return the sums over no sequences."""
        return torch.zeros(5, dtype=torch.float64)

    def add(self, sums: Tensor, output: Tensor, target: Tensor) -> None:
        """Add sequences."""
        counted = target != IGNORED
        right = output.argmax(2) == target
        nll = F.cross_entropy(output.flatten(0, 1), target.flatten(), ignore_index=IGNORED, reduction="sum")
        exact = (right | ~counted).all(1).sum()
        sequences = torch.full_like(exact, len(target))
        sums += torch.stack([nll.double(), counted.sum(), right.sum(), exact, sequences])

    def compute(self, sums: Tensor) -> dict[str, float]:
        """Return perplexity per token, token_accuracy and perhaps exact_match, NaN without sequences."""
        nll, tokens, right, exact, sequences = sums.tolist()
        values = {
            "perplexity": math.exp(min(nll / tokens, _LARGEST_EXPONENT)) if tokens else math.nan,
            "token_accuracy": _ratio(right, tokens),
        }
        return values | ({"exact_match": _ratio(exact, sequences)} if self.whole_sequences else {})

    def report(self, sums: Tensor) -> dict[str, Any]:
        """Return nothing: there are no details."""
        return {}


def _label_scores(true_positives: Tensor, predicted: Tensor, actual: Tensor) -> list[dict[str, float]]:
    """Return precision, recall and F1 (NaN where undefined) and support of each class or label from counts (K,)."""
    counts = zip(true_positives.tolist(), predicted.tolist(), actual.tolist(), strict=True)
    return [
        {
            "precision": _ratio(hit, said),
            "recall": _ratio(hit, real),
            "f1": _ratio(2 * hit, said + real),
            "support": real,
        }
        for hit, said, real in counts
    ]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _mean_of_defined(values: list[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def _without_nan(scores: dict[str, float]) -> dict[str, float | None]:
    """Return `scores` with None for NaN, which JSON does not know."""
    return {name: None if math.isnan(value) else value for name, value in scores.items()}
