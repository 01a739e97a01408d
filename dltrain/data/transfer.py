"""From the host's memory to a GPU without a wait: by page-locked memory, and beside what the GPU computes.

The loop does not wait for the GPU: while it computes a step, the next batch is gathered by the CPU and sent on a stream
of its own. No batch is prepared out of turn for that, so the order of samples and a resumed run know nothing of it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor


def send(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Return copies on the GPU `device` of `tensors`, which are on the CPU; neither CPU nor GPU waits for the other.

    What is computed next with the copies waits, on the GPU, until they are there. Page-locked memory may be given up
    at once: torch's allocator hands it out again only when the copy is done. The same holds for the copies and the
    stream that reads them (https://docs.pytorch.org/docs/stable/notes/cuda.html).
    """
    copying, computing = _stream_of_copies(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(copying):
        sent = [_page_locked(x).to(device, non_blocking=True) for x in tensors]
    computing.wait_stream(copying)
    for x in sent:
        x.record_stream(computing)
    return sent


@functools.cache
def _stream_of_copies(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _page_locked(x: Tensor) -> Tensor:
    """Return `x` in memory from which a GPU reads by itself; from other memory a copy is a wait for the GPU."""
    return x if x.is_pinned() else torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x)
