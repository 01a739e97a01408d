"""`train.cuda_graphs`: forward, loss and backward of a step as one CUDA graph, recorded once and then launched whole.

The penalty, clipping, the update and all else of a step stay outside, so they need not know of it
(https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs). It pays where the GPU waits for the CPU to launch
hundreds of small kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dltrain.compilation import left_as_it_is
from dltrain.data.prepare import Inputs
from dltrain.errors import TrainingError
from dltrain.memory import is_out_of_memory
from dltrain.names import first_line
from dltrain.regularization import Mixed

_MOST_SHAPES = 4
"""Of batches that are recorded, each with gradients of its own; batches of further shapes are computed as they come."""
_NUM_WARM_UPS = 3
"""Passes before a recording in which libraries choose their kernels and allocate; as many as torch's own functions."""

Outputs = list[tuple[Tensor, Tensor]]


class Gradients(Protocol):
    """The function of the loop that leaves the gradient in `.grad`, and outputs in a list."""

    def __call__(
        self, size: int, inputs: Inputs, target: Tensor, mixed: Mixed | None, *, measure: bool
    ) -> tuple[Tensor | None, Any]:
        """Return the loss, and its weight in sums."""


@dataclass(frozen=True)
class _Recording:
    """A recorded step: where it reads its batch, and where it leaves what it computes, each time at the same place."""

    replay: Callable[[], None]
    batch: list[Tensor]
    result: tuple[Tensor | None, Any]
    gradients: list[Tensor | None]
    outputs: Outputs


class RecordedGradients:
    """`gradients` of the loop, recorded for each shape of batch; its random numbers are those of the seed of the step.

    Raises TrainingError where a step cannot be recorded, such as a model that waits for the device.
    """

    def __init__(self, gradients: Gradients, outputs: Outputs, model: nn.Module, device: torch.device) -> None:
        """Take the function, the list into which it puts outputs, and the model whose gradients it computes."""
        self._gradients, self._outputs, self._model, self._device = gradients, outputs, model, device
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._recordings: dict[Any, _Recording] = {}

    def __call__(
        self, size: int, inputs: Inputs, target: Tensor, mixed: Mixed | None, *, measure: bool
    ) -> tuple[Tensor | None, Any]:
        """Do what `gradients` does."""
        batch = [*inputs, target, *(() if mixed is None else (mixed.partner, mixed.share))]
        key = size, measure, tuple((x.shape, x.dtype) for x in batch)
        if key not in self._recordings:
            if len(self._recordings) == _MOST_SHAPES:
                return self._gradients(size, inputs, target, mixed, measure=measure)
            self._recordings[key] = self._recorded(size, batch, len(inputs), measure)
        recording = self._recordings[key]
        for room, x in zip(recording.batch, batch, strict=True):
            room.copy_(x)
        recording.replay()
        for parameter, gradient in zip(self._parameters, recording.gradients, strict=True):
            parameter.grad = gradient
        if measure:
            self._outputs[:] = recording.outputs
        return recording.result

    def _recorded(self, size: int, batch: list[Tensor], num_inputs: int, measure: bool) -> _Recording:
        """Record the step of a batch, which changes neither the model nor the random numbers to come."""
        batch = [x.clone() for x in batch]
        inputs, target, mixing = tuple(batch[:num_inputs]), batch[num_inputs], batch[num_inputs + 1 :]
        mixed = Mixed(inputs, *mixing) if mixing else None

        def step() -> tuple[Tensor | None, Any]:
            return self._gradients(size, inputs, target, mixed, measure=measure)

        try:
            with left_as_it_is(self._model, self._device):
                replay, result = _record(step, self._device)
                gradients = [p.grad for p in self._parameters]
        except RuntimeError as error:
            self._recordings.clear()  # and with them their memory
            if is_out_of_memory(error):
                raise
            reason = f"a step cannot be recorded as a CUDA graph: {first_line(error)}"
            raise TrainingError(f"train.cuda_graphs: {reason}; false computes it as it comes") from error
        return _Recording(replay, batch, result, gradients, list(self._outputs) if measure else [])


def _record(
    step: Callable[[], tuple[Tensor | None, Any]], device: torch.device
) -> tuple[Callable[[], None], tuple[Tensor | None, Any]]:
    """Return what computes `step` again, into the same memory, and what it returns, which is not computed yet."""
    with torch.cuda.device(device):
        computing = torch.cuda.current_stream()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(computing)
        with torch.cuda.stream(aside):
            for _ in range(_NUM_WARM_UPS):
                step()
        computing.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=aside):
            result = step()
    return graph.replay, result
