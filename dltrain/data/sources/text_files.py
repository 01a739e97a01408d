"""Texts and their targets as files hold them: a table with a column of text, or a folder of files for each class.

Texts are stripped of the spaces around them. What is missing is null or, of a target, a problem of its sample.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dltrain.data.sources.labelled_files import TEXTS, list_folder, list_inputs
from dltrain.data.sources.table_cells import to_split_names
from dltrain.data.sources.table_features import cell_place
from dltrain.data.sources.table_files import TableFile, check_columns, first_misfit
from dltrain.data.sources.utf8_files import read_utf8
from dltrain.errors import DataError
from dltrain.names import shortened

_MAX_LABEL_LENGTH = 1000
_INTEGER = r"^-?(0|[1-9]\d{0,17})$"
_NUMBER = r"^[-+]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][-+]?\d+)?$"
"""Labels such as "007" are text."""


@dataclass(frozen=True)
class LabelledTexts:
    """Texts with their targets, the bad ones among them."""

    texts: pa.ChunkedArray
    """(N,) of large_string, null where there is none."""
    targets: np.ndarray
    place: Callable[[int], str]
    """Where text i stands, for messages."""
    splits: np.ndarray | None
    target_names: tuple[str, ...] = ()
    problems: dict[int, str] = field(default_factory=dict)
    """What is wrong with the samples that cannot be used, with its place."""


def read_folder(root: str) -> LabelledTexts:
    """Read a folder with a folder of .txt files for each class, perhaps in train/, val/ and test/."""
    files = list_folder(root, TEXTS)
    texts: list[str] = []
    problems: dict[int, str] = {}
    for index, path in enumerate(files.paths):
        try:
            texts.append(read_text_file(path))
        except DataError as error:
            texts.append("")
            problems[index] = str(error)
        else:
            if not texts[-1]:
                problems[index] = f"{path}: is empty"
    place = files.places.__getitem__
    return LabelledTexts(_large_strings(pa.array(texts)), files.targets, place, files.splits, problems=problems)


def read_text_file(path: str) -> str:
    """Return the text of a file. Raises DataError if it cannot be read or is not UTF-8."""
    return read_utf8(path).decode().strip()


def read_table(
    file: TableFile, column: str, target_columns: Sequence[str], split_column: str | None, *, text_is_sure: bool
) -> LabelledTexts:
    """Read the texts of `column`, the targets, and perhaps the splits.

    Targets: of one column, integers or floats if all of it is such, else text; several are (N, K) numbers. Unless
    `text_is_sure`, a CSV column of numbers is refused, too. Raises DataError for columns that are not there or hold
    something else; a cell that is missing is a problem of its row.
    """
    table = file.read()
    wanted = [column, *target_columns, *([split_column] if split_column else [])]
    check_columns(file.name, wanted, table.column_names)

    def place(index: int) -> str:
        return f"{file.name}: row {index + 1}"

    problems: dict[int, str] = {}
    for name in (*target_columns, column):
        for index in np.flatnonzero(table[name].is_null().to_numpy()).tolist():
            problems[index] = f"{place(index)}, column {name!r}: is empty"
    texts = to_texts(file.name, column, table[column])
    if not text_is_sure and len(problems) < len(texts) and _all_match(texts, _NUMBER):
        raise DataError(f"{file.name}: column {column!r} holds numbers, not text")
    bad = np.array([*problems], np.int64)
    targets = [_read_target(name, table[name], bad, place, len(target_columns) > 1) for name in target_columns]
    return LabelledTexts(
        texts=texts,
        targets=targets[0] if len(targets) == 1 else np.stack(targets, axis=1),
        place=place,
        splits=None
        if split_column is None
        else to_split_names(split_column, table[split_column], cell_place(place, split_column)),
        target_names=tuple(target_columns),
        problems=dict(sorted(problems.items())),
    )


def read_new_texts(
    paths: Sequence[str], column: str, open_table: Callable[[str], TableFile], num_texts: int
) -> Iterator[tuple[pa.ChunkedArray, Callable[[int], str]]]:
    """Yield unlabelled texts of .txt files, folders with all .txt files below, and tables, in blocks, and their places.

    Nulls are missing texts. Raises DataError for what cannot be read.
    """
    for path in paths:
        if os.path.isdir(path) or TEXTS.fits(os.path.basename(path)):
            files = list(list_inputs([path], "path", TEXTS))
            for start in range(0, len(files), num_texts):
                block = files[start : start + num_texts]
                yield _large_strings(pa.array([read_text_file(file) for file in block])), block.__getitem__
            continue
        file, first_row = open_table(path), 1
        check_columns(file.name, [column], file.column_names())
        for table in file.blocks([column]):
            yield to_texts(file.name, column, table[column]), _row_place(file.name, first_row)
            first_row += len(table)


def to_texts(file: str, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the cells as large_string. Raises DataError if the column is of another type than text."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not pa.types.is_string(kind):
        is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
        raise DataError(
            f"{file}: column {name!r} holds {'numbers' if is_number else f'values of type {kind}'}, not text"
        )
    return _large_strings(column)


def _large_strings(column: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    """Return text that may be longer than 2 GiB in all."""
    texts = pc.cast(pc.cast(column, pa.string()), pa.large_string())
    return texts if isinstance(texts, pa.ChunkedArray) else pa.chunked_array([texts])


def _row_place(file: str, first_row: int) -> Callable[[int], str]:
    return lambda i: f"{file}: row {first_row + i}"


def _all_match(texts: pa.ChunkedArray, pattern: str) -> bool:
    return pc.all(pc.match_substring_regex(texts, pattern)).as_py() is not False


def _read_target(
    name: str, column: pa.ChunkedArray, bad: np.ndarray, place: Callable[[int], str], one_of_several: bool
) -> np.ndarray:
    """Return (N,) int64, float64 or text; of several, float64, with true and false as 1 and 0.

    The rows at `bad` will be left out, whatever stands there.
    """
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_struct(kind):
        raise DataError(
            f"{place(0)}, column {name!r}: is of type {kind}, which cannot be a target; several labels of a text are "
            "written as one text with | between them"
        )
    good = np.delete(np.arange(len(column)), bad)
    cells = pc.cast(column.take(pa.array(good)), pa.string())
    is_text = pa.types.is_dictionary(kind) and not one_of_several  # by its author's choice, "007" included
    if one_of_several and _all_match(lowered := pc.utf8_lower(cells), "^(true|false)$"):
        values = pc.equal(lowered, "true").to_numpy().astype(np.float64)
    elif not is_text and not pa.types.is_floating(kind) and _all_match(cells, _INTEGER):
        values = pc.cast(cells, pa.int64()).to_numpy()
    elif not is_text and (one_of_several or _all_match(cells, f"{_NUMBER}|^[-+]?(nan|inf)$")):
        values = _to_floats(name, cells, lambda i: place(int(good[i])))
    else:
        values = _labels(name, cells, lambda i: place(int(good[i])))
    targets = np.zeros(len(column), np.float64 if one_of_several else values.dtype)
    targets[good] = values
    return targets


def _to_floats(name: str, cells: pa.ChunkedArray, place: Callable[[int], str]) -> np.ndarray:
    index = first_misfit(cells, pa.float64())
    if index is not None:
        raise DataError(f"{place(index)}, column {name!r}: {shortened(cells[index].as_py())!r} is not a number")
    numbers: np.ndarray = pc.cast(cells, pa.float64()).to_numpy()
    if not np.isfinite(numbers).all():
        index = int(np.argmin(np.isfinite(numbers)))
        raise DataError(f"{place(index)}, column {name!r}: {cells[index].as_py()!r} is not a finite number")
    return numbers


def _labels(name: str, cells: pa.ChunkedArray, place: Callable[[int], str]) -> np.ndarray:
    lengths = pc.utf8_length(cells).to_numpy()
    if len(lengths) and lengths.max() > _MAX_LABEL_LENGTH:  # numpy pads all to the longest
        index = int(lengths.argmax())
        raise DataError(f"{place(index)}, column {name!r}: {lengths[index]} characters are no label")
    return np.array(cells.to_pylist(), np.str_)


def table_file(path: str, name: str) -> TableFile:
    """Return the table at `path`; no text in it means a missing one but the empty text."""
    return TableFile(Path(path), name, delimiter=None, missing_values=())
