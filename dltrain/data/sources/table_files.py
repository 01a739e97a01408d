"""CSV, JSON lines and Parquet files as Arrow tables; each way in which a file can be wrong becomes one DataError.

CSV cells stay text here: what a column means is decided later, from the training rows (table_cells.py).
A missing cell is null in each format. Row numbers count data rows from 1, without the header.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from dltrain.data.sources.json_lines import explain_json_lines, read_json_lines
from dltrain.data.storage import is_large, map_file, scratch_file
from dltrain.errors import DataError
from dltrain.names import did_you_mean, first_line, shortened

BLOCK_ROWS = 8192
NAMELESS = ("Unnamed: ", "__index_level_")
"""How pandas names columns without a name, mostly a saved row index; here, too, those of CSV files."""
_MIB = 1 << 20
_GZIP_FACTOR = 10  # how much larger a table may well be than its compressed file
_PARQUET, _GZIP, _ZIP = b"PAR1", b"\x1f\x8b", b"PK\x03\x04"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class TableFile:
    """A table and how to read it: JSON lines if its name says so, else CSV or Parquet, as its first bytes tell."""

    path: Path
    name: str
    """What messages call the file: the path as the user wrote it."""
    delimiter: str | None
    """What separates CSV cells; None is a comma, or a tab in .tsv files."""
    missing_values: Sequence[str]
    """Texts that mean a missing value, besides the empty cell."""

    def read(self) -> pa.Table:
        """Return all rows.

        Column types: string (CSV), and from Parquet and JSON integers, float64, timestamp[us] (UTC where there is a
        time zone) and dictionary (text and booleans); other types stay as they are.
        A table that is large beside the memory is written to a file without a name, and mapped.
        Raises DataError if the file cannot be read, has no rows, or names two columns alike.
        """
        if not self._is_json and is_large(self._size_bytes()):
            return self._read_mapped()
        if self._magic == _PARQUET:
            with self._explained():
                table = pq.ParquetFile(self.path).read()
                table.validate(full=True)  # Arrow takes text for UTF-8 without a look
                _check_names(self.name, table.column_names)
        elif self._is_json:
            table = self._read_json()
        else:
            with self._explained():
                options = self._csv_options(None)
                names = [*options.pop("names")]
                table = pacsv.read_csv(self._stream(), **options).rename_columns(names)
                self._check_last_cell(table.columns[-1], len(table))
        self._check_rows(table.num_rows)
        return self._cleaned(table.combine_chunks())

    def _read_mapped(self) -> pa.Table:
        """Return all rows in memory that is a file."""
        blocks = self.blocks(self.column_names())
        first = next(blocks)
        try:
            with scratch_file() as file:
                with pa.ipc.new_stream(file, first.schema) as writer:
                    writer.write_table(first)
                    for block in blocks:
                        writer.write_table(block)
                pa.default_memory_pool().release_unused()
                return pa.ipc.open_stream(pa.py_buffer(map_file(file))).read_all()
        except OSError as error:
            raise DataError(
                f"{self.name}: is large beside the memory, and there is no room on the disk to lay it out: "
                f"{error.strerror or error}; set DLTRAIN_CACHE to a folder with more"
            ) from None

    def _size_bytes(self) -> int:
        """Return about how much memory all rows take."""
        if self._magic == _PARQUET:
            with self._explained():
                facts = pq.read_metadata(self.path)
            groups = sum(facts.row_group(i).total_byte_size for i in range(facts.num_row_groups))
            return int(max(groups, facts.num_rows * facts.num_columns * 8))
        return self.path.stat().st_size * (_GZIP_FACTOR if self._magic[:2] == _GZIP else 2)

    def column_names(self) -> list[str]:
        """Return the names of the columns, without reading further than needed: all of it, if it is JSON lines."""
        if self._is_json:
            return list(self._read_json().column_names)
        with self._explained():
            if self._magic == _PARQUET:
                names: list[str] = pq.ParquetFile(self.path).schema_arrow.names
                _check_names(self.name, names)
                return names
            return list(self._csv_options(None)["names"])

    def blocks(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the rows of `columns`, which must exist, at most BLOCK_ROWS at a time, typed as by `read`.

        Memory does not grow with the file (but with JSON lines). Raises DataError as
        `read` does.
        """
        batches = self._batches(columns)
        num_rows = 0
        while True:
            with self._explained():
                batch = next(batches, None)
            if batch is None:
                break
            num_rows += batch.num_rows
            table = self._cleaned(pa.Table.from_batches([batch]).rename_columns(list(columns)))
            for start in range(0, table.num_rows, BLOCK_ROWS):
                yield table.slice(start, BLOCK_ROWS)
        self._check_rows(num_rows)

    def _batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        if self._is_json:
            return iter(self._read_json().select(list(columns)).to_batches())
        return self._parquet_batches(columns) if self._magic == _PARQUET else self._csv_batches(columns)

    def _read_json(self) -> pa.Table:
        with self._explained():
            return read_json_lines(self._stream())

    def _parquet_batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        file = pq.ParquetFile(self.path, memory_map=True)  # else whole column chunks are read first
        for batch in file.iter_batches(batch_size=BLOCK_ROWS, columns=list(columns)):
            batch.validate(full=True)
            yield batch.select(list(columns))

    def _csv_batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        names = self._csv_options(None)["names"]
        # The last column comes along because its last cell tells whether a quote was left open.
        options = self._csv_options([*columns, *([names[-1]] if names[-1] not in columns else [])])
        options.pop("names")
        last_index = list(columns).index(names[-1]) if names[-1] in columns else len(columns)
        num_rows = 0
        for batch in pacsv.open_csv(self._stream(), **options):
            num_rows += batch.num_rows
            self._check_last_cell(batch.columns[last_index], num_rows)
            yield batch.select(range(len(columns)))

    def _csv_options(self, columns: Sequence[str] | None) -> dict[str, Any]:
        """Return what pyarrow's CSV readers are called with, and "names", the names of all columns.

        The cells of `columns` (None: of all) are read as text.
        """
        parse = {"delimiter": self._delimiter(), "newlines_in_values": True}
        raw = pacsv.open_csv(self._stream(), parse_options=pacsv.ParseOptions(**parse)).schema.names
        names = [name.strip() or f"{NAMELESS[0]}{i}" for i, name in enumerate(raw)]
        _check_names(self.name, names)
        # In a table of one column an empty line is a row with a missing cell, elsewhere it is nothing.
        parse["ignore_empty_lines"] = len(names) > 1
        raw_of = dict(zip(names, raw, strict=True))
        return {
            "names": names,
            "parse_options": pacsv.ParseOptions(**parse),
            "convert_options": pacsv.ConvertOptions(
                column_types={name: pa.string() for name in raw},
                include_columns=None if columns is None else [raw_of[name] for name in columns],
                strings_can_be_null=False,
            ),
        }

    def _check_last_cell(self, column: Any, num_rows: int) -> None:
        """Raise DataError where an open quote swallowed the rest of the file, which pyarrow lets pass."""
        cell = column[-1].as_py() if len(column) else ""
        if "\n" not in cell.rstrip():
            return
        end = b""
        with self._stream() as stream:
            while chunk := stream.read(_MIB):
                end = (end + chunk)[-_MIB:]
        if not end.rstrip().endswith(b'"'):
            start = shortened(cell.rstrip())
            raise DataError(f'{self.name}: row {num_rows}: a quote (") is not closed: {start!r}')

    def _delimiter(self) -> str:
        return self.delimiter or ("\t" if ".tsv" in self.path.suffixes else ",")

    def _stream(self) -> pa.NativeFile:
        return pa.input_stream(str(self.path), compression="gzip" if self._magic[:2] == _GZIP else None)

    @property
    def _is_json(self) -> bool:
        return self._magic != _PARQUET and not {".jsonl", ".ndjson"}.isdisjoint(self.path.suffixes)

    @functools.cached_property
    def _magic(self) -> bytes:
        """Return the first bytes of the file. Raises DataError if there are none or the format is foreign."""
        try:
            with self.path.open("rb") as stream:
                magic = stream.read(4)
        except FileNotFoundError:
            raise DataError(f"{self.name}: no such file{_nearest_file(self.path)}") from None
        except IsADirectoryError:
            raise DataError(f"{self.name}: is a folder, not a CSV, JSON lines or Parquet file") from None
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read: {error.strerror}") from None
        if not magic:
            raise DataError(f"{self.name}: the file is empty")
        if magic == _ZIP:
            raise DataError(f"{self.name}: is an Excel or zip file; save the table as CSV or Parquet")
        if magic[:2] in _UTF16:
            raise DataError(f"{self.name}: the text is UTF-16; save it as UTF-8")
        if self.path.suffix == ".json":
            raise DataError(f"{self.name}: save it as JSON lines, one object on each line, and call it .jsonl")
        if self.path.suffix == ".parquet" and magic != _PARQUET:
            raise DataError(f"{self.name}: is not a Parquet file (it does not begin with PAR1)")
        return magic

    def _check_rows(self, num_rows: int) -> None:
        if num_rows == 0:
            raise DataError(f"{self.name}: has {'' if self._is_json else 'column names but '}no rows")

    def _cleaned(self, table: pa.Table) -> pa.Table:
        columns = [self._cleaned_column(column) for column in table.columns]
        # The file's name travels with the columns, for messages about the whole of a column.
        return pa.table(columns, names=table.column_names, metadata={"file": self.name})

    def _cleaned_column(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return the column as one of the types that `read` names, missing cells as null."""
        kind = column.type
        if pa.types.is_string(kind):
            return self._cleaned_text(column)
        if pa.types.is_dictionary(kind):
            return self._cleaned_column(pc.cast(column, kind.value_type))
        if pa.types.is_null(kind) or pa.types.is_boolean(kind):
            return pc.dictionary_encode(pc.cast(column, pa.string()))
        if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            return self._cleaned_text(pc.cast(column, pa.string()))
        if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            numbers = pc.cast(column, pa.float64(), safe=False)
            return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)
        if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
            zone = "UTC" if pa.types.is_timestamp(kind) and kind.tz else None
            return pc.cast(column, pa.timestamp("us", zone), safe=False)
        return column

    def _cleaned_text(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return the text without spaces around it; of Parquet and JSON, whose authors chose text, as dictionary."""
        text = pc.utf8_trim_whitespace(column)
        missing = pc.is_in(text, value_set=pa.array(["", *self.missing_values], pa.string()))
        text = pc.if_else(missing, pa.scalar(None, pa.string()), text)
        return pc.dictionary_encode(text) if self._magic == _PARQUET or self._is_json else text

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn the errors of pyarrow into a DataError that says what is wrong with the file."""
        try:
            yield
        except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
            raise DataError(f"{self.name}: {self._explanation(error)}") from None

    def _explanation(self, error: Exception) -> str:
        message = first_line(error)
        if self._magic == _PARQUET:
            return f"the Parquet file is damaged or incomplete: {message}"
        if self._is_json:
            return explain_json_lines(self._stream(), message)
        if isinstance(error, UnicodeDecodeError):
            return "the column names are not UTF-8 text; save the file as UTF-8"
        if "invalid UTF8" in message:
            return f"{self._first_bad_text()} is not UTF-8 text; save the file as UTF-8"
        if "columns, got" in message:
            return self._first_ragged_row()
        if "Empty CSV file or block" in message:
            return 'has no column names, or a quote (") in them is not closed'
        if "straddling" in message:
            return 'a row is longer than 1 MiB: is a quote (") not closed?'
        return f"cannot be read as CSV: {message}"

    def _first_ragged_row(self) -> str:
        """Return where the first row with too few or too many cells stands; reads the file again."""
        found: list[Any] = []

        def note(row: Any) -> str:
            found.append(row)
            return "error"

        parse = pacsv.ParseOptions(delimiter=self._delimiter(), newlines_in_values=True, invalid_row_handler=note)
        # Latin-1, as all bytes are text in it: Arrow cannot show a row that is not UTF-8.
        read = pacsv.ReadOptions(use_threads=False, encoding="latin-1")
        with contextlib.suppress(pa.ArrowInvalid):
            pacsv.read_csv(self._stream(), read_options=read, parse_options=parse)
        if not found:
            return "a row has too few or too many cells"
        row = found[0]
        text = row.text.encode("latin-1").decode(errors="replace")
        hint = '; is a quote (") not closed?' if text.count('"') % 2 else ""
        cells = f"{row.actual_columns} cell{'s' if row.actual_columns > 1 else ''}"
        counts = f"{cells} where the header has {row.expected_columns}"
        return f"row {row.number - 1}: {counts}: {shortened(text)!r}{hint}"

    def _first_bad_text(self) -> str:
        """Return where a cell stands that is not UTF-8; reads the file again, as bytes."""
        options = self._csv_options(None)
        names = options.pop("names")
        convert = options["convert_options"]
        convert.column_types = {name: pa.binary() for name in convert.column_types}
        with contextlib.suppress(pa.ArrowInvalid):
            table = pacsv.read_csv(self._stream(), **options)
            for name, column in zip(names, table.columns, strict=True):
                row_index = first_misfit(column, pa.string())
                if row_index is not None:
                    return f"row {row_index + 1}, column {name!r}: the cell"
        return "a cell"


def first_misfit(column: pa.ChunkedArray, kind: pa.DataType) -> int | None:
    """Return the index of the first cell that cannot be cast; by bisection, as Arrow does not tell which."""
    if _fits(column, kind):
        return None
    low, high = 0, len(column)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _fits(column.slice(low, middle - low), kind) else (low, middle)
    return low


def _fits(column: pa.ChunkedArray, kind: pa.DataType) -> bool:
    try:
        pc.cast(column, kind)
    except pa.ArrowInvalid:
        return False
    return True


def check_columns(file: str, wanted: Sequence[str], columns: Sequence[str]) -> None:
    """Raise DataError for the first of the `wanted` that is not among the `columns`; it says which is nearest."""
    name = next((name for name in wanted if name not in columns), None)
    if name is None:
        return
    guess = did_you_mean(name, columns) or ";"
    listed = ", ".join(columns[:20]) + (f" and {len(columns) - 20} more" if len(columns) > 20 else "")
    hint = ""
    if len(columns) == 1:
        found = [mark for mark in (",", ";", "\t", "|") if mark in columns[0]]
        hint = f". Only one column: is the delimiter {found[0]!r}? Then set delimiter" if found else ""
    raise DataError(f"{file}: no column {name!r}{guess} the columns: {listed}{hint}")


def _check_names(file: str, names: Sequence[str]) -> None:
    first: dict[str, int] = {}
    for i, name in enumerate(names):
        if name in first:
            raise DataError(f"{file}: columns {first[name] + 1} and {i + 1} have the same name, {name!r}; rename one")
        first[name] = i


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f", nor the folder {path.parent}"
    names = sorted(entry.name for entry in path.parent.iterdir())
    return did_you_mean(path.name, names) or f" (looked in {path.parent.resolve()})"
