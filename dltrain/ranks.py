"""One model on several processes: which one this is, its share of a batch, and the few things they tell each other.

Processes are another way to divide a batch, as micro-batches are: each works on a stretch of it, and what they find is
added up, not averaged. `ALONE` is a training on one process: nothing is sent, and torch.distributed stays untouched.
"""

from __future__ import annotations

import contextlib
import functools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d
from torch.distributed.rendezvous import rendezvous

from dltrain import launch
from dltrain.device import limit_threads
from dltrain.errors import Lost, Stopped
from dltrain.meeting import choose_interface, part_of_this_start

_T = TypeVar("_T")

_TIMEOUT_S = 600.0
"""Of a process that is alive and does not answer; one that dies is noticed at once."""
_LONGEST_PREPARATION = timedelta(days=7)
_LOST = re.compile("gloo|NCCL|[Cc]onnection (closed|reset)")
_PATIENCE_S = 2.0
"""In which whoever started the processes ends those that lost another, and the one that failed has said why."""


@dataclass(frozen=True)
class Ranks:
    """Which process this is among those that train one model, each on a device of its own."""

    index: int = 0
    """The first, 0, is the one that speaks and writes."""
    size: int = 1
    local_index: int = 0
    """On its machine: the number of its device."""
    machine: int = 0
    store: Any = None
    """A torch.distributed.Store that all reach."""

    @property
    def alone(self) -> bool:
        """Whether this is the only process."""
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this process speaks and writes."""
        return self.index == 0

    @property
    def salt(self) -> tuple[int, ...]:
        """What seeds of dropout have more, so that no two processes drop the same; the first has those of one alone."""
        return () if self.first else (self.index,)

    def share(self, number: int) -> slice:
        """Return the stretch of `number` things that is this process's; the sizes differ by one at most."""
        size, rest = divmod(number, self.size)
        start = self.index * size + min(self.index, rest)
        return slice(start, start + size + (self.index < rest))

    def add(self, *tensors: Tensor) -> None:
        """Put the sums over all processes in the place of the tensors; all get the same bits."""
        if not self.alone:
            with _connected():
                for tensor in tensors:
                    dist.all_reduce(tensor)

    def largest(self, number: int) -> int:
        """Return the largest of the processes' numbers."""
        if self.alone:
            return number
        tensor = torch.tensor(number)
        with _connected():
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def take_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Put the first process's values into the tensors."""
        if not self.alone:
            with _connected():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    def from_first(self, value: _T) -> _T:
        """Return the first process's plain value (numbers, text, lists, dicts of them)."""
        if self.alone:
            return value
        values = [value]
        with _connected():
            dist.broadcast_object_list(values, 0, device=torch.device("cpu"))
        return values[0]

    def tensors_from_first(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the first process's tensors by name, on the CPU, whatever the others give."""
        kinds = self.from_first({name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()})
        if self.first:
            taken = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        else:
            taken = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in kinds.items()}
        self.take_from_first(tensor.view(-1).view(torch.uint8) for tensor in taken.values())
        return taken

    def texts(self, text: str) -> list[str]:
        """Return the texts of all processes."""
        texts = [text] * self.size
        if not self.alone:
            with _connected():
                dist.all_gather_object(texts, text)
        return texts

    def first_text(self, text: str) -> str:
        """Return the text of the first process that has one."""
        return next((text for text in self.texts(text) if text), "")

    def rows_of_all(self, tensor: Tensor, number: int) -> Tensor:
        """Return the `number` rows of which each process has as many as the others, but for the last that have any."""
        padded = tensor.new_zeros(-(-number // self.size), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        with _connected():
            dist.all_gather(parts, padded)
        return torch.cat(parts)[:number]

    def one_then_others(self, work: Callable[[], _T]) -> _T:
        """Do `work` on one process of each machine and then on its others, which find its files."""
        if self.alone:
            return work()
        key = f"done on machine {self.machine}"
        if self.local_index == 0:
            result = work()
            self.store.set(key, "")
            return result
        with _connected():
            self.store.wait([key], _LONGEST_PREPARATION)
        return work()


ALONE = Ranks()


class StepSum:
    """Adds up what the processes find in a step; what they must know of each other travels with the gradients.

    On a CPU that is one collective a step. On GPUs the words go by a second one on the CPU, since reading them off the
    device would wait for it.
    """

    def __init__(self, ranks: Ranks, parameters: Sequence[Tensor]) -> None:
        self._ranks, self._parameters = ranks, parameters
        dtype = functools.reduce(torch.promote_types, (p.dtype for p in parameters), torch.float32)
        sizes, device = [p.numel() for p in parameters], parameters[0].device
        num_words = 2 + len(parameters)
        on_cpu = device.type == "cpu"
        self._buffer = torch.zeros(sum(sizes) + 1 + (num_words if on_cpu else 0), dtype=dtype, device=device)
        *gradients, self._loss, words = torch.split(self._buffer, [*sizes, 1, len(self._buffer) - sum(sizes) - 1])
        self._gradients = [flat.view(p.shape) for flat, p in zip(gradients, parameters, strict=True)]
        self._words = words if on_cpu else torch.zeros(num_words)
        self._summed = (self._buffer,) if on_cpu else (self._buffer, self._words)
        self.elapsed_s = 0.0
        """The first process's clock at the last step, by which all decide what is due."""
        self.stop = False
        """Whether a process had been sent a signal before the last step."""

    def __call__(self, loss: Tensor | None, elapsed_s: float, stop: bool) -> Tensor:
        """Put the sums of the gradients into `.grad` and return that of the losses; no loss is none of the batch.

        A parameter that has a gradient on no process has none afterwards, as on one process.
        """
        given = [(room, p.grad) for room, p in zip(self._gradients, self._parameters, strict=True)]
        pairs = [(room, grad) for room, grad in given if grad is not None]
        if len(pairs) < len(given) or loss is None:
            self._buffer.zero_()
        if pairs:
            torch._foreach_copy_([room for room, _ in pairs], [grad for _, grad in pairs])
        if loss is not None:
            self._loss.copy_(loss)
        clock = elapsed_s if self._ranks.first else 0.0
        self._words.copy_(torch.tensor([clock, stop, *(grad is not None for _, grad in given)]))
        self._ranks.add(*self._summed)
        self.elapsed_s, stops, *counts = self._words.tolist()
        self.stop = stops > 0
        for parameter, room, number in zip(self._parameters, self._gradients, counts, strict=True):
            parameter.grad = room.to(parameter.dtype) if number else None
        total: Tensor = self._loss[0].clone()
        return total


@contextlib.contextmanager
def joined(timeout_s: float = _TIMEOUT_S) -> Iterator[Ranks]:
    """Context of the training of one process among those that `launch` or torchrun started; else of one ALONE.

    Where it ends by an error, the first to fail raises it, and all others end without a word.
    """
    if not launch.is_one_of_several():
        yield ALONE
        return
    place = launch.place()
    limit_threads(max(1, torch.get_num_threads() // place.num_local))
    timeout = timedelta(seconds=timeout_s)
    on_gpu = torch.cuda.is_available() and dist.is_nccl_available()
    with _voice_of(place.local_index == 0), _connected():
        store, index, size = cast(Any, next(rendezvous("env://", timeout=timeout)))
        store = part_of_this_start(store, index, size, timeout_s)
        choose_interface(store, place.machine, place.num_machines)
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        dist.init_process_group(backend, store=store, rank=index, world_size=size, timeout=timeout)
    ranks = Ranks(index, size, place.local_index, place.machine, distributed_c10d.PrefixStore("dltrain", store))
    try:
        yield ranks
        ranks.largest(0)  # all have arrived: none leaves while another still needs it
    except Stopped as error:
        ranks.largest(0)
        if not ranks.first:
            raise SystemExit(error.exit_code) from None
        raise
    except Lost:
        time.sleep(_PATIENCE_S)
        with _voice_of(place.local_index == 0):
            raise
    except BaseException as error:
        if isinstance(error, RuntimeError) and _LOST.search(str(error)):  # in a pass of a model that FSDP2 has sharded
            time.sleep(_PATIENCE_S)
            with _voice_of(place.local_index == 0), _connected():
                raise
        with _voice_of(_is_first_to_fail(ranks)):
            raise
    finally:
        dist.destroy_process_group()  # or the threads of gloo may abort the process at its exit


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    """Raise Lost where a collective fails."""
    try:
        yield
    except RuntimeError as error:
        cause = str(error).partition("\n")[0]
        raise Lost(f"another process of this training does not answer any more: {cause}") from None


@contextlib.contextmanager
def _voice_of(speaks: bool) -> Iterator[None]:
    """Let an error pass, or end the process with its exit code and without a word, after another has said it."""
    try:
        yield
    except BaseException as error:
        if speaks:
            raise
        time.sleep(_PATIENCE_S)
        raise SystemExit(getattr(error, "exit_code", 1)) from None


def _is_first_to_fail(ranks: Ranks) -> bool:
    try:
        return int(ranks.store.add("failures", 1)) == 1
    except RuntimeError:  # the store was at a process that has failed before
        return False
