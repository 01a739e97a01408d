"""Runs that are killed at any moment and resumed end as if nothing had happened: `python -m tests.soak`, `make soak`.

A case is a config, shortened; a process that trains it and is killed with SIGKILL after a random time, once or twice;
and one that goes on. Weights, optimizer, metrics and best checkpoint must be those of the uninterrupted run, byte for
byte. Half of the cases are shipped configs, the others settings of tests/test_resume.py.
"""

from __future__ import annotations

import argparse
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
from dltrain.records import newest_unfinished
from dltrain.train import fit
from tests.shipped import CONFIGS, copy_shipped
from tests.small_runs import command, in_child, newest_run, result_of, start_child, write_arrays, write_config
from tests.test_resume import CASES, EVERYTHING

VARIANTS = list(CASES)
SHIPPED = [path.stem for path in CONFIGS if path.stem != "spoken_digits" or shutil.which("espeak-ng")]
_SHORT = ["train.duration=4 epochs", "train.evaluate_every=1 epochs", "train.checkpoint_every=2 steps"]
_VARIANT = ["train.duration=8 epochs", "train.checkpoint_every=2 steps"]
_BY_COMMAND = 25  # each so many-th case is a process of the command line, which takes seconds to start
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
        self._references: dict[str, Reference] = {}

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

    def reference(self, name: str) -> Reference:
        """Return the uninterrupted run of a case."""
        if name not in self._references:
            path, overrides = self.config(name)
            root = self.folder / "whole" / name
            began = time.monotonic()
            child = start_child(lambda: fit(load_config(path, overrides), root=root, curves=False))
            started_s = _wait_for_run(child, root, 0) - began
            assert _ended(child, _PATIENCE_S) == 0, f"{name} does not train"
            whole_s = time.monotonic() - began
            self._references[name] = Reference(result_of(newest_run(root)), whole_s, whole_s - started_s)
        return self._references[name]

    def case(self, name: str, number: int, rng: random.Random, *, by_command: bool) -> tuple[bool, str]:
        """Train, kill and resume; return whether the end is that of the uninterrupted run, and what happened."""
        reference, root = self.reference(name), self.folder / "killed" / str(number)
        path, overrides = self.config(name)
        kills: list[str] = []
        for _ in range(1 + (rng.random() < _TWICE)):
            whole_s, training_s = reference.whole_s, reference.training_s
            while True:  # until the kill comes before the end
                logged = _logged(root)
                child = (
                    _process(path, overrides, root)
                    if by_command
                    else start_child(lambda: _go_on(path, overrides, root))
                )
                if rng.random() < _IN_PREPARATION:
                    time.sleep(rng.uniform(0, whole_s))
                else:
                    _wait_for_run(child, root, logged)
                    time.sleep(rng.uniform(0, training_s))
                os.kill(child, signal.SIGKILL)
                if _ended(child, _PATIENCE_S) == -signal.SIGKILL:
                    break
                shutil.rmtree(root)
                whole_s, training_s = whole_s / 2, training_s / 2  # the machine was busier when the reference was made
            kills.append(_where(root))
        status = (
            _ended(_process(path, overrides, root), _PATIENCE_S)
            if by_command
            else in_child(lambda: _go_on(path, overrides, root))
        )
        told = f"killed {' and '.join(kills)}" + (", by the command line" if by_command else "")
        if status != 0:
            return False, f"{told}: the resumed run ended with {status}"
        found = result_of(newest_run(root))
        wrong = sorted(
            key for key in reference.result.keys() | found.keys() if found.get(key) != reference.result.get(key)
        )
        shutil.rmtree(root)
        return not wrong, f"{told}: {'the same bytes' if not wrong else 'DIFFERS in ' + ', '.join(wrong)}"


def cases(number: int, rng: random.Random) -> Iterator[str]:
    """Yield the names of so many cases: shipped configs and variants in turn, each kind in a random order."""
    shipped, variants = [f"config {name}" for name in SHIPPED], list(VARIANTS)
    rng.shuffle(shipped)
    rng.shuffle(variants)
    turns = zip(itertools.cycle(shipped), itertools.cycle(variants), strict=False)
    return itertools.islice(itertools.chain.from_iterable(turns), number)


def _go_on(path: Path, overrides: list[str], root: Path) -> None:
    """Do what `dltrain fit CONFIG --resume auto` does, without curves."""
    file = load_config(path, overrides)
    fit(file, root=root, resume=newest_unfinished(root, file), curves=False)


def _process(path: Path, overrides: list[str], root: Path) -> int:
    """Start the command line and return the id of the process."""
    options = itertools.chain.from_iterable(("--set", override) for override in overrides)
    arguments = command("fit", path, *options, "--out", root, "--resume", "auto", "--quiet")
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    return os.posix_spawn(arguments[0], arguments, os.environ, file_actions=quiet)


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
        for number, name in enumerate(cases(arguments.cases, rng)):
            same, told = soak.case(name, number, rng, by_command=number % _BY_COMMAND == 0)
            num_same += same
            print(f"{number + 1:>4}  {name}: {told}", flush=True)
    print(f"{num_same} of {arguments.cases} ended as the uninterrupted run, in {time.monotonic() - began:.0f} s")
    sys.exit(num_same != arguments.cases)


if __name__ == "__main__":
    main()
