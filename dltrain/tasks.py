"""What a task is: how targets become tensors, how outputs become predictions, and which metrics say how good they are.

A task is learned from the training samples (`learn`) and then stored as plain values (`facts`) in the checkpoint. Those
of sequences are `SEQUENCE_TASKS`: their source makes the targets, one token for each output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from dltrain.data.columns import Samples
from dltrain.errors import ConfigError, DataError
from dltrain.metrics import ConfusionMatrix, ErrorSums, LabelCounts, Metrics, TokenSums
from dltrain.names import did_you_mean

MAX_INFERRED_CLASSES = 100


@dataclass(frozen=True)
class Classification:
    """One class of several for each sample; outputs are one score a class."""

    type: ClassVar[str] = "classification"
    default_loss: ClassVar[str] = "cross_entropy"
    classes: list[int | str]

    @classmethod
    def learn(cls, samples: Samples) -> Classification:
        """Take the classes, sorted, from the training samples."""
        classes = np.unique(_labels(samples)).tolist()
        if len(classes) < 2:
            raise DataError(
                f"{samples.place(0)}: all training targets are {classes[0]!r}; classification needs two classes"
            )
        return cls(classes)

    @property
    def num_outputs(self) -> int:
        """Number of values that the model puts out for a sample."""
        return len(self.classes)

    def encode(self, samples: Samples) -> Tensor:
        """Return class ids (N,) int64. Raises DataError for a class that training has not seen."""
        labels = _labels(samples)
        distinct = np.unique(labels)
        ids = {str(label): index for index, label in enumerate(self.classes)}
        id_of = np.array([ids.get(str(label), -1) for label in distinct], dtype=np.int64)
        encoded = id_of[np.searchsorted(distinct, labels)]
        if (encoded < 0).any():
            row = int((encoded < 0).argmax())
            raise _unknown_label(samples.place(row), labels[row], self.classes)
        return torch.from_numpy(encoded)

    def metrics(self, device: torch.device, prediction: Callable[[Tensor], Tensor] | None = None) -> Metrics:
        """Return fresh metrics."""
        return Metrics(ConfusionMatrix(len(self.classes)), device)

    def predict(self, output: Tensor) -> dict[str, list[Any]]:
        """Return columns for outputs (B, K): the class and the probability of each."""
        probabilities = output.float().softmax(1).cpu()
        best = probabilities.argmax(1).tolist()
        return {"prediction": [self.classes[index] for index in best], **_columns_of(probabilities, self.classes)}


@dataclass(frozen=True)
class Multilabel:
    """Any number of labels for each sample; outputs are one logit a label."""

    type: ClassVar[str] = "multilabel"
    default_loss: ClassVar[str] = "bce"
    labels: list[str]
    separator: str

    @classmethod
    def learn(cls, samples: Samples, separator: str) -> Multilabel:
        """Take the labels from the columns' names, or sorted from text such as "red|round"."""
        targets = _targets(samples)
        if targets.ndim == 2:
            names = samples.target_names or tuple(str(index) for index in range(targets.shape[1]))
            return cls(list(names), separator)
        if targets.dtype.kind not in "OU":
            raise ConfigError(
                f"multilabel needs text such as 'red{separator}round', or a target for each label; "
                "the data have one number a sample"
            )
        labels = sorted({label for text in targets.tolist() for label in _split_labels(text, separator)})
        if not labels:
            raise DataError(f"{samples.place(0)}: no training sample has a label")
        return cls(labels, separator)

    @property
    def num_outputs(self) -> int:
        """Number of values that the model puts out for a sample."""
        return len(self.labels)

    def encode(self, samples: Samples) -> Tensor:
        """Return (N, K) float32 of 0 and 1. Raises DataError for other values and for unknown labels."""
        targets = _targets(samples)
        if targets.ndim == 2:
            _require_width(samples, targets, len(self.labels))
            wrong = np.argwhere((targets != 0) & (targets != 1))
            if len(wrong):
                row, column = wrong[0]
                name = self.labels[column]
                raise DataError(f"{samples.place(int(row))}, label '{name}': {targets[row, column]} is neither 0 nor 1")
            return torch.from_numpy(targets.astype(np.float32))
        ids = {label: index for index, label in enumerate(self.labels)}
        encoded = torch.zeros(len(targets), len(self.labels))
        for row, text in enumerate(targets.tolist()):
            for label in _split_labels(text, self.separator):
                if label not in ids:
                    raise _unknown_label(samples.place(row), label, self.labels)
                encoded[row, ids[label]] = 1.0
        return encoded

    def metrics(self, device: torch.device, prediction: Callable[[Tensor], Tensor] | None = None) -> Metrics:
        """Return fresh metrics."""
        return Metrics(LabelCounts(len(self.labels)), device)

    def predict(self, output: Tensor) -> dict[str, list[Any]]:
        """Return columns for logits (B, K): the labels above one half, and the probability of each."""
        probabilities = output.float().sigmoid().cpu()
        chosen = (probabilities > 0.5).tolist()
        joined = [self.separator.join(name for name, on in zip(self.labels, row, strict=True) if on) for row in chosen]
        return {"prediction": joined, **_columns_of(probabilities, self.labels)}


@dataclass(frozen=True)
class Regression:
    """One or several numbers for each sample. The model learns (y - mean) / std; metrics are in the units of y."""

    type: ClassVar[str] = "regression"
    default_loss: ClassVar[str] = "mse"
    names: list[str]
    mean: list[float]
    std: list[float]

    @classmethod
    def learn(cls, samples: Samples, standardize: bool) -> Regression:
        """Take mean and deviation of each target from the training samples."""
        targets = _numbers(samples)
        names = samples.target_names or tuple(f"target{index}" for index in range(targets.shape[1]))
        if not standardize:
            return cls(list(names), [0.0] * len(names), [1.0] * len(names))
        std = targets.std(axis=0)
        return cls(list(names), targets.mean(axis=0).tolist(), np.where(std > 0, std, 1.0).tolist())

    @property
    def num_outputs(self) -> int:
        """Number of targets of a sample."""
        return len(self.names)

    def encode(self, samples: Samples) -> Tensor:
        """Return (N, K) float32 standardised targets. Raises DataError where one is not finite."""
        targets = _numbers(samples)
        _require_width(samples, targets, len(self.names))
        return torch.from_numpy(((targets - self.mean) / self.std).astype(np.float32))

    def metrics(self, device: torch.device, prediction: Callable[[Tensor], Tensor] | None = None) -> Metrics:
        """Return fresh metrics; `prediction` turns outputs into target space where they are something else."""
        std = torch.tensor(self.std, dtype=torch.float64)
        return Metrics(ErrorSums(len(self.names), std, prediction), device)

    def predict(self, output: Tensor) -> dict[str, list[Any]]:
        """Return columns for outputs (B, K) in target space: one a target, in the units of the data."""
        std, mean = (torch.tensor(numbers, dtype=torch.float64) for numbers in (self.std, self.mean))
        values = output.double().cpu() * std + mean
        if len(self.names) == 1:
            return {"prediction": values[:, 0].tolist()}
        return {f"prediction_{name}": values[:, index].tolist() for index, name in enumerate(self.names)}


@dataclass(frozen=True)
class LanguageModel:
    """The next token after each of a text; outputs are one score a token of the vocabulary."""

    type: ClassVar[str] = "language_model"
    default_loss: ClassVar[str] = "cross_entropy"
    num_outputs: int

    def metrics(self, device: torch.device, prediction: Callable[[Tensor], Tensor] | None = None) -> Metrics:
        """Return fresh metrics."""
        return Metrics(TokenSums(whole_sequences=False), device)


@dataclass(frozen=True)
class Translation:
    """A text for each text; outputs are one score a token of the target's vocabulary, given the tokens before."""

    type: ClassVar[str] = "translation"
    default_loss: ClassVar[str] = "cross_entropy"
    num_outputs: int
    beam_size: int = 1
    length_penalty: float = 1.0

    def metrics(self, device: torch.device, prediction: Callable[[Tensor], Tensor] | None = None) -> Metrics:
        """Return fresh metrics."""
        return Metrics(TokenSums(whole_sequences=True), device)


SequenceTask = LanguageModel | Translation
Task = Classification | Multilabel | Regression | SequenceTask
SEQUENCE_TASKS = (LanguageModel.type, Translation.type)
_TASKS: dict[str, Any] = {
    task.type: task for task in (Classification, Multilabel, Regression, LanguageModel, Translation)
}


def infer_type(samples: Samples) -> str:
    """Return the type of the task where the targets make it plain. Raises ConfigError where not."""
    targets = _targets(samples)
    if targets.ndim == 2:
        return "multilabel" if bool(np.isin(targets, (0, 1)).all()) else "regression"
    if targets.dtype.kind == "f":
        return "regression"
    values = np.unique(targets.astype(str) if targets.dtype.kind == "O" else targets)
    if len(values) > max(2, len(targets) / 2) or (targets.dtype.kind in "iu" and len(values) > MAX_INFERRED_CLASSES):
        kind = "texts" if targets.dtype.kind in "OU" else "whole numbers"
        raise ConfigError(
            f"the targets of {len(targets):,} samples are {len(values):,} different {kind}, such as {values[0]}: "
            "classes or quantities? Write task: {type: classification} or task: {type: regression}"
        )
    return "classification"


def facts_of(task: Task) -> dict[str, Any]:
    """Return the task as plain values for the checkpoint."""
    return {"type": task.type, **asdict(task)}


def from_facts(facts: dict[str, Any]) -> Task:
    """Return the task that `facts_of` described."""
    arguments = {key: value for key, value in facts.items() if key != "type"}
    task: Task = _TASKS[facts["type"]](**arguments)
    return task


def _targets(samples: Samples) -> np.ndarray:
    if samples.targets is None:
        raise DataError(f"{samples.place(0)}: the data have no targets")
    return samples.targets


def _labels(samples: Samples) -> np.ndarray:
    """Return class labels (N,) as text or int64."""
    targets = _targets(samples)
    if targets.ndim != 1:
        raise ConfigError(f"classification needs one target a sample, the data have {targets.shape[1]}")
    if targets.dtype.kind == "f":
        wrong = np.flatnonzero(~np.isfinite(targets) | (targets != np.trunc(targets)))
        if len(wrong):
            row = int(wrong[0])
            raise DataError(
                f"{samples.place(row)}: target {targets[row]:g} is no class; is this task: {{type: regression}}?"
            )
        return targets.astype(np.int64)
    return targets.astype(str) if targets.dtype.kind in "Ob" else targets


def _numbers(samples: Samples) -> np.ndarray:
    """Return targets (N, K) float64, all finite in float32 too."""
    targets = _targets(samples)
    if targets.dtype.kind in "OU":
        row = next((row for row, text in enumerate(targets.tolist()) if not _is_number(text)), 0)
        raise DataError(f"{samples.place(row)}: target '{targets[row]}' is text; regression needs numbers")
    numbers = targets.astype(np.float64).reshape(len(targets), -1)
    wrong = np.argwhere(~(np.abs(numbers) <= np.finfo(np.float32).max))
    if len(wrong):
        row, column = map(int, wrong[0])
        name = f" '{samples.target_names[column]}'" if samples.target_names else ""
        raise DataError(f"{samples.place(row)}: target{name} is {numbers[row, column]:g}, no finite float32 number")
    return numbers


def _is_number(text: Any) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _require_width(samples: Samples, targets: np.ndarray, width: int) -> None:
    """Raise DataError if these samples have another number of targets than those of the training."""
    if targets.shape[1] != width:
        raise DataError(f"{samples.place(0)}: has {targets.shape[1]} targets, training had {width}")


def _split_labels(text: Any, separator: str) -> list[str]:
    return [label.strip() for label in str(text).split(separator) if label.strip()]


def _columns_of(probabilities: Tensor, names: Sequence[Any]) -> dict[str, list[Any]]:
    """Return the column of each class or label of `probabilities` (B, K)."""
    return {
        f"probability_{name}": [round(p, 6) for p in column]
        for name, column in zip(names, probabilities.T.tolist(), strict=True)
    }


def _unknown_label(place: str, label: Any, known: list[Any]) -> DataError:
    names = [str(name) for name in known]
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return DataError(
        f"{place}: class '{label}' is not in the training split; its classes: {shown}{did_you_mean(str(label), names)}"
    )
