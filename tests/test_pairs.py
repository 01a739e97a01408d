"""Pairs of texts: what the model sees of them, which files they come in, and what is refused in which words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dltrain.data.columns import IGNORED, PADDING, Samples
from dltrain.data.sources.pairs import Pairs
from dltrain.data.tokenizer import BEGIN, END, UNKNOWN
from dltrain.errors import ConfigError, DataError

SOURCES = ["one", "twenty-two", "a cat"]
TARGETS = ["un", "vingt-deux", "un  chat"]


def tokenizer(kind: str, vocab_size: int | None = None, lowercase: bool = False) -> dict[str, Any]:
    return {"kind": kind, "vocab_size": vocab_size, "lowercase": lowercase}


BYTES, CHARACTERS = tokenizer("byte"), tokenizer("character")


def ids_of(text: str) -> list[int]:
    return [byte + 4 for byte in text.encode()]


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def write_csv(folder: Path, rows: list[tuple[str, ...]] | None = None, header: str = "source,target") -> str:
    rows = [*zip(SOURCES, TARGETS, strict=True)] if rows is None else rows
    return write(folder / "pairs.csv", "\n".join([header, *(",".join(row) for row in rows)]) + "\n")


def write_lines(folder: Path) -> tuple[str, str]:
    sides = (("train.en", SOURCES), ("train.fr", TARGETS))
    one, other = (write(folder / name, "".join(f"{text}\n" for text in texts)) for name, texts in sides)
    return one, other


def texts_of(samples: Samples) -> tuple[list[str], list[str]]:
    assert samples.targets is not None
    return [*samples.inputs], [*samples.targets]


# What the model sees


def test_the_decoder_reads_the_target_one_token_late(tmp_path: Path) -> None:
    source = Pairs(write_csv(tmp_path), BYTES)
    samples = source.read()
    state = source.fit(samples)
    columns = source.encode(samples, state)
    texts, decoder_inputs, targets = (column[slice(None)].tolist() for column in columns)
    assert texts[1] == [*ids_of("twenty-two"), END]
    assert texts[0] == [*ids_of("one"), END, *[PADDING] * 7]
    assert decoder_inputs[0] == [BEGIN, *ids_of("un"), *[PADDING] * 8]
    assert targets[0] == [*ids_of("un"), END, *[IGNORED] * 8]
    assert targets[1] == [*ids_of("vingt-deux"), END]
    assert columns[1].values is columns[2].values


def test_texts_without_targets_have_one_column(tmp_path: Path) -> None:
    source = Pairs(write_csv(tmp_path), BYTES)
    state = source.fit(source.read())
    (samples,) = source.read_inputs([write(tmp_path / "new.txt", "two\n  three \n")], state)
    (column,) = source.encode(samples, state)
    assert column[torch.tensor([1])].tolist() == [[*ids_of("three"), END]]
    assert samples.targets is None


def test_a_shared_vocabulary_is_learned_from_both_sides(tmp_path: Path) -> None:
    source = Pairs(write_csv(tmp_path), CHARACTERS)
    state = source.fit(source.read())
    assert state["vocab_size"] == state["target_vocab_size"] == 4 + len(set("".join(SOURCES + TARGETS)))
    assert state["target_tokenizer"] is None
    assert (state["shared_vocabulary"], state["max_length"]) == (True, 256)


def test_each_side_can_have_its_own_vocabulary(tmp_path: Path) -> None:
    source = Pairs(write_csv(tmp_path), CHARACTERS, shared_vocabulary=False)
    samples = source.read()
    state = source.fit(samples)
    assert state["vocab_size"] == 4 + len(set("".join(SOURCES)))
    assert state["target_vocab_size"] == 4 + len(set("".join(TARGETS)))
    assert state["shared_vocabulary"] is False
    *_, target = source.encode(samples, state)
    assert source.decode_target(target[torch.tensor([1])][0].tolist(), state) == "vingt-deux"


def test_the_vocabulary_is_that_of_the_training_pairs(tmp_path: Path) -> None:
    source = Pairs(write_csv(tmp_path), CHARACTERS)
    samples = source.read()
    state = source.fit(samples.take(np.array([0])))
    texts, *_ = source.encode(samples.take(np.array([1])), state)
    assert texts.values.tolist().count(UNKNOWN) == len("twty-two") - 1  # "one" and "un" lend their e and n


def test_a_written_text_ends_at_the_first_end(tmp_path: Path) -> None:
    source = Pairs(write_csv(tmp_path), BYTES)
    state = source.fit(source.read())
    assert source.decode_target([*ids_of("vingt"), END, *ids_of("un"), END], state) == "vingt"
    assert source.decode_target(ids_of("vingt"), state) == "vingt"
    assert source.decode_target([END], state) == ""


@pytest.mark.parametrize("kind", ["byte", "character", "bpe"])
def test_targets_come_back_from_their_ids(tmp_path: Path, kind: str) -> None:
    source = Pairs(write_csv(tmp_path), tokenizer(kind))
    samples = source.read()
    state = json.loads(json.dumps(source.fit(samples)))
    *_, target = source.encode(samples, state)
    rows = [target[torch.tensor([i])][0].tolist() for i in range(3)]
    assert [source.decode_target(row, state) for row in rows] == TARGETS


# Files


def test_every_kind_of_file_gives_the_same_pairs(tmp_path: Path) -> None:
    rows = [{"source": a, "target": b} for a, b in zip(SOURCES, TARGETS, strict=True)]
    tsv = "".join(f"{row['source']}\t{row['target']}\n" for row in [{"source": "source", "target": "target"}, *rows])
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    paths = [
        write_csv(tmp_path),
        write(tmp_path / "pairs.tsv", tsv),
        write(tmp_path / "pairs.jsonl", "\n\n".join(map(json.dumps, rows)) + "\n"),
        str(tmp_path / "pairs.parquet"),
    ]
    found = [texts_of(Pairs(path, BYTES).read()) for path in paths]
    one, other = write_lines(tmp_path)
    assert [*found, texts_of(Pairs(one, BYTES, other).read())] == [(SOURCES, TARGETS)] * 5


def test_places_are_rows_or_lines(tmp_path: Path) -> None:
    table = write_csv(tmp_path)
    one, other = write_lines(tmp_path)
    lines = write(tmp_path / "pairs.jsonl", '{"source": "a", "target": "b"}\n\n{"source": "c", "target": "d"}\n')
    assert Pairs(table, BYTES).read().place(1) == f"{table}: row 2"
    assert Pairs(lines, BYTES).read().place(1) == f"{lines}: row 2"
    assert Pairs(one, BYTES, other).read().place(1) == f"{one} and {other}: line 2"


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    one = write(tmp_path / "a.en", "\ufeffone\u2028and a half\r\ntwo")
    other = write(tmp_path / "a.fr", "un\x0cet demi\r\ndeux\r\n")
    found = texts_of(Pairs(one, BYTES, other).read())
    assert found == (["one\u2028and a half", "two"], ["un\x0cet demi", "deux"])


def test_columns_can_have_other_names_and_say_the_split(tmp_path: Path) -> None:
    rows = [(a, split, b) for a, b, split in zip(SOURCES, TARGETS, ("train", "val", "test"), strict=True)]
    path = write_csv(tmp_path, rows, "en,part,fr")
    samples = Pairs(path, BYTES, None, "en", "fr", "part").read()
    assert texts_of(samples) == (SOURCES, TARGETS)
    assert samples.splits is not None
    assert samples.splits.tolist() == ["train", "val", "test"]
    assert samples.target_names == ("fr",)


def test_a_split_can_be_a_table_of_its_own(tmp_path: Path) -> None:
    table = write_csv(tmp_path)
    one, other = write_lines(tmp_path)
    source = Pairs(one, BYTES, other)
    assert texts_of(source.read(table)) == (SOURCES, TARGETS)
    with pytest.raises(ConfigError) as caught:
        source.read(one)
    assert str(caught.value) == (
        f"{one}: is no table (.csv, .tsv, .jsonl, .parquet, .csv.gz, .tsv.gz, .jsonl.gz) with both texts of a pair; "
        "where the data are two files of lines, a split is a fraction or such a table"
    )


def test_prediction_reads_lines_and_tables_without_targets_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dltrain.data.sources.pairs.BLOCK_TEXTS", 2)
    source = Pairs(write_csv(tmp_path), BYTES)
    lines = write(tmp_path / "new.txt", "a\nb\nc\n")
    table = write(tmp_path / "new.csv", "id,source\n1,d\n")
    blocks = [*source.read_inputs([lines, table], source.fit(source.read()))]
    assert [[*block.inputs] for block in blocks] == [["a", "b"], ["c"], ["d"]]
    assert [block.place(0) for block in blocks] == [f"{lines}: line 1", f"{lines}: line 3", f"{table}: row 1"]


def test_the_fingerprint_follows_both_files(tmp_path: Path) -> None:
    one, other = write_lines(tmp_path)
    source = Pairs(one, BYTES, other)
    assert source.files() == [("train.en", one), ("train.fr", other)]
    before = source.fingerprint()
    assert Pairs(one, BYTES, other).fingerprint() == before
    write(tmp_path / "train.fr", "un\ndeux\ntrois\n")
    assert source.fingerprint() != before


# Files that are wrong


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", "sorce,target\na,b\n", "p.csv: no column 'source'; did you mean 'sorce'? the columns: sorce, target"),
        ("p.csv", b"source,target\na,b\nc,\xff\n", "p.csv: row 2, column 'target': the cell is not UTF-8 text; save "
         "the file as UTF-8"),
        ("p.jsonl", '{"source": "a", "traget": "b"}',
         "p.jsonl: no column 'target'; did you mean 'traget'? the columns: source, traget"),
        ("p.jsonl", '{"source": 7, "target": "b"}', "p.jsonl: column 'source' holds numbers, not text"),
        ("p.jsonl", b'{"source": "a", "target": "b"}\n\n{"source": "\xff"}',
         "p.jsonl: row 2: is not UTF-8 text; save the file as UTF-8"),
        ("p.csv", "", "p.csv: the file is empty"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_one_clear_error(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    write(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        Pairs(name, BYTES, base=str(tmp_path)).read()
    assert str(caught.value) == f"{tmp_path}/{message}"


def test_numbers_in_a_parquet_file_are_not_text(tmp_path: Path) -> None:
    path = str(tmp_path / "p.parquet")
    pq.write_table(pa.table({"source": [1, 2], "target": ["a", "b"]}), path)
    with pytest.raises(DataError, match=r"p\.parquet: column 'source' holds numbers, not text$"):
        Pairs(path, BYTES).read()


def test_files_of_lines_must_have_equally_many(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a.en", "a\nb\nc\n"), write(tmp_path / "a.fr", "a\nb")
    with pytest.raises(DataError) as caught:
        Pairs(one, BYTES, other).read()
    assert str(caught.value) == (
        f"{one} has 3 lines and {other} has 2; each line of one must be the translation of the same line of the other"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\n\xe9\n", "a.fr: line 2 is not UTF-8 text; save the file as UTF-8"),
        (None, "a.fr: No such file or directory"),
    ],
)
def test_a_wrong_file_of_lines_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    write(tmp_path / "a.en", "a\nb\n")
    if content is not None:
        write(tmp_path / "a.fr", content)
    with pytest.raises(DataError, match=f"{re.escape(message)}$"):
        Pairs("a.en", BYTES, "a.fr", base=str(tmp_path)).read()


def test_empty_files_of_lines_are_refused(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a.en", ""), write(tmp_path / "a.fr", "")
    with pytest.raises(DataError, match=r"a\.en: the file is empty$"):
        Pairs(one, BYTES, other).read()


# Bad pairs


def test_one_empty_side_is_named(tmp_path: Path) -> None:
    path = write_csv(tmp_path, [("a", "b"), ("c", " ")])
    with pytest.raises(DataError) as caught:
        Pairs(path, BYTES).read()
    assert str(caught.value) == f"{path}: row 2: the target is empty"


def test_all_bad_pairs_are_counted_and_ten_are_named(tmp_path: Path) -> None:
    path = write_csv(tmp_path, [("a", "b"), *[("", "x"), ("y", ""), ("", "")] * 5])
    with pytest.raises(DataError) as caught:
        Pairs(path, BYTES).read()
    lines = str(caught.value).splitlines()
    assert lines[:4] == [
        "15 of 16 pairs are bad:",
        f"{path}: row 2: the source is empty",
        f"{path}: row 3: the target is empty",
        f"{path}: row 4: source and target are empty",
    ]
    assert lines[10:] == [f"{path}: row 11: the source is empty", "and 5 more"]


def test_bad_pairs_can_be_left_out(tmp_path: Path) -> None:
    path = write_csv(tmp_path, [("", "x"), ("a", "b"), ("c", ""), ("too long", "d"), ("e", "too long")])
    source = Pairs(path, BYTES, max_length=4, on_bad_sample="skip")
    samples = source.read()
    assert texts_of(samples) == (["a", "too long", "e"], ["b", "d", "too long"])
    state = source.fit(samples)
    usable = source.usable(samples, state)
    assert texts_of(usable) == (["a"], ["b"])
    assert usable.place(0) == f"{path}: row 2"
    notes = [
        f"2 of 5 pairs were left out; the first: {path}: row 1: the source is empty",
        f"2 of 3 pairs were left out; the first: {path}: row 4: the source has 9 tokens, more than max_length, 4",
    ]
    assert (source.notes, source.num_skipped) == (notes, 4)
    texts, *_ = source.encode(usable, state)
    assert len(texts) == 1
    assert source.num_skipped == 4
    source.read()
    assert (source.notes, source.num_skipped) == (notes[:1], 2)


def test_pairs_that_are_too_long_are_named(tmp_path: Path) -> None:
    path = write_csv(tmp_path, [("abc", "abc"), ("abcd", "a"), ("a", "abcdef")])
    source = Pairs(path, BYTES, max_length=4)
    samples = source.read()
    state = source.fit(samples)
    with pytest.raises(DataError) as caught:
        source.encode(samples, state)
    assert str(caught.value).splitlines() == [
        "2 of 3 pairs are bad:",
        f"{path}: row 2: the source has 5 tokens, more than max_length, 4",
        f"{path}: row 3: the target has 7 tokens, more than max_length, 4",
    ]
    assert len(source.encode(samples.take(np.array([0])), state)[0]) == 1


def test_bad_pairs_are_not_left_out_if_nothing_is_left(tmp_path: Path) -> None:
    source = Pairs(write_csv(tmp_path, [("", "b"), ("a", "")]), BYTES, on_bad_sample="skip")
    with pytest.raises(DataError, match=r"^2 of 2 pairs are bad:"):
        source.read()


def test_texts_to_translate_are_never_left_out(tmp_path: Path) -> None:
    source = Pairs(write_csv(tmp_path), BYTES, max_length=20, on_bad_sample="skip")
    state = source.fit(source.read())
    empty, long = write(tmp_path / "empty.txt", "a\n\nb\n"), write(tmp_path / "long.txt", "a" * 20)
    with pytest.raises(DataError, match=r"empty\.txt: line 2: the text is empty$"):
        list(source.read_inputs([empty], state))
    (samples,) = source.read_inputs([long], state)
    with pytest.raises(DataError, match=r"long\.txt: line 1: the source has 21 tokens, more than max_length, 20$"):
        source.encode(samples, state)


# Settings that are wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.en",), "path: 'a.en' is no table (.csv, .tsv, .jsonl, .parquet, .csv.gz, .tsv.gz, .jsonl.gz); for two "
         "files of one text a line, set target_path"),
        (("a.csv", "a.fr"), "path: 'a.csv' is a table, and target_path is for two files of one text a line"),
        (("a.en", "a.csv"), "target_path: 'a.csv' is a table, and target_path is for two files of one text a line"),
        (("a.en", "a.fr", None, "fr"), "target_column: cannot take effect: with target_path, the data are lines, not "
         "a table"),
        (("a.csv", None, "x", "x"), "source_column, target_column and split_column must be different columns"),
    ],
)  # fmt: skip
def test_wrong_settings_are_found_before_any_file_is_read(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Pairs(arguments[0], BYTES, *arguments[1:])
    assert str(caught.value) == message


def test_a_vocabulary_that_is_too_small_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^vocab_size 100 is too small; the kind bpe needs at least 260"):
        Pairs("a.csv", tokenizer("bpe", 100))
