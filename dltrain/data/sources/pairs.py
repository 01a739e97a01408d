"""Pairs of texts as a source, such as sentences and their translations: the model reads one and writes the other.

Texts are stripped of the spaces around them. Row numbers count data rows from 1, as those of tables do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dltrain.data.columns import IGNORED, Ragged, Samples
from dltrain.data.sources.bad_samples import bad_samples, left_out
from dltrain.data.sources.fingerprint import fingerprint_files
from dltrain.data.sources.utf8_files import read_utf8
from dltrain.data.tokenizer import BEGIN, END, Tokenizer, check_vocab_size
from dltrain.errors import ConfigError, DataError

BLOCK_TEXTS = 8192
_TABLES = (".csv", ".tsv", ".jsonl", ".parquet", ".csv.gz", ".tsv.gz", ".jsonl.gz")


class Pairs:
    """Pairs of texts as token ids: (source, decoder input), and the target that the decoder is to write.

    `path` is a table (CSV, TSV, JSON lines or Parquet) with the columns `source_column` (default "source"),
    `target_column` (default "target") and, if given, `split_column`; or, with `target_path`, both are files of one
    text a line. A file of a split is a table in either case. The `tokenizer` is trained on the training pairs, one
    for both sides with `shared_vocabulary`, else one for each. `max_length` is in tokens, with the END of a text. With
    `on_bad_sample` "skip", pairs that are longer or have an empty side are left out. Relative paths are relative to
    `base`.
    """

    task: ClassVar[str] = "translation"

    def __init__(
        self,
        path: str,
        tokenizer: Mapping[str, Any],
        target_path: str | None = None,
        source_column: str | None = None,
        target_column: str | None = None,
        split_column: str | None = None,
        shared_vocabulary: bool = True,
        max_length: int = 256,
        on_bad_sample: Literal["error", "skip"] = "error",
        base: str = ".",
    ) -> None:
        columns = {"source_column": source_column, "target_column": target_column, "split_column": split_column}
        _check_settings(path, target_path, columns)
        check_vocab_size(tokenizer["kind"], tokenizer["vocab_size"])
        self.path = os.path.join(base, path)
        self.target_path = None if target_path is None else os.path.join(base, target_path)
        self.tokenizer = dict(tokenizer)
        self.source_column = source_column or "source"
        self.target_column = target_column or "target"
        self.split_column = split_column
        self.shared_vocabulary = shared_vocabulary
        self.max_length = max_length
        self.on_bad_sample = on_bad_sample
        self.notes: list[str] = []
        """What the user should be told: which pairs were left out."""
        self.num_skipped = 0

    def read(self, path: str | None = None) -> Samples:
        """Return the pairs of the source's own files, or of the table `path`; inputs and targets are (N,) str.

        Raises DataError for files that are wrong and for pairs with an empty side, unless those are skipped;
        ConfigError where `path` is no table.
        """
        if path is None:
            self.notes, self.num_skipped = [], 0
        elif not _is_table(path):
            raise ConfigError(
                f"{path}: is no table ({', '.join(_TABLES)}) with both texts of a pair; where the data are two files "
                "of lines, a split is a fraction or such a table"
            )
        sides, splits = self._read(path)
        empty = {i: _empty_side(*pair) for i, pair in enumerate(zip(*sides.texts, strict=True)) if not all(pair)}
        samples = Samples(
            inputs=_array(sides.texts[0]),
            targets=_array(sides.texts[1]),
            place=sides.place,
            take_inputs=_take,
            target_names=(self.target_column,),
            splits=splits,
        )
        return self._without(samples, empty)

    def fit(self, samples: Samples) -> dict[str, Any]:
        """Return the tokenizers, the sizes of their vocabularies, and what the settings say.

        "tokenizer" and, where the target side has its own, "target_tokenizer" (JSON, else None); "vocab_size",
        "target_vocab_size", "shared_vocabulary", "max_length".
        """
        assert samples.targets is not None
        sides = (samples.inputs, samples.targets)
        trained_on = [chain(*sides)] if self.shared_vocabulary else [*map(iter, sides)]
        tokenizers = [Tokenizer.train(texts, **self.tokenizer) for texts in trained_on]
        return {
            "tokenizer": tokenizers[0].to_json(),
            "target_tokenizer": None if self.shared_vocabulary else tokenizers[1].to_json(),
            "vocab_size": tokenizers[0].vocab_size,
            "target_vocab_size": tokenizers[-1].vocab_size,
            "shared_vocabulary": self.shared_vocabulary,
            "max_length": self.max_length,
        }

    def usable(self, samples: Samples, state: dict[str, Any]) -> Samples:
        """Return the samples that `encode` encodes: without those that are too long, where bad ones are skipped."""
        if self.on_bad_sample == "error" or samples.targets is None:
            return samples
        return self._without(samples, _too_long(_token_ids(samples, state), state["max_length"]))

    def encode(self, samples: Samples, state: dict[str, Any]) -> tuple[Ragged, ...]:
        """Return the source, and where the samples have targets also the decoder's input and the target.

        The source ends in END. Of BEGIN y END, the decoder reads all but the last and is to write all but the first:
        two views of one tensor. Raises DataError for texts that are too long, which `usable` leaves out if that is
        asked for; of texts without targets none is left out, as each needs its answer.
        """
        sides = _token_ids(samples, state)
        problems = _too_long(sides, state["max_length"])
        if problems:
            raise _bad_pairs(samples, problems)
        (source, lengths), *others = sides
        values, starts = _framed(source, lengths, begin=False)
        columns = [Ragged(values, starts, lengths + 1)]
        for target, lengths in others:
            values, starts = _framed(target, lengths, begin=True)
            columns += [Ragged(values, starts, lengths + 1), Ragged(values, starts + 1, lengths + 1, IGNORED)]
        return tuple(columns)

    def decode_target(self, ids: Sequence[int], state: dict[str, Any]) -> str:
        """Return the text that the `ids` of a target say, up to the first END."""
        ids = list(ids)
        until_end = ids[: ids.index(END)] if END in ids else ids
        return Tokenizer.from_json(state["target_tokenizer"] or state["tokenizer"]).decode(until_end)

    def read_inputs(self, paths: list[str], state: dict[str, Any]) -> Iterator[Samples]:
        """Yield the texts of files of one text a line, or of tables with the source column, in blocks.

        Raises DataError for files that are wrong and for empty texts.
        """
        for path in paths:
            sides = _read_table(path, [self.source_column]) if _is_table(path) else _read_lines([path])
            texts = _array(sides.texts[0])
            samples = Samples(inputs=texts, targets=None, place=sides.place, take_inputs=_take)
            empty = {i: "the text is empty" for i, text in enumerate(texts) if not text}
            if empty:
                raise _bad_pairs(samples, empty)
            for start in range(0, len(texts), BLOCK_TEXTS):
                yield samples.take(np.arange(start, min(start + BLOCK_TEXTS, len(texts))))

    def files(self, path: str | None = None) -> list[tuple[str, str]]:
        """Return the name and the path of each file that `read(path)` reads."""
        own = [self.path] if self.target_path is None else [self.path, self.target_path]
        return [(os.path.basename(file), file) for file in (own if path is None else [path])]

    def fingerprint(self, path: str | None = None) -> str:
        """Return a hash of the files that `read(path)` reads."""
        return fingerprint_files(self.files(path))

    def _read(self, path: str | None) -> tuple[_Texts, np.ndarray | None]:
        """Return sources and targets, and the names of the splits where a column says them."""
        if path is None and self.target_path is not None:
            return _read_lines([self.path, self.target_path]), None
        columns = [self.source_column, self.target_column]
        if path is not None or self.split_column is None:
            return _read_table(self.path if path is None else path, columns), None
        (*texts, splits), place = _read_table(self.path, [*columns, self.split_column])
        return _Texts(texts, place), np.array(splits, np.str_)

    def _without(self, samples: Samples, problems: dict[int, str]) -> Samples:
        """Return the samples without those that `problems` names, and note it. Raises DataError unless it may."""
        if not problems:
            return samples
        if self.on_bad_sample == "error" or len(problems) == len(samples):
            raise _bad_pairs(samples, problems)
        self.num_skipped += len(problems)
        self.notes.append(left_out(_named(samples, problems), len(samples), "pairs were left out"))
        return samples.take(np.delete(np.arange(len(samples)), [*problems]))


class _Texts(NamedTuple):
    """Columns of texts of equal length, without spaces around them, and where their rows stand."""

    texts: list[list[str]]
    place: Callable[[int], str]


def _check_settings(path: str, target_path: str | None, columns: Mapping[str, str | None]) -> None:
    """Raise ConfigError if the files are not of the kinds that go together, or a name of a column has no effect."""
    if target_path is None:
        if not _is_table(path):
            raise ConfigError(
                f"path: {path!r} is no table ({', '.join(_TABLES)}); for two files of one text a line, set target_path"
            )
        given = [name for name in columns.values() if name is not None]
        if len(set(given)) < len(given):
            raise ConfigError("source_column, target_column and split_column must be different columns")
        return
    for name, file in (("path", path), ("target_path", target_path)):
        if _is_table(file):
            raise ConfigError(f"{name}: {file!r} is a table, and target_path is for two files of one text a line")
    for name, column in columns.items():
        if column is not None:
            raise ConfigError(f"{name}: cannot take effect: with target_path, the data are lines, not a table")


def _is_table(path: str) -> bool:
    return path.lower().endswith(_TABLES)


def _read_lines(paths: list[str]) -> _Texts:
    """Return the lines of files that have equally many of them."""
    texts = [_stripped_lines(path) for path in paths]
    counts = [*map(len, texts)]
    if len(set(counts)) > 1:
        raise DataError(
            f"{paths[0]} has {counts[0]:,} lines and {paths[1]} has {counts[1]:,}; "
            "each line of one must be the translation of the same line of the other"
        )
    if counts[0] == 0:
        raise DataError(f"{paths[0]}: the file is empty")
    return _Texts(texts, lambda i: f"{' and '.join(paths)}: line {i + 1}")


def _stripped_lines(path: str) -> list[str]:
    lines = read_utf8(path).decode().split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.strip() for line in lines]


def _read_table(path: str, columns: Sequence[str]) -> _Texts:
    """Return the texts of `columns` of a CSV, TSV, Parquet or JSON lines file; missing ones are empty."""
    from dltrain.data.sources.table_files import check_columns
    from dltrain.data.sources.text_files import table_file, to_texts

    table = table_file(path, path).read()
    check_columns(path, columns, table.column_names)
    texts = [to_texts(path, name, table[name]).fill_null("").to_pylist() for name in columns]
    return _Texts(texts, lambda i: f"{path}: row {i + 1}")


def _empty_side(source: str, target: str) -> str:
    return f"the {'target' if source else 'source'} is empty" if source or target else "source and target are empty"


def _token_ids(samples: Samples, state: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """Return ids end to end and lengths of the sources and, where there are any, of the targets."""
    sides = [(samples.inputs, state["tokenizer"])]
    if samples.targets is not None:
        sides.append((samples.targets, state["target_tokenizer"] or state["tokenizer"]))
    return [Tokenizer.from_json(tokenizer).encode(texts.tolist()) for texts, tokenizer in sides]


def _too_long(sides: list[tuple[Tensor, Tensor]], max_length: int) -> dict[int, str]:
    """Return the indices of samples with a text of more tokens than `max_length`, with its END, and what is wrong."""
    problems: dict[int, str] = {}
    for side, (_, lengths) in zip(("source", "target"), sides, strict=False):
        for i in (lengths >= max_length).nonzero().flatten().tolist():
            problems.setdefault(i, f"the {side} has {lengths[i] + 1:,} tokens, more than max_length, {max_length:,}")
    return dict(sorted(problems.items()))


def _framed(ids: Tensor, lengths: Tensor, begin: bool) -> tuple[Tensor, Tensor]:
    """Return all texts end to end, each with END after it and, if asked for, BEGIN before it; and where each starts."""
    num_added = 2 if begin else 1
    stops = (lengths + num_added).cumsum(0)
    starts = stops - lengths - num_added
    values = torch.full((len(ids) + num_added * len(lengths),), END, dtype=ids.dtype)
    is_text = torch.ones(len(values), dtype=torch.bool)
    is_text[stops - 1] = False
    if begin:
        values[starts], is_text[starts] = BEGIN, False
    values[is_text] = ids
    return values, starts


def _named(samples: Samples, problems: dict[int, str]) -> list[str]:
    return [f"{samples.place(i)}: {reason}" for i, reason in problems.items()]


def _bad_pairs(samples: Samples, problems: dict[int, str]) -> DataError:
    what = "texts" if samples.targets is None else "pairs"
    return bad_samples(_named(samples, problems), len(samples), f"{what} are bad")


def _array(texts: list[str]) -> np.ndarray:
    """Return (N,) str as objects: numpy's own texts are all as long as the longest."""
    array = np.empty(len(texts), object)
    array[:] = texts
    return array


def _take(texts: np.ndarray, indices: np.ndarray) -> Any:
    return texts[indices]
