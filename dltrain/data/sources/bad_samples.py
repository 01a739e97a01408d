"""One error for all samples that are wrong, or one note if they are left out."""

from __future__ import annotations

from collections.abc import Sequence

from dltrain.errors import DataError

_MAX_NAMED = 10


def bad_samples(problems: Sequence[str], num_all: int, what: str) -> DataError:
    """Return one error for all `problems`, each "place: reason": how many of `num_all` there are, and the first ten.

    `what` says what they are and what is wrong with them, such as "images cannot be read".
    """
    if len(problems) == 1:
        return DataError(problems[0])
    more = [f"and {len(problems) - _MAX_NAMED:,} more"] if len(problems) > _MAX_NAMED else []
    head = f"{len(problems):,} of {num_all:,} {what}:"
    return DataError("\n".join([head, *problems[:_MAX_NAMED], *more]))


def left_out(problems: Sequence[str], num_all: int, what: str) -> str:
    """Return the note that these are left out; `what` says it, such as "texts were left out"."""
    return f"{len(problems):,} of {num_all:,} {what}; the first: {problems[0]}"
