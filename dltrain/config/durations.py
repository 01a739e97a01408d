"""Durations as users write them ("10 epochs", "500 steps", "5%") and their one conversion to steps.

After `to_steps` only steps exist: no other file knows epochs or percent.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, WithJsonSchema

from dltrain.config.schema.base import InWords

_PATTERN = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*(%|[a-z]+)\s*")
_UNITS = {"step": "steps", "steps": "steps", "epoch": "epochs", "epochs": "epochs", "%": "%"}
_SECONDS = {"s": 1, "min": 60, "h": 3600}
_TIMES = dict.fromkeys(_SECONDS, "s")
_EXAMPLES = "'500 steps', '10 epochs'"
_LENGTHS = "'500 steps', '10 epochs' or a time: '10 min'"


class DurationValue(NamedTuple):
    """An amount of training or of time: `unit` is "steps", "epochs", "%" or "s"."""

    amount: float
    unit: str

    def __str__(self) -> str:
        amount = f"{self.amount:.15g}"
        return f"{amount}%" if self.unit == "%" else f"{amount} {self.unit}"


def parse(text: object) -> DurationValue:
    """Read "10 epochs", "500 steps" or "5%". Raises ValueError with what is possible."""
    duration = _parse(text, _UNITS)
    if duration is None:
        raise ValueError(f"possible: {_EXAMPLES} or '5%' of the training")
    if duration.unit == "steps" and duration.amount != int(duration.amount):
        raise ValueError("possible: a whole number of steps")
    if duration.unit == "%" and duration.amount > 100:
        raise ValueError("possible: up to 100%")
    return duration


def parse_interval(text: object) -> DurationValue:
    """Read a duration that may also be a time: "30 s", "10 min", "1 h". Raises ValueError with what is possible."""
    duration = _parse(text, _TIMES)
    if duration is not None:
        return duration
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{error}, or a time: '30 s', '10 min', '1 h'") from None


def parse_length(text: object) -> DurationValue:
    """Read the length of a whole training, which is no share of itself. Raises ValueError with what is possible."""
    if _parse(text, {"%": "%"}) is not None or (_parse(text, _UNITS) is None and _parse(text, _TIMES) is None):
        raise ValueError(f"possible: {_LENGTHS}")
    return parse_interval(text)


def more_than_nothing(duration: DurationValue) -> DurationValue:
    """Return a duration that is not empty as it is. Raises ValueError for others."""
    if duration.amount == 0:
        raise ValueError("must be more than nothing")
    return duration


def _parse(text: object, units: dict[str, str]) -> DurationValue | None:
    if isinstance(text, DurationValue):
        return text if text.unit in units.values() else None
    match = _PATTERN.fullmatch(text) if isinstance(text, str) else None
    if match is None or match[2] not in units:
        return None
    amount = float(match[1]) * _SECONDS.get(match[2], 1)
    return DurationValue(amount, units[match[2]]) if math.isfinite(amount) else None


def to_steps(duration: DurationValue, steps_per_epoch: int, total_steps: int | None = None) -> int:
    """Return the duration in whole steps, rounded to the nearest; percent are of `total_steps`.

    Raises ValueError for percent where no total is known, and for a time.
    """
    if duration.unit == "steps":
        return int(duration.amount)
    if duration.unit == "epochs":
        return round(duration.amount * steps_per_epoch)
    if duration.unit == "%" and total_steps is not None:
        return round(duration.amount / 100 * total_steps)
    raise ValueError(f"'{duration}' cannot be counted in steps here")


Duration = Annotated[
    DurationValue,
    BeforeValidator(parse),
    PlainSerializer(str),
    WithJsonSchema({"type": "string", "examples": ["500 steps", "10 epochs", "5%"]}),
    InWords(f"{_EXAMPLES} or '5%'"),
]
Span = Annotated[Duration, AfterValidator(more_than_nothing)]
"""A duration that is not empty."""
Length = Annotated[
    DurationValue,
    BeforeValidator(parse_length),
    AfterValidator(more_than_nothing),
    PlainSerializer(str),
    WithJsonSchema({"type": "string", "examples": ["500 steps", "10 epochs", "10 min"]}),
    InWords(_LENGTHS),
]
"""A duration of a whole training."""
Interval = Annotated[
    DurationValue,
    BeforeValidator(parse_interval),
    AfterValidator(more_than_nothing),
    PlainSerializer(str),
    WithJsonSchema({"type": "string", "examples": ["500 steps", "1 epochs", "30 s"]}),
    InWords(f"{_EXAMPLES}, '5%' or '30 s'"),
]
"""A duration that may also be a time."""
