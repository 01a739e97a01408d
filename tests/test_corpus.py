"""Corpora: every token is predicted once, splits are lines, and what is wrong is said with file and line."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dltrain.data.columns import IGNORED
from dltrain.data.sources.corpus import Corpus
from dltrain.data.tokenizer import END, UNKNOWN, Tokenizer
from dltrain.errors import ConfigError, DataError

POEM = "Über allen Gipfeln\nIst Ruh,\n\nIn allen Wipfeln\nSpürest du\nKaum einen Hauch;\n"


def tokenizer(kind: str, vocab_size: int | None = None) -> dict[str, Any]:
    return {"kind": kind, "vocab_size": vocab_size, "lowercase": False}


BYTES = tokenizer("byte")


def write(path: Path, text: str = POEM) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    return str(path)


def ids_of(text: str) -> list[int]:
    return [byte + 4 for byte in text.encode()]


def blocks_of(source: Corpus) -> tuple[list[list[int]], list[list[int]]]:
    """Return the blocks and their targets as lists, without what pads them."""
    samples = source.read()
    inputs, target = source.encode(samples, source.fit(samples))
    everything = slice(None)
    return (
        [row[:n].tolist() for row, n in zip(inputs[everything], inputs.lengths, strict=True)],
        [row[row != IGNORED].tolist() for row in target[everything]],
    )


# Lines and blocks


def test_lines_keep_their_ends_and_know_their_place(tmp_path: Path) -> None:
    path = write(tmp_path / "poem.txt", "one\n\nthree")
    samples = Corpus(path, BYTES).read()
    assert [*samples.inputs.texts()] == ["one\n", "\n", "three"]
    assert samples.targets is None
    assert [samples.place(i) for i in range(3)] == [f"{path}: line {n}" for n in (1, 2, 3)]
    chosen = samples.take(np.array([2, 0]))
    assert [*chosen.inputs.texts()] == ["three", "one\n"]
    assert chosen.place(0) == f"{path}: line 3"


def test_only_a_newline_ends_a_line_and_windows_line_ends_are_newlines(tmp_path: Path) -> None:
    path = tmp_path / "poem.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\x0cc\xe2\x80\xa8d\n")
    assert [*Corpus(str(path), BYTES).read().inputs.texts()] == ["a\n", "b\x0cc\N{LINE SEPARATOR}d\n"]


@pytest.mark.parametrize("block", [1, 5, 7, 95, 96, 1000])
def test_every_token_but_the_first_is_predicted_exactly_once(tmp_path: Path, block: int) -> None:
    inputs, targets = blocks_of(Corpus(write(tmp_path / "poem.txt"), BYTES, block))
    stream = [*ids_of(POEM), END]
    assert [*chain(*targets)] == stream[1:]
    assert [*chain(*inputs)] == stream[:-1]
    assert {len(row) for row in inputs[:-1]} <= {block}
    assert [len(row) for row in inputs] == [len(row) for row in targets]
    assert len(inputs) == -(-(len(stream) - 1) // block)


def test_blocks_and_targets_are_one_stream_in_memory(tmp_path: Path) -> None:
    source = Corpus(write(tmp_path / "poem.txt"), BYTES)
    samples = source.read()
    inputs, target = source.encode(samples, source.fit(samples))
    assert inputs.values is target.values
    assert inputs.values.dtype == torch.int16
    assert target.padding == IGNORED


def test_a_large_vocabulary_takes_wider_numbers(tmp_path: Path) -> None:
    text = "".join(map(chr, range(0x20000, 0x20000 + 40_000)))
    source = Corpus(write(tmp_path / "all.txt", text), tokenizer("character", 50_000))
    samples = source.read()
    state = source.fit(samples)
    inputs, _ = source.encode(samples, state)
    assert inputs.values.dtype == torch.int32
    assert state["vocab_size"] == len(set(text)) + 4
    assert source.decode_target(inputs.values.tolist(), state) == text


@pytest.mark.parametrize("kind", ["byte", "character", "bpe"])
def test_encoding_in_portions_changes_nothing(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Corpus(write(tmp_path / "poem.txt", POEM * 3), tokenizer(kind))
    samples = source.read()
    state = source.fit(samples)
    expected, _ = source.encode(samples, state)
    monkeypatch.setattr("dltrain.data.sources.corpus._LINES_AT_ONCE", 2)
    inputs, _ = source.encode(samples, state)
    assert inputs.values.tolist() == expected.values.tolist()
    assert source.decode_target(inputs.values.tolist(), state) == POEM * 3


def test_the_vocabulary_is_that_of_the_training_lines(tmp_path: Path) -> None:
    source = Corpus(write(tmp_path / "ab.txt", "aaa\nabz\n"), tokenizer("character"), block=3)
    samples = source.read()
    state = source.fit(samples.take(np.array([0])))
    assert (state["vocab_size"], state["max_length"]) == (6, 3)
    assert Tokenizer.from_json(state["tokenizer"]).vocab_size == 6
    inputs, _ = source.encode(samples.take(np.array([1])), state)
    assert inputs.values.tolist()[1:3] == [UNKNOWN, UNKNOWN]


def test_generated_text_ends_where_a_file_would(tmp_path: Path) -> None:
    source = Corpus(write(tmp_path / "poem.txt"), BYTES)
    state = source.fit(source.read())
    assert source.decode_target([*ids_of("Ruh"), END, *ids_of("x")], state) == "Ruh"
    assert source.decode_target(ids_of("Ruh"), state) == "Ruh"


# Folders


def test_a_folder_is_read_in_the_order_of_names_with_an_end_after_each_file(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", "b\n")
    write(tmp_path / "a.txt", "a")
    write(tmp_path / "empty.txt", "")
    write(tmp_path / "more" / "c.TXT", "c1\nc2\n")
    write(tmp_path / ".hidden.txt", "x")
    write(tmp_path / "notes.md", "x")
    source = Corpus(str(tmp_path), BYTES)
    samples = source.read()
    assert [*samples.inputs.texts()] == ["a", "b\n", "c1\n", "c2\n"]
    places = ["a.txt: line 1", "b.txt: line 1", "more/c.TXT: line 1", "more/c.TXT: line 2"]
    assert [samples.place(i) for i in range(4)] == [str(tmp_path / place) for place in places]
    assert [name for name, _ in source.files()] == ["a.txt", "b.txt", "empty.txt", "more/c.TXT"]
    inputs, _ = source.encode(samples, source.fit(samples))
    assert inputs.values.tolist() == [*ids_of("a"), END, *ids_of("b\n"), END, *ids_of("c1\nc2\n"), END]
    first_half, _ = source.encode(samples.take(np.arange(3)), source.fit(samples))
    assert first_half.values.tolist() == [*ids_of("a"), END, *ids_of("b\n"), END, *ids_of("c1\n")]


def test_other_endings_can_be_chosen(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "a\n")
    write(tmp_path / "b.md", "b\n")
    write(tmp_path / "c.rst", "c\n")
    assert [*Corpus(str(tmp_path), BYTES, endings=["md", ".rst"]).read().inputs.texts()] == ["b\n", "c\n"]


def test_another_file_is_read_for_a_split(tmp_path: Path) -> None:
    source = Corpus(write(tmp_path / "train.txt", "a\n"), BYTES)
    assert [*source.read(write(tmp_path / "val.txt", "b\n")).inputs.texts()] == ["b\n"]


def test_the_fingerprint_follows_names_and_content(tmp_path: Path) -> None:
    one, two = (Corpus(write(tmp_path / folder / "a.txt"), BYTES) for folder in ("one", "two"))
    assert one.fingerprint() == two.fingerprint()
    assert one.fingerprint() != one.fingerprint(write(tmp_path / "two" / "b.txt"))
    assert one.fingerprint() != one.fingerprint(write(tmp_path / "three" / "a.txt", POEM + "\n"))


# What is wrong


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "corpus.txt: holds no text"),
        (b"a\nb\xffc\n", "corpus.txt: line 2 is not UTF-8 text; save the file as UTF-8"),
        (b"a\n" * 1_000_000 + b"\xc3", "corpus.txt: line 1000001 is not UTF-8 text; save the file as UTF-8"),
        ("a\n".encode("utf-16"), "corpus.txt: the text is UTF-16; save it as UTF-8"),
    ],
    ids=["empty", "latin-1", "cut", "utf-16"],
)
def test_a_wrong_file_is_one_clear_error(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "corpus.txt").write_bytes(content)
    with pytest.raises(DataError, match=f"{re.escape(message)}$"):
        Corpus("corpus.txt", BYTES, base=str(tmp_path)).read()


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt: no such file or folder$"):
        Corpus("none.txt", BYTES, base=str(tmp_path)).read()
    with pytest.raises(DataError, match=r"holds no text file$"):
        Corpus(str(tmp_path), BYTES).read()
    write(tmp_path / "a.txt", "")
    with pytest.raises(DataError, match=r"holds no text$"):
        Corpus(str(tmp_path), BYTES).read()


def test_a_text_of_one_token_leaves_nothing_to_predict(tmp_path: Path) -> None:
    source = Corpus(write(tmp_path / "ab.txt", "a\n\nb\n"), BYTES)
    samples = source.read()
    state = source.fit(samples)
    assert len(source.encode(samples.take(np.array([0])), state)[0]) == 1
    message = r"ab\.txt: line 2: from here on there is not a second token that could be predicted$"
    with pytest.raises(DataError, match=message):
        source.encode(samples.take(np.array([1])), state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("bpe", 99), "vocab_size 99 is too small; the kind bpe needs at least 260"),
        (("byte", 99), "vocab_size cannot take effect"),
    ],
)
def test_wrong_settings_are_found_before_any_file_is_read(settings: tuple[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Corpus("none.txt", tokenizer(*settings))


def test_endings_without_a_folder_cannot_take_effect(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt")
    with pytest.raises(ConfigError) as caught:
        Corpus(path, BYTES, endings=["md"]).read()
    assert str(caught.value) == f"endings: is for a folder of text files, and {path} is a file; remove it"


def test_prediction_from_files_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^a language model predicts with --generate"):
        Corpus("x.txt", BYTES).read_inputs(["y.txt"], {})
