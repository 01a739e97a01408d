"""How messages name things: a value as it is written, a choice of words, the nearest name to one that is wrong.

Used by every layer; imports nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

_LONGEST = 60


def did_you_mean(name: str, possible: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest of `possible`, or "" when none is near."""
    near = nearest(name, possible, 1)
    return f"; did you mean '{near[0]}'?" if near else ""


def nearest(name: str, possible: Iterable[str], number: int, likeness: float = 0.6) -> list[str]:
    """Return at most `number` of `possible` that are like `name`, whatever their case, the nearest first."""
    lowered = {candidate.lower(): candidate for candidate in possible}
    return [lowered[match] for match in difflib.get_close_matches(name.lower(), lowered, number, likeness)]


def either(words: Sequence[str], *, comma: bool = False) -> str:
    """Return "a, b or c"; with `comma` "a, b, or c", where the words are phrases of their own."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])}{',' if comma else ''} or {words[-1]}"


def spell(value: Any) -> str:
    """Return `value` as one writes it in YAML, shortened."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        items = [f"{shortened(key)}: {spell(value[key])}" for key in list(value)[:_LONGEST]]
        text = "{" + ", ".join(items) + "}"
        return text if len(text) <= _LONGEST else "a mapping"
    if isinstance(value, list):
        text = "[" + ", ".join(spell(item) for item in value[:_LONGEST]) + "]"
        return text if len(text) <= _LONGEST else f"a list of {len(value)}"
    if isinstance(value, float):
        return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(str(value), repr(value))
    return repr(shortened(value)) if isinstance(value, str) else str(value)


def shortened(text: str, longest: int = _LONGEST) -> str:
    """Return `text`, cut where it is too long for a message."""
    return text if len(text) <= longest else text[: longest - 3] + "..."


def first_line(error: BaseException) -> str:
    """Return what an error of somebody else's says, the first line of it, or of what kind it is."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def printable(text: str) -> str:
    """Return `text` without control characters, which could command a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
