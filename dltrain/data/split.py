"""Which samples are for training, validation and testing: a pure function of the targets, the ratios and the seed.

And, where files say it, whether the splits share samples.
"""

from __future__ import annotations

import numpy as np

from dltrain.data.columns import Columns
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


def count_shared(columns: Columns, train: Columns) -> int:
    """Return how many samples of `columns` are in `train`, too: equal in all of their inputs."""
    trained_on = set(_row_hashes(train))
    return sum(row in trained_on for row in _row_hashes(columns))


def _row_hashes(columns: Columns) -> list[int]:
    """Return a number for each sample, equal where all of its inputs are."""
    arrays = [x.reshape(len(x), -1).numpy() for x in columns.inputs]
    return [hash(b"".join(array[row].tobytes() for array in arrays)) for row in range(len(columns))]


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
