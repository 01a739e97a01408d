"""What training samples teach about the range of numbers, and its use: per position of axis 1, nothing else.

Axis 1 holds the features of vectors (N, F) and the channels of images (N, C, H, W). Sums run in float64 over
blocks of rows, so memory stays small and a result does not depend on the type of the array.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch

from dltrain.data.storage import allocate, blocks_of_rows
from dltrain.machine import num_cores

Scale = Literal["none", "standard", "minmax"]


def fit_scaling(array: np.ndarray, scale: Scale) -> dict[str, list[float]]:
    """Return {"shift": [...], "factor": [...]}, a number for each position of axis 1 of `array` (N, F, ...).

    "standard": mean and standard deviation (of the population, as scikit-learn's StandardScaler); "minmax":
    minimum and range; "none": 0 and 1. A constant position has the factor 1.
    """
    width = array.shape[1]
    if scale == "none":
        return {"shift": [0.0] * width, "factor": [1.0] * width}
    axes = (0, *range(2, array.ndim))
    low, high = array.min(axis=axes).astype(np.float64), array.max(axis=axes).astype(np.float64)
    if scale == "minmax":
        shift, factor = low, high - low
    else:
        shift, factor = _mean_and_deviation(array, axes)
    factor[low == high] = 1.0
    return {"shift": shift.tolist(), "factor": factor.tolist()}


def _mean_and_deviation(array: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    count = array.size // array.shape[1]
    blocks = list(blocks_of_rows(array, np.float64))
    mean = sum(array[rows].sum(axis=axes, dtype=np.float64) for rows in blocks) / count
    aligned = _align(mean, array.ndim)
    squares = sum(np.square(array[rows] - aligned).sum(axis=axes) for rows in blocks)
    return mean, np.sqrt(squares / count)


def apply_scaling(array: np.ndarray, scaling: dict[str, list[float]]) -> np.ndarray:
    """Return (array - shift) / factor as a new float32 array of the same shape (N, F, ...)."""
    shift, factor = (_align(np.array(scaling[key]), array.ndim) for key in ("shift", "factor"))
    scaled = allocate(array.shape, np.float32)
    for rows in blocks_of_rows(array, np.float64):
        with np.errstate(all="ignore"):  # what is not finite is noticed with its row
            scaled[rows] = (array[rows] - shift) / factor
    return scaled


def image_statistics(pixels: np.ndarray, scale: Scale = "standard") -> dict[str, list[float]]:
    """Return {"mean": [...], "std": [...]} for each channel of `pixels` (N, C, H, W) uint8.

    In units of pixels / 255: the model is to see (pixels / 255 - mean) / std. "minmax" gives minimum and
    range under these names, "none" 0 and 1. Exact: computed from the histogram of each channel.
    """
    num_channels = pixels.shape[1]
    if scale == "none":
        return {"mean": [0.0] * num_channels, "std": [1.0] * num_channels}

    def histogram_of(rows: slice) -> np.ndarray:
        flat = [torch.from_numpy(pixels[rows, channel].flatten()) for channel in range(num_channels)]
        return np.stack([torch.bincount(values, minlength=256).numpy() for values in flat])  # NumPy's copies to int64

    with ThreadPoolExecutor(num_cores()) as pool:
        histogram = np.sum(list(pool.map(histogram_of, blocks_of_rows(pixels, np.float64))), axis=0)
    levels = np.arange(256) / 255
    means, deviations = [], []
    for counts in histogram:
        present = levels[counts > 0]
        if scale == "minmax":
            mean, deviation = present[0], present[-1] - present[0]
        else:
            mean = np.average(levels, weights=counts)
            deviation = np.sqrt(np.average(np.square(levels - mean), weights=counts))
        means.append(float(mean))
        deviations.append(float(deviation) if len(present) > 1 else 1.0)
    return {"mean": means, "std": deviations}


def _align(values: np.ndarray, num_dimensions: int) -> np.ndarray:
    """Shape (F,) to (F, 1, ...), which broadcasts along axis 1 of an array with `num_dimensions` axes."""
    return values.reshape(-1, *[1] * (num_dimensions - 2))
