"""The targets of a table: one column as classes or numbers, or several columns as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dltrain.data.sources.table_cells import Kind, Place, all_integers, guess_kind, is_number, to_numbers, to_text
from dltrain.data.sources.table_features import cell_place, missing_value
from dltrain.data.sources.table_rows import Rows
from dltrain.errors import DataError

_MAX_LABEL_LENGTH = 1000


def read_targets(rows: Rows, names: Sequence[str], kinds: Mapping[str, Kind], place: Place) -> np.ndarray:
    """Return (N,) text, int64 or float64, whichever the column holds; of several columns (N, K) float64.

    `kinds` are those that the config sets, `place` says where row i stands. Raises DataError for cells that are missing
    or do not fit, and for dates.
    """
    if len(names) > 1:
        return np.stack([_read_one_of_several(name, rows[name], cell_place(place, name)) for name in names], axis=1)
    name = names[0]
    return _read_only(name, rows[name], kinds.get(name), cell_place(place, name))


def _read_one_of_several(name: str, column: pa.ChunkedArray, place: Place) -> np.ndarray:
    """Return (N,) float64, with true and false as 1 and 0."""
    _refuse_missing(column, place)
    return to_numbers(name, _booleans_as_numbers(name, column, place), place)


def _read_only(name: str, column: pa.ChunkedArray, kind: Kind | None, place: Place) -> np.ndarray:
    """Return (N,) text, int64 or float64; `kind` None is guessed."""
    _refuse_missing(column, place)
    kind = kind or guess_kind(name, column, place)[0]
    if kind == "date":
        raise DataError(f"{place(0)}: is a date, which cannot be a target")
    if kind != "numeric":
        return _labels(to_text(name, column, place), place)
    numbers = to_numbers(name, column, place)
    if not all_integers(column) or np.abs(numbers).max() >= 2**63:
        return numbers
    text = pc.replace_substring_regex(pc.cast(column, pa.string()), r"^\+", "")  # which Arrow's integers have not
    integers: np.ndarray = pc.cast(text, pa.int64()).to_numpy()
    return integers


def _refuse_missing(column: pa.ChunkedArray, place: Place) -> None:
    if column.null_count:
        raise missing_value(column, place, "fill in the target, remove the row, or set missing: drop")


def _labels(text: pa.ChunkedArray, place: Place) -> np.ndarray:
    lengths = pc.utf8_length(text).to_numpy()
    if lengths.max() > _MAX_LABEL_LENGTH:  # numpy pads all to the longest
        row_index = int(lengths.argmax())
        start = text[row_index].as_py()[:40]
        raise DataError(f"{place(row_index)}: {lengths[row_index]} characters are no label: {start!r}...")
    return np.asarray(text.to_pylist(), np.str_)


def _booleans_as_numbers(name: str, column: pa.ChunkedArray, place: Place) -> pa.ChunkedArray:
    """Return 1 and 0 where all cells say true and false, else the column as it is."""
    if is_number(column.type):
        return column
    text = pc.utf8_lower(to_text(name, column, place))
    if pc.all(pc.is_in(text, value_set=pa.array(["true", "false"]))).as_py():
        return pc.cast(pc.equal(text, "true"), pa.int64())
    return column
