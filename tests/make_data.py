"""Data for tests and for trying things out, generated from a seed: a table, folders of images, IDX files.

Run `python -m tests.make_data DIR` for people.csv, shapes/ and mnist_like/ in DIR. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import math
import struct
from datetime import date, timedelta
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle")
CITIES = ("Bern", "Lima", "Oslo", "Pune", "Quito")
RARE_CITIES = ("Nuuk", "Suva", "Thule")
EDUCATIONS = ("school", "apprenticeship", "bachelor", "master")


def make_people(path: Path, num_rows: int = 2000, missing: float = 0.0, seed: int = 0) -> None:
    """Write a table of mixed columns whose target `buys` (yes, no) can be learnt to some 92 %.

    `name` tells rows apart and nothing else; three values of `city` are rare; `missing` is the
    fraction of empty cells in age, income, city and education.
    """
    rng = np.random.default_rng(seed)
    age = rng.integers(18, 80, num_rows)
    income = np.round(np.exp(rng.normal(10.5, 0.5, num_rows)), 2)
    city = rng.choice(CITIES, num_rows)
    rare = rng.random(num_rows) < 0.01
    city[rare] = rng.choice(RARE_CITIES, int(rare.sum()))
    education = rng.integers(0, len(EDUCATIONS), num_rows)
    member = rng.random(num_rows) < 0.4
    joined_days = rng.integers(0, 3650, num_rows)
    score = (
        0.08 * (age - 48)
        + 3.0 * (np.log(income) - 10.5)
        + 1.2 * (education - 1.5)
        + 2.5 * (member - 0.4)
        + 2.0 * np.isin(city, ("Oslo", "Quito"))
        - 0.0008 * (joined_days - 1825)
        - 0.8
    )
    buys = (score > 0) ^ (rng.random(num_rows) < 0.04)
    empty = rng.random((num_rows, 4)) < missing
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "age", "income", "city", "education", "member", "joined", "buys"])
        for i in range(num_rows):
            cells = [str(age[i]), f"{income[i]:.2f}", str(city[i]), EDUCATIONS[education[i]]]
            cells = ["" if gone else cell for cell, gone in zip(cells, empty[i], strict=True)]
            joined = date(2015, 1, 1) + timedelta(days=int(joined_days[i]))
            flags = ["true" if member[i] else "false", joined.isoformat(), "yes" if buys[i] else "no"]
            writer.writerow([f"person-{i:05d}", *cells, *flags])


def make_shapes(root: Path, num_images: int = 200, side: int = 32, seed: int = 0) -> None:
    """Draw `num_images` each of circles, squares and triangles into folders of these names, as PNG files."""
    rng = np.random.default_rng(seed)
    for shape in SHAPES:
        folder = root / shape
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(num_images):
            draw_shape(shape, side, rng).save(folder / f"{i:03d}.png")


def draw_shape(shape: str, side: int, rng: np.random.Generator) -> Image.Image:
    """Return an RGB image of one shape: place, size, turn, colours and noise are random."""
    background, colour = rng.integers(0, 110, 3), rng.integers(145, 256, 3)
    if rng.random() < 0.5:
        background, colour = colour, background
    radius = side * rng.uniform(0.2, 0.38)
    x, y = rng.uniform(radius, side - radius, 2)
    image = Image.new("RGB", (side, side), tuple(background.tolist()))
    draw = ImageDraw.Draw(image)
    fill = tuple(colour.tolist())
    if shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    else:
        num_corners = {"square": 4, "triangle": 3}[shape]
        start = rng.uniform(0, 2 * math.pi)
        angles = [start + 2 * math.pi * corner / num_corners for corner in range(num_corners)]
        draw.polygon([(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles], fill=fill)
    noisy = np.asarray(image) + rng.normal(0, 12, (side, side, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def make_mnist_like(root: Path, num_train: int = 1000, num_test: int = 200, zipped: bool = True) -> None:
    """Write scikit-learn's handwritten digits, enlarged to 28 x 28, with the names and format of MNIST."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = (digits.images[: num_train + num_test] * (255 / 16)).astype(np.uint8)
    pixels = np.stack([np.asarray(Image.fromarray(image).resize((28, 28))) for image in small])
    labels = digits.target[: num_train + num_test].astype(np.uint8)
    root.mkdir(parents=True, exist_ok=True)
    suffix = ".gz" if zipped else ""
    for prefix, rows in (("train", slice(0, num_train)), ("t10k", slice(num_train, None))):
        write_idx(root / f"{prefix}-images-idx3-ubyte{suffix}", pixels[rows])
        write_idx(root / f"{prefix}-labels-idx1-ubyte{suffix}", labels[rows])


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write uint8 `array` as an IDX file, gzipped if the name ends in .gz."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def main() -> None:
    parser = argparse.ArgumentParser(description="Generate data to try dltrain with.")
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--missing", type=float, default=0.05, help="fraction of empty cells in people.csv")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    make_people(options.folder / "people.csv", missing=options.missing, seed=options.seed)
    make_shapes(options.folder / "shapes", seed=options.seed)
    make_mnist_like(options.folder / "mnist_like")


if __name__ == "__main__":
    main()
