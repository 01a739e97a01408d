"""Which files of a kind there are and what each shows: a folder for each class, or a CSV of paths."""

from __future__ import annotations

import csv
import functools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dltrain.data.split import NAMES
from dltrain.errors import ConfigError, DataError
from dltrain.names import did_you_mean

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)(e[-+]?[0-9]+)?|[-+]?(nan|inf)", re.IGNORECASE)
"""Narrower than Python's float: class names such as "007" and "1_2" are text."""


@dataclass(frozen=True)
class FileKind:
    """What a source reads: what messages call one such file, and the ends of the names that it has, without the dot."""

    noun: str
    endings: tuple[str, ...]

    def fits(self, name: str) -> bool:
        """Whether a file called `name` is of this kind; hidden files never are."""
        return not name.startswith(".") and name.lower().endswith(self._suffixes)

    @functools.cached_property
    def _suffixes(self) -> tuple[str, ...]:
        return tuple(f".{ending}" for ending in self.endings)


TEXTS = FileKind("text file", ("txt",))


@dataclass(frozen=True)
class LabelledFiles:
    """Files with what they show, in a fixed order."""

    paths: list[str]
    names: list[str]
    """Of the same files, relative to the folder or as the CSV has them."""
    places: list[str]
    """Of the same files, for messages."""
    targets: np.ndarray
    splits: np.ndarray | None
    target_names: tuple[str, ...] = ()


def list_labelled(
    path: str,
    kind: FileKind,
    *,
    own_path: str,
    path_column: str | None,
    target: str | Sequence[str] | None,
    split_column: str | None,
) -> LabelledFiles:
    """List the files of a folder as `list_folder` does, or of a CSV of paths as `list_csv` does.

    Columns that are None have their usual names, "path" and "label", or are not there. They are for what is at
    `own_path`, the config's; a folder elsewhere, such as one of a split, has none. Raises ConfigError for a column of
    a folder at `own_path`, and DataError if there is nothing at `path`.
    """
    if os.path.isfile(path):
        return list_csv(path, path_column or "path", target or "label", split_column)
    if not os.path.isdir(path):
        raise DataError(f"{path}: no such file or folder")
    for setting, given in (("path_column", path_column), ("target", target), ("split_column", split_column)):
        if given is not None and path == own_path:
            raise ConfigError(f"{setting}: is for a CSV of paths, and {path} is a folder; remove it")
    return list_folder(path, kind)


def all_files(path: str, files: LabelledFiles) -> list[tuple[str, str]]:
    """Return (name, path) of `files`, and of the CSV at `path` if that lists them."""
    listed_in = [] if os.path.isdir(path) else [(os.path.basename(path), path)]
    return [*listed_in, *zip(files.names, files.paths, strict=True)]


def list_folder(root: str, kind: FileKind) -> LabelledFiles:
    """List the files of `kind` in `root`: a folder for each class, or train/, val/ and test/ with such folders.

    Files in folders below that of a class belong to the class; hidden files and files of other kinds are
    skipped. Raises DataError for a class without files, for files outside a class, and for links that lead
    out of `root`.
    """
    folders = _subfolders(root)
    splits = {folder: SPLIT_FOLDERS[folder] for folder in folders if folder in SPLIT_FOLDERS}
    if "train" not in splits:
        splits = {}
    elif len(splits) < len(folders):
        others = ", ".join(folder for folder in folders if folder not in splits)
        raise DataError(f"{root}: holds the splits {', '.join(splits)} and other folders, {others}; move those")
    if splits:
        _refuse_stray_files(root, kind, "the folders of the splits")
    paths, targets, split_of = [], [], []
    for folder in splits or ("",):
        for name, path in _class_files(os.path.join(root, folder), root, kind):
            paths.append(path)
            targets.append(name)
            split_of.append(splits.get(folder, ""))
    prefix = os.path.join(root, "")
    return LabelledFiles(
        paths=paths,
        names=[path.removeprefix(prefix) for path in paths],
        places=paths,
        targets=np.array(targets, np.str_),
        splits=np.array(split_of) if splits else None,
    )


def list_csv(
    path: str, path_column: str, target_columns: str | Sequence[str], split_column: str | None
) -> LabelledFiles:
    """List the files of a CSV with a header: paths relative to it, targets, and perhaps splits.

    One target column is read as integers or floats if all of it is such, else as text; several as (N, K)
    floats. Raises DataError with the row, counted from 1 without the header, and the column.
    """
    one_target = isinstance(target_columns, str)
    wanted = [target_columns] if isinstance(target_columns, str) else list(target_columns)
    rows = read_csv_columns(path, [path_column, *wanted, *([split_column] if split_column else [])])
    names = rows[path_column]
    where = [f"{path}: row {index}" for index in range(1, len(names) + 1)]
    splits = None
    if split_column:
        for place, split in zip(where, rows[split_column], strict=True):
            if split not in NAMES:
                raise DataError(f"{place}, column {split_column!r}: {split!r}; possible: {', '.join(NAMES)}")
        splits = np.array(rows[split_column])
    columns = [_to_targets(rows[column], where, column, text_is_fine=one_target) for column in wanted]
    return LabelledFiles(
        paths=_relative_to(path, names),
        names=names,
        places=[f"{place} ({name})" for place, name in zip(where, names, strict=True)],
        targets=columns[0] if one_target else np.stack(columns, axis=1).astype(np.float64),
        splits=splits,
        target_names=tuple(wanted),
    )


def list_inputs(paths: Sequence[str], path_column: str, kind: FileKind) -> Iterator[str]:
    """Yield the files that `paths` name: files, folders with all of `kind` in them, and CSV files of paths.

    Raises DataError for what does not exist and for a folder without such files.
    """
    for path in paths:
        if os.path.isdir(path):
            empty = True
            for file in _walk(path, path, kind):
                empty = False
                yield file
            if empty:
                raise DataError(f"{path}: holds no {kind.noun}")
        elif path.lower().endswith(".csv"):
            yield from _relative_to(path, read_csv_columns(path, [path_column])[path_column])
        else:
            yield path


def read_csv_columns(path: str, columns: Sequence[str]) -> dict[str, list[str]]:
    """Read `columns` of a CSV with a header as text. Raises DataError with the row, also for empty cells."""
    row_index = 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            indices = [_column_index(path, header, column) for column in columns]
            values: dict[str, list[str]] = {column: [] for column in columns}
            for row in reader:
                if not row:  # a blank line
                    continue
                row_index += 1
                if len(row) != len(header):
                    raise DataError(f"{path}: row {row_index}: has {len(row)} cells, the header {len(header)}")
                for column, index in zip(columns, indices, strict=True):
                    if not row[index].strip():
                        raise DataError(f"{path}: row {row_index}, column {column!r}: is empty")
                    values[column].append(row[index].strip())
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8; save it as UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path}: after row {row_index}: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    if row_index == 0:
        raise DataError(f"{path}: has no rows")
    return values


def _column_index(path: str, header: list[str], column: str) -> int:
    count = header.count(column)
    if count == 1:
        return header.index(column)
    if count > 1:
        raise DataError(f"{path}: has {count} columns {column!r}")
    if not header:
        raise DataError(f"{path}: is empty")
    hint = did_you_mean(column, header) or f"; there are {', '.join(map(repr, header))}"
    raise DataError(f"{path}: no column {column!r}{hint}")


def _to_targets(cells: list[str], where: list[str], column: str, text_is_fine: bool) -> np.ndarray:
    """Return int64, float64 or, if `text_is_fine`, text: the first that all cells are."""
    if all(map(_INTEGER.fullmatch, cells)):
        return np.array(cells).astype(np.int64)
    for place, cell in zip(where, cells, strict=True):
        if not _FLOAT.fullmatch(cell):
            if text_is_fine:
                return np.array(cells, np.str_)
            raise DataError(f"{place}, column {column!r}: {cell!r} is not a number")
    numbers = np.array(cells).astype(np.float64)
    finite = np.isfinite(numbers)
    if not finite.all():
        index = int(np.argmin(finite))
        raise DataError(f"{where[index]}, column {column!r}: {cells[index]!r} is not a finite number")
    return numbers


def _relative_to(csv_path: str, names: list[str]) -> list[str]:
    folder = os.path.dirname(csv_path)
    return [os.path.join(folder, name) for name in names]


def _class_files(folder: str, root: str, kind: FileKind) -> Iterator[tuple[str, str]]:
    """Yield (class, path) of the files in the class folders of `folder`, sorted."""
    classes = _subfolders(folder)
    if not classes:
        raise DataError(f"{folder}: holds no folders; expected one folder for each class, with its {kind.noun}s")
    _refuse_stray_files(folder, kind, "the folders of the classes")
    for name in classes:
        class_folder = os.path.join(folder, name)
        paths = list(_walk(class_folder, root, kind))
        if not paths:
            others = sorted(entry for entry in os.listdir(class_folder) if not entry.startswith("."))
            found = f"{len(others)} other files, such as {others[0]!r}" if others else "it is empty"
            raise DataError(
                f"{class_folder}: holds no {kind.noun}, {found}; add {kind.noun}s of the class or remove the folder"
            )
        for path in paths:
            yield name, path


def _subfolders(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror or error}") from None
    for entry in visible:
        if entry.is_symlink() and entry.is_dir():
            _refuse_folder_link(entry.path)
    return sorted(entry.name for entry in visible if entry.is_dir())


def _refuse_stray_files(folder: str, kind: FileKind, beside: str) -> None:
    stray = sorted(
        name for name in os.listdir(folder) if kind.fits(name) and os.path.isfile(os.path.join(folder, name))
    )
    if stray:
        raise DataError(f"{os.path.join(folder, stray[0])}: lies beside {beside}, not in one; move it, or remove it")


def _walk(folder: str, root: str, kind: FileKind) -> Iterator[str]:
    """Yield the files of `kind` in and below `folder`, sorted. Raises DataError for links out of `root`."""
    try:
        with os.scandir(folder) as entries:
            visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror or error}") from None
    for entry in visible:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, root, kind)
        elif entry.is_symlink() and entry.is_dir():
            _refuse_folder_link(entry.path)
        elif kind.fits(entry.name):
            if entry.is_symlink():
                _refuse_outside(entry.path, root)
            yield entry.path


def _refuse_folder_link(path: str) -> None:
    raise DataError(f"{path}: is a link to a folder; links to folders are not followed, put the folder itself there")


def _refuse_outside(path: str, root: str) -> None:
    inside = os.path.realpath(root)
    if os.path.commonpath([inside, os.path.realpath(path)]) != inside:
        raise DataError(f"{path}: is a link that leads out of {root}; copy the file, or list it in a CSV of paths")
