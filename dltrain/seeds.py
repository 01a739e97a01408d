"""Seeds: every random number of a run follows from the run's seed, what it is for, and the step."""

from __future__ import annotations

import torch

WEIGHTS, ORDER, STEP, AUGMENTATION, NOISE = range(5)
"""What random numbers are for: initial weights, order of samples, a step (dropout), augmentation, gradient noise."""

_MASK = (1 << 64) - 1


def seed_of(*numbers: int) -> int:
    """Return a 63-bit seed for a tuple of integers, such as (seed, ORDER, epoch); neighbours are unrelated.

    splitmix64 (Steele, Lea & Flood 2014, https://doi.org/10.1145/2660193.2660195) chained over the numbers.
    """
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def seed_everything(device: torch.device, *numbers: int) -> None:
    """Seed torch's default generators, of the CPU and of `device`, with `seed_of(*numbers)`.

    `default_generator.manual_seed` takes 5 us, `torch.manual_seed` 400 us before CUDA is in use.
    """
    seed = seed_of(*numbers)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
