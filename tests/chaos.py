"""An outside judge of `dltrain fit --resume auto`: `make chaos` has ckpt-chaos 0.1.8 (PyPI) kill it and judge the end.

ckpt-chaos lists the file operations of an uninterrupted run. For each it lets a run die there (before it, with the file
half written, by SIGTERM, and with all that was not synced lost), gives the same command again, and compares what is
left: here the newest run, since `auto` begins another where the first has no checkpoint yet. Then two processes, as
torchrun would start them, of which the first or the second dies.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.small_runs import command, newest_run, result_of, write_config

RANKS = [["--ranks", "1"], ["--ranks", "2", "--crash-rank", "0"], ["--ranks", "2", "--crash-rank", "1"]]
_MODES = {"1": "before,torn,term,unsynced", "2": "before,torn,term"}


def judged(folder: Path, ranks: list[str]) -> int:
    """Let ckpt-chaos judge a training of three epochs with a checkpoint every other step; return its exit status."""
    train = command("fit", "small.yaml", "--out", "{out}", "--resume", "auto", "--quiet")
    result = shlex.join([sys.executable, "-m", "tests.chaos", "{out}"])
    arguments = [*ranks, "--modes", _MODES[ranks[1]], "--max-points", "1000", "--jobs", "2", "--result-cmd", result]
    arguments += ["--work", str(folder / "_".join(ranks))]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    judge = [sys.executable, "-m", "ckpt_chaos", "run", *arguments, "--", *train]
    return subprocess.run(judge, cwd=folder, env=environment).returncode


def print_result(root: Path) -> None:
    """Print a hash of all that the newest run has left: weights, optimizer, metrics, best checkpoint."""
    result = sorted(result_of(newest_run(root)).items())
    print(hashlib.sha256(repr(result).encode()).hexdigest())


def main() -> None:
    """Print the judgements; exit with 1 if one of them is a failure."""
    if len(sys.argv) > 1:
        print_result(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory(prefix="dltrain-chaos-") as folder:
        write_config(Path(folder), {"train": {"checkpoint_every": "2 steps"}})
        codes = [judged(Path(folder), ranks) for ranks in RANKS]
    sys.exit(any(codes))


if __name__ == "__main__":
    main()
