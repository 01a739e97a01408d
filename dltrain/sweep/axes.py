"""The axes of a sweep's charts: where a value lies between the ends of what was searched, and what stands beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dltrain.config.schema.sweep import Dimension
from dltrain.names import shortened, spell
from dltrain.sweep.space import text_of

_LONGEST_LABEL = 18
_WIDE = 50.0
"""Values of which less is better, and the most is so many times the least, are shown by their order of magnitude."""
_FAR = 3.0
"""The worst values are drawn at the edge where they would make the axis so many times as long."""


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high`, or of choices, which have equal parts of it."""

    name: str
    kind: Literal["linear", "log", "choice"]
    low: float = 0.0
    high: float = 1.0
    choices: tuple[str, ...] = ()
    """The values as `text_of` writes them."""
    labels: tuple[str, ...] = ()

    def at(self, value: Any) -> float | None:
        """Return where `value` lies, 0 to 1, at the end if it is beyond it; None for what has no place here."""
        if self.kind == "choice":
            text = text_of(value)
            return (self.choices.index(text) + 0.5) / len(self.choices) if text in self.choices else None
        if not is_number(value) or (self.kind == "log" and value <= 0):
            return None
        low, high, place = (math.log(v) if self.kind == "log" else v for v in (self.low, self.high, value))
        return min(1.0, max(0.0, (place - low) / (high - low)))

    def ticks(self, number: int = 5) -> list[tuple[float, str]]:
        """Return about `number` places, 0 to 1, and the labels that stand there; of choices all."""
        if self.kind == "choice":
            return [((index + 0.5) / len(self.labels), label) for index, label in enumerate(self.labels)]
        values = _round_logs(self.low, self.high, number) if self.kind == "log" else []
        values = values if len(values) > 1 else _round_numbers(self.low, self.high, number)
        return [(place, short(value)) for value in values if (place := self.at(value)) is not None]


def axis_of_setting(name: str, dimension: Dimension) -> Axis:
    """Return the axis of a setting of the space: what it may be, in the way in which it is searched."""
    if dimension.choice is not None:
        labels = tuple(shortened(_label(value), _LONGEST_LABEL) for value in dimension.choice)
        return Axis(name, "choice", choices=tuple(map(text_of, dimension.choice)), labels=labels)
    low, high = dimension.bounds
    return Axis(name, "log" if dimension.kind.startswith("log_") else "linear", low, high)


def axis_of_values(name: str, values: Sequence[float], higher_is_better: bool, share: float = 0.85) -> Axis:
    """Return an axis on which finite `values` can be told apart.

    It ends after `share` of them, the best first, where the others are so far off that they would squeeze these.
    """
    best_first = sorted(values, reverse=higher_is_better) or [0.0]
    best, worst = best_first[0], best_first[-1]
    usual = best_first[math.ceil(share * len(best_first)) - 1]
    if best != usual and abs(worst - best) > _FAR * abs(usual - best):
        worst = usual
    low, high = min(best, worst), max(best, worst)
    if low > 0 and high / low > _WIDE and not higher_is_better:
        margin = (high / low) ** 0.04
        return Axis(name, "log", low / margin, high * margin)
    margin = 0.04 * (high - low) or 0.05 * abs(low) or 0.5
    return Axis(name, "linear", low - margin, high + margin)


def is_number(value: Any) -> bool:
    """Return whether `value` is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def short(value: Any) -> str:
    """Return a number with the digits that matter: 0.9852, 3e-4, 12,345."""
    if not is_number(value):
        return "–"
    if float(value).is_integer() and abs(value) < 1e7:
        return f"{value:,.0f}"
    mantissa, e, exponent = f"{value:.4g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if e else mantissa


def _label(value: Any) -> str:
    return value if isinstance(value, str) else short(value) if is_number(value) else spell(value)


def _round_numbers(low: float, high: float, number: int) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten, from low to high."""
    rough = (high - low) / number
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.8)
    return [float(f"{k * step:.9g}") for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _round_logs(low: float, high: float, number: int) -> list[float]:
    """Return powers of ten from low to high, with twice and five times them where these are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, round((last - first) / number))
    factors = (1, 2, 5) if math.log10(high / low) < 2 else (1, 3) if math.log10(high / low) < 3 else (1,)
    values = [float(f"{f}e{exponent}") for exponent in range(first, last + 1, every) for f in factors]
    return [value for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
