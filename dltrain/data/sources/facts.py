"""What the facts in a checkpoint look like: each source's own, and those of the task.

A checkpoint may come from anyone, so that its facts are held against this before anything is built or allocated from
them; a source can then read its facts as it wrote them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

from dltrain.data.tokenizer import Tokenizer

MAX_NUMBERS = 2**28
"""In one input of a sample, and classes of a task: 1 GiB."""
_TYPES = ("bool", "uint8", "int16", "int32", "int64", "float32")

Facts = dict[str, Any]


def check_facts(facts: Facts, source: str) -> None:
    """Raise ValueError that names the first of `facts` that a source of type `source` has never written."""
    shapes, types = facts["input_shapes"], facts["input_types"]
    _require("input_shapes", bool(shapes) and all(map(_is_shape, shapes)))
    _require("input_types", len(types) == len(shapes) and all(name in _TYPES for name in types))
    _require("num_samples", all(_is_count(facts["num_samples"].get(name)) for name in ("train", "val", "test")))
    _require("fingerprint", _is_text(facts.get("fingerprint")))
    _require("task", _is_task(facts["task"], facts["source"]))
    counts = facts.get("class_counts")
    _require("class_counts", counts is None or (_is_list(counts, _is_count) and len(counts) == _num_outputs(facts)))
    check = _CHECKS.get(source, _check_arrays)  # sklearn's and a user's own samples are arrays, too
    check(facts["source"], shapes)


def _num_outputs(facts: Facts) -> int:
    task = facts["task"]
    names = next((task[name] for name in ("classes", "labels", "names") if name in task), None)
    return len(names) if names is not None else int(task["num_outputs"])


def _is_task(task: Facts, source: Facts) -> bool:
    """Return whether the task is one of dltrain.tasks with arguments that it can have."""
    kind = task.get("type")
    if kind == "classification":
        classes = task.get("classes")
        return _is_list(classes, lambda name: type(name) in (int, str)) and len(classes) > 1
    if kind == "multilabel":
        labels, separator = task.get("labels"), task.get("separator")
        return _is_list(labels, _is_text) and bool(labels) and _is_text(separator) and bool(separator)
    if kind == "regression":
        names = task.get("names")
        if not _is_list(names, _is_text) or not names:
            return False
        return all(_are_numbers(task.get(key), len(names)) for key in ("mean", "std"))
    vocab_sizes = {"language_model": "vocab_size", "translation": "target_vocab_size"}
    num_outputs = source.get(vocab_sizes.get(str(kind), ""))
    if not _is_count(num_outputs) or task.get("num_outputs") != num_outputs or type(task["num_outputs"]) is not int:
        return False
    beam_size, penalty = task.get("beam_size", 1), task.get("length_penalty", 1.0)
    return kind == "language_model" or (_is_count(beam_size) and 1 <= beam_size <= 1000 and _is_number(penalty))


# ---- sources ---------------------------------------------------------------------------------------------------------


def _check_arrays(state: Facts, shapes: Sequence[list[int]]) -> None:
    shape = state.get("shape")
    _require("source.shape", shape == shapes[0] and bool(shape))
    if "normalize" in state:
        _require("source.normalize", _are_statistics(state["normalize"], ("mean", "std"), shapes[0][0]))
    else:
        _require("source.scaling", _are_statistics(state.get("scaling"), ("shift", "factor"), shapes[0][0]))


def _check_images(state: Facts, shapes: Sequence[list[int]]) -> None:
    channels, size = state.get("channels"), state.get("size")
    _require("source.channels", channels in (1, 3) and type(channels) is int)
    _require("source.size", _is_list(size, _is_count) and shapes[0] == [channels, *size] and len(size) == 2)
    _require("source.normalize", _are_statistics(state.get("normalize"), ("mean", "std"), shapes[0][0]))


def _check_audio(state: Facts, shapes: Sequence[list[int]]) -> None:
    length, shape = state.get("length"), shapes[0]
    num_bands = shape[1] if len(shape) == 3 else 1
    _require("source.length", _is_count(length) and shape in ([1, length], [1, num_bands, length]))
    _require("source.mean and std", _are_statistics(state, ("mean", "std"), num_bands))


def _check_text(state: Facts, shapes: Sequence[list[int]]) -> None:
    _require("source.max_length", _is_count(state.get("max_length")) and state["max_length"] > 0)
    _check_tokenizer(state.get("tokenizer"), state.get("vocab_size"), "source.tokenizer")


def _check_pairs(state: Facts, shapes: Sequence[list[int]]) -> None:
    _check_text(state, shapes)
    target = state.get("target_tokenizer")
    _require("input_shapes", len(shapes) == 2)
    _require("source.target_tokenizer", "target_tokenizer" in state)
    _require("source.shared_vocabulary", state.get("shared_vocabulary") is (target is None))
    _check_tokenizer(target or state["tokenizer"], state.get("target_vocab_size"), "source.target_tokenizer")


def _check_tokenizer(text: Any, vocab_size: Any, name: str) -> None:
    """Raise ValueError if `text` is not what a tokenizer of `vocab_size` tokens has written of itself."""
    _require(name, _is_text(text) and type(vocab_size) is int)
    try:
        found = Tokenizer.from_json(text).vocab_size
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    _require(name, found == vocab_size)


def _check_table(state: Facts, shapes: Sequence[list[int]]) -> None:
    from dltrain.data.sources.table_features import feature_names, is_embedded

    columns = state.get("columns")
    columns = columns if _is_list(columns, _is_column) else []
    _require("source.columns", bool(columns) and len({column["name"] for column in columns}) == len(columns))
    used = [column for column in columns if column["kind"] != "ignore"]
    features = [name for column in used for name in feature_names(column)]
    cardinalities = [len(column["values"]) + 1 for column in used if is_embedded(column)]
    _require("source.features", state.get("features") == features)
    _require("source.cardinalities", state.get("cardinalities") == cardinalities)
    _require("input_shapes", shapes == [[len(features)], *([[len(cardinalities)]] if cardinalities else [])])


def _is_column(column: Any) -> bool:
    """Return whether a table's column is as `fit_column` describes it."""
    if not isinstance(column, dict) or not _is_text(column.get("name")):
        return False
    kind, name = column.get("kind"), column["name"]
    if kind == "ignore":
        return True
    if column.get("policy") not in ("error", "drop", "mean", "median", "indicator"):
        return False
    if kind == "category":
        return _is_list(column.get("values"), _is_text) and isinstance(column.get("embedded"), bool)
    possible = {"numeric": [name], "date": [f"{name}.{part}" for part in _date_parts()]}.get(str(kind))
    features = column.get("features")
    if possible is None or not isinstance(column.get("indicator"), bool) or not _is_list(features, _is_feature):
        return False
    is_zoned = kind == "numeric" or isinstance(column.get("zoned"), bool)
    return is_zoned and all(feature["name"] in possible for feature in features)


def _date_parts() -> list[str]:
    import numpy as np

    from dltrain.data.sources.table_cells import date_features

    return [*date_features(np.zeros(1, "datetime64[us]"))]


def _is_feature(feature: Any) -> bool:
    if not isinstance(feature, dict) or not _is_text(feature.get("name")):
        return False
    return all(_is_number(feature.get(name)) for name in ("fill", "offset", "scale")) and feature["scale"] != 0


_CHECKS: dict[str, Callable[[Facts, Sequence[list[int]]], None]] = {
    "table": _check_table,
    "images": _check_images,
    "audio": _check_audio,
    "text": _check_text,
    "corpus": _check_text,
    "pairs": _check_pairs,
}


# ---- values ----------------------------------------------------------------------------------------------------------


def _require(name: str, is_right: bool) -> None:
    if not is_right:
        raise ValueError(f"facts.{name}: is missing, or no training has written it so")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    """Return whether `value` is a finite number."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # NaN is not


def _is_list(value: Any, is_item: Callable[[Any], bool]) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and all(map(is_item, value))


def _is_shape(value: Any) -> bool:
    return _is_list(value, _is_count) and math.prod(value) <= MAX_NUMBERS


def _are_numbers(value: Any, number: int) -> bool:
    return _is_list(value, _is_number) and len(value) == number


def _are_statistics(value: Any, names: tuple[str, str], number: int) -> bool:
    """Return whether `value` holds a shift and a divisor, which is not zero, for each of a `number` of positions."""
    divisor = names[1]
    is_whole = isinstance(value, dict) and all(_are_numbers(value.get(name), number) for name in names)
    return is_whole and all(value[divisor])
