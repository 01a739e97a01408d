"""Data larger than the memory: `dltrain fit` within a limit that holds little of them, against all in memory.

The limit is that of a control group, in which the pages of files count, too. Before each run within it the data are
dropped from the system's page cache, so that all that is read comes from the disk (of a virtual machine: its host).
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.table import Table

from benchmarks.options import Options
from benchmarks.processes import held, memory_group, watch
from benchmarks.tables import new_table

_LIMIT_MIB = 800
_LOOK_S = 0.05
_ROWS_AT_ONCE = 1000
GOAL = 0.9


@dataclass(frozen=True)
class Subject:
    """Data of more than the limit, and a training that goes through them once."""

    name: str
    num_samples: int
    shape: tuple[int, ...]
    dtype: str
    model: dict[str, Any]
    batch_size: int
    num_uniform: int
    """Samples trained on within the limit in uniform order, of which each is a wait for the disk."""


SUBJECTS = (
    Subject("table", 10_000_000, (33,), "float32", {"type": "mlp", "hidden": [64]}, 1024, 100_000),
    Subject("images", 110_000, (3, 64, 64), "uint8", {"type": "mlp", "hidden": [64]}, 64, 5_000),
)
_FROM_FILES, _IN_MEMORY = "from files to the cache", "in memory, shuffle"
_LIMITED, _UNIFORM = "limited, blocks", "limited, shuffle"


@dataclass(frozen=True)
class Reading:
    """One `dltrain fit`."""

    process_s: float
    samples_per_s: float
    """In the whole loop, the wait for the first batch included."""
    private_mib: float
    """Peak of anonymous memory."""
    read_mib: float
    """From the disk."""
    num_waits: int
    """For a page that was touched before it was there."""


def run(options: Options) -> dict[str, Any]:
    """Print speed and memory within the limit, from files and from the cache, and without it; return all figures."""
    with tempfile.TemporaryDirectory() as temporary:
        readings = {subject.name: _readings(subject, Path(temporary), options) for subject in SUBJECTS}
    for subject in SUBJECTS:
        options.show(table(subject, readings[subject.name]), "")
    return {
        name: {manner: [asdict(reading) for reading in own] for manner, own in one.items()}
        for name, one in readings.items()
    }


def table(subject: Subject, readings: Mapping[str, list[Reading]]) -> Table:
    """Return one line for each manner of reading, compared with the data in memory in the same round."""
    title = (
        f"larger_than_memory: {subject.name}, {subject.num_samples:,} x {subject.shape} {subject.dtype}, "
        f"{_size_mib(subject):,.0f} MiB; limit {_LIMIT_MIB} MiB; {subject.model['type']} {subject.model['hidden']}, "
        f"batch {subject.batch_size}; medians of {len(readings[_LIMITED])} rounds; goal: samples/s x {GOAL}"
    )
    result = new_table(title, [""], ["process s", "samples/s", "x", "peak private MiB", "read MiB", "waits for pages"])
    for manner, own in readings.items():
        ratios = [a.samples_per_s / b.samples_per_s for a, b in zip(own, readings[_IN_MEMORY], strict=False)]
        result.add_row(
            manner,
            f"{statistics.median(reading.process_s for reading in own):.1f}",
            "" if manner == _FROM_FILES else f"{statistics.median(reading.samples_per_s for reading in own):,.0f}",
            "" if manner == _FROM_FILES else f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
            f"{max(reading.private_mib for reading in own):,.0f}",
            f"{statistics.median(reading.read_mib for reading in own):,.0f}",
            f"{statistics.median(reading.num_waits for reading in own):,.0f}",
        )
    return result


def _readings(subject: Subject, folder: Path, options: Options) -> dict[str, list[Reading]]:
    """Fill the cache within the limit; then train in turns; then, once, in uniform order within the limit."""
    options.say(f"larger_than_memory: {subject.name}: writes {_size_mib(subject):,.0f} MiB")
    data = _write(subject, folder)
    cache = folder / f"cache of {subject.name}"
    env = {**options.env, "DLTRAIN_CACHE": str(cache)}
    result: dict[str, list[Reading]] = {manner: [] for manner in (_FROM_FILES, _IN_MEMORY, _LIMITED, _UNIFORM)}

    def once(manner: str, sampler: str, num_samples: int, env: Mapping[str, str], limit_mib: int) -> None:
        options.say(f"larger_than_memory: {subject.name}: {manner}")
        config = _config(subject, folder, sampler, num_samples)
        out = folder / f"{subject.name} {manner} {len(result[manner])}"
        result[manner].append(_fit(config, out, env, limit_mib, [*data, *cache.rglob("*")]))

    once(_FROM_FILES, "blocks", subject.batch_size, env, _LIMIT_MIB)
    for _ in range(options.repeat):
        once(_IN_MEMORY, "shuffle", subject.num_samples, {**env, "DLTRAIN_CACHE": "off"}, 0)
        once(_LIMITED, "blocks", subject.num_samples, env, _LIMIT_MIB)
    once(_UNIFORM, "shuffle", subject.num_uniform, env, _LIMIT_MIB)
    shutil.rmtree(cache)
    for file in data:
        file.unlink()
    return result


def _fit(config: Path, out: Path, env: Mapping[str, str], limit_mib: int, data: list[Path]) -> Reading:
    command = [sys.executable, "-m", "dltrain", "fit", config, "--quiet", "--out", out]
    if limit_mib:
        _drop_from_page_cache(data)
        with memory_group(limit_mib) as group:
            process_s, looks = watch(command, env, _LOOK_S, held, group)
    else:
        process_s, looks = watch(command, env, _LOOK_S, held)
    metrics = next(out.glob("*/*/metrics.jsonl")).read_text(encoding="utf-8")
    row = json.loads(metrics.splitlines()[-1])
    num_samples = yaml.safe_load(config.read_text(encoding="utf-8"))["train"]["batch_size"] * row["step"]
    return Reading(
        process_s,
        num_samples / row["elapsed_s"],
        max(look.private_mib for look in looks),
        max(look.read_mib for look in looks),
        max(look.num_waits for look in looks),
    )


def _drop_from_page_cache(files: list[Path]) -> None:
    for file in files:
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())  # what is not yet written cannot be dropped
                os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _write(subject: Subject, folder: Path) -> list[Path]:
    """Write inputs and targets, which the inputs decide; return the files."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{subject.name}-{part}.npy" for part in ("x", "y")]
    inputs = np.lib.format.open_memmap(paths[0], "w+", subject.dtype, (subject.num_samples, *subject.shape))
    targets = np.empty(subject.num_samples, np.int64)
    for start in range(0, subject.num_samples, _ROWS_AT_ONCE):
        part = inputs[start : start + _ROWS_AT_ONCE]
        if subject.dtype == "uint8":
            part[...] = np.frombuffer(rng.bytes(part.nbytes), np.uint8).reshape(part.shape)
        else:
            part[...] = rng.standard_normal(part.shape, dtype=np.float32)
        rows = part.reshape(len(part), -1)[:, :8]
        targets[start : start + len(part)] = rows.mean(axis=1) > (127.5 if subject.dtype == "uint8" else 0)
    inputs.flush()
    np.save(paths[1], targets)
    return paths


def _config(subject: Subject, folder: Path, sampler: str, num_samples: int) -> Path:
    path = folder / f"{subject.name} {sampler} {num_samples}.yaml"
    steps = num_samples // subject.batch_size
    content = {
        "data": {
            "type": "arrays",
            "path": str(folder / f"{subject.name}-x.npy"),
            "target": str(folder / f"{subject.name}-y.npy"),
        },
        "split": {"val": 0, "test": 0},
        "model": subject.model,
        "train": {
            "duration": f"{steps} steps",
            "batch_size": subject.batch_size,
            "evaluate_every": f"{steps} steps",
            "sampler": sampler,
            "device": "cpu",
        },
    }
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def _size_mib(subject: Subject) -> float:
    return subject.num_samples * int(np.prod(subject.shape)) * np.dtype(subject.dtype).itemsize / 2**20
