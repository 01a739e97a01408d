"""Learning-rate schedules: pure functions of the step that return a factor of the base learning rate.

Each takes `step` (0-based) and `total` (the steps of the whole training) and knows no optimizer. All other
amounts are steps too. Those that fall to `final` would reach it at step == total, so no step is spent at a
rate of zero. A setting that cannot take effect within `total` steps is a ConfigError, whatever the step asked
for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dltrain.errors import ConfigError


def constant(step: int, total: int, *, warmup: int = 0) -> float:
    """Return 1 after a linear warm-up of `warmup` steps."""
    return _warmup_factor(step, total, warmup)


def step(step: int, total: int, *, every: int, gamma: float = 0.1, warmup: int = 0) -> float:
    """Multiply by `gamma` every `every` steps, counted from the start of the training."""
    _require_at_least_one("every", every)
    _require_within("every", every, total)
    return _warmup_factor(step, total, warmup) * gamma ** (step // every)


def multistep(step: int, total: int, *, milestones: Sequence[int], gamma: float = 0.1, warmup: int = 0) -> float:
    """Multiply by `gamma` at each of `milestones`, counted from the start of the training."""
    for milestone in milestones:
        _require_within("milestones", milestone, total)
    return _warmup_factor(step, total, warmup) * gamma ** sum(step >= milestone for milestone in milestones)


def exponential(step: int, total: int, *, every: int, gamma: float = 0.95, warmup: int = 0) -> float:
    """Decay smoothly after the warm-up, by the factor `gamma` in `every` steps."""
    _require_at_least_one("every", every)
    return _warmup_factor(step, total, warmup) * math.pow(gamma, max(0, step - warmup) / every)


def cosine(step: int, total: int, *, final: float = 0.0, warmup: int = 0) -> float:
    """Fall from 1 to `final` along half a cosine after the warm-up (Loshchilov & Hutter 2017, without
    restarts, https://arxiv.org/abs/1608.03983).
    """
    factor = _warmup_factor(step, total, warmup)
    return factor if step < warmup else _cosine_between(1.0, final, (step - warmup) / (total - warmup))


def linear(step: int, total: int, *, final: float = 0.0, warmup: int = 0) -> float:
    """Fall from 1 to `final` along a straight line after the warm-up."""
    factor = _warmup_factor(step, total, warmup)
    return factor if step < warmup else _linear_between(1.0, final, (step - warmup) / (total - warmup))


def one_cycle(step: int, total: int, *, peak_at: int, start: float = 0.04, final: float = 4e-6) -> float:
    """Rise from `start` to 1 at step `peak_at`, then fall to `final` (Smith & Topin 2018,
    https://arxiv.org/abs/1708.07120).

    Both ways are half cosines as in torch's OneCycleLR; the paper's are straight lines. The rise is the
    warm-up.
    """
    _require_at_least_one("peak_at", peak_at)
    _require_within("peak_at", peak_at, total)
    if step < peak_at:
        return _cosine_between(start, 1.0, step / peak_at)
    return _cosine_between(1.0, final, (step - peak_at) / (total - peak_at))


def inverse_sqrt(step: int, total: int, *, warmup: int) -> float:
    """Fall with the inverse square root of the step after the warm-up, whose length sets the pace (Vaswani et
    al. 2017, https://arxiv.org/abs/1706.03762; scaled to a peak of 1).
    """
    _require_at_least_one("warmup", warmup)
    return _warmup_factor(step, total, warmup) * min(1.0, math.sqrt(warmup / (step + 1)))


def wsd(step: int, total: int, *, decay: int, final: float = 0.0, warmup: int = 0) -> float:
    """Warm up, stay at 1, and fall to `final` along a straight line in the last `decay` steps (warm-up,
    stable, decay: Hu et al. 2024, https://arxiv.org/abs/2404.06395, whose decay is exponential; the straight
    line is of Hägele et al. 2024, https://arxiv.org/abs/2405.18392).
    """
    _require_at_least_one("decay", decay)
    if warmup + decay > total:
        raise ConfigError(
            f"warmup ({warmup} steps) and decay ({decay} steps) are longer than the training "
            f"({total} steps); shorten one of them"
        )
    factor = _warmup_factor(step, total, warmup)
    return factor * _linear_between(1.0, final, max(0, step - (total - decay)) / decay)


def _warmup_factor(step: int, total: int, warmup: int) -> float:
    """Return 1/warmup, 2/warmup, ..., 1 in the first `warmup` steps, then 1."""
    if warmup:
        _require_within("warmup", warmup, total)
    return (step + 1) / warmup if step < warmup else 1.0


def _linear_between(start: float, end: float, progress: float) -> float:
    return start + (end - start) * progress


def _cosine_between(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _require_at_least_one(name: str, steps: int) -> None:
    if steps < 1:
        raise ConfigError(f"{name}: is less than one step of this training; make it longer")


def _require_within(name: str, steps: int, total: int) -> None:
    if steps >= total:
        raise ConfigError(f"{name}: {steps} steps do not fit in a training of {total}; possible: less than {total}")
