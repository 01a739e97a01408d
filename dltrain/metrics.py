"""Metrics from sums that add up, so they are the same for any batch size and any number of processes.

All classes have one shape: `update` for each batch, `state` to add over processes and `load` for the sum,
`compute` for the numbers to follow, `report` for the details. `update` only remembers its tensors (which must
not be written to afterwards); they are reduced when thousands of samples pend. Only `compute` and `report`
wait for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

HIGHER_IS_BETTER: dict[str, bool] = {
    "loss": False,
    "accuracy": True,
    "macro_f1": True,
    "micro_f1": True,
    "exact_match": True,
    "mae": False,
    "rmse": False,
    "r2": True,
}
PRIMARY: dict[str, str] = {"classification": "accuracy", "multilabel": "micro_f1", "regression": "rmse"}

# Reducing each batch of 64 costs more than the forward pass of a small model.
_PENDING_SAMPLES = 4096


class ClassificationMetrics:
    """Accuracy, F1 and the confusion matrix of outputs (B, K) and class ids (B,). The state is (K, K) int64:
    [target, prediction].

    A class that occurs neither among targets nor among predictions has no F1 and is left out of `macro_f1`.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self._state = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
        self._pending = _Pending()

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch."""
        if self._pending.add(output, target):
            self._reduce()

    @property
    def state(self) -> Tensor:
        """What has been counted, to be added over processes."""
        self._reduce()
        return self._state.clone()

    def load(self, state: Tensor) -> None:
        """Put `state` in the place of all that has been counted."""
        self._pending.take()
        self._state.copy_(state)

    def reset(self) -> None:
        """Forget all samples."""
        self.load(torch.zeros_like(self._state))

    def compute(self) -> dict[str, float]:
        """Return accuracy and macro_f1, NaN without samples."""
        matrix = self.state.cpu()
        scores = _label_scores(matrix.diagonal(), matrix.sum(0), matrix.sum(1))
        return {
            "accuracy": _ratio(int(matrix.trace()), int(matrix.sum())),
            "macro_f1": _mean_of_defined([score["f1"] for score in scores]),
        }

    def report(self) -> dict[str, Any]:
        """Return `confusion_matrix` [target][prediction] and `per_class`: precision, recall, f1 (None where
        undefined), support.
        """
        matrix = self.state.cpu()
        scores = _label_scores(matrix.diagonal(), matrix.sum(0), matrix.sum(1))
        return {"confusion_matrix": matrix.tolist(), "per_class": [_without_nan(score) for score in scores]}

    def _reduce(self) -> None:
        for output, target in self._pending.take():
            cells = target * len(self._state) + output.argmax(1)
            # Not bincount: it waits for the device to know the size of its result.
            self._state.view(-1).index_add_(0, cells, torch.ones_like(cells))


class MultilabelMetrics:
    """F1 and exact matches of K labels: outputs (B, K), positive above 0, and targets (B, K), positive above
    0.5.

    The state is (3 K + 2,) int64: true positives, predicted and actual positives of each label, exact
    matches, samples. A label that is neither predicted nor present has no F1 and is left out of `macro_f1`.
    """

    def __init__(self, num_labels: int, device: torch.device | str = "cpu") -> None:
        self._state = torch.zeros(3 * num_labels + 2, dtype=torch.int64, device=device)
        self._pending = _Pending()

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch."""
        if self._pending.add(output, target):
            self._reduce()

    @property
    def state(self) -> Tensor:
        """What has been counted, to be added over processes."""
        self._reduce()
        return self._state.clone()

    def load(self, state: Tensor) -> None:
        """Put `state` in the place of all that has been counted."""
        self._pending.take()
        self._state.copy_(state)

    def reset(self) -> None:
        """Forget all samples."""
        self.load(torch.zeros_like(self._state))

    def compute(self) -> dict[str, float]:
        """Return exact_match (all labels of a sample right), micro_f1 and macro_f1, NaN where undefined."""
        *counts, exact, samples = self.state.tolist()
        labels = torch.tensor(counts).view(3, -1)
        true_positives, predicted, actual = labels.sum(1).tolist()
        return {
            "exact_match": _ratio(exact, samples),
            "micro_f1": _ratio(2 * true_positives, predicted + actual),
            "macro_f1": _mean_of_defined([score["f1"] for score in _label_scores(*labels)]),
        }

    def report(self) -> dict[str, Any]:
        """Return `per_label`: precision, recall, f1 (None where undefined), support."""
        labels = self.state[:-2].cpu().view(3, -1)
        return {"per_label": [_without_nan(score) for score in _label_scores(*labels)]}

    def _reduce(self) -> None:
        for output, target in self._pending.take():
            predicted, actual = output > 0, target > 0.5
            counts = torch.stack([predicted & actual, predicted, actual]).sum(1).flatten()
            exact = (predicted == actual).all(1).sum()
            self._state += torch.cat([counts, torch.stack([exact, torch.full_like(exact, len(target))])])


class RegressionMetrics:
    """Errors of K targets: outputs and targets (B, K), in float64. `compute` gives means over the targets.

    `std` (K,): what standardised outputs and targets are multiplied with to have their units back (the mean
    cancels). `prediction` turns outputs to predictions first. The state is (5, K) float64: sums of |error|,
    error^2, target, target^2, and of samples. R2 from these sums loses digits where a target's mean is many
    times its deviation, but float64 has enough for any float32 target that still varies: 1e-6 of R2 at 1e5
    deviations; it is undefined (NaN, None) from some 1e6 on, as for a constant target.
    """

    def __init__(
        self,
        num_targets: int,
        device: torch.device | str = "cpu",
        std: Tensor | None = None,
        prediction: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._state = torch.zeros(5, num_targets, dtype=torch.float64, device=device)
        self._std = torch.ones(num_targets, dtype=torch.float64) if std is None else std.detach().cpu().double()
        self._prediction = prediction
        self._pending = _Pending()

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch."""
        if self._pending.add(output, target):
            self._reduce()

    @property
    def state(self) -> Tensor:
        """What has been summed, to be added over processes."""
        self._reduce()
        return self._state.clone()

    def load(self, state: Tensor) -> None:
        """Put `state` in the place of all that has been summed."""
        self._pending.take()
        self._state.copy_(state)

    def reset(self) -> None:
        """Forget all samples."""
        self.load(torch.zeros_like(self._state))

    def compute(self) -> dict[str, float]:
        """Return mae, rmse and r2, each the mean over targets; NaN where it is undefined for any of them."""
        targets = self._per_target()
        return {name: sum(scores[name] for scores in targets) / len(targets) for name in ("mae", "rmse", "r2")}

    def report(self) -> dict[str, Any]:
        """Return `per_target`: mae, rmse, r2 (None where undefined)."""
        return {"per_target": [_without_nan(scores) for scores in self._per_target()]}

    def _per_target(self) -> list[dict[str, float]]:
        absolute, squared, total, total_squared, samples = self.state.cpu()
        variation = total_squared - total**2 / samples
        defined = variation > 1e-12 * total_squared
        r2 = torch.where(defined, 1 - squared / variation, math.nan)
        columns = (absolute / samples * self._std, (squared / samples).sqrt() * self._std, r2)
        return [dict(zip(("mae", "rmse", "r2"), row, strict=True)) for row in torch.stack(columns, 1).tolist()]

    def _reduce(self) -> None:
        for output, target in self._pending.take():
            predicted = output if self._prediction is None else self._prediction(output)
            actual = target.double()
            error = predicted.double() - actual
            sums = (error.abs(), error**2, actual, actual**2, torch.ones_like(actual))
            self._state += torch.stack(sums).sum(1)


class _Pending:
    """Batches that wait to be reduced together."""

    def __init__(self) -> None:
        self._outputs: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._samples = 0

    def add(self, output: Tensor, target: Tensor) -> bool:
        """Keep a batch; return whether enough samples pend to be reduced."""
        self._outputs.append(output.detach())
        self._targets.append(target)
        self._samples += len(target)
        return self._samples >= _PENDING_SAMPLES

    def take(self) -> list[tuple[Tensor, Tensor]]:
        """Return nothing or one (outputs, targets) of all samples that pend, and forget them."""
        if not self._samples:
            return []
        batch = (torch.cat(self._outputs), torch.cat(self._targets))
        self._outputs, self._targets, self._samples = [], [], 0
        return [batch]


def _label_scores(true_positives: Tensor, predicted: Tensor, actual: Tensor) -> list[dict[str, float]]:
    """Return precision, recall and F1 (NaN where undefined) and support of each class or label from counts
    (K,).
    """
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


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _mean_of_defined(values: list[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def _without_nan(scores: dict[str, float]) -> dict[str, float | None]:
    """Return `scores` with None for NaN, which JSON does not know."""
    return {name: None if math.isnan(value) else value for name, value in scores.items()}
