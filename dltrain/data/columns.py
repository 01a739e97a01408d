"""The data contract: what a source reads (`Samples`) and what the loop trains on (`Columns`).

A source reads files once into `Samples`; a split chooses rows; what the training rows teach (scaling, vocabulary)
is fitted on them alone; then each split is encoded into `Columns`, from which a batch is one gather a column. A column
is a tensor where all samples have one shape, and `Ragged` where their lengths differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dltrain.data.transfer import send

PADDING = 0
"""The token that fills up shorter sequences of inputs."""
IGNORED = -100
"""The same in targets: no loss and no metric counts it."""


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
class Ragged:
    """N sequences of different lengths, all in one tensor, of which each is a stretch.

    Columns may share the tensor: a text, and as its target the same text one token later.
    """

    values: Tensor
    """(T, ...): all sequences."""
    starts: Tensor
    """(N,) int64: where each begins in `values`."""
    lengths: Tensor
    """(N,) int64."""
    padding: int = PADDING
    """What fills a batch up to its longest sequence."""

    @classmethod
    def from_lengths(cls, values: Tensor, lengths: Tensor, padding: int = PADDING) -> Ragged:
        """Return sequences that stand one after the other in `values`."""
        return cls(values, lengths.cumsum(0) - lengths, lengths, padding)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, indices: Tensor | slice) -> Tensor:
        """Return (B, L, ...) the sequences at `indices`, L as long as the longest and at least 1.

        Whole numbers come as int64, however narrow `values` are.
        """
        starts, lengths = self.starts[indices], self.lengths[indices]
        longest = max(1, int(lengths.max())) if len(lengths) else 1
        positions = torch.arange(longest)
        beyond = positions >= lengths.unsqueeze(1)
        chosen = (starts.unsqueeze(1) + positions).masked_fill_(beyond, 0)
        if len(self.values) == 0:  # every sequence is empty
            padded = self.values.new_full((*chosen.shape, *self.values.shape[1:]), self.padding)
        else:
            padded = self.values[chosen]
            padded[beyond] = self.padding
        return padded if padded.is_floating_point() else padded.long()


Column = Tensor | Ragged


def values_of(column: Column) -> Tensor:
    """Return the tensor in which the samples lie."""
    return column if isinstance(column, Tensor) else column.values


def shape_of(column: Column) -> tuple[int, ...]:
    """Return the shape of a sample; of sequences, of the longest."""
    if isinstance(column, Tensor):
        return tuple(column.shape[1:])
    longest = int(column.lengths.max()) if len(column) else 0
    return max(1, longest), *column.values.shape[1:]


def type_of(column: Column) -> torch.dtype:
    """Return the type of the elements of a batch."""
    if isinstance(column, Tensor):
        return column.dtype
    return column.values.dtype if column.values.is_floating_point() else torch.int64


@dataclass(frozen=True)
class Columns:
    """One split as columns of equal length, the form in which the loop, evaluation and prediction see data."""

    inputs: tuple[Column, ...]
    """Each of N samples (...): what the model is called with."""
    target: Column | None
    """(N,) int64 class ids, (N, K) float32, or sequences of token ids; None for unlabelled samples."""

    def __len__(self) -> int:
        return len(self.inputs[0])

    def batch(
        self, indices: Tensor | slice, device: torch.device, inputs_of: Tensor | None = None
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return (inputs, target) on `device` of the labelled samples at `indices` (int64): one gather a column.

        They are no part of the columns, which may be memory that cannot be written to: a model may work in place.
        With `inputs_of` the inputs are those of other samples, such as a share of the batch.
        """
        assert self.target is not None
        chosen = indices if inputs_of is None else inputs_of
        if device.type == "cuda" and self.device.type == "cpu":
            gathered = [_gathered(x, chosen, page_locked=True) for x in self.inputs]
            *inputs, target = send([*gathered, _gathered(self.target, indices, page_locked=True)], device)
            return tuple(inputs), target
        copy = isinstance(indices, slice)  # of a tensor it gives a view
        copies = tuple(_gathered(x, chosen).to(device, copy=copy) for x in self.inputs)
        return copies, _gathered(self.target, indices).to(device, copy=copy)

    def to(self, device: torch.device) -> Columns:
        """Return the columns on `device`. Only for tensors: the lengths of sequences are needed on the CPU."""
        target = None if self.target is None else _tensor(self.target).to(device)
        return Columns(tuple(_tensor(x).to(device) for x in self.inputs), target)

    @property
    def has_sequences(self) -> bool:
        """Whether the lengths of samples differ."""
        return any(isinstance(x, Ragged) for x in self.all)

    @property
    def lengths(self) -> Tensor | None:
        """(N,) int64: of each sample's longest sequence, by which batches are made; None without sequences."""
        lengths = [x.lengths for x in self.all if isinstance(x, Ragged)]
        return torch.stack(lengths).amax(0) if lengths else None

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return values_of(self.inputs[0]).device

    @property
    def size_bytes(self) -> int:
        """Memory that the tensors take."""
        return sum(x.nbytes for x in self.tensors)

    @property
    def sample_bytes(self) -> int:
        """Memory that a sample takes on average, at least 1."""
        return max(1, self.size_bytes // max(1, len(self)))

    @property
    def tensors(self) -> list[Tensor]:
        """Those in which the samples lie, each once."""
        return list({id(x): x for x in map(values_of, self.all)}.values())

    @property
    def all(self) -> tuple[Column, ...]:
        """Inputs, and the target if there is one."""
        return self.inputs if self.target is None else (*self.inputs, self.target)


def _gathered(column: Column, indices: Tensor | slice, *, page_locked: bool = False) -> Tensor:
    """Return the samples at `indices`; where it saves a copy, in memory from which a GPU reads by itself."""
    if isinstance(column, Tensor) and isinstance(indices, Tensor):
        room = column.new_empty(len(indices), *column.shape[1:], pin_memory=True) if page_locked else None
        # A tenth faster than column[indices]: benchmarks/LOG.md.
        return torch.index_select(column, 0, indices, out=room)
    return column[indices]


def _tensor(column: Column) -> Tensor:
    assert isinstance(column, Tensor), "sequences stay on the CPU"
    return column
