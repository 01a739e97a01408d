"""Which samples of a config are in which split: what the files say goes first, then the ratios of the section split."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from dltrain import tasks
from dltrain.build import Builder
from dltrain.config.schema.sections import Split
from dltrain.data.columns import Samples
from dltrain.data.split import NAMES, split_by_ratio, split_in_order
from dltrain.errors import ConfigError, DataError

_RARE = 10  # fewer than this could not be divided by the usual ratios


def divide(builder: Builder, source: Any, samples: Samples, kind: str) -> dict[str, Samples]:
    """Return the samples of each split. What files say goes first; ratios divide what is left for training."""
    split = builder.file.config.split
    parts = _read_split_files(builder, source)
    rest, in_order = samples, getattr(source, "contiguous", False)
    if samples.splits is not None:
        _check_split_names(samples)
        for name in ("val", "test"):
            rows = np.flatnonzero(samples.splits == name)
            if len(rows):
                if _is_written(builder, name):
                    raise ConfigError(
                        f"{builder.file.place('split', name)}: cannot take effect: "
                        f"the data themselves say which samples are for {name}"
                    )
                parts[name] = samples.take(rows)
        rest = samples.take(np.flatnonzero(samples.splits == "train"))
        if len(rest) == 0:
            raise DataError(f"{builder.file.place('data')}: the data set no samples aside for training")
    ratios = {n: 0.0 if n in parts else float(ratio) for n, ratio in (("val", split.val), ("test", split.test))}
    _check_ratio_settings(builder, any(ratios.values()) and not in_order, kind)
    with builder.at("split"):
        if in_order:
            indices = split_in_order(len(rest), **ratios)
        else:
            indices = split_by_ratio(len(rest), **ratios, seed=split.seed, strata=_strata(split, rest, kind))
    return {name: parts[name] if name in parts else rest.take(indices[name]) for name in NAMES}


def _read_split_files(builder: Builder, source: Any) -> dict[str, Samples]:
    """Return the samples of the splits that are given as files or folders of their own."""
    file, split = builder.file, builder.file.config.split
    taken = {os.path.realpath(Path(file.folder, getattr(file.config.data, "path", ""))): "data.path"}
    parts: dict[str, Samples] = {}
    for name, given in (("val", split.val), ("test", split.test)):
        if not isinstance(given, str):
            continue
        path, place = Path(file.folder, given), file.place("split", name)
        if not os.path.exists(path):  # Path.exists raises an error for names that are too long
            raise ConfigError(f"{place}: there is no file or folder '{path}'; paths are relative to the config file")
        other = taken.setdefault(os.path.realpath(path), f"split.{name}")
        if other != f"split.{name}":
            raise ConfigError(f"{place}: '{given}' is the same as {other}; splits must not share samples")
        parts[name] = source.read(str(path))
        if len(parts[name]) == 0:
            raise DataError(f"{place}: '{given}' holds no samples")
    return parts


def _check_ratio_settings(builder: Builder, is_random: bool, kind: str) -> None:
    """Raise ConfigError for settings of the random split that cannot take effect."""
    for name in ("seed", "stratify"):
        place = builder.file.place("split", name)
        if _is_written(builder, name) and not is_random:
            raise ConfigError(f"{place}: cannot take effect: no samples are set aside at random")
    without_classes = ("regression", *tasks.SEQUENCE_TASKS)
    if kind in without_classes and _is_written(builder, "stratify") and builder.file.config.split.stratify:
        raise ConfigError(f"{builder.file.place('split', 'stratify')}: cannot take effect: {kind} has no classes")


def _is_written(builder: Builder, name: str) -> bool:
    """Return whether the user wrote `split.name`; the config of a checkpoint holds all settings and no places."""
    return ("split", name) in builder.file.document.key_places


def _strata(split: Split, samples: Samples, kind: str) -> np.ndarray | None:
    """Return (N,) the classes by which to stratify, or None where there are none.

    Of a multi-label task these are the combinations of labels; the rare ones are one class.
    """
    targets = samples.targets
    if not split.stratify or targets is None or kind not in ("classification", "multilabel"):
        return None
    if kind == "classification":
        return targets if targets.ndim == 1 else None
    _, combinations, counts = np.unique(targets, axis=0, return_inverse=True, return_counts=True)
    combinations = combinations.reshape(-1)
    return np.where(counts[combinations] < _RARE, -1, combinations)


def _check_split_names(samples: Samples) -> None:
    assert samples.splits is not None
    wrong = np.flatnonzero(~np.isin(samples.splits.astype(str), NAMES))
    if len(wrong):
        row = int(wrong[0])
        raise DataError(f"{samples.place(row)}: split '{samples.splits[row]}' is none of {', '.join(NAMES)}")


def is_made_by_files(builder: Builder, samples: Samples, name: str) -> bool:
    """Return whether the data or a file of its own say which samples are in a split; training has what is left."""
    if name == "train":
        return all(is_made_by_files(builder, samples, other) for other in ("val", "test"))
    split = builder.file.config.split
    given = split.val if name == "val" else split.test
    return isinstance(given, str) or (samples.splits is not None and name in samples.splits)


def split_paths(builder: Builder) -> list[str]:
    """Return the files and folders that the config gives for splits of their own."""
    split = builder.file.config.split
    return [str(Path(builder.file.folder, path)) for path in (split.val, split.test) if isinstance(path, str)]
