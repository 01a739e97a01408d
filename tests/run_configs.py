"""Train every shipped config in full and compare with what its head promises.

    python -m tests.run_configs [CONFIG...] [--seeds N]

A head says `# Expected: split/metric >= number` (or <=), of the best checkpoint, which `dltrain evaluate` loads too.
Exit status 1 if a promise is not kept.
"""

from __future__ import annotations

import argparse
import json
import operator
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from dltrain.console import out_console, table
from dltrain.evaluation import evaluate

FOLDER = Path(__file__).parent.parent / "configs"
_EXPECTED = re.compile(r"^# Expected: (train|val|test)/(\w+) (>=|<=) ([0-9.]+)$", re.MULTILINE)
_COMPARE = {">=": operator.ge, "<=": operator.le}


class Promise(NamedTuple):
    """What the head of a config expects of its best checkpoint."""

    split: str
    metric: str
    comparison: str
    limit: float

    def __str__(self) -> str:
        return f"{self.split}/{self.metric} {self.comparison} {self.limit:g}"

    def is_kept(self, value: float) -> bool:
        return _COMPARE[self.comparison](value, self.limit)


def promise_of(config: Path) -> Promise:
    """Return the promise in the head of a config. Raises ValueError unless there is exactly one."""
    found = _EXPECTED.findall(config.read_text(encoding="utf-8"))
    if len(found) != 1:
        raise ValueError(f"{config}: has {len(found)} lines like '# Expected: val/accuracy >= 0.97'")
    split, metric, comparison, limit = found[0]
    return Promise(split, metric, comparison, float(limit))


def train(config: Path, seed: int, root: Path) -> tuple[str, float]:
    """Type the command and return the run directory and the seconds that the process took."""
    command = [sys.executable, "-m", "dltrain", "fit", str(config), "--set", f"seed={seed}", "--out", str(root)]
    began = time.perf_counter()
    result = subprocess.run([*command, "--json", "--quiet"], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout)["run"], time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description="Train the shipped configs and compare with their heads.")
    parser.add_argument("configs", nargs="*", type=Path, metavar="CONFIG", default=sorted(FOLDER.glob("*.yaml")))
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="train with the seeds 0 to N - 1")
    options = parser.parse_args()
    trusted = [str(path) for path in FOLDER.glob("*.py")]
    rows, all_kept = [], True
    for config in options.configs:
        promise, values, seconds = promise_of(config), [], []
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as root:
                run, elapsed_s = train(config, seed, Path(root))
                result = evaluate(run, split=promise.split, trusted=trusted)
            values.append(result["metrics"][promise.metric])
            seconds.append(elapsed_s)
        kept = all(map(promise.is_kept, values))
        all_kept = all_kept and kept
        found = " ".join(f"{value:.4f}" for value in values)
        rows.append([config.stem, str(promise), found, "kept" if kept else "BROKEN", f"{max(seconds):.1f} s"])
        print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    out_console().print(table(["config", "expected", "found", "promise", "time"], rows))
    return 0 if all_kept else 1


if __name__ == "__main__":
    sys.exit(main())
