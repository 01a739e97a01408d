"""Which samples are for training, validation and testing: a pure function of the targets, the ratios and the seed.

And, where files say it, whether the splits share samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from torch import Tensor

from dltrain.data.columns import Column, Columns
from dltrain.errors import ConfigError, DataError

NAMES = ("train", "val", "test")


def split_by_ratio(
    num_samples: int, val: float, test: float, seed: int, strata: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Divide samples 0..num_samples-1 at random and return the sorted int64 indices of each split.

    Args:
        num_samples: how many there are.
        val: fraction for validation, 0..1.
        test: fraction for testing, 0..1.
        seed: of the permutation.
        strata: (num_samples,) class of each sample, if each split should hold the same shares of them.

    Raises:
        ConfigError: if the fractions leave nothing for training.
        DataError: if training, or a split whose fraction is not 0, would be empty.
    """
    if val + test >= 1:
        raise ConfigError(f"val {val:g} and test {test:g} leave nothing to train on; their sum must be below 1")
    if val == test == 0 and num_samples:  # nothing is drawn, which would take 80 bytes a sample
        nothing = np.empty(0, np.int64)
        return {"train": np.arange(num_samples), "val": nothing, "test": nothing}
    order = np.random.default_rng(seed).permutation(num_samples)
    if strata is not None:
        order = _interleave(order, strata)
    num_val, num_test = round(val * num_samples), round(test * num_samples)
    parts = {
        "test": order[:num_test],
        "val": order[num_test : num_test + num_val],
        "train": order[num_test + num_val :],
    }
    for name, fraction in (("val", val), ("test", test)):
        if fraction > 0 and len(parts[name]) == 0:
            raise DataError(
                f"{num_samples} samples are too few for a {name} split of {fraction:g}; set larger fractions, or 0"
            )
    if len(parts["train"]) == 0:
        raise DataError(f"val {val:g} and test {test:g} of {num_samples} samples leave none to train on")
    return {name: np.sort(parts[name]) for name in NAMES}


def split_in_order(num_samples: int, val: float, test: float) -> dict[str, np.ndarray]:
    """Return sorted int64 indices of "train", "val" and "test": the first samples, those that follow, and the last.

    For samples that are neighbours in a text or in time, where a random split would test on what it trained on.
    Raises DataError if a split that is asked for would be empty.
    """
    num_val, num_test = math.ceil(val * num_samples), math.ceil(test * num_samples)
    num_train = num_samples - num_val - num_test
    if num_train < 1:
        raise DataError(f"val {val:g} and test {test:g} of {num_samples} samples leave none to train on")
    bounds = np.cumsum([num_train, num_val])
    return dict(zip(NAMES, np.split(np.arange(num_samples), bounds), strict=True))


def count_shared(columns: Columns, train: Columns) -> int:
    """Return how many samples of `columns` are in `train`, too: equal in all of their inputs."""
    trained_on = set(_row_hashes(train))
    return sum(row in trained_on for row in _row_hashes(columns))


def _row_hashes(columns: Columns) -> list[int]:
    """Return a number for each sample, equal where all of its inputs are."""
    parts = [_row_bytes(x) for x in columns.inputs]
    return [hash(b"".join(row)) for row in zip(*parts, strict=True)]


def _row_bytes(column: Column) -> Iterator[bytes]:
    """Yield the values of each sample as bytes."""
    if isinstance(column, Tensor):
        yield from (row.tobytes() for row in column.reshape(len(column), -1).numpy())
        return
    values = column.values.numpy()
    for start, length in zip(column.starts.tolist(), column.lengths.tolist(), strict=True):
        yield length.to_bytes(8, "little") + values[start : start + length].tobytes()


def _interleave(order: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Reorder so that every stretch of the result holds the classes in nearly their shares.

    Sample k of the n of its class, in the given order, goes to the relative place (k + 1/2) / n.
    """
    _, members, counts = np.unique(strata[order], return_inverse=True, return_counts=True)
    by_class = np.argsort(members, kind="stable")
    starts = np.cumsum(counts) - counts
    places = np.empty(len(order))
    places[by_class] = (np.arange(len(order)) - np.repeat(starts, counts) + 0.5) / np.repeat(counts, counts)
    return order[np.argsort(places, kind="stable")]
