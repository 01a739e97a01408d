"""Texts as a source: token ids for classification, several labels, and regression."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from dltrain.data.columns import Ragged, Samples
from dltrain.data.sources.bad_samples import bad_samples, left_out
from dltrain.data.sources.fingerprint import fingerprint_files
from dltrain.data.sources.labelled_files import TEXTS, list_folder
from dltrain.data.tokenizer import Tokenizer, check_vocab_size
from dltrain.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pyarrow as pa

    from dltrain.data.sources.text_files import LabelledTexts

BLOCK_TEXTS = 8192


class Text:
    """Texts as token ids (N, up to `max_length`); longer ones are cut.

    `path` is a table (CSV, JSON lines or Parquet) with the columns `column` (default "text"), `target` (default
    "label"; several are several targets) and, if given, `split_column`; or a folder with a folder of .txt files for
    each class, or with train/, val/ and test/ of such folders. The `tokenizer` is trained on the training texts. A
    text or target that is empty or cannot be read is an error, or left out if `on_bad_sample` is "skip"; for a
    prediction a text may be empty. Relative paths are relative to `base`.
    """

    def __init__(
        self,
        path: str,
        tokenizer: Mapping[str, Any],
        column: str | None = None,
        target: str | Sequence[str] | None = None,
        split_column: str | None = None,
        max_length: int = 512,
        on_bad_sample: Literal["error", "skip"] = "error",
        base: str = ".",
    ) -> None:
        self.path = os.path.join(base, path)
        self.column = column
        self.target = target
        self.split_column = split_column
        self.tokenizer = dict(tokenizer)
        self.max_length = max_length
        self.on_bad_sample = on_bad_sample
        self.num_skipped = 0
        self._notes: list[str] = []
        self._num_encoded = 0
        self._num_cut = 0
        names = [self._text_column, *self._target_columns, *([split_column] if split_column else [])]
        if len(set(names)) < len(names):
            raise ConfigError("column, target and split_column must be different columns")
        check_vocab_size(tokenizer["kind"], tokenizer["vocab_size"])

    @property
    def notes(self) -> list[str]:
        """What the user should be told: the texts that were left out, and how many were cut."""
        if not self._num_cut:
            return self._notes
        cut = f"{self._num_cut:,} of {self._num_encoded:,} texts are longer than max_length and were cut"
        return [*self._notes, f"{cut} to {self.max_length:,} tokens"]

    def read(self, path: str | None = None) -> Samples:
        """Return the texts with their targets of the source's own files, or of the table or folder `path`.

        Raises DataError for files and columns that are wrong, and one for all bad texts, unless those are skipped.
        """
        found = self._read(path)
        samples = Samples(
            inputs=found.texts,
            targets=found.targets,
            place=found.place,
            take_inputs=_take,
            target_names=found.target_names,
            splits=found.splits,
        )
        if not found.problems:
            return samples
        problems = [*found.problems.values()]
        if self.on_bad_sample == "error" or len(problems) == len(samples):
            raise bad_samples(problems, len(samples), "texts cannot be used")
        self.num_skipped += len(problems)
        self._notes.append(left_out(problems, len(samples), "texts were left out"))
        return samples.take(np.delete(np.arange(len(samples)), [*found.problems]))

    def fit(self, samples: Samples) -> dict[str, Any]:
        """Return "tokenizer" (JSON), "vocab_size" and "max_length", the most tokens of a text."""
        tokenizer = Tokenizer.train(_texts_of(samples), **self.tokenizer)
        return {"tokenizer": tokenizer.to_json(), "vocab_size": tokenizer.vocab_size, "max_length": self.max_length}

    def encode(self, samples: Samples, state: dict[str, Any]) -> tuple[Ragged]:
        """Return the token ids of each text, at most state["max_length"] of them."""
        tokenizer, max_length = Tokenizer.from_json(state["tokenizer"]), state["max_length"]
        all_ids, all_lengths = [torch.empty(0, dtype=torch.int32)], [torch.empty(0, dtype=torch.int64)]
        for start in range(0, len(samples), BLOCK_TEXTS):
            texts = samples.inputs.slice(start, BLOCK_TEXTS).fill_null("").to_pylist()
            ids, lengths = tokenizer.encode(texts)
            self._num_cut += int((lengths > max_length).sum())
            all_ids.append(_first_tokens(ids, lengths, max_length))
            all_lengths.append(lengths.clamp(max=max_length))
        self._num_encoded += len(samples)
        return (Ragged.from_lengths(torch.cat(all_ids), torch.cat(all_lengths)),)

    def read_inputs(self, paths: list[str], state: dict[str, Any]) -> Iterator[Samples]:
        """Yield unlabelled texts in blocks: .txt files, each a text, folders with all below, and rows of tables."""
        from dltrain.data.sources.text_files import read_new_texts, table_file

        for texts, place in read_new_texts(paths, self._text_column, lambda path: table_file(path, path), BLOCK_TEXTS):
            yield Samples(texts, None, place, _take)

    def files(self, path: str | None = None) -> list[tuple[str, str]]:
        """Return the name and the path of each file that `read(path)` reads."""
        where = self.path if path is None else path
        if not os.path.isdir(where):
            return [(os.path.basename(where), where)]
        files = list_folder(where, TEXTS)
        return [*zip(files.names, files.paths, strict=True)]

    def fingerprint(self, path: str | None = None) -> str:
        """Return a hash of the files that `read(path)` reads."""
        return fingerprint_files(self.files(path))

    def _read(self, path: str | None) -> LabelledTexts:
        from dltrain.data.sources.text_files import read_folder, read_table, table_file

        where = self.path if path is None else path
        if os.path.isdir(where):
            for setting in ("column", "target", "split_column"):
                if path is None and getattr(self, setting) is not None:
                    raise ConfigError(f"{setting}: is for a table, and {where} is a folder; remove it")
            return read_folder(where)
        if TEXTS.fits(os.path.basename(where)):
            raise DataError(
                f"{where}: is a text file; the data are a CSV, JSON lines or Parquet file with texts and targets, or a "
                "folder with a folder of text files for each class"
            )
        split_column = self.split_column if path is None else None
        file = table_file(where, where)
        return read_table(file, self._text_column, self._target_columns, split_column, text_is_sure=path is not None)

    @property
    def _text_column(self) -> str:
        return self.column or "text"

    @property
    def _target_columns(self) -> list[str]:
        return [self.target] if isinstance(self.target, str) else list(self.target or ["label"])


def _texts_of(samples: Samples) -> Iterator[str]:
    for start in range(0, len(samples), BLOCK_TEXTS):
        yield from samples.inputs.slice(start, BLOCK_TEXTS).to_pylist()


def _first_tokens(ids: Tensor, lengths: Tensor, max_length: int) -> Tensor:
    """Return the `ids` of texts end to end with each text cut to its first `max_length`."""
    if len(lengths) == 0 or int(lengths.max()) <= max_length:
        return ids
    starts = lengths.cumsum(0) - lengths
    positions = torch.arange(len(ids)) - starts.repeat_interleave(lengths)
    return ids[positions < max_length]


def _take(texts: pa.ChunkedArray, indices: np.ndarray) -> pa.ChunkedArray:
    return texts.take(indices)
