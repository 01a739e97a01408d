"""Running text as a source: a language model predicts each token from those before it in its block.

A sample is a line, so that a split is a stretch of whole lines; encoded, a split is one stream of tokens, cut into
blocks, and N counts the blocks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from dltrain.data.columns import IGNORED, Ragged, Samples
from dltrain.data.sources.fingerprint import fingerprint_files
from dltrain.data.sources.labelled_files import FileKind, list_inputs
from dltrain.data.sources.utf8_files import read_utf8
from dltrain.data.tokenizer import END, Tokenizer, check_vocab_size
from dltrain.errors import ConfigError, DataError

_ENDINGS = ("txt",)
_LINES_AT_ONCE = 50_000
"""Lines that are Python's strings at a time, of which each takes more memory than its text."""


@dataclass(frozen=True)
class Lines:
    """Lines of UTF-8 text with their ends: stretches of one buffer, so that to choose some copies no text."""

    content: bytes
    starts: np.ndarray
    """(N,) int64: where each begins in `content`."""
    stops: np.ndarray
    """(N,) int64."""
    end_file: np.ndarray
    """(N,) bool: whether it is the last of its file."""

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, indices: np.ndarray) -> Lines:
        """Return the lines at `indices`."""
        return Lines(self.content, self.starts[indices], self.stops[indices], self.end_file[indices])

    def texts(self, first: int = 0, last: int | None = None) -> Iterator[str]:
        """Yield the text of the lines from `first` to before `last`."""
        for start, stop in zip(self.starts[first:last].tolist(), self.stops[first:last].tolist(), strict=True):
            yield self.content[start:stop].decode()


class Corpus:
    """A text file, or a folder of them in the order of their names, as blocks of token ids.

    Input: blocks (N, up to `block`), the target: the same one token later, so that each token of a split but its
    first is predicted exactly once, from those before it in the block. Where a file ends stands the token END. Of a
    folder, files in folders below count, too; `endings` (default: txt) are those of the names of its text files. The
    `tokenizer` is trained on the training lines. Relative paths are relative to `base`.
    """

    task: ClassVar[str] = "language_model"
    contiguous: ClassVar[bool] = True
    """Splits by ratio are stretches of the text: single lines drawn at random are guessed from their neighbours."""

    def __init__(
        self,
        path: str,
        tokenizer: Mapping[str, Any],
        block: int = 128,
        endings: Sequence[str] | None = None,
        base: str = ".",
    ) -> None:
        check_vocab_size(tokenizer["kind"], tokenizer["vocab_size"])
        self.path = os.path.join(base, path)
        self.tokenizer = dict(tokenizer)
        self.block = block
        self.endings = endings

    def read(self, path: str | None = None) -> Samples:
        """Return the lines of the source's own text, or of the file or folder `path`, without targets.

        Raises DataError for a file that cannot be read, is not UTF-8, or where there is no text at all.
        """
        paths = [file for _, file in self.files(path)]
        contents = [read_utf8(file) for file in paths]
        if not any(contents):
            raise DataError(f"{self.path if path is None else path}: holds no text")
        lines, first_lines = _lines_of(contents)

        def place(index: int) -> str:
            file_index = int(np.searchsorted(first_lines, index, side="right")) - 1
            return f"{paths[file_index]}: line {index - first_lines[file_index] + 1}"

        return Samples(inputs=lines, targets=None, place=place, take_inputs=Lines.take)

    def fit(self, samples: Samples) -> dict[str, Any]:
        """Return "tokenizer" (JSON), "vocab_size", and as "max_length" the number of tokens of a block."""
        tokenizer = Tokenizer.train(samples.inputs.texts(), **self.tokenizer)
        return {"tokenizer": tokenizer.to_json(), "vocab_size": tokenizer.vocab_size, "max_length": self.block}

    def encode(self, samples: Samples, state: dict[str, Any]) -> tuple[Ragged, Ragged]:
        """Return the blocks and their targets, two views of one stream of ids.

        Raises DataError where there are not two tokens.
        """
        stream = _stream(samples.inputs, Tokenizer.from_json(state["tokenizer"]))
        num_predicted = len(stream) - 1
        if num_predicted < 1:
            raise DataError(f"{samples.place(0)}: from here on there is not a second token that could be predicted")
        starts = torch.arange(0, num_predicted, state["max_length"])
        lengths = (num_predicted - starts).clamp(max=state["max_length"])
        return Ragged(stream, starts, lengths), Ragged(stream, starts + 1, lengths, IGNORED)

    def encode_prompt(self, text: str, state: dict[str, Any]) -> Tensor:
        """Return (1, T) the ids of the beginning of a text; of none, END, after which texts begin."""
        ids, _ = Tokenizer.from_json(state["tokenizer"]).encode([text])
        return (ids if len(ids) else torch.tensor([END])).long().unsqueeze(0)

    def decode_target(self, ids: Sequence[int], state: dict[str, Any]) -> str:
        """Return the text of `ids`, up to the end of a file if one is there."""
        ids = list(ids)
        until_end = ids[: ids.index(END)] if END in ids else ids
        return Tokenizer.from_json(state["tokenizer"]).decode(until_end)

    def read_inputs(self, paths: list[str], state: dict[str, Any]) -> Iterator[Samples]:
        """Raise ConfigError: a text has nothing to predict but how it goes on."""
        raise ConfigError("a language model predicts with --generate, how a text goes on, not from files")

    def files(self, path: str | None = None) -> list[tuple[str, str]]:
        """Return the name and the path of each file that `read(path)` reads, in that order."""
        where = self.path if path is None else path
        if os.path.isdir(where):
            kind = FileKind("text file", tuple(ending.lstrip(".").lower() for ending in self.endings or _ENDINGS))
            return [(os.path.relpath(file, where), file) for file in list_inputs([where], "path", kind)]
        if not os.path.isfile(where):
            raise DataError(f"{where}: no such file or folder")
        if path is None and self.endings is not None:
            raise ConfigError(f"endings: is for a folder of text files, and {where} is a file; remove it")
        return [(os.path.basename(where), where)]

    def fingerprint(self, path: str | None = None) -> str:
        """Return a hash of the files that `read(path)` reads."""
        return fingerprint_files(self.files(path))


def _lines_of(contents: list[bytes]) -> tuple[Lines, np.ndarray]:
    """Return the lines of all files, and (F,) the index of the first line of each. Empties the list `contents`."""
    sizes = np.array([len(content) for content in contents])
    content = contents[0] if len(contents) == 1 else b"".join(contents)
    contents.clear()
    file_stops = sizes.cumsum()
    newlines = np.flatnonzero(np.frombuffer(content, np.uint8) == ord("\n")) + 1
    stops = np.union1d(newlines, file_stops[sizes > 0])
    starts = np.concatenate([[0], stops[:-1]])
    lines = Lines(content, starts, stops, np.isin(stops, file_stops))
    return lines, np.searchsorted(starts, file_stops - sizes)


def _stream(lines: Lines, tokenizer: Tokenizer) -> Tensor:
    """Return (T,) the ids of all lines one after the other, with END where a file ends.

    int16 where the vocabulary allows: half the memory, and IGNORED fits, which unsigned types could not hold.
    """
    kind = torch.int16 if tokenizer.vocab_size <= torch.iinfo(torch.int16).max else torch.int32
    parts = [torch.empty(0, dtype=kind)]
    for first in range(0, len(lines), _LINES_AT_ONCE):
        ids, lengths = tokenizer.encode([*lines.texts(first, first + _LINES_AT_ONCE)])
        after = lengths.cumsum(0)[torch.from_numpy(lines.end_file[first : first + _LINES_AT_ONCE])]
        parts.append(_insert_end(ids, after).to(kind))
    return torch.cat(parts)


def _insert_end(ids: Tensor, after: Tensor) -> Tensor:
    """Return `ids` with END after the first `after[0]`, `after[1]`, ... of them (ascending)."""
    if len(after) == 0:
        return ids
    is_end = torch.zeros(len(ids) + len(after), dtype=torch.bool)
    is_end[after + torch.arange(len(after))] = True
    result = torch.full((len(is_end),), END, dtype=ids.dtype)
    result[~is_end] = ids
    return result
