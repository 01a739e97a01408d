"""Runs that are killed at any moment and resumed end as if nothing had happened: `python -m tests.soak`, `make soak`.

A case is a config, shortened; a process that trains it and is killed with SIGKILL after a random time, once or twice;
and one that goes on. Weights, optimizer, metrics and best checkpoint must be those of the uninterrupted run, byte for
byte. Half of the cases are shipped configs, the others settings of tests/test_resume.py; some train on two processes,
of which one is killed, or what has started them.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dltrain import checkpoint as checkpoints
from dltrain.config.validate import load_config
from dltrain.ranks import Ranks
from dltrain.records import newest_unfinished
from dltrain.run import is_locked
from dltrain.signals import die_with
from dltrain.train import fit
from tests.in_ranks import in_ranks
from tests.shipped import CONFIGS, copy_shipped
from tests.small_runs import command, newest_run, result_of, start_child, write_arrays, write_config
from tests.test_resume import CASES, EVERYTHING

VARIANTS = list(CASES)
SHIPPED = [path.stem for path in CONFIGS if path.stem != "spoken_digits" or shutil.which("espeak-ng")]
_SHORT = ["train.duration=4 epochs", "train.evaluate_every=1 epochs", "train.checkpoint_every=2 steps"]
_VARIANT = ["train.duration=8 epochs", "train.checkpoint_every=2 steps"]
_BY_COMMAND = 25  # each so many-th case is a process of the command line, which takes seconds to start
_ON_TWO = 20  # each so many-th case trains on two processes, by the command line as well
TWO = (
    *("everything at once", "dropout", "micro-batches", "sampler of blocks", "rows in the middle of an epoch"),
    *("config digits", "config people", "config languages", "config digits_convnet", "config numbers_en_fr"),
)
"""What trains on two processes: the last batch of an epoch may hold one sample each, which is too small for others."""
_KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)  # itself, or one of the processes that it has started
_IN_PREPARATION = 0.1  # share of the kills that come before the run directory is there, or soon after
_TWICE = 0.3
_PATIENCE_S = 120


@dataclass(frozen=True)
class Reference:
    """The uninterrupted run of a config, and how long it took with and without the preparation of its data."""

    result: dict[str, Any]
    whole_s: float
    training_s: float


class Soak:
    """Configs and data in a folder, and the runs of them that nobody interrupts, each made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configs = {f"config {name}": (path, _SHORT) for name, path in self._shipped()}
        self._references: dict[tuple[str, int], Reference] = {}

    def _shipped(self) -> Iterator[tuple[str, Path]]:
        configs = copy_shipped(self.folder)
        for name in SHIPPED:
            yield name, configs / f"{name}.yaml"

    def config(self, name: str) -> tuple[Path, list[str]]:
        """Return the file of a case and its overrides."""
        if name not in self.configs:
            folder = self.folder / name.replace(" ", "_")
            folder.mkdir()
            if CASES[name] is EVERYTHING:
                write_arrays(folder / "data.npz", side=8)
            self.configs[name] = write_config(folder, CASES[name]), _VARIANT
        return self.configs[name]

    def reference(self, name: str, devices: int) -> Reference:
        """Return the uninterrupted run of a case."""
        if (name, devices) not in self._references:
            path, overrides = self.config(name)
            root = self.folder / f"whole on {devices}" / name
            began = time.monotonic()
            child = start_child(lambda: _go_on(path, overrides, root, devices))
            started_s = _wait_for_run(child, root, 0) - began
            assert _ended(child, _PATIENCE_S) == 0, f"{name} does not train"
            whole_s = time.monotonic() - began
            self._references[name, devices] = Reference(result_of(newest_run(root)), whole_s, whole_s - started_s)
        return self._references[name, devices]

    def case(
        self, name: str, number: int, rng: random.Random, *, by_command: bool, devices: int = 1
    ) -> tuple[bool, str]:
        """Train, kill and resume; return whether the end is that of the uninterrupted run, and what happened."""
        reference, root = self.reference(name, devices), self.folder / "killed" / str(number)
        path, overrides = self.config(name)

        def start() -> int:
            if by_command:
                return _process(path, overrides, root, devices)
            return start_child(lambda: _go_on(path, overrides, root, devices))

        kills: list[str] = []
        for _ in range(1 + (rng.random() < _TWICE)):
            whole_s, training_s = reference.whole_s, reference.training_s
            while True:  # until the kill comes before the end
                logged, child = _logged(root), start()
                if rng.random() < _IN_PREPARATION:
                    time.sleep(rng.uniform(0, whole_s))
                else:
                    _wait_for_run(child, root, logged)
                    time.sleep(rng.uniform(0, training_s))
                _kill(rng.choice(_with_started(child)) if devices > 1 else child)
                if _ended(child, _PATIENCE_S) in _KILLED:
                    break
                shutil.rmtree(root)
                whole_s, training_s = whole_s / 2, training_s / 2  # the machine was busier when the reference was made
            _wait_for_lock(root)
            kills.append(_where(root))
        status = _ended(start(), _PATIENCE_S)
        told = f"killed {' and '.join(kills)}{', by the command line' if by_command else ''}"
        told += f", on {devices} processes" if devices > 1 else ""
        if status != 0:
            return False, f"{told}: the resumed run ended with {status}"
        found = result_of(newest_run(root))
        wrong = sorted(
            key for key in reference.result.keys() | found.keys() if found.get(key) != reference.result.get(key)
        )
        shutil.rmtree(root)
        return not wrong, f"{told}: {'the same bytes' if not wrong else 'DIFFERS in ' + ', '.join(wrong)}"


def cases(number: int, rng: random.Random) -> Iterator[tuple[str, int]]:
    """Yield so many cases, a name and a number of processes.

    They are shipped configs and variants in turn, each kind in a random order, and at times one of TWO.
    """
    shipped, variants, two = [f"config {name}" for name in SHIPPED], list(VARIANTS), itertools.cycle(TWO)
    rng.shuffle(shipped)
    rng.shuffle(variants)
    turns = zip(itertools.cycle(shipped), itertools.cycle(variants), strict=False)
    for index, name in enumerate(itertools.islice(itertools.chain.from_iterable(turns), number)):
        yield (next(two), 2) if index % _ON_TWO == _ON_TWO - 1 else (name, 1)


def _go_on(path: Path, overrides: list[str], root: Path, devices: int) -> None:
    """Do what `dltrain fit CONFIG --resume auto --devices N` does, without curves."""
    file, launcher = load_config(path, overrides), os.getpid()
    resume = newest_unfinished(root, file)
    if devices == 1:
        fit(file, root=root, resume=resume, curves=False)
        return

    def work(ranks: Ranks) -> None:
        die_with(launcher)
        fit(file, root=root, resume=resume, curves=False, ranks=ranks)

    ended = in_ranks(work, devices)
    if any(one.code == -signal.SIGKILL for one in ended):
        os._exit(128 + signal.SIGKILL)
    assert all(one.code == 0 for one in ended), ended


def _process(path: Path, overrides: list[str], root: Path, devices: int) -> int:
    """Start the command line and return the id of the process."""
    options = [*itertools.chain.from_iterable(("--set", override) for override in overrides), "--out", str(root)]
    options += ["--devices", str(devices)] if devices > 1 else []
    arguments = command("fit", path, *options, "--resume", "auto", "--quiet")
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    return os.posix_spawn(arguments[0], arguments, os.environ, file_actions=quiet)


def _with_started(child: int) -> list[int]:
    """Return the ids of a process and of those that it has started by now."""
    with open(f"/proc/{child}/task/{child}/children", encoding="ascii") as file:
        return [child, *map(int, file.read().split())]


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended by now
        os.kill(process, signal.SIGKILL)


def _wait_for_lock(root: Path) -> None:
    """Wait until no process is left at work in a run: those that another had started die after it."""
    deadline = time.monotonic() + _PATIENCE_S
    while any(is_locked(run) for run in root.glob("*/*")) and time.monotonic() < deadline:
        time.sleep(0.002)


def _ended(child: int, patience_s: float) -> int:
    """Wait for a process; return its exit status, or minus the signal that killed it."""
    deadline = time.monotonic() + patience_s
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


def _wait_for_run(child: int, root: Path, logged: int) -> float:
    """Wait until the log of the run grows beyond `logged` bytes, or the process has ended; return the time."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline and _logged(root) <= logged and _alive(child):
        time.sleep(0.001)
    return time.monotonic()


def _logged(root: Path) -> int:
    return sum(path.stat().st_size for path in root.glob("*/*/log.txt"))


def _alive(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def _where(root: Path) -> str:
    """Return how far a killed run had come."""
    for run in root.glob("*/*"):
        last = run / "checkpoints" / checkpoints.LAST
        return f"after step {checkpoints.load(last).meta['step']}" if last.exists() else "before the first checkpoint"
    return "before the run directory was made"


def main() -> None:
    """Run the cases, print a line for each and their number; exit with 1 if one differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, began, num_same = random.Random(arguments.seed), time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="dltrain-soak-") as folder:
        os.environ["DLTRAIN_CACHE"] = f"{folder}/cache"
        soak = Soak(Path(folder))
        for number, (name, devices) in enumerate(cases(arguments.cases, rng)):
            by_command = devices > 1 or number % _BY_COMMAND == 0
            same, told = soak.case(name, number, rng, by_command=by_command, devices=devices)
            num_same += same
            print(f"{number + 1:>4}  {name}: {told}", flush=True)
    print(f"{num_same} of {arguments.cases} ended as the uninterrupted run, in {time.monotonic() - began:.0f} s")
    sys.exit(num_same != arguments.cases)


if __name__ == "__main__":
    main()
