"""`dltrain fit --devices N`: the same command on N processes of this machine, and one error where they fail.

torchrun does the same on several machines; both say by environment variables which process one is. No torch in here.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from dltrain.errors import ConfigError, DltrainError
from dltrain.signals import SIGNALS, die_with

_PAUSE_S = 0.05
_GRACE_S = 0.5
_GRACE_OF_STOP_S = 30.0
"""For the checkpoint that a process may still be writing."""


@dataclass(frozen=True)
class Place:
    """Where among the processes one is, from the environment that torchrun makes as well."""

    local_index: int
    num_local: int
    """Processes on this machine."""
    machine: int
    num_machines: int


def is_one_of_several() -> bool:
    """Return whether this process was started as one of several that train together."""
    return "RANK" in os.environ and _number("WORLD_SIZE", 1) > 1


def place() -> Place:
    """Return where this process is among several."""
    return Place(
        _number("LOCAL_RANK", 0),
        _number("LOCAL_WORLD_SIZE", 1),
        _number("GROUP_RANK", 0),
        _number("GROUP_WORLD_SIZE", 1),
    )


def hush_torch() -> None:
    """Keep torch from writing, with stacks of C++, that a connection broke: an error says it. For before its import."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def check_devices(devices: int) -> None:
    """Raise ConfigError where the processes that are already running are others than `--devices` asks for."""
    size = _number("WORLD_SIZE", 1)
    if size != devices:
        raise ConfigError(f"--devices {devices}: {size} processes were started already; leave it out under torchrun")


@contextlib.contextmanager
def said_once() -> Iterator[None]:
    """Let what is wrong with a command that several processes read be said by one of each machine."""
    try:
        yield
    except DltrainError as error:
        if not is_one_of_several() or place().local_index == 0:
            raise
        raise SystemExit(error.exit_code) from None


def launch(number: int) -> int:
    """Run the command of this process on `number` processes; return the exit code, of the first to fail or 0.

    Signals are passed on to them, and they die with this process, however it dies. Once one has failed the others are
    ended: what can be saved they have saved.
    """
    processes: list[subprocess.Popen[bytes]] = []
    received: list[int] = []

    def pass_on(signal_number: int, frame: FrameType | None) -> None:
        received.append(signal_number)
        for process in processes:
            process.send_signal(signal_number)

    for heeded in SIGNALS:
        if signal.getsignal(heeded) is not signal.SIG_IGN:
            signal.signal(heeded, pass_on)
    with held_port() as port:
        try:
            processes += (_start(index, number, port) for index in range(number))
            index, code = _first_to_fail(processes)
            _wait(processes, _GRACE_OF_STOP_S if code > 128 else _GRACE_S)
        finally:
            for process in processes:
                process.kill()
                process.wait()
    if code < 0 and -code not in received:
        name = signal.Signals(-code).name
        hint = " (the system does that where memory runs out)" if -code == signal.SIGKILL else ""
        sys.stderr.write(f"process {index} of {number} was killed by {name}{hint}; the last checkpoint is kept\n")
    return code if code >= 0 else 128 - code


@contextlib.contextmanager
def held_port() -> Iterator[int]:
    """Context of a free port that the system gives to nobody else, while processes start that will meet there.

    The one that listens can do so, since it shares the address as this socket does (SO_REUSEADDR), which never listens.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def _start(index: int, number: int, port: int) -> subprocess.Popen[bytes]:
    place = {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number, "GROUP_RANK": 0}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "dltrain", *sys.argv[1:]],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            **{name: str(value) for name, value in {**place, **meeting}.items()},
        },
        stdin=subprocess.DEVNULL,
        stdout=None if index == 0 else subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C comes to them through `pass_on` alone, and so once
        preexec_fn=functools.partial(die_with, os.getpid()),
    )


def _first_to_fail(processes: list[subprocess.Popen[bytes]]) -> tuple[int, int]:
    """Wait until a process has failed or all are done; return which, and its exit code."""
    while True:
        codes = [process.poll() for process in processes]
        for index, code in enumerate(codes):
            if code:
                return index, code
        if None not in codes:
            return 0, 0
        time.sleep(_PAUSE_S)


def _wait(processes: list[subprocess.Popen[bytes]], longest_s: float) -> None:
    deadline = time.monotonic() + longest_s
    while time.monotonic() < deadline and any(process.poll() is None for process in processes):
        time.sleep(_PAUSE_S)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ConfigError(f"the environment variable {name} is {text!r}; it is set by torchrun, to a number")
    return int(text)
