"""Tables as a data source: CSV and Parquet files -> a numeric and a categorical tensor.

`read` gives labelled rows, `fit` learns from the training rows (column kinds, scaling, vocabularies),
`encode` turns any rows into tensors. The inputs of `Samples` are `Rows` without the targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dltrain.data.columns import Samples
from dltrain.data.sources.fingerprint import fingerprint_files
from dltrain.data.sources.table_rows import Rows
from dltrain.data.storage import allocate
from dltrain.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pyarrow as pa

    from dltrain.data.sources.scaling import Scale
    from dltrain.data.sources.table_cells import Kind, Place
    from dltrain.data.sources.table_features import Categories, Missing
    from dltrain.data.sources.table_files import TableFile


class Table:
    """Rows of a CSV or Parquet file: numbers, categories and dates, and one or several targets.

    Inputs: numeric (N, F) float32; then categories (N, C) int64, if they are embedded and there are any.
    Slot 0 of a category stands for values that the training rows lack and for missing ones, and is counted in
    state["cardinalities"]. One-hot, each value of the training rows is a 0/1 feature of numeric, and an
    unknown or missing value is all zeros. A date becomes several numeric features (see `date_features`),
    time of day only where the training rows have it.

    Scaling and fills come from the training rows. A constant column becomes zeros; with `minmax`, later
    values may lie outside 0..1. `missing: indicator` fills with the mean and adds a 0/1 feature for each
    numeric or date column that misses values in the training rows. In categories, mean, median and
    indicator take slot 0.
    A row without a target is an error, or dropped with `missing: drop`.
    """

    def __init__(
        self,
        path: str,
        target: str | list[str],
        columns: Mapping[str, Kind] | None = None,
        categories: Categories = "embedding",
        scale: Scale = "standard",
        missing: Missing = "error",
        missing_values: Sequence[str] = ("nan", "NaN"),
        delimiter: str | None = None,
        split_column: str | None = None,
        base: str = ".",
    ) -> None:
        """Keep the settings; no file is touched. A relative `path` is relative to the folder `base`."""
        self.path = path
        self.targets = (target,) if isinstance(target, str) else tuple(target)
        self.kinds = dict(columns or {})
        self.categories = categories
        self.scale = scale
        self.missing = missing
        self.missing_values = tuple(missing_values)
        self.delimiter = delimiter
        self.split_column = split_column
        self.base = base
        self.notes: list[str] = []
        """What the user should be told about what was read: the rows that were dropped, file by file."""
        self._check_settings()

    def read(self, path: str | None = None) -> Samples:
        """Return the labelled rows of `path`, or of the source's own file.

        Targets: (N,) text, int64 or float64, whichever the column holds; several targets: (N, K) float64.
        Splits where there is a split column, which only the source's own file must have.
        Raises DataError for files, columns, targets and split names that are wrong.
        """
        from dltrain.data.sources.table_cells import to_split_names
        from dltrain.data.sources.table_features import cell_place
        from dltrain.data.sources.table_files import check_columns
        from dltrain.data.sources.table_targets import read_targets

        file = self._file(path)
        table = file.read()
        check_columns(file.name, self._needed_columns(own=path is None), table.column_names)
        indices = np.arange(len(table))
        rows = Rows(table)
        if self.missing == "drop":
            indices = self._complete_rows(file.name, table)
            rows = rows.take(indices)
        place = _row_place(file.name, indices)
        splits = None
        if self.split_column is not None and self.split_column in table.column_names:
            splits = to_split_names(self.split_column, rows[self.split_column], cell_place(place, self.split_column))
        not_inputs = [*self.targets, *([] if splits is None else [self.split_column])]
        return Samples(
            inputs=Rows(table.drop_columns(not_inputs), rows.indices),
            targets=read_targets(rows, self.targets, self.kinds, place),
            place=place,
            take_inputs=Rows.take,
            target_names=self.targets,
            splits=splits,
        )

    def read_inputs(self, paths: list[str], state: dict[str, Any]) -> Iterator[Samples]:
        """Yield the rows of the files in blocks, without targets; memory does not grow with the files.

        Columns that are no features are not read. Raises DataError for wrong files and missing columns.
        """
        from dltrain.data.sources.table_files import check_columns

        wanted = [column["name"] for column in state["columns"] if column["kind"] != "ignore"]
        for path in paths:
            file = self._file(path)
            check_columns(file.name, wanted, file.column_names())
            start = 0
            for block in file.blocks(wanted):
                rows = np.arange(start, start + len(block))
                start += len(block)
                yield Samples(Rows(block), None, _row_place(file.name, rows), Rows.take)

    def fit(self, samples: Samples) -> dict[str, Any]:
        """Return what the training rows teach: {"columns", "features", "cardinalities"}, JSON-able.

        "columns" is a list to be shown, each with name, kind and note; "features" names the columns of
        numeric; "cardinalities" holds the size of each embedded column, slot 0 included.
        Raises DataError for cells that do not fit the kind of their column, and where no feature is left.
        """
        from dltrain.data.sources.table_features import feature_names, fit_column, is_embedded

        rows: Rows = samples.inputs
        file = rows.file
        settings = (self.categories, self.scale, self.missing)
        columns = [
            fit_column(file, name, rows[name], samples.place, self.kinds.get(name), *settings)
            for name in rows.column_names
        ]
        if all(column["kind"] == "ignore" for column in columns):
            reasons = "".join(f"; {column['name']!r}: {column['note']}" for column in columns)
            raise DataError(f"{file}: no column is left as a feature{reasons}")
        return {
            "columns": columns,
            "features": [name for column in columns for name in feature_names(column)],
            "cardinalities": [len(column["values"]) + 1 for column in columns if is_embedded(column)],
        }

    def encode(self, samples: Samples, state: dict[str, Any]) -> tuple[Tensor, ...]:
        """Return numeric (N, F) float32, then categories (N, C) int64 if C > 0.

        Raises DataError with file, row and column for cells that are missing where that is refused, do not
        fit the kind of their column, or overflow float32.
        """
        from dltrain.data.sources.table_features import cell_place, encode_codes, encode_features, is_embedded
        from dltrain.data.sources.table_files import check_columns

        rows: Rows = samples.inputs
        columns = [column for column in state["columns"] if column["kind"] != "ignore"]
        check_columns(rows.file, [column["name"] for column in columns], rows.column_names)
        numeric = allocate((len(rows), len(state["features"])), np.float32)
        categories = allocate((len(rows), len(state["cardinalities"])), np.int64)
        for at, block in rows.blocks():
            place = _later(samples.place, at.start)
            feature_index = category_index = 0
            for column in columns:
                cells, cell = block[column["name"]], cell_place(place, column["name"])
                if is_embedded(column):
                    categories[at, category_index] = encode_codes(cells, column, cell)
                    category_index += 1
                    continue
                for values in encode_features(cells, column, cell):
                    numeric[at, feature_index] = values
                    feature_index += 1
        tensors = (torch.from_numpy(numeric), torch.from_numpy(categories))
        return tensors if state["cardinalities"] else tensors[:1]

    def files(self, path: str | None = None) -> list[tuple[str, str]]:
        """Return (name, path) of the one file that `read(path)` reads."""
        file = self._path(path)
        return [(file.name, str(file))]

    def fingerprint(self, path: str | None = None) -> str:
        """Return a hash of the file that `read(path)` reads."""
        return fingerprint_files(self.files(path))

    def _check_settings(self) -> None:
        problems = []
        if not self.targets or len(set(self.targets)) < len(self.targets):
            problems.append("target: name at least one column, and each only once")
        if self.split_column in self.targets:
            problems.append(f"split_column: {self.split_column!r} is a target")
        if self.split_column in self.kinds:
            problems.append(f"columns: {self.split_column!r} is the split_column, not a feature")
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            problems.append(f"delimiter: {self.delimiter!r} is not one character, or a quote or line end")
        problems += [
            f"columns: {name!r} is a target, which can be numeric or category, not {self.kinds[name]}"
            for name in self.targets
            if self.kinds.get(name) in ("date", "ignore")
        ]
        if problems:
            raise ConfigError(*problems)

    def _path(self, path: str | None) -> Path:
        return Path(self.base, self.path) if path is None else Path(path)

    def _file(self, path: str | None) -> TableFile:
        from dltrain.data.sources.table_files import TableFile

        name = self.path if path is None else str(path)
        return TableFile(self._path(path), name, self.delimiter, self.missing_values)

    def _needed_columns(self, own: bool) -> list[str]:
        """Return what a file with labels must have: the targets, and the source's own file all that settings name."""
        named = [*self.kinds, *([self.split_column] if self.split_column else [])]
        return [*self.targets, *(named if own else [])]

    def _complete_rows(self, file: str, table: pa.Table) -> np.ndarray:
        """Return the indices of the rows that miss nothing, and note how many others there are.

        Columns do not count that are set to ignore, have no name, or no value at all.
        """
        from dltrain.data.sources.table_files import NAMELESS

        complete = np.ones(len(table), bool)
        missing = []
        for name, column in zip(table.column_names, table.columns, strict=True):
            kind = self.kinds.get(name, "ignore" if name.startswith(NAMELESS) else None)
            if kind != "ignore" and 0 < column.null_count < len(column):
                complete &= column.is_valid().to_numpy()
                missing.append(f"{name!r} in {column.null_count}")
        rows = np.flatnonzero(complete)
        if missing:
            num_dropped = len(table) - len(rows)
            note = f"{file}: dropped {num_dropped} of {len(table)} rows: missing {', '.join(missing)}"
            if not len(rows):
                raise DataError(f"{note}; set columns that often lack values to ignore, or missing: mean")
            self.notes.append(note)
        return rows


def _row_place(file: str, rows: np.ndarray) -> Callable[[int], str]:
    return lambda i: f"{file}: row {rows[i] + 1}"


def _later(place: Place, start: int) -> Place:
    """Return where the samples from `start` on stand."""
    return lambda i: place(start + i)
