"""The data contract: what a source reads (`Samples`) and what the loop trains on (`Columns`).

A source reads files once into `Samples`; a split chooses rows; what the training rows teach (scaling, vocabulary)
is fitted on them alone; then each split is encoded into `Columns`, tensors from which a batch is one gather.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Samples:
    """Samples as read from files, not yet encoded."""

    inputs: Any
    """Of the source's own kind: something with a length, for which the source's `encode` knows the way to tensors."""
    targets: np.ndarray | None
    """(N,) text, integers or floats, or (N, K) numbers for several targets a sample; None for unlabelled samples."""
    place: Callable[[int], str]
    """Where sample i stands, for messages: "people.csv: row 3", "shapes/circle/7.png"."""
    take_inputs: Callable[[Any, np.ndarray], Any]
    """(inputs, int64 indices) -> the inputs of those samples."""
    target_names: tuple[str, ...] = ()
    """Names of the K targets where there are several, else the one name of the target, or nothing."""
    splits: np.ndarray | None = None
    """(N,) of "train", "val" and "test" where the files themselves say so."""

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, indices: np.ndarray) -> Samples:
        """Return the samples at `indices` (int64), in that order."""
        place = self.place
        return replace(
            self,
            inputs=self.take_inputs(self.inputs, indices),
            targets=None if self.targets is None else self.targets[indices],
            splits=None if self.splits is None else self.splits[indices],
            place=lambda i: place(int(indices[i])),
        )


@dataclass(frozen=True)
class Columns:
    """One split as tensors of equal length, the form in which the loop, evaluation and prediction see data."""

    inputs: tuple[Tensor, ...]
    """Each (N, ...): what the model is called with."""
    target: Tensor | None
    """(N,) int64 class ids, or (N, K) float32; None for unlabelled samples."""

    def __len__(self) -> int:
        return len(self.inputs[0])

    def batch(self, indices: Tensor, device: torch.device) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return (inputs, target) on `device` of the labelled samples at `indices` (int64): one gather a tensor."""
        assert self.target is not None
        return tuple(x[indices].to(device) for x in self.inputs), self.target[indices].to(device)

    def to(self, device: torch.device) -> Columns:
        """Return the columns on `device`."""
        target = None if self.target is None else self.target.to(device)
        return Columns(tuple(x.to(device) for x in self.inputs), target)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.inputs[0].device

    @property
    def size_bytes(self) -> int:
        """Memory that the tensors take."""
        tensors = self.inputs if self.target is None else (*self.inputs, self.target)
        return sum(t.numel() * t.element_size() for t in tensors)
