"""What the command line asks of every measurement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """How often, under which environment, and where to put what comes of it."""

    repeat: int
    env: Mapping[str, str]
    """Variables of the processes beside those of this one."""
    say: Callable[[str], None]
    """Tell how far it is."""
    show: Callable[..., None]
    """Print a result: tables and lines."""
    results: Path
    """Folder and stem of the files of this run: `results.with_suffix(".png")`."""
    device: str = "cuda"
    """Of what is about GPUs; all else is measured on the CPU."""
