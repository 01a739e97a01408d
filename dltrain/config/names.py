"""The nearest name to one that is wrong: the end of every message about an unknown name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, possible: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest of `possible`, or "" when none is near."""
    lowered = {candidate.lower(): candidate for candidate in possible}
    nearest = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    return f"; did you mean '{lowered[nearest[0]]}'?" if nearest else ""
