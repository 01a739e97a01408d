"""What to do where memory runs out: compute in halves what was to be computed together."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import TypeVar

from dltrain.errors import TrainingError
from dltrain.names import first_line

Result = TypeVar("Result")

_TEXTS = (
    "can't allocate memory",
    "out of memory",
    "Unable to allocate",
    "size calculation overflowed",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of Python, numpy or torch says that memory has run out."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in _TEXTS)


def in_halves(compute: Callable[[int], Result], size: int, halved: Callable[[int, str], None]) -> Result:
    """Return `compute(size)`; as long as memory runs out in it, halve the size and try again.

    Args:
        compute: takes how many samples are in memory at once; must be repeatable after a failure.
        size: how many to begin with.
        halved: hears of each new size, and of what torch said, before it is tried.

    Raises:
        TrainingError: if memory runs out with one sample at a time.
    """
    while True:
        try:
            return compute(size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failure = first_line(error)
        # Only here, where the error and with it the frames of the failed attempt are gone, can their memory be freed.
        gc.collect()
        if (torch := sys.modules.get("torch")) is not None:
            torch.cuda.empty_cache()  # does nothing where no GPU is in use
        if size == 1:
            raise TrainingError(f"out of memory with one sample at a time: {failure}; choose a smaller model or input")
        size = -(-size // 2)
        halved(size, failure)
