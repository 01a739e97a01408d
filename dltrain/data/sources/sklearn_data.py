"""The real data sets inside scikit-learn: small, licensed for use, and there without a download."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor

from dltrain.data.columns import Samples
from dltrain.data.sources.array_samples import encode_arrays, fingerprint_samples, fit_arrays, from_arrays
from dltrain.data.sources.arrays import Arrays, read_array_inputs
from dltrain.data.sources.scaling import Scale
from dltrain.errors import ConfigError, DataError

Name = Literal["digits", "iris", "wine", "breast_cancer", "diabetes"]


class Sklearn:
    """A data set of scikit-learn (https://scikit-learn.org/stable/datasets/toy_dataset.html).

    Targets are the names of the classes (iris, wine, breast_cancer), the digits 0 to 9 as integers, or the
    progression of diabetes as a float. `images` gives the digits as (N, 1, 8, 8) instead of (N, 64).
    """

    def __init__(self, name: Name, images: bool = False, scale: Scale = "standard") -> None:
        if images and name != "digits":
            raise ConfigError(f"images: {name} has none, only digits has; remove it")
        self.name = name
        self.images = images
        self.scale = scale

    def read(self, path: str | None = None) -> Samples:
        """Return all samples; they lie in no file, so `path`, if given, is an .npz with the arrays x and
        y.
        """
        if path is not None:
            return Arrays(path).read()
        inputs, targets = _load(self.name)
        if self.images:
            inputs = inputs.reshape(-1, 1, 8, 8)
        return from_arrays((inputs, targets), self.name)

    def fit(self, samples: Samples) -> dict[str, Any]:
        """Return shape and scaling of the training samples."""
        return fit_arrays(samples, self.scale)

    def encode(self, samples: Samples, state: dict[str, Any]) -> tuple[Tensor, ...]:
        """Return one float32 tensor, (N, F) or (N, 1, 8, 8)."""
        return encode_arrays(samples, state)

    def read_inputs(self, paths: list[str], state: dict[str, Any]) -> Iterator[Samples]:
        """Yield unlabelled samples in blocks of bounded size from .npy and .npz (array "x")."""
        return read_array_inputs(paths)

    def files(self, path: str | None = None) -> list[tuple[str, str]]:
        """Return (name, path) of the file by which one installed scikit-learn can be told from another.

        It is not imported, which takes a second. With `path`, that file.
        """
        if path is not None:
            return Arrays(path).files()
        found = importlib.util.find_spec("sklearn")
        return [] if found is None or found.origin is None else [("sklearn", found.origin)]

    def fingerprint(self, path: str | None = None) -> str:
        """Return a hash of what `read(path)` returns."""
        return fingerprint_samples(self.read(path))


def _load(name: Name) -> tuple[np.ndarray, np.ndarray]:
    from sklearn import datasets  # takes a second: only where it is used

    if name not in get_args(Name):
        raise DataError(
            f"{name}: not a data set of scikit-learn; possible: digits, iris, wine, breast_cancer, diabetes"
        )
    data = getattr(datasets, f"load_{name}")()
    if name in ("digits", "diabetes"):
        return data.data, data.target
    return data.data, np.asarray(data.target_names, dtype=np.str_)[data.target]
