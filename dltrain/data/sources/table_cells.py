"""What the cells of a column mean: its kind, and the cells as numbers, dates or text.

Kinds are guessed once, from the training rows; later rows are held to them. A cell that does not fit is a
DataError with its row, never a missing value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dltrain.data.sources.table_files import NAMELESS, first_misfit
from dltrain.data.split import NAMES
from dltrain.errors import DataError

Kind = Literal["numeric", "category", "date", "ignore"]
Place = Callable[[int], str]
"""Where row i of a column stands, for messages: "people.csv: row 17, column 'age'"."""

_NUMBER = r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$"
_INTEGER = r"^[-+]?\d+$"
_DATE = r"^\d{4}-\d{2}-\d{2}([ T]\d{2}(:\d{2}(:\d{2}(\.\d+)?)?)?(Z|[-+]\d{2}(:?\d{2})?)?)?$"
_ZONE = r":\d{2}.*(Z|[-+]\d{2}(:?\d{2})?)$|[ T]\d{2}(Z|[-+]\d{2}(:?\d{2})?)$"
_MIN_ROWS_TO_DIFFER = 10
_SHARE_THAT_DIFFERS = 0.9


def guess_kind(name: str, column: pa.ChunkedArray, place: Place) -> tuple[Kind, str]:
    """Return the kind of a column of training rows, and why where it is ignored.

    Text of which at least half reads as numbers (as dates) is numeric (date): the cells that do not are
    then reported as errors rather than turning the column into a category. Text in Parquet is never numeric.
    Raises DataError for types that cannot be a feature (lists, binary, times).
    """
    if name.startswith(NAMELESS):
        return "ignore", "has no name; a saved row index?"
    if column.null_count == len(column):
        return "ignore", "has no values in the training split"
    if is_number(column.type):
        return "numeric", ""
    if pa.types.is_timestamp(column.type):
        return "date", ""
    text = to_text(name, column, place)
    if pa.types.is_string(column.type) and _share(text, _NUMBER) >= 0.5:
        return "numeric", ""
    if _share(text, _DATE) >= 0.5:
        return "date", ""
    num_values, num_different = len(text) - text.null_count, pc.count_distinct(text).as_py()
    if num_values >= _MIN_ROWS_TO_DIFFER and num_different > _SHARE_THAT_DIFFERS * num_values:
        return "ignore", f"text that nearly always differs ({num_different} different of {num_values})"
    return "category", ""


def is_number(kind: pa.DataType) -> bool:
    """Say whether an Arrow type holds numbers."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def all_integers(column: pa.ChunkedArray) -> bool:
    """Say whether every cell that is there is a whole number, or the text of one without a point."""
    if pa.types.is_string(column.type):
        return _share(column, _INTEGER) == 1
    return bool(pa.types.is_integer(column.type))


def has_zone(column: pa.ChunkedArray) -> bool:
    """Say whether a column of dates carries time zones; text is judged by its first value."""
    if pa.types.is_timestamp(column.type):
        return column.type.tz is not None
    first = pc.cast(column, pa.string()).drop_null().slice(0, 1)
    return bool(pc.any(pc.match_substring_regex(first, _ZONE)).as_py())


def to_numbers(name: str, column: pa.ChunkedArray, place: Place) -> np.ndarray:
    """Return the cells as (N,) float64, NaN where missing.

    Raises DataError at a cell that is not a finite number.
    """
    if not is_number(column.type):
        column = to_text(name, column, place)
        row_index = first_misfit(column, pa.float64())
        if row_index is not None:
            raise _not_a(name, "a number", column, row_index, place)
    numbers: np.ndarray = pc.cast(column, pa.float64(), safe=False).to_numpy()
    infinite = ~np.isfinite(numbers)
    infinite[infinite] = column.is_valid().to_numpy()[infinite]
    if infinite.any():
        raise _not_a(name, "a finite number", column, int(infinite.argmax()), place)
    return numbers


def to_dates(name: str, column: pa.ChunkedArray, zoned: bool, place: Place) -> np.ndarray:
    """Return ISO 8601 text or timestamps as (N,) datetime64[us], NaT where missing; times with a zone in UTC.

    `zoned` says whether the training rows carry time zones: mixing both would shift times silently.
    """
    kind = pa.timestamp("us", "UTC" if zoned else None)
    what = "a date with a time and zone" if zoned else "a date without a time zone"
    if pa.types.is_timestamp(column.type):
        if column.type != kind:
            raise DataError(f"{place(0)}: is not {what}, which the training data hold")
    else:
        # Arrow reads fractions of a second to the unit only; finer ones are cut.
        column = pc.replace_substring_regex(to_text(name, column, place), r"(\.\d{6})\d+", r"\1")
        row_index = first_misfit(column, kind)
        if row_index is not None:
            raise _not_a(name, f"{what} (like 2024-05-31{' 12:00Z' if zoned else ''})", column, row_index, place)
        column = pc.cast(column, kind)
    # Without pandas Arrow gives numpy times only through integers.
    microseconds = pc.cast(column, pa.int64()).fill_null(np.iinfo(np.int64).min).to_numpy()
    dates: np.ndarray = microseconds.astype("datetime64[us]")
    return dates


def to_text(name: str, column: pa.ChunkedArray, place: Place) -> pa.ChunkedArray:
    """Return the cells as text, 3.0 as "3". Raises DataError for types of which no feature can be made."""
    kind = column.type
    if pa.types.is_string(kind):
        return column
    if is_number(kind) or pa.types.is_timestamp(kind) or pa.types.is_dictionary(kind):
        return pc.cast(column, pa.string())
    raise DataError(
        f"{place(0)}: is of type {kind}, of which no feature can be made; leave it out with {_set(name, 'ignore')}"
    )


def to_split_names(name: str, column: pa.ChunkedArray, place: Place) -> np.ndarray:
    """Return (N,) of "train", "val" and "test". Raises DataError at anything else."""
    text = to_text(name, column, place).fill_null("")
    known = pc.is_in(text, value_set=pa.array(NAMES)).to_numpy()
    if not known.all():
        row_index = int(known.argmin())
        value = text[row_index].as_py()
        raise DataError(f"{place(row_index)}: {value!r} is none of {', '.join(NAMES)}")
    return np.asarray(text.to_pylist(), np.str_)


def date_features(dates: np.ndarray) -> dict[str, np.ndarray]:
    """Return the features of (N,) datetime64 dates, each (N,) float64, NaN where the date is missing.

    `year`; month and day of week on the circle, as sine and cosine, so that December is next to January;
    `seconds` since midnight.
    """
    missing = np.isnat(dates)
    dates = np.where(missing, np.datetime64(0, "us"), dates)
    days = dates.astype("datetime64[D]")
    month_angle = 2 * np.pi / 12 * (dates.astype("datetime64[M]").astype(np.int64) % 12)
    weekday_angle = 2 * np.pi / 7 * ((days.astype(np.int64) + 3) % 7)  # day 0, 1970-01-01, was a Thursday
    features = {
        "year": dates.astype("datetime64[Y]").astype(np.int64) + 1970.0,
        "month_sin": np.sin(month_angle),
        "month_cos": np.cos(month_angle),
        "weekday_sin": np.sin(weekday_angle),
        "weekday_cos": np.cos(weekday_angle),
        "seconds": (dates - days) / np.timedelta64(1, "s"),
    }
    return {name: np.where(missing, np.nan, values) for name, values in features.items()}


def _share(text: pa.ChunkedArray, pattern: str) -> float:
    share: float | None = pc.mean(pc.match_substring_regex(text, pattern)).as_py()
    return 0.0 if share is None else share


def _not_a(name: str, what: str, column: pa.ChunkedArray, row_index: int, place: Place) -> DataError:
    value = column[row_index].as_py()
    return DataError(
        f"{place(row_index)}: {value!r} is not {what}; if it means a missing value, add it to "
        f"missing_values; if the column holds something else, set {_set(name, 'category')} or "
        f"{_set(name, 'ignore')}"
    )


def _set(name: str, kind: Kind) -> str:
    return f"columns: {{{name}: {kind}}}"
