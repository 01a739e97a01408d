"""Which samples in which step: a pure function of the seed and the step, so that nothing of it needs to be saved.

Sequences can be drawn with others of like length, so that little of a batch is padding; data larger than the memory in
blocks, so that what is read from the disk is read once and in stretches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dltrain.seeds import ORDER, seed_of

_POOL_BATCHES = 50
"""Batches that are sorted by length together: some 3 % of a batch is padding then, and the order is still random."""
BLOCK_BYTES = 2**19
"""Twice as long did worse for tables and as well for images; no other length was tried (benchmarks/LOG.md)."""
BLOCKS_AT_ONCE = 256
"""Blocks that are shuffled together: 128 MiB."""


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
) -> Tensor:
    """Return the int64 indices of the samples of one epoch, in order, on the CPU.

    Args:
        num_samples: size of the training split, and of the result.
        seed: of the run.
        epoch: counted from 0.
        sampler: "shuffle", "sequential", "balanced" (each class equally likely, with replacement), or "by_length"
            (sequences of like length in a batch).
        classes: (num_samples,) int64 class ids, for "balanced".
        lengths: (num_samples,) int64, of sequences, for "by_length".
        batch_size: samples of a step: batch k is result[k * batch_size : (k + 1) * batch_size].
    """
    if sampler == "sequential":
        return torch.arange(num_samples)
    rng = _generator(seed, epoch)
    if sampler == "balanced":
        assert classes is not None
        return _balanced(num_samples, classes, rng)
    order = torch.randperm(num_samples, generator=rng)
    if sampler == "by_length":
        assert lengths is not None
        return _by_length(order, batch_size, lengths, rng)
    return order


@dataclass(frozen=True)
class Blocks:
    """The order "blocks", for data larger than the memory: windows of samples that lie in a few stretches of the file.

    The file is cut into blocks of 512 KiB. In each epoch they are drawn in random order, which is cut into windows of
    256 blocks, rounded down to whole batches; the samples of a window are shuffled. Data of up to 128 MiB are thereby
    shuffled as by "shuffle". Of larger data, two samples of a batch are from the same block with a chance of 1/256. In
    a file sorted by class, the worst case, the share of a class that makes up p of all samples varies between batches
    of B by the standard deviation sqrt(p (1 - p) (1/B + (1 - 1/B) / 256)), where "shuffle" has sqrt(p (1 - p) / B):
    1.12 times that at B = 64, 1.41 times at B = 256. A sample of more than 256 KiB is a block of its own, and the order
    as random as that of "shuffle".

    After FFCV's QUASI_RANDOM (Leclerc et al. 2023, https://arxiv.org/abs/2306.12517), which takes each sample from one
    of some blocks that are open, and opens the next block as soon as one of them is used up.
    """

    num_samples: int
    batch_size: int
    sample_bytes: int
    """About what a sample takes in the file."""
    seed: int

    @property
    def window_steps(self) -> int:
        """Batches of a window; the last one of an epoch may have fewer."""
        return max(1, self._block_size * BLOCKS_AT_ONCE // self.batch_size)

    def window(self, epoch: int, index: int) -> tuple[list[slice], Tensor]:
        """Return the stretches of the file whose samples make up a window, and where in them each sample is, in order.

        Both are counted from 0. Sample i of the window is the one at result[1][i] (int64) of all stretches together.
        """
        starts = torch.arange(0, self.num_samples, self._block_size)
        starts = starts[torch.randperm(len(starts), generator=_generator(self.seed, epoch))]
        stops = (starts + self._block_size).clamp(max=self.num_samples)
        ends = (stops - starts).cumsum(0)  # of each block among the samples of the epoch
        begin = index * self.window_steps * self.batch_size
        end = min(begin + self.window_steps * self.batch_size, self.num_samples)
        within = (ends > begin) & (ends - (stops - starts) < end)
        starts, stops, ends = starts[within], stops[within], ends[within]
        starts[0] = stops[0] - (ends[0] - begin)
        stops[-1] -= ends[-1] - end
        stretches = [slice(*bounds) for bounds in sorted(zip(starts.tolist(), stops.tolist(), strict=True))]
        return stretches, torch.randperm(end - begin, generator=_generator(self.seed, epoch, index))

    @property
    def _block_size(self) -> int:
        return max(1, BLOCK_BYTES // self.sample_bytes)


def _generator(seed: int, *place: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(seed, ORDER, *place))


def _balanced(num_samples: int, classes: Tensor, rng: torch.Generator) -> Tensor:
    by_class, counts = classes.cpu().argsort(stable=True), torch.bincount(classes).cpu()
    present = counts.nonzero().squeeze(1)
    chosen = present[torch.randint(len(present), (num_samples,), generator=rng)]
    rank = (torch.rand(num_samples, generator=rng, dtype=torch.float64) * counts[chosen]).long()
    return by_class[counts.cumsum(0)[chosen] - counts[chosen] + rank]


def _by_length(order: Tensor, batch_size: int, lengths: Tensor, rng: torch.Generator) -> Tensor:
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
