"""Arrays in memory -> samples -> tensors: what the sources `arrays` and `sklearn` and a user's own share.

Samples lie along axis 0. uint8 arrays of (N, H, W) or (N, C, H, W) are images and stay uint8, to be
normalized per batch; other numbers become float32, scaled per feature of (N, F) or channel of (N, C, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dltrain.data.columns import Samples
from dltrain.data.sources.fingerprint import fingerprint_arrays
from dltrain.data.sources.scaling import Scale, apply_scaling, fit_scaling, image_statistics
from dltrain.data.split import NAMES
from dltrain.data.storage import allocate, blocks_of_rows, gather
from dltrain.errors import ConfigError, DataError


class Part(NamedTuple):
    """Inputs and targets of one split as given, with the names that messages call them by."""

    inputs: Any
    targets: Any
    inputs_name: str
    targets_name: str
    split: str = ""


def from_arrays(data: Any, name: str, channels_last: bool = False) -> Samples:
    """Return samples of (X, y), or of {"train": (X, y), "val": ..., "test": ...}; `name` is for messages.

    Raises DataError if `data` is neither, or where X or y are not what a model can learn from.
    """
    splits = data if isinstance(data, dict) else {"": data}
    pairs = [isinstance(pair, tuple) and len(pair) == 2 for pair in splits.values()]
    if not (splits and all(pairs) and splits.keys() <= {"", *NAMES}):
        found = f"a dict of {', '.join(map(repr, data))}" if isinstance(data, dict) else type(data).__name__
        raise DataError(f"{name}: returned {found}; possible: (X, y), or a dict with 'train', 'val', 'test' of (X, y)")
    where = {split: f"{name}: {split}".removesuffix(": ") for split in splits}
    parts = [Part(x, y, f"{where[split]}: X", f"{where[split]}: y", split) for split, (x, y) in splits.items()]
    return samples_from_parts(parts, channels_last)


def samples_from_parts(parts: Sequence[Part], channels_last: bool = False) -> Samples:
    """Check the arrays of each part and put them together. Raises DataError with the row of what is wrong."""
    inputs = [check_inputs(part.inputs, part.inputs_name, channels_last) for part in parts]
    targets = [check_targets(part.targets, part.targets_name) for part in parts]
    for part, x, y in zip(parts, inputs, targets, strict=True):
        if len(x) != len(y):
            raise DataError(f"{part.inputs_name} holds {len(x)} samples, {part.targets_name} {len(y)}")
        if x.shape[1:] != inputs[0].shape[1:] or x.dtype != inputs[0].dtype:
            first = f"{parts[0].inputs_name} of {_describe(inputs[0])}"
            raise DataError(f"{part.inputs_name}: samples of {_describe(x)}, unlike {first}")
        if y.shape[1:] != targets[0].shape[1:] or y.dtype.kind != targets[0].dtype.kind:
            first = f"{parts[0].targets_name} of {_describe(targets[0])}"
            raise DataError(f"{part.targets_name}: targets of {_describe(y)}, unlike {first}")
    starts = np.cumsum([0, *(len(x) for x in inputs)])

    def place(index: int) -> str:
        part_index = int(np.searchsorted(starts, index, side="right")) - 1
        return f"{parts[part_index].inputs_name}[{index - starts[part_index]}]"

    splits = [np.full(len(x), part.split) for part, x in zip(parts, inputs, strict=True) if part.split]
    return Samples(
        inputs=_join(inputs),
        targets=_join(targets),
        place=place,
        take_inputs=gather,
        splits=np.concatenate(splits) if splits else None,
    )


def check_inputs(data: Any, name: str, channels_last: bool = False, start: int = 0) -> np.ndarray:
    """Return `data` as numbers (N, F) or (N, C, ...): a missing axis of features or channels is added.

    Raises DataError for what is no array of numbers, for no samples, and for NaN and infinity, with the row,
    counted from `start`.
    """
    array = _to_array(data, name)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name}: holds {array.dtype}; inputs are numbers")
    if array.ndim == 0 or array.size == 0:
        raise DataError(f"{name}: has the shape {array.shape}; it holds no samples")
    _check_finite(array, name, start)
    if channels_last and array.ndim < 4:
        raise ConfigError(f"channels_last: is for images of (N, H, W, C); {name} has the shape {array.shape}")
    if channels_last:
        return _channels_first(array)
    if array.ndim == 4 and array.dtype == np.uint8 and array.shape[1] > 4 and array.shape[3] in (1, 3, 4):
        raise DataError(f"{name}: has the shape {array.shape}, which looks like (N, H, W, C); set channels_last: true")
    return array[:, None] if array.ndim in (1, 3) else array


def check_targets(data: Any, name: str) -> np.ndarray:
    """Return `data` as (N,) text, int64 or float64, or as (N, K) float64.

    Raises DataError for other shapes and kinds, and for NaN and infinity, with the row.
    """
    array = _to_array(data, name)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim not in (1, 2) or array.size == 0:
        raise DataError(f"{name}: has the shape {array.shape}; targets are (N,) or (N, K)")
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8")
    if array.dtype.kind == "U" and array.ndim == 1:
        return array
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name}: holds {array.dtype}; targets are numbers, or one text a sample")
    _check_finite(array, name)
    return array.astype(np.float64 if array.ndim == 2 or array.dtype.kind == "f" else np.int64)


def fit_arrays(samples: Samples, scale: Scale) -> dict[str, Any]:
    """Return {"shape": of one sample, and "normalize" for uint8 images or else "scaling"}."""
    array: np.ndarray = samples.inputs
    shape = list(array.shape[1:])
    if _is_uint8_images(array):
        return {"shape": shape, "normalize": image_statistics(array, scale)}
    return {"shape": shape, "scaling": fit_scaling(array, scale)}


def encode_arrays(samples: Samples, state: dict[str, Any]) -> tuple[Tensor, ...]:
    """Return one tensor (N, ...), uint8 or float32. Raises DataError for samples unlike those of `state`."""
    array: np.ndarray = samples.inputs
    if list(array.shape[1:]) != state["shape"]:
        trained = "x".join(map(str, state["shape"]))
        raise DataError(f"{samples.place(0)}: samples of {_describe(array)}, the training samples are {trained}")
    if _is_uint8_images(array) != ("normalize" in state):
        trained = "uint8 images, 0 to 255" if "normalize" in state else "images of float numbers"
        raise DataError(
            f"{samples.place(0)}: images of {array.dtype}, the training samples are {trained}; convert them"
        )
    if "normalize" in state:
        return (torch.from_numpy(np.ascontiguousarray(array)),)
    return (torch.from_numpy(apply_scaling(array, state["scaling"])),)


def fingerprint_samples(samples: Samples) -> str:
    """Return a hash of arrays that come from no file."""
    return fingerprint_arrays(a for a in (samples.inputs, samples.targets, samples.splits) if a is not None)


def unlabelled(array: np.ndarray, name: str, start: int, channels_last: bool) -> Samples:
    """Check and return samples without targets, of which the first is row `start` of the array `name`."""
    array = check_inputs(array, name, channels_last, start)
    return Samples(array, None, lambda i: f"{name}[{start + i}]", gather)


def _to_array(data: Any, name: str) -> np.ndarray:
    try:
        array = np.asarray(data)
    except (ValueError, TypeError, RuntimeError) as error:  # ragged lists; tensors with gradients or on a GPU
        raise DataError(f"{name}: numpy cannot read {type(data).__name__} as an array: {error}") from None
    if array.dtype == object and array.size and all(isinstance(value, str) for value in array.flat):
        return array.astype(np.str_)
    return array


def _check_finite(array: np.ndarray, name: str, start: int = 0) -> None:
    if array.dtype.kind != "f":
        return
    for rows in blocks_of_rows(array):
        with np.errstate(over="ignore"):
            finite = np.isfinite(array[rows].astype(np.float32, copy=False))
        if not finite.all():
            index = np.argwhere(~finite)[0]
            index[0] += rows.start
            value = array[tuple(index)]
            where = ", ".join(map(str, [index[0] + start, *index[1:]]))
            raise DataError(f"{name}[{where}] is {value}; only finite numbers of float32 are possible")


def _is_uint8_images(array: np.ndarray) -> bool:
    return array.ndim == 4 and array.dtype == np.uint8


def _channels_first(array: np.ndarray) -> np.ndarray:
    """Return (N, C, H, W) of (N, H, W, C)."""
    turned = np.moveaxis(array, -1, 1)
    result = allocate(turned.shape, turned.dtype)
    for rows in blocks_of_rows(result):
        result[rows] = turned[rows]
    return result


def _join(arrays: list[np.ndarray]) -> np.ndarray:
    if len(arrays) == 1:
        return arrays[0]
    shape, dtype = (sum(map(len, arrays)), *arrays[0].shape[1:]), np.result_type(*arrays)
    return np.concatenate(arrays, out=allocate(shape, dtype))


def _describe(array: np.ndarray) -> str:
    return f"{'x'.join(map(str, array.shape[1:])) or 'one'} {array.dtype}"
