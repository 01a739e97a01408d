"""The data of the works, made from a fixed seed: arrays, a table, texts. Each function writes one file."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

_UNITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_DIGITS = ["null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"]


def digits(folder: Path) -> Path:
    """Write scikit-learn's 1,797 digits as rows of 64 numbers, 0 to 1."""
    from sklearn.datasets import load_digits

    inputs, targets = load_digits(return_X_y=True)
    return _arrays(folder, (inputs / 16).astype(np.float32), targets)


def numbers(folder: Path, num_samples: int, num_features: int) -> Path:
    """Write normal numbers; the class is the largest of ten linear functions of them."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((num_samples, num_features), dtype=np.float32)
    return _arrays(folder, inputs, (inputs @ rng.standard_normal((num_features, 10))).argmax(axis=1))


def images(folder: Path, num_samples: int, *shape: int) -> Path:
    """Write normal noise of `shape` (C, H, W), lighter from class to class."""
    rng = np.random.default_rng(0)
    targets = np.arange(num_samples) % 10
    inputs = rng.standard_normal((num_samples, *shape), dtype=np.float32)
    return _arrays(folder, inputs + 0.1 * targets.astype(np.float32)[:, None, None, None], targets)


def table(folder: Path, num_rows: int, num_categories: int, num_numbers: int) -> Path:
    """Write a CSV of columns of 3 to 300 categories and columns of numbers; four classes follow from their sum."""
    rng = np.random.default_rng(0)
    sizes = np.geomspace(3, 300, num_categories).astype(int)
    categories = np.stack([rng.integers(size, size=num_rows) for size in sizes], axis=1)
    values = rng.standard_normal((num_rows, num_numbers)).round(4)
    sums = (categories / sizes - 0.5).sum(axis=1) + values.sum(axis=1)
    targets = np.digitize(sums, np.quantile(sums, [0.25, 0.5, 0.75]))
    header = [f"c{i}" for i in range(num_categories)] + [f"x{i}" for i in range(num_numbers)] + ["label"]
    rows = (
        [*(f"v{value}" for value in row), *numbers, f"class{target}"]
        for row, numbers, target in zip(categories, values.tolist(), targets, strict=True)
    )
    return _csv(folder, header, rows)


def texts(folder: Path, num_texts: int, num_words: int) -> Path:
    """Write texts of `num_words` words of 500, each word twice as often in its own one of four classes."""
    rng = np.random.default_rng(0)
    targets = np.arange(num_texts) % 4
    words = rng.integers(500, size=(num_texts, num_words))
    own = rng.random(words.shape) < 0.25
    words = np.where(own, words // 4 * 4 + targets[:, None], words)
    rows = ((" ".join(map(_word, row)), f"class{target}") for row, target in zip(words, targets, strict=True))
    return _csv(folder, ["text", "label"], rows)


def sentences(folder: Path, num_pairs: int) -> Path:
    """Write numbers up to a million in English words, and their digits as German words: texts of many lengths."""
    rng = np.random.default_rng(0)
    values = (10 ** rng.uniform(0, 6, num_pairs)).astype(int)
    rows = ((english(value), " ".join(_DIGITS[int(digit)] for digit in str(value))) for value in values)
    return _csv(folder, ["source", "target"], rows)


def english(number: int) -> str:
    """Return a number below a million in words."""
    if number < 20:
        return [*_UNITS, *_TEENS][number]
    if number < 100:
        rest = f" {_UNITS[number % 10]}" if number % 10 else ""
        return _TENS[number // 10 - 2] + rest
    size, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    rest = f" {english(number % size)}" if number % size else ""
    return f"{english(number // size)} {name}{rest}"


def corpus(folder: Path, num_words: int, vocabulary: int) -> Path:
    """Write words of which the k-th is drawn with a chance of 1 / k, 20 a line; each of them at least once."""
    rng = np.random.default_rng(0)
    chances = 1 / np.arange(1, vocabulary + 1)
    drawn = rng.choice(vocabulary, size=num_words - vocabulary, p=chances / chances.sum())
    words = [_word(index) for index in rng.permutation(np.concatenate([drawn, np.arange(vocabulary)]))]
    lines = (" ".join(words[start : start + 20]) for start in range(0, num_words, 20))
    path = folder / "data.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _word(index: int) -> str:
    """Return the word of an index: letters only, so that no tokenizer divides it."""
    return "".join("abcdefghijklmnopqrst"[int(digit)] for digit in f"{index:04d}")


def _arrays(folder: Path, inputs: np.ndarray, targets: np.ndarray) -> Path:
    path = folder / "data.npz"
    np.savez(path, x=inputs, y=targets.astype(np.int64))
    return path


def _csv(folder: Path, header: list[str], rows: Iterable[Sequence[object]]) -> Path:
    path = folder / "data.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path
