"""Arrays as a source: .npz, .npy, the IDX files of MNIST, and what a user's own function returns."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from dltrain.data.columns import Samples
from dltrain.data.sources.array_files import array_names, open_array
from dltrain.data.sources.array_samples import (
    Part,
    encode_arrays,
    fingerprint_samples,
    fit_arrays,
    from_arrays,
    samples_from_parts,
    unlabelled,
)
from dltrain.data.sources.fingerprint import fingerprint_files
from dltrain.data.sources.scaling import Scale
from dltrain.data.split import NAMES
from dltrain.data.storage import BLOCK_BYTES
from dltrain.errors import ConfigError, DataError
from dltrain.names import did_you_mean

_IDX_NAME = re.compile(r"(train|t10k)-(images|labels)[-.]idx\d-ubyte(\.gz)?")
_MAX_BLOCK_ROWS = 4096


class Arrays:
    """Arrays in files.

    `path` is an .npz with the arrays `inputs` and `target`, or with one pair for each split (x_train,
    y_train, x_val, ... or train_x, ...); a .npy, with the .npy of its targets as `target`; or a folder with
    the IDX files of MNIST, or one of its files of images. `channels_last` says that images are (N, H, W, C).
    Relative paths are relative to `base`.
    """

    def __init__(
        self,
        path: str,
        inputs: str = "x",
        target: str = "y",
        scale: Scale = "standard",
        channels_last: bool = False,
        base: str = ".",
    ) -> None:
        self.path = os.path.join(base, path)
        self.inputs = inputs
        self.target = target
        self.scale = scale
        self.channels_last = channels_last
        self.base = base

    def read(self, path: str | None = None) -> Samples:
        """Read labelled samples from the source's own path, or from `path`. Raises DataError, ConfigError."""
        return samples_from_parts([_read_pair(pair) for pair in self._pairs(path)], self.channels_last)

    def fit(self, samples: Samples) -> dict[str, Any]:
        """Return shape and scaling of the training samples."""
        return fit_arrays(samples, self.scale)

    def encode(self, samples: Samples, state: dict[str, Any]) -> tuple[Tensor, ...]:
        """Return one tensor (N, ...): uint8 images as they are, other numbers scaled."""
        return encode_arrays(samples, state)

    def read_inputs(self, paths: list[str], state: dict[str, Any]) -> Iterator[Samples]:
        """Yield unlabelled samples from .npy, .npz (the array `inputs`) and IDX files, in blocks."""
        return read_array_inputs(paths, self.inputs, self.channels_last)

    def files(self, path: str | None = None) -> list[tuple[str, str]]:
        """Return (name, path) of the files that `read(path)` reads; none of them is opened."""
        own_path, path = path is None, self.path if path is None else path
        if os.path.isdir(path) or _IDX_NAME.fullmatch(os.path.basename(path)):
            files = [file.path for pair in self._pairs(path) for file in (pair.inputs, pair.targets)]
        else:
            targets = os.path.join(self.base, self.target)
            files = [path, targets] if own_path and os.path.isfile(targets) else [path]
        return [(os.path.basename(file), file) for file in files]

    def fingerprint(self, path: str | None = None) -> str:
        """Return a hash of the files that `read(path)` reads."""
        files = {file.path for pair in self._pairs(path) for file in (pair.inputs, pair.targets)}
        return fingerprint_files((os.path.basename(file), file) for file in files)

    def _pairs(self, path: str | None) -> list[Pair]:
        """Return the arrays to read, without reading them."""
        own_path, path = path is None, self.path if path is None else path
        if not os.path.exists(path):
            raise DataError(f"{path}: no such file or folder")
        if os.path.isdir(path):
            self._refuse_names("the IDX files of MNIST")
            return _idx_pairs(path)
        idx_name = _IDX_NAME.fullmatch(os.path.basename(path))
        if idx_name:
            self._refuse_names("an IDX file")
            return [pair._replace(split="") for pair in _idx_pairs(os.path.dirname(path) or ".", idx_name[1])]
        names = array_names(path)
        if names is not None:
            return _npz_pairs(path, names, self.inputs, self.target)
        if not own_path:
            raise DataError(f"{path}: holds no targets; possible: an .npz with {self.inputs!r} and {self.target!r}")
        if self.inputs != "x":
            raise ConfigError(f"inputs: {self.inputs!r} names an array of an .npz, and {path} is none; remove it")
        targets = os.path.join(self.base, self.target)
        if not os.path.isfile(targets):
            with open_array(path):  # or it is said what is wrong with the inputs
                pass
            raise ConfigError(
                f"target: for inputs from {path}, set the path of the .npy of the targets; no file {targets}"
            )
        return [Pair(ArrayName(path), ArrayName(targets))]

    def _refuse_names(self, kind: str) -> None:
        if (self.inputs, self.target) != ("x", "y"):
            raise ConfigError(f"inputs, target: name arrays of an .npz; with {kind} they have no effect, remove them")


class UserArrays:
    """A user's own source: `load` returns (X, y), or a dict with "train", "val" and "test" of such pairs.

    X is anything that numpy reads as an array of numbers; y holds class names or numbers. `name` is what
    messages call it. `load` is called once, when the data are first needed.
    """

    def __init__(
        self, load: Callable[[], Any], name: str, scale: Scale = "standard", channels_last: bool = False
    ) -> None:
        self.name = name
        self.scale = scale
        self.channels_last = channels_last
        self._load = load
        self._samples: Samples | None = None

    def read(self, path: str | None = None) -> Samples:
        """Return the samples of `load`, or those in the file `path` as the source `arrays` reads them."""
        if path is not None:
            return Arrays(path, channels_last=self.channels_last).read()
        if self._samples is None:
            self._samples = from_arrays(self._load(), self.name, self.channels_last)
        return self._samples

    def fit(self, samples: Samples) -> dict[str, Any]:
        """Return shape and scaling of the training samples."""
        return fit_arrays(samples, self.scale)

    def encode(self, samples: Samples, state: dict[str, Any]) -> tuple[Tensor, ...]:
        """Return one tensor (N, ...): uint8 images as they are, other numbers scaled."""
        return encode_arrays(samples, state)

    def read_inputs(self, paths: list[str], state: dict[str, Any]) -> Iterator[Samples]:
        """Yield unlabelled samples from .npy, .npz (the array "x") and IDX files, in blocks."""
        return read_array_inputs(paths, channels_last=self.channels_last)

    def fingerprint(self, path: str | None = None) -> str:
        """Return a hash of what `read(path)` returns."""
        return fingerprint_samples(self.read(path))


class ArrayName(NamedTuple):
    """An array in a file: `name` is that of a member of an .npz."""

    path: str
    name: str | None = None

    def __str__(self) -> str:
        return self.path if self.name is None else f"{self.path}: {self.name}"


class Pair(NamedTuple):
    """Where inputs and targets of one split lie; `split` is "" where the files do not say."""

    inputs: ArrayName
    targets: ArrayName
    split: str = ""


def read_array_inputs(paths: list[str], inputs: str = "x", channels_last: bool = False) -> Iterator[Samples]:
    """Yield unlabelled samples from the files `paths`, of an .npz its array `inputs`, in blocks of 16 MiB."""
    for path in paths:
        names = array_names(path) if os.path.isfile(path) else None
        if names is not None and inputs not in names:
            raise DataError(f"{path}: no array {inputs!r}{_nearest(inputs, names)}")
        with open_array(path, inputs) as file:
            if file.shape[0] == 0:
                raise DataError(f"{file.name}: holds no samples")
            row_bytes = max(int(np.prod(file.shape[1:])) * file.dtype.itemsize, 1)
            num_rows = min(max(BLOCK_BYTES // row_bytes, 1), _MAX_BLOCK_ROWS)
            for start in range(0, file.shape[0], num_rows):
                yield unlabelled(file.read(num_rows), file.name, start, channels_last)


def _npz_pairs(path: str, names: list[str], inputs: str, targets: str) -> list[Pair]:
    if inputs in names and targets in names:
        return [Pair(ArrayName(path, inputs), ArrayName(path, targets))]
    patterns = ("{name}_{split}", "{split}_{name}")
    pairs = []
    for split in NAMES:
        for pattern in patterns:
            x, y = (pattern.format(name=name, split=split) for name in (inputs, targets))
            if x in names and y in names:
                pairs.append(Pair(ArrayName(path, x), ArrayName(path, y), split))
    if len({pair.split for pair in pairs}) < len(pairs):
        raise DataError(f"{path}: holds two arrays for one split: {', '.join(str(p.inputs.name) for p in pairs)}")
    if not pairs:
        missing = targets if inputs in names else inputs
        raise DataError(
            f"{path}: no array {missing!r} or {missing}_train{_nearest(missing, names)}; set inputs, target"
        )
    return pairs


def _idx_pairs(folder: str, prefix: str = "") -> list[Pair]:
    """Find the pairs of IDX files in `folder`, perhaps of one `prefix` only; unzipped goes before gzipped."""
    found: dict[tuple[str, str], str] = {}
    for name in sorted(os.listdir(folder), reverse=True):
        match = _IDX_NAME.fullmatch(name)
        if match and name.startswith(prefix):
            found[match[1], match[2]] = os.path.join(folder, name)
    pairs = []
    for start, split in (("train", "train"), ("t10k", "test")):
        images, labels = found.get((start, "images")), found.get((start, "labels"))
        if images and labels:
            pairs.append(Pair(ArrayName(images), ArrayName(labels), split))
        elif images or labels:
            missing = "labels" if images else "images"
            raise DataError(f"{images or labels}: there is no file of its {missing}, {start}-{missing}-idx*-ubyte")
    if not pairs:
        raise DataError(
            f"{folder}: no IDX files; expected train-images-idx3-ubyte, train-labels-idx1-ubyte, perhaps .gz"
        )
    return pairs


def _read_pair(pair: Pair) -> Part:
    inputs, targets = _read_whole(pair.inputs), _read_whole(pair.targets)
    return Part(inputs, targets, str(pair.inputs), str(pair.targets), pair.split)


def _read_whole(array: ArrayName) -> np.ndarray:
    with open_array(array.path, array.name) as file:
        return file.read()


def _nearest(name: str, names: list[str]) -> str:
    return did_you_mean(name, names) or f"; there are {', '.join(map(repr, names)) or 'none'}"
