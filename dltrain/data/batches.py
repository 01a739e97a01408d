"""Which samples in which step: a pure function of the seed and the step, so that nothing of it needs to be saved.

Sequences are drawn with others of like length, so that little of a batch is padding. Data larger than the memory can be
drawn in blocks, so that what is read from the disk is read once and in stretches.
"""

from __future__ import annotations

import functools
import mmap

import torch
from torch import Tensor

from dltrain.data.columns import Column, Columns
from dltrain.data.storage import advise, page_cache_bytes
from dltrain.data.transfer import send
from dltrain.seeds import ORDER, seed_of

_POOL_BATCHES = 50
"""Batches that are sorted by length together: some 3 % of a batch is padding then, and the order is still random."""
BLOCK_BYTES = 2**19
"""Twice as long did worse for tables and as well for images; no other length was tried (benchmarks/LOG.md)."""
BLOCKS_AT_ONCE = 256
"""Blocks that are shuffled together, 128 MiB. They have to stay in memory, beside the next ones on their way there."""
_MAPPED_BYTES = 16 * 2**20  # columns up to this size are in memory anyway
_MADV_COLD = 20
"""Linux 5.4's, which the module mmap does not know: first to go where memory is short; nothing happens elsewhere."""


def steps_per_epoch(num_samples: int, batch_size: int, drop_last: bool) -> int:
    """Return the number of batches of one epoch; at least one, even if it is not full."""
    full, rest = divmod(num_samples, batch_size)
    return full if full and (drop_last or not rest) else full + 1


def epoch_order(
    num_samples: int,
    seed: int,
    epoch: int,
    sampler: str,
    classes: Tensor | None = None,
    lengths: Tensor | None = None,
    batch_size: int = 1,
    sample_bytes: int = 1,
) -> Tensor:
    """Return the int64 indices of the samples of one epoch, in order, on the CPU.

    Args:
        num_samples: size of the training split, and of the result.
        seed: of the run.
        epoch: counted from 0.
        sampler: "shuffle", "sequential", "balanced" (each class equally likely, with replacement), or "blocks".
        classes: (num_samples,) int64 class ids, for "balanced".
        lengths: (num_samples,) int64, of sequences; then "shuffle" and "blocks" put like with like into a batch.
        batch_size: samples of a step: batch k is result[k * batch_size : (k + 1) * batch_size].
        sample_bytes: about what a sample takes in the file, for "blocks".

    "blocks" cuts the file into blocks of 512 KiB, draws the blocks in random order, and shuffles the samples of 256 of
    them together. Data of up to 128 MiB are thereby shuffled as by "shuffle". Of larger data, two samples of a batch
    are from the same block with a chance of 1/256. In a file sorted by class, the worst case, the share of a class
    that makes up p of all samples varies between batches of B by the standard deviation
    sqrt(p (1 - p) (1/B + (1 - 1/B) / 256)), where "shuffle" has sqrt(p (1 - p) / B): 1.12 times that at B = 64, 1.41
    times at B = 256. A sample of more than 256 KiB is a block of its own, and the order as random as that of "shuffle".
    """
    if sampler == "sequential":
        return torch.arange(num_samples)
    rng = torch.Generator().manual_seed(seed_of(seed, ORDER, epoch))
    if sampler == "blocks":
        block_size = _block_size(sample_bytes)
        order = _in_blocks(num_samples, block_size, rng)
        if lengths is None:
            return order
        in_memory = max(1, block_size * BLOCKS_AT_ONCE // batch_size) * batch_size
        return torch.cat([_like_with_like(part, batch_size, lengths, rng) for part in torch.split(order, in_memory)])
    if sampler == "shuffle" or classes is None:
        order = torch.randperm(num_samples, generator=rng)
        return order if lengths is None else _like_with_like(order, batch_size, lengths, rng)
    by_class, counts = classes.cpu().argsort(stable=True), torch.bincount(classes).cpu()
    present = counts.nonzero().squeeze(1)
    chosen = present[torch.randint(len(present), (num_samples,), generator=rng)]
    rank = (torch.rand(num_samples, generator=rng, dtype=torch.float64) * counts[chosen]).long()
    return by_class[counts.cumsum(0)[chosen] - counts[chosen] + rank]


class Samples:
    """The samples of each step of a training. An epoch at a time is drawn, to where the columns are."""

    def __init__(
        self, columns: Columns, classes: Tensor | None, seed: int, sampler: str, batch_size: int, epoch_steps: int
    ) -> None:
        """Take what `epoch_order` takes, with the columns of the training samples and the steps of an epoch."""
        self._columns, self._batch_size, self._epoch_steps = columns, batch_size, epoch_steps
        self._order_of = functools.partial(
            epoch_order,
            len(columns),
            seed,
            sampler=sampler,
            classes=classes,
            lengths=columns.lengths,
            batch_size=batch_size,
            sample_bytes=columns.sample_bytes,
        )
        self._read_ahead = reading(columns, sampler)
        self._epoch = -1
        self._order = torch.empty(0)

    def __call__(self, step: int) -> Tensor:
        """Return the int64 indices of the samples of a step, counted from 0."""
        epoch, batch = divmod(step, self._epoch_steps)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._order_of(epoch)
            if self._columns.device.type == "cuda":
                (self._order,) = send([self._order], self._columns.device)
        begin = batch * self._batch_size
        if self._read_ahead is not None:
            self._read_ahead(self._order, begin)
        return self._order[begin : begin + self._batch_size]


def reading(columns: Columns, sampler: str) -> ReadAhead | None:
    """Prepare the system for reading the training samples in the order of `sampler`; return what reads ahead, if any.

    Without effect on what is in memory anyway, or on a GPU.
    """
    tensors = [x if isinstance(x, Tensor) else x.values for x in columns.all]
    mapped = [x for x in tensors if x.device.type == "cpu" and x.nbytes > _MAPPED_BYTES]
    if not mapped or sampler == "sequential" or (sampler != "blocks" and columns.size_bytes <= page_cache_bytes()):
        return None
    for tensor in mapped:  # else each page that is touched brings its neighbours, which may be megabytes
        advise(tensor.data_ptr(), tensor.nbytes, mmap.MADV_RANDOM)
    return ReadAhead(columns) if sampler == "blocks" else None


class ReadAhead:
    """Has the system read what the order "blocks" takes next, while the loop computes, and give up what it took.

    A page that is touched before it was asked for is a wait for the disk. Where memory is short the system would rather
    give up the next blocks, which nobody has touched, than those that are done with.
    """

    def __init__(self, columns: Columns) -> None:
        """Take the training samples, which are mapped from files."""
        self._columns = columns.all
        self._block_size = _block_size(columns.sample_bytes)
        self._until = 0

    def __call__(self, order: Tensor, position: int) -> None:
        """Before the batch at `position` of an epoch's order: ask for the rest of its blocks and the next ones."""
        at_once = self._block_size * BLOCKS_AT_ONCE
        begin = 0 if position == 0 else max(position, self._until)
        current = position // at_once * at_once
        self._until = min(current + 2 * at_once, len(order))
        if begin >= self._until:
            return
        self._advise(order[max(0, current - at_once) : current], _MADV_COLD)
        self._advise(order[begin : self._until], mmap.MADV_WILLNEED)

    def _advise(self, samples: Tensor, advice: int) -> None:
        for block in torch.unique(samples // self._block_size).tolist():
            block_samples = slice(block * self._block_size, (block + 1) * self._block_size)
            for column in self._columns:
                part = _stretch(column, block_samples)
                advise(part.data_ptr(), part.nbytes, advice)


def _stretch(column: Column, samples: slice) -> Tensor:
    """Return the memory in which neighbouring samples lie."""
    if isinstance(column, Tensor):
        return column[samples]
    starts, lengths = column.starts[samples], column.lengths[samples]
    return column.values[int(starts[0]) : int(starts[-1] + lengths[-1])]


def _block_size(sample_bytes: int) -> int:
    return max(1, BLOCK_BYTES // sample_bytes)


def _in_blocks(num_samples: int, block_size: int, rng: torch.Generator) -> Tensor:
    """Return all samples: the blocks in random order, and of so many as are read at once, the samples in random order.

    After FFCV's QUASI_RANDOM (Leclerc et al. 2023, https://arxiv.org/abs/2306.12517), which takes each sample from one
    of some blocks that are open, and opens the next block as soon as one of them is used up.
    """
    starts = torch.randperm(-(-num_samples // block_size), generator=rng) * block_size
    parts = []
    for some in torch.split(starts, BLOCKS_AT_ONCE):
        samples = (some.unsqueeze(1) + torch.arange(block_size)).flatten()
        samples = samples[samples < num_samples]
        parts.append(samples[torch.randperm(len(samples), generator=rng)])
    return torch.cat(parts)


def _like_with_like(order: Tensor, batch_size: int, lengths: Tensor, rng: torch.Generator) -> Tensor:
    """Return `order` with each pool of batches sorted by length, and then the full batches in random order.

    Khomenko et al. (2016), https://arxiv.org/abs/1708.05604.
    """
    pool_size = _POOL_BATCHES * batch_size
    pools = [order[start : start + pool_size] for start in range(0, len(order), pool_size)]
    sorted_order = torch.cat([pool[lengths[pool].argsort(stable=True)] for pool in pools])
    num_full = len(order) // batch_size * batch_size
    batches = sorted_order[:num_full].view(-1, batch_size)
    shuffled = batches[torch.randperm(len(batches), generator=rng)]
    return torch.cat([shuffled.flatten(), sorted_order[num_full:]])
