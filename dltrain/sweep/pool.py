"""The worker processes of a sweep, one for each slot: started when needed, and anew when one has died."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from dltrain.machine import num_cores
from dltrain.sweep.worker import Trainer, run_worker

_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Slots:
    """Where trainings can run at the same time."""

    devices: list[str | None]
    """For each slot the CUDA device that its processes see, or None for all that there are."""
    spawn: bool
    """Whether workers begin empty: a forked process cannot use CUDA."""
    threads: int
    """CPU threads for each."""


def find_slots(device: str, threads: int | None, number: int | None) -> Slots:
    """Return the slots for trainings on `device` ("auto", "cpu", "cuda", "cuda:1").

    By default as many as there are GPUs, or as the CPU has cores for the `threads` of a training.
    """
    cores = num_cores()
    if device != "cpu" and torch.cuda.is_available():
        count = torch.cuda.device_count()
        names = os.environ[_VISIBLE].split(",") if os.environ.get(_VISIBLE) else [str(i) for i in range(count)]
        one = ":" in device
        number = number or (1 if one else count)
        devices = [None if one else names[slot % count] for slot in range(number)]
        return Slots(devices, True, max(1, cores // number))
    number = number or max(1, cores // (threads or _threads_of_environment()))
    return Slots([None] * number, False, max(1, cores // number))


def _threads_of_environment() -> int:
    """Return what OMP_NUM_THREADS says, of a list such as "4,2" the outermost level; 1 where it says nothing."""
    outermost = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(outermost) or 1 if outermost.isdecimal() else 1


@dataclass(frozen=True)
class _Worker:
    process: Any
    connection: Connection


class Pool:
    """Context of the workers; when it ends so do they."""

    def __init__(self, slots: Slots, trainer: Trainer) -> None:
        self._slots, self._trainer = slots, trainer
        self._workers: dict[int, _Worker] = {}

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers.values():
            worker.process.kill()
            worker.connection.close()
        for worker in self._workers.values():
            worker.process.join()

    def send(self, slot: int, message: Any) -> None:
        """Send something to a slot's worker; one that has died is heard of in `messages`."""
        if slot not in self._workers:
            self._workers[slot] = self._start(slot)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._workers[slot].connection.send(message)

    def messages(self, timeout_s: float) -> Iterator[tuple[int, str, Any]]:
        """Yield (slot, kind, facts) of what workers have sent, waiting for the first; ("died", why) if one has."""
        slots = {worker.connection: slot for slot, worker in self._workers.items()}
        for connection in wait(list(slots), timeout_s):
            slot = slots[connection]  # type: ignore[index]
            try:
                kind, facts = self._workers[slot].connection.recv()
            except (EOFError, ConnectionResetError):
                kind, facts = "died", self._bury(slot)
            yield slot, kind, facts

    def answer(self, slot: int) -> tuple[str, Any]:
        """Return the next (kind, facts) of a slot's worker, however long it takes."""
        while True:
            for other, kind, facts in self.messages(60.0):
                if other == slot:
                    return kind, facts

    def stop(self, slots: list[int], patience_s: float) -> None:
        """Ask trainings to stop at the next step, and wait until the workers have said so or died, or for too long."""
        for slot in slots:
            self._workers[slot].process.terminate()
        waiting, deadline = set(slots), time.monotonic() + patience_s
        while waiting and time.monotonic() < deadline:
            for slot, kind, _ in self.messages(0.1):
                if kind == "row":
                    self.send(slot, True)  # the stop comes after it
                elif kind != "started":
                    waiting.discard(slot)

    def _start(self, slot: int) -> _Worker:
        context: Any = multiprocessing.get_context("spawn" if self._slots.spawn else "fork")
        ours, theirs = context.Pipe()
        inherited = [] if self._slots.spawn else [ours, *(worker.connection for worker in self._workers.values())]
        process = context.Process(target=run_worker, args=(theirs, self._trainer, inherited), daemon=True)
        with _visible(self._slots.devices[slot]), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: numpy's, which wait
            process.start()
        theirs.close()
        return _Worker(process, ours)

    def _bury(self, slot: int) -> str:
        """Forget a worker that has died; return what it died of."""
        worker = self._workers.pop(slot)
        worker.connection.close()
        worker.process.join()
        code = worker.process.exitcode
        if code >= 0:
            return f"the training's process ended with exit code {code}"
        killed = f"the training's process was killed by {signal.Signals(-code).name}"
        return f"{killed}, by the system perhaps for want of memory" if code == -signal.SIGKILL else killed


@contextlib.contextmanager
def _visible(device: str | None) -> Iterator[None]:
    """Context in which started processes see one CUDA device only."""
    before = os.environ.get(_VISIBLE)
    if device is not None:
        os.environ[_VISIBLE] = device
    try:
        yield
    finally:
        if device is not None:
            os.environ.pop(_VISIBLE)
        if before is not None:
            os.environ[_VISIBLE] = before
