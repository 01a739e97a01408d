"""From the cells of one feature column to numbers: fitted on the training rows, applied to any rows.

What was fitted is a JSON-able dict, complete in itself: encoding needs no other settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dltrain.data.sources.scaling import Scale
from dltrain.data.sources.table_cells import (
    Kind,
    Place,
    all_integers,
    date_features,
    guess_kind,
    has_zone,
    to_dates,
    to_numbers,
    to_text,
)
from dltrain.errors import DataError

ColumnState = dict[str, Any]
"""What the training rows taught about one column. Always: name, kind, note (for people), missing (how many of
the training rows); unless ignored: policy (for missing values); categories: values, embedded; numbers and
dates: features (list of {name, offset, scale, fill}), indicator; dates: zoned."""
Categories = Literal["embedding", "onehot"]
Missing = Literal["error", "drop", "mean", "median", "indicator"]
MAX_ONEHOT_VALUES = 1000
_MIN_ROWS_OF_IDENTIFIER = 20


def fit_column(
    file: str,
    name: str,
    column: pa.ChunkedArray,
    place: Callable[[int], str],
    kind: Kind | None,
    categories: Categories,
    scale: Scale,
    missing: Missing,
) -> ColumnState:
    """Return what the training rows of one column teach. `kind` None is guessed; `file` and `place`
    are for messages: the file's name, and where row i stands.

    Raises DataError for cells that do not fit the kind, and for a column without values that has a kind set.
    """
    why, at = "set in the config", cell_place(place, name)
    if kind is None:
        kind, why = guess_kind(name, column, at)
    elif kind != "ignore" and column.null_count == len(column):
        raise DataError(f"{file}: column {name!r} is set to {kind}, but has no values in the training split")
    state: ColumnState = {"name": name, "kind": kind, "note": why, "missing": column.null_count}
    if kind == "ignore":
        return state
    state["policy"] = missing
    if kind == "category":
        state |= _fit_category(file, name, column, categories, at)
    else:
        raw, fitted = _fit_raw(name, kind, column, at)
        features = [{"name": part} | _fit_scaling(raw[part], scale, missing) for part in raw]
        if not all(np.isfinite([feature["scale"], feature["fill"]]).all() for feature in features):
            raise DataError(f"{file}: column {name!r}: numbers this far apart are too large to be scaled")
        indicator = missing == "indicator" and column.null_count > 0
        state |= fitted | {"features": features, "indicator": indicator}
    if column.null_count and missing not in ("error", "drop"):
        fill = "unknown" if kind == "category" else "the median" if missing == "median" else "the mean"
        state["note"] += f"; {column.null_count} missing, taken as {fill}"
    return state


def feature_names(state: ColumnState) -> list[str]:
    """Return the names of what the column adds to the numeric input: nothing if ignored or embedded."""
    if state["kind"] == "ignore" or is_embedded(state):
        return []
    if state["kind"] == "category":
        return [f"{state['name']}={value}" for value in state["values"]]
    indicator = [f"{state['name']}.missing"] if state["indicator"] else []
    return [feature["name"] for feature in state["features"]] + indicator


def is_embedded(state: ColumnState) -> bool:
    """Say whether the column is a category that the model embeds."""
    return state["kind"] == "category" and bool(state["embedded"])


def encode_features(column: pa.ChunkedArray, state: ColumnState, place: Place) -> Iterator[np.ndarray]:
    """Yield each feature that `feature_names` names, (N,) float32.

    Raises DataError at cells that do not fit the column's kind, are missing where the policy is to refuse
    them, or overflow float32.
    """
    if state["kind"] == "category":
        codes = encode_codes(column, state, place)
        yield from ((codes == code).astype(np.float32) for code in range(1, len(state["values"]) + 1))
        return
    _refuse_missing(column, state, place)
    raw = _raw_features(column, state, place)
    for feature in state["features"]:
        values = raw[feature["name"]]
        filled = np.where(np.isnan(values), feature["fill"], values)
        with np.errstate(over="ignore"):
            scaled: np.ndarray = ((filled - feature["offset"]) / feature["scale"]).astype(np.float32)
        if not np.isfinite(scaled).all():
            row_index = int(np.isfinite(scaled).argmin())
            raise DataError(f"{place(row_index)}: {values[row_index]:g}, scaled, is too large for float32")
        yield scaled
    if state["indicator"]:
        yield column.is_null().to_numpy().astype(np.float32)


def encode_codes(column: pa.ChunkedArray, state: ColumnState, place: Place) -> np.ndarray:
    """Return the cells of a category as (N,) int64: their positions among the values, from 1; 0 if unknown.

    Missing cells are 0, too, or raise DataError where the policy is to refuse them.
    """
    _refuse_missing(column, state, place)
    values = pa.array(state["values"], pa.string())
    found = pc.index_in(to_text(state["name"], column, place), value_set=values)
    codes: np.ndarray = pc.fill_null(found, -1).to_numpy().astype(np.int64) + 1
    return codes


def cell_place(place: Callable[[int], str], name: str) -> Place:
    """Return where the cells of a column stand, from where the rows do."""
    return lambda i: f"{place(i)}, column {name!r}"


def missing_value(column: pa.ChunkedArray, place: Place, advice: str) -> DataError:
    """Return the error that names the first missing cell of a column that has one, and what to do."""
    first = int(column.is_null().to_numpy().argmax())
    more = f" (the first of {column.null_count} in this column)" if column.null_count > 1 else ""
    return DataError(f"{place(first)}: the value is missing{more}; {advice}")


def _fit_category(file: str, name: str, column: pa.ChunkedArray, categories: Categories, place: Place) -> ColumnState:
    values = sorted(pc.unique(to_text(name, column, place).drop_null()).to_pylist())
    if categories == "onehot" and len(values) > MAX_ONEHOT_VALUES:
        raise DataError(
            f"{file}: column {name!r} has {len(values)} values, and onehot takes at most "
            f"{MAX_ONEHOT_VALUES}; set categories: embedding, or columns: {{{name}: ignore}}"
        )
    few = ", ".join(values[:4]) + (", ..." if len(values) > 4 else "")
    note = f"{len(values)} value{'s' if len(values) > 1 else ''}: {few}"
    return {"values": values, "embedded": categories == "embedding", "note": note}


def _fit_raw(name: str, kind: Kind, column: pa.ChunkedArray, place: Place) -> tuple[dict[str, np.ndarray], ColumnState]:
    """Return the unscaled features of a numeric or date column, its note and, for dates, whether zoned."""
    if kind == "numeric":
        numbers = to_numbers(name, column, place)
        return {name: numbers}, {"note": _numeric_note(numbers, all_integers(column))}
    zoned = has_zone(column)
    dates = to_dates(name, column, zoned, place)
    there = dates[~np.isnat(dates)].astype("datetime64[D]")
    raw = {f"{name}.{part}": values for part, values in date_features(dates).items()}
    if np.nanmax(raw[f"{name}.seconds"]) == 0:
        del raw[f"{name}.seconds"]
    return raw, {"zoned": zoned, "note": f"{there.min()} to {there.max()}{' (UTC)' if zoned else ''}"}


def _raw_features(column: pa.ChunkedArray, state: ColumnState, place: Place) -> dict[str, np.ndarray]:
    """Return the unscaled features of a numeric or date column by name, NaN where missing."""
    name = state["name"]
    if state["kind"] == "numeric":
        return {name: to_numbers(name, column, place)}
    dates = to_dates(name, column, state["zoned"], place)
    return {f"{name}.{part}": values for part, values in date_features(dates).items()}


def _fit_scaling(values: np.ndarray, scale: Scale, missing: Missing) -> dict[str, float]:
    """Return offset and scale of (value - offset) / scale, and the fill for missing values, unscaled."""
    low, high = np.nanmin(values), np.nanmax(values)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = np.nanmean(values)
        offset, divisor = {
            "standard": (mean, np.nanstd(values)),
            "minmax": (low, high - low),
            "none": (0.0, 1.0),
        }[scale]
        fill = np.nanmedian(values) if missing == "median" else mean
    if low == high and scale != "none":
        # Rounding makes the deviation of a constant column a tiny number and its mean another one.
        offset, divisor = low, 1.0
    return {"offset": float(offset), "scale": float(divisor), "fill": float(fill)}


def _numeric_note(numbers: np.ndarray, integers: bool) -> str:
    there = numbers[~np.isnan(numbers)]
    low, high = there.min(), there.max()
    if low == high:
        return f"always {low:g} in the training split"
    note = f"{low:g} to {high:g}"
    if integers and len(there) >= _MIN_ROWS_OF_IDENTIFIER and len(np.unique(there)) == len(there):
        note += "; whole numbers that all differ: if they only name the row, set the column to ignore"
    return note


def _refuse_missing(column: pa.ChunkedArray, state: ColumnState, place: Place) -> None:
    if column.null_count == 0 or state["policy"] not in ("error", "drop"):
        return
    if state["policy"] == "drop":
        advice = "the training left such rows out (missing: drop); fill it in, or remove the row"
    else:
        out = f"columns: {{{state['name']}: ignore}}"
        advice = f"set missing: drop, mean, median or indicator, or leave the column out with {out}"
    raise missing_value(column, place, advice)
