"""How the time of a step grows with batch, model and data, and that nothing of a run grows with the number of steps."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.table import Table

from benchmarks import plots
from benchmarks.options import Options
from benchmarks.processes import Held, held, measure, watch
from benchmarks.tables import new_table

_NUM_FEATURES = 32
_AXES: dict[str, list[int]] = {
    "batch size": [4**power for power in range(1, 7)],
    "model width": [4**power for power in range(2, 6)],
    "number of samples": [4**power for power in range(5, 11)],
}
_STEP_ROWS = 20
_WORK = 2**30
"""Products of a layer, at most, in one of the parts of a run, of which the median is taken."""
_LONG_RUNS = (20_000, 200_000)
_LOOK_S = 0.5


@dataclass(frozen=True)
class Look:
    """What a training holds, and how far it is."""

    step: int
    held: Held


def run(options: Options) -> dict[str, Any]:
    """Print times of a step with slopes, and what a long run holds at several points; return all figures."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        series: dict[str, dict[float, float]] = {}
        for axis, values in _AXES.items():
            options.say(f"growth: {axis}")
            series[axis] = {value: _step_us(folder, axis, value, options) for value in values}
        options.show(_step_table(series), "")
        plots.growths(series, "us a step", options.results.with_name(f"{options.results.name}-growth.png"))
        long_runs = {steps: long_run(folder, steps, options) for steps in _LONG_RUNS}
    for steps, (looks, sizes) in long_runs.items():
        options.show(_look_table(steps, looks, sizes), "")
    return {
        "step_us": series,
        "slopes": {axis: plots.slope(values) for axis, values in series.items()},
        "long_runs": {
            steps: {"looks": [asdict(look) for look in looks], "bytes": sizes}
            for steps, (looks, sizes) in long_runs.items()
        },
    }


def _step_us(folder: Path, axis: str, value: int, options: Options) -> float:
    """Return the median time of a step, of equal parts of a run, while what `axis` says is `value`."""
    setting = {"batch size": 256, "model width": 256, "number of samples": 16_384, axis: value}
    work = setting["batch size"] * setting["model width"] ** 2
    steps = _STEP_ROWS * min(25, max(2, _WORK // work))
    config = _config(folder, setting["number of samples"], setting["model width"], setting["batch size"], steps)
    out = folder / f"{axis} {value}"
    command = [sys.executable, "-m", "dltrain", "fit", config, "--quiet", "--out", out]
    measure(command, options.env)
    rows = [json.loads(line) for line in next(out.glob("*/*/metrics.jsonl")).read_text(encoding="utf-8").splitlines()]
    return setting["batch size"] / statistics.median(row["samples_per_s"] for row in rows) * 1e6


def long_run(folder: Path, steps: int, options: Options) -> tuple[list[Look], dict[str, int]]:
    """Train a tiny model; return what the process held at ten points and the sizes of the run's files at the end."""
    options.say(f"growth: a run of {steps:,} steps")
    config, out = _config(folder, 1024, 8, 16, steps, every="1%"), folder / f"{steps} steps"

    def look(process_id: int) -> Look:
        metrics = next(out.glob("*/*/metrics.jsonl"), None)
        *lines, _ = [""] if metrics is None else metrics.read_text(encoding="utf-8").split("\n")  # whole ones
        return Look(json.loads(lines[-1])["step"] if lines else 0, held(process_id))

    command = [sys.executable, "-m", "dltrain", "fit", config, "--quiet", "--out", out]
    _, looks = watch(command, options.env, _LOOK_S, look)
    run_folder = next(out.glob("*/*/metrics.jsonl")).parent
    sizes = {path.name: path.stat().st_size for path in sorted(run_folder.rglob("*")) if path.is_file()}
    at_work = [one for one in looks if one.held.rss_mib > 0 and 0 < one.step < steps]
    tenths = [next((one for one in at_work if one.step >= tenth * steps / 10), None) for tenth in range(10)]
    return list(dict.fromkeys(one for one in tenths if one is not None)), sizes


def _config(folder: Path, num_samples: int, width: int, batch_size: int, steps: int, every: str = "5%") -> Path:
    """Write a config of a perceptron of two hidden layers, and its data; return the config."""
    data = folder / f"{num_samples}.npz"
    if not data.exists():
        rng = np.random.default_rng(0)
        inputs = rng.standard_normal((num_samples, _NUM_FEATURES), dtype=np.float32)
        np.savez(data, x=inputs, y=np.arange(num_samples) % 4)
    path = folder / f"{num_samples}-{width}-{batch_size}-{steps}.yaml"
    content = {
        "data": {"type": "arrays", "path": str(data), "scale": "none"},
        "split": {"val": 0, "test": 0},
        "model": {"type": "mlp", "hidden": [width, width]},
        "train": {"duration": f"{steps} steps", "batch_size": batch_size, "evaluate_every": every, "device": "cpu"},
    }
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def _step_table(series: dict[str, dict[float, float]]) -> Table:
    title = "growth: us a step of an MLP of two hidden layers; log-log slope of all points, and of the last two"
    result = new_table(title, ["", "us at", "slope", "last"], [])
    for axis, values in series.items():
        points = ", ".join(f"{value:,}: {us:,.0f}" for value, us in values.items())
        result.add_row(axis, points, f"{plots.slope(values):.2f}", f"{plots.last_slope(values):.2f}")
    return result


def _look_table(steps: int, looks: list[Look], sizes: dict[str, int]) -> Table:
    kept = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    title = f"growth: a run of {steps:,} steps; bytes at its end: {kept}"
    result = new_table(title, [], ["step", "RSS MiB", "open files"])
    for look in looks:
        result.add_row(f"{look.step:,}", f"{look.held.rss_mib:.1f}", f"{look.held.num_files}")
    return result
