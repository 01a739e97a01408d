"""Config.data to splits of columns, and to the facts that the data teach: shapes, classes, scaling, vocabulary.

Facts are plain JSON values, learned from the training split and kept in the checkpoint; evaluation and prediction
encode with the facts, so that they see data exactly as training did. Three things are decided before the samples are
divided, by all that the source holds, and can be set in the config: the type of the task, grey or colour for images,
and, with `missing: drop`, which columns hold nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dltrain import tasks
from dltrain.build import Builder
from dltrain.config.schema.base import UserComponent
from dltrain.data.cache import Entry, cached
from dltrain.data.columns import Columns, Samples, shape_of, type_of
from dltrain.data.division import divide, is_made_by_files, split_paths
from dltrain.data.split import NAMES, count_shared
from dltrain.data.transforms import Normalize
from dltrain.errors import ConfigError, DataError
from dltrain.machine import page_cache_bytes
from dltrain.tasks import Task

Inputs = tuple[Tensor, ...]
_OF_TEXT = ("vocab_size", "max_length", "shared_vocabulary")
"""What models of text are told, by the names that it has in the facts of a source."""
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Prepared:
    """Data as the loop sees them."""

    splits: dict[str, Columns]
    task: Task
    facts: dict[str, Any]
    task_is_inferred: bool
    """Whether the targets, not the config, said what the task is."""
    notes: list[str]
    """What the user should be told of the data, such as rows that were dropped."""


@dataclass(frozen=True)
class PreparedSplit:
    """One split as evaluation sees it."""

    columns: Columns
    references: list[str]
    """The targets themselves where the task is translation, against which texts are measured; else nothing."""
    notes: list[str]
    """What the user should be told of the data, such as rows that were dropped."""


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

    def build() -> Entry:
        return _prepare(builder, source, raw_targets)

    entry = _cached(builder, source, "fit", {"raw_targets": raw_targets}, build)
    task_is_inferred = builder.file.config.task is None and not hasattr(source, "task")
    task, notes = tasks.from_facts(entry.facts["task"]), [*entry.notes, *_memory_notes(builder, entry.splits["train"])]
    return Prepared(entry.splits, task, entry.facts, task_is_inferred, notes)


def _prepare(builder: Builder, source: Any, raw_targets: bool) -> Entry:
    with builder.at("data", only=ConfigError):
        everything = source.read()
    if len(everything) == 0:
        raise DataError(f"{builder.file.place('data')}: there are no samples")
    kind = _task_type(builder, source, everything)
    parts = divide(builder, source, everything, kind)
    train = parts["train"]
    state = source.fit(train)
    parts |= {name: _usable(source, state, parts[name]) for name in ("train", "val")}
    task = _learn_task(builder, kind, train, state, raw_targets)
    if raw_targets:
        _require_counts(train, parts["val"])
    splits = {name: _encode(source, state, task, parts[name]) for name in ("train", "val") if len(parts[name])}
    inputs = splits["train"].inputs
    facts = {
        "source": state,
        "task": tasks.facts_of(task),
        "input_shapes": [list(shape_of(x)) for x in inputs],
        "input_types": [str(type_of(x)).removeprefix("torch.") for x in inputs],
        "num_samples": {name: len(parts[name]) for name in NAMES},
        "class_counts": _class_counts(task, splits["train"]),
        "num_skipped": getattr(source, "num_skipped", 0),
        "fingerprint": _fingerprint(builder, source),
    }
    notes = [*_notes_of(source), *_class_notes(task, facts["class_counts"])]
    if "val" not in splits:
        notes.append("no validation samples: checkpoints are compared by the training samples")
    if "val" in splits and is_made_by_files(builder, everything, "val"):
        notes += _shared_samples("val", splits["val"], splits["train"])
    return Entry(splits, facts, notes)


def prepare_split(builder: Builder, facts: dict[str, Any], name: str, *, same_data: bool = True) -> PreparedSplit:
    """Encode one split of a config's data as the `facts` of a checkpoint say.

    With `same_data` the config must be the trained one, and its data must not have changed; a note then says how many
    of the samples the model was trained on, if files made the split.

    Raises DataError if the data of a split by ratio have changed: it would mix seen and unseen samples.
    """
    source = open_source(builder)

    def build() -> Entry:
        return _prepare_split(builder, source, facts, name, same_data)

    entry = _cached(builder, source, f"evaluate {name}", {"same_data": same_data}, build, facts)
    return PreparedSplit(entry.splits[name], entry.facts["references"], entry.notes)


def _prepare_split(builder: Builder, source: Any, facts: dict[str, Any], name: str, same_data: bool) -> Entry:
    try:
        changed = same_data and _fingerprint(builder, source) != facts["fingerprint"]
        everything = source.read()
    except DataError as error:
        raise DataError(f"{error}; if the data have moved, give them with --data") from None
    by_files = is_made_by_files(builder, everything, name)
    if changed and not by_files:
        raise DataError(
            f"{builder.file.place('data')}: the data have changed since the training, so its {name} split cannot be "
            "told; give the data to evaluate with --data"
        )
    parts = divide(builder, source, everything, facts["task"]["type"])
    if len(parts[name]) == 0:
        raise DataError(f"{builder.file.place('split')}: this config sets no {name} samples aside")
    task, samples = tasks.from_facts(facts["task"]), _usable(source, facts["source"], parts[name])
    columns, notes = _encode(source, facts["source"], task, samples), _notes_of(source)
    if changed:
        notes.append("the data have changed since the training")
    if same_data and name != "train" and by_files:
        notes += _shared_samples(name, columns, _encode(source, facts["source"], task, parts["train"]))
    return Entry({name: columns}, {"references": _references(task, samples)}, notes)


def prepare_path(builder: Builder, facts: dict[str, Any], path: str) -> PreparedSplit:
    """Encode all labelled samples of the file or folder `path`, of the same kind as the training's, as `facts` say."""
    source, task = open_source(builder), tasks.from_facts(facts["task"])
    samples = _usable(source, facts["source"], source.read(path))
    columns = _encode(source, facts["source"], task, samples)
    return PreparedSplit(columns, _references(task, samples), _notes_of(source))


def open_source(builder: Builder) -> Any:
    """Return the data source of a config: see dltrain.data.sources for what it can do."""
    settings = builder.file.config.data
    if isinstance(settings, UserComponent):
        from dltrain.data.sources.arrays import UserArrays

        return UserArrays(builder.partial(settings, ("data",)), settings.type)
    folder = builder.file.folder
    return builder.build(settings, ("data",), {"base": "" if folder == "." else folder})  # no "./" in messages


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
    values |= {name: facts["source"][name] for name in _OF_TEXT if name in facts["source"]}
    if len(shape) > 1:
        values["in_channels"] = shape[0]
    if isinstance(task, tasks.Classification | tasks.Multilabel):
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


def _cached(
    builder: Builder,
    source: Any,
    use: str,
    options: dict[str, Any],
    build: Callable[[], Entry],
    learned: dict[str, Any] | None = None,
) -> Entry:
    """Return what `build` makes, from the cache if it is there; a user's own source, which names no files, is not."""
    if not hasattr(source, "files"):
        return build()
    try:
        files = [file for path in (None, *split_paths(builder)) for file in source.files(path)]
    except (ConfigError, DataError):  # `build` says what is wrong, and where
        return build()
    config, document = builder.file.config, builder.file.document
    return cached(
        {
            "config": config.model_dump(include={"data", "split", "task"}),
            "folder": os.path.realpath(builder.file.folder),
            "use": use,
            **options,
        },
        files,
        {"data": f"{config.data.type} {_name_of_data(builder)}", "use": use},
        build,
        learned=learned,
        checked=[str(keys[1]) for keys in document.key_places if keys[0] == "split" and len(keys) > 1],
    )


def _name_of_data(builder: Builder) -> str:
    """Return where the data of the config lie, or what they are called."""
    settings = builder.file.config.data
    path = getattr(settings, "path", None)
    return os.path.realpath(Path(builder.file.folder, path)) if path else str(getattr(settings, "name", ""))


def _task_type(builder: Builder, source: Any, samples: Samples) -> str:
    """Return the type of the task: what a source of sequences or the config says, or what the targets make plain."""
    settings, only = builder.file.config.task, getattr(source, "task", None)
    if settings is not None and only != settings.type and (only or settings.type in tasks.SEQUENCE_TASKS):
        place, data = builder.file.place("task", "type"), builder.file.config.data.type
        fitting = only or "classification, multilabel, regression"
        raise ConfigError(f"{place}: data of type {data} are not for {settings.type}; possible: {fitting}")
    if only is not None:
        return str(only)
    if samples.targets is None:
        raise DataError(f"{builder.file.place('data')}: the data have no targets")
    with builder.at("task", only=ConfigError):
        return tasks.infer_type(samples) if settings is None else settings.type


def _learn_task(builder: Builder, kind: str, train: Samples, state: dict[str, Any], raw_targets: bool) -> Task:
    settings = builder.file.config.task
    if kind == "language_model":
        return tasks.LanguageModel(state["vocab_size"])
    if kind == "translation":
        return tasks.Translation(state["target_vocab_size"], **({} if settings is None else settings.arguments()))
    with builder.at("task", only=ConfigError):
        if kind == "classification":
            return tasks.Classification.learn(train)
        if kind == "multilabel":
            return tasks.Multilabel.learn(train, getattr(settings, "separator", "|"))
    standardize: bool | None = getattr(settings, "standardize", None)
    if standardize and raw_targets:
        place = builder.file.place("task", "standardize")
        raise ConfigError(f"{place}: true cannot be combined with this loss, which needs targets in their own units")
    return tasks.Regression.learn(train, not raw_targets if standardize is None else standardize)


def _require_counts(*splits: Samples) -> None:
    """Raise DataError if a target is below zero, which no loss of counts can take."""
    for samples in splits:
        targets = samples.targets
        if targets is not None and targets.dtype.kind in "iuf" and (targets < 0).any():
            index = np.argwhere(targets < 0)[0]
            raise DataError(
                f"{samples.place(int(index[0]))}: target {targets[tuple(index)]:g} is below zero; "
                "the loss of the config is for counts"
            )


def _usable(source: Any, state: dict[str, Any], samples: Samples) -> Samples:
    """Return the samples that `encode` will encode: a source may leave some out for what training has taught."""
    usable = getattr(source, "usable", None)
    return samples if usable is None else usable(samples, state)


def _encode(source: Any, state: dict[str, Any], task: Task, samples: Samples) -> Columns:
    if isinstance(task, tasks.SequenceTask):
        *inputs, target = source.encode(samples, state)
        columns = Columns(tuple(inputs), target)
    else:
        columns = Columns(source.encode(samples, state), task.encode(samples))
    for x in columns.inputs:
        row = _first_not_finite(x) if isinstance(x, Tensor) and x.is_floating_point() else None
        if row is not None:
            raise DataError(f"{samples.place(row)}: has an input that is not finite")
    return columns


def _first_not_finite(x: Tensor) -> int | None:
    """Return the first sample that holds an infinity or NaN; looks at few at a time."""
    for start in range(0, len(x), _ROWS_AT_ONCE):
        rows = x[start : start + _ROWS_AT_ONCE]
        if not rows.isfinite().all():
            return start + int((~rows.reshape(len(rows), -1).isfinite().all(dim=1)).nonzero()[0])
    return None


def _references(task: Task, samples: Samples) -> list[str]:
    """Return the target texts of a translation."""
    if not isinstance(task, tasks.Translation) or samples.targets is None:
        return []
    return [str(text) for text in samples.targets]


def _class_notes(task: Task, counts: list[int] | None) -> list[str]:
    """Return a note if there are classes with a single training sample, which may be slips of the pen."""
    if not isinstance(task, tasks.Classification) or counts is None:
        return []
    single = [repr(name) for name, count in zip(task.classes, counts, strict=True) if count == 1]
    shown = ", ".join(single[:5]) + (", ..." if len(single) > 5 else "")
    return [f"classes with a single training sample: {shown}"] if single else []


def _class_counts(task: Task, train: Columns) -> list[int] | None:
    if not isinstance(train.target, Tensor) or task.type == "regression":
        return None
    if task.type == "multilabel":
        return [int(count) for count in train.target.sum(dim=0)]
    return torch.bincount(train.target, minlength=task.num_outputs).tolist()


def _memory_notes(builder: Builder, train: Columns) -> list[str]:
    """Return a note if the training samples will be read from the disk again and again, here and there."""
    size, free = train.size_bytes, page_cache_bytes()
    if builder.file.config.train.sampler != "shuffle" or size <= free:
        return []
    return [
        f"the training samples take {size / 2**30:.1f} GiB, of which {free / 2**30:.1f} GiB can stay in memory: "
        "train.sampler: blocks reads them in stretches, which is many times faster"
    ]


def _notes_of(source: Any) -> list[str]:
    """Return what the source has to say of all that it has read."""
    return list(getattr(source, "notes", []))


def _shared_samples(name: str, columns: Columns, train: Columns) -> list[str]:
    """Return a note if samples of a split are also in the training split."""
    num_shared = count_shared(columns, train)
    return [f"{num_shared:,} of {len(columns):,} {name} samples are also in train"] if num_shared else []


def _fingerprint(builder: Builder, source: Any) -> str:
    """Return a short text that changes when the data or what chooses the split changes."""
    split = builder.file.config.split
    hashes = [source.fingerprint(), *map(source.fingerprint, split_paths(builder))]
    return "-".join([*hashes, f"{split.val}-{split.test}-{split.stratify}-{split.seed}"])
