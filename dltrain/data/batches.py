"""The tensors of each step. Data larger than the memory are read by a thread of their own, while the loop computes.

Of a mapped file the system may give up a page before it is used; it does not with memory of the process's own. So of
data in blocks the window in use and the next one are copied there, 128 MiB each, and the file is read once an epoch.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from dltrain.data.columns import Column, Columns, values_of
from dltrain.data.order import Blocks, epoch_order
from dltrain.data.transfer import send
from dltrain.machine import advise, page_cache_bytes

_MAPPED_BYTES = 16 * 2**20  # columns up to this size are in memory anyway
_MADV_COLD = 20
"""Linux 5.4's, which the module mmap does not know: first to go where memory is short; nothing happens elsewhere."""
_STRETCHES_AHEAD = 8
"""How many the system is asked for before they are copied."""


class Batches:
    """The samples of each step of a training, and their tensors."""

    def __init__(
        self, columns: Columns, classes: Tensor | None, seed: int, sampler: str, batch_size: int, epoch_steps: int
    ) -> None:
        """Take the training samples, what `epoch_order` takes, and the steps of an epoch.

        `sampler` may also be "blocks" (see `Blocks`).
        """
        self._columns, self._classes = columns, classes
        self._lengths = columns.lengths if sampler == "by_length" else None
        self._seed, self._sampler, self._batch_size = seed, sampler, batch_size
        self._epoch_steps = self._window_steps = epoch_steps
        self._blocks: Blocks | None = None
        if sampler == "blocks":
            self._blocks = Blocks(len(columns), batch_size, columns.sample_bytes, seed)
            self._window_steps = self._blocks.window_steps
        _prepare_reading(columns, sampler)
        self._reads_ahead = self._window_steps < epoch_steps and bool(_mapped(columns))
        self._place: tuple[int, int] | None = None
        self._window: _Window
        self._coming: dict[tuple[int, int], Future[_Window]] = {}

    def samples(self, step: int) -> Tensor:
        """Return the int64 indices of the samples of a step, counted from 0."""
        window, part = self._at(step)
        return window.samples[part]

    def tensors(self, step: int, device: torch.device, share: slice | None = None) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return (inputs, target) of a step on `device`; with `share`, inputs are those of a part of the samples."""
        window, part = self._at(step)
        rows = window.rows[part]
        return window.columns.batch(rows, device, None if share is None else rows[share])

    def _at(self, step: int) -> tuple[_Window, slice]:
        epoch, batch = divmod(step, self._epoch_steps)
        index, position = divmod(batch, self._window_steps)
        if (epoch, index) != self._place:
            self._place, self._window = (epoch, index), self._arrived(epoch, index)
        begin = position * self._batch_size
        return self._window, slice(begin, begin + self._batch_size)

    def _arrived(self, epoch: int, index: int) -> _Window:
        """Return a window, and have the one after it read from now on."""
        if not self._reads_ahead:
            return self._read(epoch, index)
        coming = self._coming.get((epoch, index))
        window = self._read(epoch, index) if coming is None else coming.result()
        is_last = (index + 1) * self._window_steps >= self._epoch_steps
        following = (epoch + 1, 0) if is_last else (epoch, index + 1)
        self._coming = {following: _in_background(partial(self._read, *following))}
        return window

    def _read(self, epoch: int, index: int) -> _Window:
        columns, classes, lengths = self._columns, self._classes, self._lengths
        if self._blocks is None:
            samples = epoch_order(len(columns), self._seed, epoch, self._sampler, classes, lengths, self._batch_size)
        else:
            stretches, rows = self._blocks.window(epoch, index)
            samples = torch.cat([torch.arange(stretch.start, stretch.stop) for stretch in stretches])[rows]
            if self._reads_ahead:
                return _Window(samples, _copied(columns, stretches), rows)
        if columns.device.type == "cuda":
            (samples,) = send([samples], columns.device)
        return _Window(samples, columns, samples)


@dataclass(frozen=True)
class _Window:
    """A part of an epoch."""

    samples: Tensor
    """(N,) int64: which samples, in order."""
    columns: Columns
    """Where they are, perhaps among others."""
    rows: Tensor
    """(N,) int64: where each is there."""


def _in_background(read: Callable[[], _Window]) -> Future[_Window]:
    """Start a thread, for which the process does not wait at its end, and return what it will give."""
    future: Future[_Window] = Future()

    def run() -> None:
        try:
            future.set_result(read())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _prepare_reading(columns: Columns, sampler: str) -> None:
    """Tell the system if files larger than the memory are read in random order.

    Else each page that is touched brings its neighbours, which may be megabytes.
    """
    if sampler == "blocks" or (sampler != "sequential" and columns.size_bytes > page_cache_bytes()):
        for tensor in _mapped(columns):
            _advise(tensor, mmap.MADV_RANDOM)


def _mapped(columns: Columns) -> list[Tensor]:
    """Return those tensors that are perhaps files."""
    return [x for x in columns.tensors if x.device.type == "cpu" and x.nbytes > _MAPPED_BYTES]


def _copied(columns: Columns, stretches: list[slice]) -> Columns:
    """Return stretches of samples, one after the other, as columns in memory of the process's own."""
    parts: dict[int, list[slice]] = {}  # of each tensor, which columns may share
    for column in columns.all:
        own = [_part(column, stretch) for stretch in stretches]
        others = parts.get(id(values_of(column)), own)
        both = zip(own, others, strict=True)
        parts[id(values_of(column))] = [slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in both]
    copies = {id(values): _copy(values, parts[id(values)]) for values in columns.tensors}

    def copied(column: Column) -> Column:
        copy, begin, starts = copies[id(values_of(column))], 0, []
        if isinstance(column, Tensor):
            return copy
        for stretch, part in zip(stretches, parts[id(column.values)], strict=True):
            starts.append(column.starts[stretch] + (begin - part.start))
            begin += part.stop - part.start
        lengths = torch.cat([column.lengths[stretch] for stretch in stretches])
        return replace(column, values=copy, starts=torch.cat(starts), lengths=lengths)

    target = None if columns.target is None else copied(columns.target)
    return Columns(tuple(map(copied, columns.inputs)), target)


def _part(column: Column, samples: slice) -> slice:
    """Return where neighbouring samples lie along the first axis of their tensor."""
    if isinstance(column, Tensor):
        return samples
    starts = column.starts[samples]
    return slice(int(starts.min()), int((starts + column.lengths[samples]).max()))


def _copy(values: Tensor, parts: list[slice]) -> Tensor:
    """Return parts of a tensor, one after the other. NumPy copies, which leaves torch's threads to the loop."""
    copy = torch.empty(sum(part.stop - part.start for part in parts), *values.shape[1:], dtype=values.dtype)
    to_ask, begin = iter(parts), 0
    for soon in islice(to_ask, _STRETCHES_AHEAD):
        _advise(values[soon], mmap.MADV_WILLNEED)
    for part in parts:
        end = begin + part.stop - part.start
        np.copyto(copy[begin:end].numpy(), values[part].numpy())
        begin = end
        _advise(values[part], _MADV_COLD)
        for soon in islice(to_ask, 1):
            _advise(values[soon], mmap.MADV_WILLNEED)
    return copy


def _advise(tensor: Tensor, advice: int) -> None:
    advise(tensor.data_ptr(), tensor.nbytes, advice)
