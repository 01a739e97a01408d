"""Which samples in which step: a pure function of the seed and the step, so that nothing of it needs to be saved.

Sequences are drawn with others of like length, so that little of a batch is padding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dltrain.seeds import ORDER, seed_of

_POOL_BATCHES = 50
"""Batches that are sorted by length together: some 3 % of a batch is padding then, and the order is still random."""


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
        sampler: "shuffle", "sequential", or "balanced" (each class equally likely, with replacement).
        classes: (num_samples,) int64 class ids, for "balanced".
        lengths: (num_samples,) int64, of sequences; then "shuffle" puts like with like into a batch.
        batch_size: samples of a step: batch k is result[k * batch_size : (k + 1) * batch_size].
    """
    if sampler == "sequential":
        return torch.arange(num_samples)
    rng = torch.Generator().manual_seed(seed_of(seed, ORDER, epoch))
    if sampler == "shuffle" or classes is None:
        order = torch.randperm(num_samples, generator=rng)
        return order if lengths is None else _like_with_like(order, batch_size, lengths, rng)
    by_class, counts = classes.cpu().argsort(stable=True), torch.bincount(classes).cpu()
    present = counts.nonzero().squeeze(1)
    chosen = present[torch.randint(len(present), (num_samples,), generator=rng)]
    rank = (torch.rand(num_samples, generator=rng, dtype=torch.float64) * counts[chosen]).long()
    return by_class[counts.cumsum(0)[chosen] - counts[chosen] + rank]


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
