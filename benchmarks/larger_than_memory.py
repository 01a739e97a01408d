"""A Parquet table larger than the memory that dltrain may take, trained on, against the same without the limit.

Run as `python -m benchmarks.larger_than_memory CONFIG LIMIT_MIB OUT`: `dltrain fit` under a limit of private memory.
"""

from __future__ import annotations

import json
import resource
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.table import Table

from benchmarks.options import Options
from benchmarks.processes import memory_mib, watch
from benchmarks.tables import new_table

_LIMIT_MIB = 1024
_NUM_FEATURES, _GROUP_ROWS, _NUM_GROUPS = 64, 100_000, 50
_STEPS, _BATCH_SIZE = 4000, 256
_LOOK_S = 0.02
GOAL = 0.9


@dataclass(frozen=True)
class Reading:
    """One `dltrain fit`."""

    process_s: float
    samples_per_s: float
    """In the loop: the median of its parts."""
    private_mib: float
    """Peak of anonymous memory; what is mapped from files is the system's to keep or give up."""


def run(options: Options) -> dict[str, Any]:
    """Print memory and speed with the limit, from files and from the cache, and without; return all figures."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        options.say("larger_than_memory: writes the table")
        config, size_mib = _config(folder)
        limited = f"limit {_LIMIT_MIB} MiB"
        manners: dict[str, tuple[str, int]] = {
            "no limit, in memory": ("off", 0),
            "no limit, from files to the cache": (str(folder / "cache"), 0),
            f"{limited}, from files to the cache": (str(folder / "another cache"), _LIMIT_MIB),
            f"{limited}, from the cache": (str(folder / "cache"), _LIMIT_MIB),
        }
        readings: dict[str, list[Reading]] = {manner: [] for manner in manners}
        failures: dict[str, str] = {}
        for index in range(options.repeat):
            for number, (manner, (cache, limit_mib)) in enumerate(manners.items()):
                options.say(f"larger_than_memory: {manner}: round {index + 1} of {options.repeat}")
                env, out = {**options.env, "DLTRAIN_CACHE": cache}, folder / f"{index}-{number}"
                try:
                    readings[manner].append(_fit(config, env, limit_mib, out))
                except RuntimeError as error:
                    failures[manner] = str(error).strip().splitlines()[-1]
            for cache in ("cache", "another cache"):  # each round begins with the files
                shutil.rmtree(folder / cache, ignore_errors=True)
    options.show(table({manner: own for manner, own in readings.items() if own}, size_mib), "")
    for manner, reason in failures.items():
        options.show(f"{manner}: failed: {reason}", "")
    figures = {manner: [vars(reading) for reading in own] for manner, own in readings.items()}
    return {"table_mib": size_mib, "readings": figures, "failures": failures}


def table(readings: Mapping[str, list[Reading]], size_mib: float) -> Table:
    """Return one line for each manner of reading; the first is what the others are compared with."""
    title = (
        f"larger_than_memory: {_GROUP_ROWS * _NUM_GROUPS:,} rows of {_NUM_FEATURES} float32, {size_mib:,.0f} MiB of "
        f"Parquet in the system's page cache; MLP 256-256, batch {_BATCH_SIZE}; goal: samples/s x {GOAL}"
    )
    result = new_table(title, [""], ["process s", "samples/s", "x", "peak private MiB"])
    first = next(iter(readings.values()))
    for manner, own in readings.items():
        ratios = (a.samples_per_s / b.samples_per_s for a, b in zip(own, first, strict=True))
        result.add_row(
            manner,
            f"{statistics.median(reading.process_s for reading in own):.1f}",
            f"{statistics.median(reading.samples_per_s for reading in own):,.0f}",
            f"{statistics.median(ratios):.2f}",
            f"{max(reading.private_mib for reading in own):,.0f}",
        )
    return result


def _fit(config: Path, env: Mapping[str, str], limit_mib: int, out: Path) -> Reading:
    peak_mib = 0.0

    def look(process_id: int) -> None:
        nonlocal peak_mib
        peak_mib = max(peak_mib, memory_mib(process_id, "RssAnon"))

    command = [sys.executable, "-m", "benchmarks.larger_than_memory", config, str(limit_mib), out]
    process_s, _ = watch(command, env, _LOOK_S, look)
    metrics = next(out.glob("*/*/metrics.jsonl")).read_text(encoding="utf-8")
    rates = [json.loads(line)["samples_per_s"] for line in metrics.splitlines()]
    return Reading(process_s, statistics.median(rates), peak_mib)


def _config(folder: Path) -> tuple[Path, float]:
    """Write the table and a config for it; return the config and the size of the table in MiB."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, rng = folder / "table.parquet", np.random.default_rng(0)
    schema = pa.schema([(f"x{i}", pa.float32()) for i in range(_NUM_FEATURES)] + [("label", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for _ in range(_NUM_GROUPS):
            values = rng.standard_normal((_NUM_FEATURES, _GROUP_ROWS), dtype=np.float32)
            labels = np.where(values[:8].sum(axis=0) > 0, "yes", "no")
            writer.write_table(pa.table([*values, labels], schema=schema))
    config = folder / "config.yaml"
    content = {
        "data": {"type": "table", "path": str(path), "target": "label"},
        "split": {"val": 0, "test": 0},
        "model": {"type": "mlp", "hidden": [256, 256]},
        "train": {
            "duration": f"{_STEPS} steps",
            "batch_size": _BATCH_SIZE,
            "evaluate_every": f"{_STEPS // 10} steps",
            "device": "cpu",
        },
    }
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    return config, path.stat().st_size / 2**20


def main(config: str, limit_mib: str, out: str) -> None:
    """Train under the limit; 0 is none."""
    if int(limit_mib):
        limit = int(limit_mib) * 2**20
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    from dltrain.config.validate import load_config
    from dltrain.train import fit

    fit(load_config(config), root=out, curves=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
