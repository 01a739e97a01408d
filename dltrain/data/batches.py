"""Which samples in which step: a pure function of the seed and the step, so that nothing of it needs to be saved."""

from __future__ import annotations

import torch
from torch import Tensor

from dltrain.seeds import ORDER, seed_of


def steps_per_epoch(num_samples: int, batch_size: int, drop_last: bool) -> int:
    """Return the number of batches of one epoch; at least one, even if it is not full."""
    full, rest = divmod(num_samples, batch_size)
    return full if full and (drop_last or not rest) else full + 1


def epoch_order(num_samples: int, seed: int, epoch: int, sampler: str, classes: Tensor | None = None) -> Tensor:
    """Return the int64 indices of the samples of one epoch, in order, on the CPU.

    Args:
        num_samples: size of the training split, and of the result.
        seed: of the run.
        epoch: counted from 0.
        sampler: "shuffle", "sequential", or "balanced" (each class equally likely, with replacement).
        classes: (num_samples,) int64 class ids, for "balanced".
    """
    if sampler == "sequential":
        return torch.arange(num_samples)
    rng = torch.Generator().manual_seed(seed_of(seed, ORDER, epoch))
    if sampler == "shuffle" or classes is None:
        return torch.randperm(num_samples, generator=rng)
    by_class, counts = classes.cpu().argsort(stable=True), torch.bincount(classes).cpu()
    present = counts.nonzero().squeeze(1)
    chosen = present[torch.randint(len(present), (num_samples,), generator=rng)]
    rank = (torch.rand(num_samples, generator=rng, dtype=torch.float64) * counts[chosen]).long()
    return by_class[counts.cumsum(0)[chosen] - counts[chosen] + rank]
