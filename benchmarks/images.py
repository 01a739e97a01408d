"""A folder of 5,000 PNGs: decoded by dltrain and by a plain multi-process reader, and started from the cache.

Run as `python -m benchmarks.images KIND CONFIG`, it prints the seconds that one of them took beyond the imports.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.options import Options
from benchmarks.processes import output
from benchmarks.tables import new_table

_NUM_IMAGES, _SIDE, _NUM_CLASSES = 5000, 64, 10
_KINDS = {
    "pillow": "Pillow in a pool of processes, one a core",
    "cold": "dltrain, files to columns, nothing in the cache",
    "cached": "dltrain, files to columns, from the cache",
    "one step": "dltrain fit of one step, from the cache",
}
COLD_GOAL, CACHED_GOAL_S = 1.2, 0.2


def run(options: Options) -> dict[str, Any]:
    """Print seconds of each kind and the ratio of decoding to the reader; return all figures."""
    seconds: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_images(folder / "images")
        config = folder / "config.yaml"
        config.write_text(
            f"data: {{type: images, path: {folder / 'images'}}}\nsplit: {{val: 0, test: 0}}\nmodel: {{type: linear}}\n"
            "train: {duration: 1 steps, device: cpu}\n",
            encoding="utf-8",
        )
        for index in range(options.repeat):
            options.say(f"images: round {index + 1} of {options.repeat}")
            cache = folder / f"cache-{index}"
            for kind in _KINDS:
                command = [sys.executable, "-m", "benchmarks.images", kind, config]
                out = output(command, {**options.env, "DLTRAIN_CACHE": str(cache)})
                seconds[kind].append(float(out.split()[-1]))
            shutil.rmtree(cache)
    options.show(table(seconds), "")
    return {"seconds": seconds, "cold_ratio": cold_ratio(seconds)}


def cold_ratio(seconds: dict[str, list[float]]) -> float:
    """Return the median over rounds of dltrain's decoding by the plain reader's."""
    return statistics.median(own / other for own, other in zip(seconds["cold"], seconds["pillow"], strict=True))


def table(seconds: dict[str, list[float]]) -> Table:
    """Return one line a kind."""
    title = (
        f"images: {_NUM_IMAGES:,} PNGs of {_SIDE} x {_SIDE} x 3, files in the system's page cache; seconds beyond the "
        f"imports, medians of {len(seconds['cold'])} rounds; goals: x {COLD_GOAL} cold, {CACHED_GOAL_S} s cached"
    )
    result = new_table(title, [""], ["s", "images/s", "x"])
    for kind, about in _KINDS.items():
        median_s = statistics.median(seconds[kind])
        ratio = f"{cold_ratio(seconds):.2f}" if kind == "cold" else ""
        result.add_row(about, f"{median_s:.3f}", f"{_NUM_IMAGES / median_s:,.0f}", ratio)
    return result


def make_images(folder: Path) -> None:
    """Write PNGs in a folder for each class: smooth colours and some noise, as photographs have."""
    from PIL import Image

    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 200, _SIDE)
    for index in range(_NUM_IMAGES):
        place = folder / f"class{index % _NUM_CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        colours = ramp[:, None, None] * rng.random(3) + ramp[None, :, None] * rng.random(3) * 0.2
        pixels = (colours + rng.integers(16, size=(_SIDE, _SIDE, 3))).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{index:05d}.png")


def read_with_pillow(folder: Path) -> np.ndarray:
    """Return (N, H, W, 3) uint8, decoded by as many processes as there are cores."""
    from multiprocessing import Pool

    paths = sorted(folder.glob("*/*.png"))
    images = np.empty((len(paths), _SIDE, _SIDE, 3), np.uint8)
    with Pool(len(os.sched_getaffinity(0))) as pool:
        for index, image in enumerate(pool.imap(_pixels, paths, chunksize=64)):
            images[index] = image
    return images


def _pixels(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def main(kind: str, config: str) -> None:
    """Print the seconds that `kind` takes, once what it needs is imported."""
    path = Path(config)
    if kind == "pillow":
        import PIL.PngImagePlugin  # noqa: F401

        began = time.perf_counter()
        read_with_pillow(path.parent / "images")
    else:
        import dltrain.data.sources.images  # noqa: F401
        from dltrain.build import Builder
        from dltrain.config.validate import load_config
        from dltrain.data.prepare import prepare
        from dltrain.train import fit

        began = time.perf_counter()
        if kind == "one step":
            with tempfile.TemporaryDirectory() as runs:
                fit(load_config(path), root=runs, curves=False)
        else:
            prepare(Builder(load_config(path)))
    print(time.perf_counter() - began)


if __name__ == "__main__":
    main(*sys.argv[1:])
