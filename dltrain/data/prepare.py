"""Config.data to splits of columns, and to the facts that the data teach: shapes, classes, scaling, vocabulary.

Facts are plain JSON values, learned from the training split alone and kept in the checkpoint; evaluation and
prediction encode with the facts, so that they see data exactly as training did.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dltrain import tasks
from dltrain.build import Builder
from dltrain.config.schema.base import UserComponent
from dltrain.config.schema.sections import Split
from dltrain.data.columns import Columns, Samples
from dltrain.data.split import NAMES, split_by_ratio
from dltrain.data.transforms import Normalize
from dltrain.errors import ConfigError, DataError
from dltrain.tasks import Task

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Prepared:
    """Data as the loop sees them."""

    splits: dict[str, Columns]
    task: Task
    facts: dict[str, Any]


def prepare(builder: Builder, *, raw_targets: bool = False) -> Prepared:
    """Read the data of a config, learn the facts from the training split, and encode training and validation samples.

    The test samples are set aside unencoded.

    Args:
        builder: of the config.
        raw_targets: leave regression targets in their own units, as counting losses need.

    Raises:
        ConfigError: if the config and the data do not fit together.
        DataError: if the data are wrong, with the file, the row and the column.

    """
    source = open_source(builder)
    everything = source.read()
    if len(everything) == 0:
        raise DataError(f"{builder.file.place('data')}: there are no samples")
    parts = _divide(builder, source, everything)
    train = parts["train"]
    task = _learn_task(builder, train, raw_targets)
    state = source.fit(train)
    splits = {name: _encode(source, state, task, parts[name]) for name in ("train", "val") if len(parts[name])}
    inputs = splits["train"].inputs
    facts = {
        "source": state,
        "task": tasks.facts_of(task),
        "input_shapes": [list(x.shape[1:]) for x in inputs],
        "input_types": [str(x.dtype).removeprefix("torch.") for x in inputs],
        "num_samples": {name: len(parts[name]) for name in NAMES},
        "class_counts": _class_counts(task, splits["train"]),
        "fingerprint": _fingerprint(builder, source),
    }
    return Prepared(splits, task, facts)


def prepare_split(builder: Builder, facts: dict[str, Any], name: str, *, same_data: bool = True) -> Columns:
    """Encode one split of a config's data as the `facts` of a checkpoint say.

    With `same_data` the config must be the trained one, and its data must not have changed.

    Raises DataError if the data are no longer those of the training: its split would mix seen and unseen samples.
    """
    source = open_source(builder)
    if same_data and _fingerprint(builder, source) != facts["fingerprint"]:
        raise DataError(
            f"{builder.file.place('data')}: the data have changed since the training, so its {name} split cannot be "
            "told; give the data to evaluate with --data"
        )
    samples = _divide(builder, source, source.read())[name]
    if len(samples) == 0:
        raise DataError(f"{builder.file.place('split')}: this config sets no {name} samples aside")
    return _encode(source, facts["source"], tasks.from_facts(facts["task"]), samples)


def prepare_path(builder: Builder, facts: dict[str, Any], path: str) -> Columns:
    """Encode all labelled samples of the file or folder `path`, of the same kind as the training's, as `facts` say."""
    source = open_source(builder)
    return _encode(source, facts["source"], tasks.from_facts(facts["task"]), source.read(path))


def open_source(builder: Builder) -> Any:
    """Return the data source of a config: see dltrain.data.sources for what it can do."""
    settings = builder.file.config.data
    if isinstance(settings, UserComponent):
        from dltrain.data.sources.arrays import UserArrays

        return UserArrays(builder.partial(settings, ("data",)), settings.type)
    return builder.build(settings, ("data",), {"base": builder.file.folder})


def offered(facts: dict[str, Any], outputs_per_target: int = 1) -> dict[str, Any]:
    """Return the parameters that the data decide, by the names under which components can ask for them."""
    shape = tuple(facts["input_shapes"][0])
    task = tasks.from_facts(facts["task"])
    values: dict[str, Any] = {
        "in_features": int(np.prod(shape)),
        "input_shape": shape,
        "out_features": task.num_outputs * outputs_per_target,
        "cardinalities": facts["source"].get("cardinalities", []),
    }
    if len(shape) > 1:
        values["in_channels"] = shape[0]
    if task.type != "regression":
        values["num_classes"] = task.num_outputs
        values["num_samples"] = facts["num_samples"]["train"]
        counts = "class_counts" if task.type == "classification" else "positive_counts"
        values[counts] = facts["class_counts"]
    return values


def input_transform(facts: dict[str, Any], device: torch.device) -> Callable[[Inputs], Inputs]:
    """Return what turns stored inputs into what the model is called with: 8-bit images become normalised floats."""
    settings = facts["source"].get("normalize")
    if settings is None:
        return lambda inputs: inputs
    normalize = Normalize(settings["mean"], settings["std"]).to(device)
    return lambda inputs: (normalize(inputs[0]), *inputs[1:])


def _divide(builder: Builder, source: Any, samples: Samples) -> dict[str, Samples]:
    """Return the samples of each split. What files say goes first; ratios divide what is left for training."""
    split = builder.file.config.split
    parts: dict[str, Samples] = {}
    for name, given in (("val", split.val), ("test", split.test)):
        if isinstance(given, str):
            parts[name] = source.read(str(Path(builder.file.folder, given)))
    rest = samples
    if samples.splits is not None:
        _check_split_names(samples)
        for name in ("val", "test"):
            rows = np.flatnonzero(samples.splits == name)
            if len(rows):
                if name in split.model_fields_set:
                    place = builder.file.place("split", name)
                    raise ConfigError(
                        f"{place}: cannot take effect: the data themselves say which samples are for {name}"
                    )
                parts[name] = samples.take(rows)
        rest = samples.take(np.flatnonzero(samples.splits == "train"))
        if len(rest) == 0:
            raise DataError(f"{builder.file.place('data')}: the data set no samples aside for training")
    ratios = {
        n: 0.0 if n in parts else float(r) for n, r in (("val", split.val), ("test", split.test)) if n not in parts
    }
    indices = split_by_ratio(
        len(rest), ratios.get("val", 0.0), ratios.get("test", 0.0), split.seed, _strata(split, rest)
    )
    return {name: parts[name] if name in parts else rest.take(indices[name]) for name in NAMES}


def _strata(split: Split, samples: Samples) -> np.ndarray | None:
    """Return the classes by which to stratify, or None for targets that are no classes."""
    targets = samples.targets
    if not split.stratify or targets is None or targets.ndim != 1 or targets.dtype.kind == "f":
        return None
    classes = np.unique(targets.astype(str) if targets.dtype.kind == "O" else targets, return_inverse=True)[1]
    return classes if classes.max() < len(classes) // 2 else None


def _check_split_names(samples: Samples) -> None:
    assert samples.splits is not None
    wrong = np.flatnonzero(~np.isin(samples.splits.astype(str), NAMES))
    if len(wrong):
        row = int(wrong[0])
        raise DataError(f"{samples.place(row)}: split '{samples.splits[row]}' is none of {', '.join(NAMES)}")


def _learn_task(builder: Builder, train: Samples, raw_targets: bool) -> Task:
    settings = builder.file.config.task
    if train.targets is None:
        raise DataError(f"{builder.file.place('data')}: the data have no targets")
    kind = settings.type if settings is not None else tasks.infer_type(train)
    if kind == "classification":
        return tasks.Classification.learn(train)
    if kind == "multilabel":
        return tasks.Multilabel.learn(train, getattr(settings, "separator", "|"))
    standardize: bool | None = getattr(settings, "standardize", None)
    if raw_targets:
        _require_counts(train)
    if standardize and raw_targets:
        place = builder.file.place("task", "standardize")
        raise ConfigError(f"{place}: true cannot be combined with this loss, which needs targets in their own units")
    return tasks.Regression.learn(train, not raw_targets if standardize is None else standardize)


def _require_counts(samples: Samples) -> None:
    """Raise DataError if a target is below zero, which no loss of counts can take."""
    targets = samples.targets
    if targets is not None and targets.dtype.kind in "iuf" and (targets < 0).any():
        row = int(np.argwhere(targets < 0)[0][0])
        raise DataError(
            f"{samples.place(row)}: target {targets[row]} is below zero; the loss of the config is for counts"
        )


def _encode(source: Any, state: dict[str, Any], task: Task, samples: Samples) -> Columns:
    columns = Columns(source.encode(samples, state), task.encode(samples))
    for x in columns.inputs:
        if x.is_floating_point() and not torch.isfinite(x).all():
            row = int((~torch.isfinite(x.reshape(len(x), -1)).all(dim=1)).nonzero()[0])
            raise DataError(f"{samples.place(row)}: has an input that is not finite")
    return columns


def _class_counts(task: Task, train: Columns) -> list[int] | None:
    if task.type == "regression" or train.target is None:
        return None
    if task.type == "multilabel":
        return [int(count) for count in train.target.sum(dim=0)]
    return torch.bincount(train.target, minlength=task.num_outputs).tolist()


def _fingerprint(builder: Builder, source: Any) -> str:
    """Return a short text that changes when the data or what chooses the split changes."""
    split = builder.file.config.split
    given: Sequence[float | str] = (split.val, split.test)
    sizes = [os.path.getsize(path) for path in (Path(builder.file.folder, str(p)) for p in given) if path.is_file()]
    return f"{source.fingerprint()}-{split.val}-{split.test}-{split.stratify}-{split.seed}-{sizes}"
