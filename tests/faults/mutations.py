"""Damage of every kind, drawn from a seed: to the bytes of a file, and to a tree of JSON values."""

from __future__ import annotations

import contextlib
import copy
import os
import random
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from dltrain.errors import DltrainError

NUM_CASES = int(os.environ.get("DLTRAIN_FUZZ", "0"))
"""How many cases of a kind; 0 for the number that the suite has time for."""

_NUMBERS = [
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0" * 8,
    b"\xff" * 8,
]
_TEXTS = [
    b"\n",
    b"\r",
    b'"',
    b",",
    b"\t",
    b"nan",
    b"inf",
    b"-1",
    b"1e999",
    b"9" * 40,
    b"\xef\xbb\xbf",
    b"\x1b[31m",
    b"{",
    b"]",
    b"null",
]
_VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 255, 2**31, 2**63, 10**12, 10**30, -(2**63), 0.5, -0.0, 1e308, 1e-320),
    *("", "x", "0", "nan", "..", "../../x", "/", "/dev/zero", "\0", "\x1b]0;x\x07", "a" * 300, "os:system", "1 epochs"),
    *([], {}, [[]], [0], [-1], [None], ["a"], [[1, 2], [3]], {"": 1}, {"type": "mlp"}, {"type": "os:system"}, [10**12]),
]


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Return `content` with one to four damages: bytes changed, cut, removed, doubled, put in, or moved."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        start = rng.randrange(len(content) + 1)
        if rng.random() < 0.3:  # headers decide most
            start = rng.randrange(min(len(content), 64) + 1)
        end = min(len(content), start + rng.choice((1, 1, 2, 4, 8, 16, 100)))
        before, middle, after = content[:start], content[start:end], content[end:]
        kind = rng.randrange(8)
        if kind == 0 and middle:
            middle = bytes([middle[0] ^ (1 << rng.randrange(8))]) + middle[1:]
        elif kind == 1:
            middle = rng.randbytes(len(middle))
        elif kind == 2:
            middle = b""
        elif kind == 3:
            middle = middle * rng.choice((2, 3, 50))
        elif kind == 4:
            middle = rng.choice(_NUMBERS + _TEXTS) + middle
        elif kind == 5:
            number = rng.choice(_NUMBERS)
            middle = number + (middle + after)[len(number) :]
            after = b""
        elif kind == 6:
            after = b"" if rng.random() < 0.5 else after
        else:
            other = rng.randrange(len(content) + 1)
            middle = content[other : other + len(middle)]
        content = before + middle + after
    return content


def damaged_tree(tree: Any, rng: random.Random) -> Any:
    """Return a copy of a tree of JSON values with one to three values replaced, removed, put in, or moved."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(tree))
        if not places:
            break
        parent, key = rng.choice(places)
        kind = rng.randrange(8)
        if kind == 0:
            del parent[key]
        elif kind == 1:
            other, other_key = rng.choice(places)
            parent[key] = copy.deepcopy(other[other_key])
        elif kind == 2 and isinstance(parent, dict):
            parent[rng.choice(("x", "type", "", "path", "\x1b[2J"))] = copy.deepcopy(rng.choice(_VALUES))
        elif kind == 3 and isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
            parent[key] = rng.choice(
                (parent[key] + 1, parent[key] - 1, -parent[key], parent[key] * 1000, float(parent[key]))
            )
        elif kind == 4 and isinstance(parent, list):
            parent.append(copy.deepcopy(rng.choice(_VALUES)))
        else:
            parent[key] = copy.deepcopy(rng.choice(_VALUES))
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (parent, key) of each value in a tree."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else []
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


@contextlib.contextmanager
def within(seconds: float, mebibytes: int | None = None) -> Iterator[None]:
    """Fail where the block works or hangs for longer, or takes more memory (`None`: as much as it likes).

    It works for as long as it keeps a core busy. It hangs where that takes many times as long: the machine may have
    much else to do. The memory is what it takes beyond what the process has.
    """

    def too_long(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"takes longer than {seconds} s")

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, seconds), (signal.SIGALRM, signal.ITIMER_REAL, 20 * seconds))
    previous = [signal.signal(number, too_long) for number, _, _ in timers]
    limits = resource.getrlimit(resource.RLIMIT_AS)
    if mebibytes is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (mebibytes << 20), limits[1]))
    for _, timer, limit_s in timers:
        signal.setitimer(timer, limit_s)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, previous, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def clean(error: DltrainError, codes: tuple[int, ...]) -> None:
    """Assert that an error is one for people: its exit code, some text, and not a page of it."""
    assert error.exit_code in codes, error
    assert str(error).strip()
    assert len(str(error)) < 20_000
    assert "Traceback" not in str(error)
