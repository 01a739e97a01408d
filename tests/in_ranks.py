"""Trainings on several processes that are forked from the one that tests, which takes a tenth of a second."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch._dynamo  # noqa: F401  # once, before processes are forked: fsdp loads it, which takes longer than a training

from dltrain.config.validate import ConfigFile
from dltrain.console import Progress
from dltrain.launch import held_port
from dltrain.ranks import Ranks, joined
from dltrain.train import fit


class Ended(NamedTuple):
    """How a process ended."""

    code: int
    """Minus the signal that killed it, if one did."""
    said: str
    """The error that it raised."""


def in_ranks(work: Callable[[Ranks], None], number: int = 2, timeout_s: float = 60.0) -> list[Ended]:
    """Do `work` on several processes that train together."""
    ended = []
    with held_port() as port:
        children = [_fork(work, index, number, port, timeout_s) for index in range(number)]
        for child, answer in children:
            with open(answer, encoding="utf-8") as file:
                text = file.read()
            _, status = os.waitpid(child, 0)
            code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            ended.append(Ended(code, json.loads(text or '""')))
    return ended


def train_in_ranks(
    file: ConfigFile, root: Path, number: int = 2, *, resume: Path | None = None, progress: Progress | None = None
) -> list[Ended]:
    """Train a config on several processes; the first has the `progress`."""

    def work(ranks: Ranks) -> None:
        fit(file, root=root, resume=resume, progress=progress, ranks=ranks)

    return in_ranks(work, number)


def _fork(work: Callable[[Ranks], None], index: int, number: int, port: int, timeout_s: float) -> tuple[int, int]:
    """Return the id of a process that works, and from where what it says can be read."""
    answer, mouth = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: the child uses none
        child = os.fork()
    if child:
        os.close(mouth)
        return child, answer
    code, said = 1, ""
    try:
        os.environ |= {"RANK": str(index), "WORLD_SIZE": str(number), "LOCAL_RANK": str(index)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        with joined(timeout_s) as ranks:
            work(ranks)
        code = 0
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    except BaseException as error:
        code, said = getattr(error, "exit_code", 1), str(error)
    finally:
        os.write(mouth, json.dumps(said).encode())
        os._exit(code)
