"""Labelled texts: tables and folders become token ids, and each bad text is named with its place."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dltrain.config.schema.data_text import Text as TextSettings
from dltrain.config.schema.data_text import Tokenizer as TokenizerSettings
from dltrain.config.validate import load_config
from dltrain.data.sources.table import Table
from dltrain.data.sources.text import Text
from dltrain.data.tokenizer import Tokenizer
from dltrain.errors import ConfigError, DataError
from dltrain.evaluation import evaluate
from dltrain.prediction import predict
from dltrain.train import fit
from tests.make_texts import LANGUAGES, make_rows, write_csv, write_json_lines

ROWS = [("good day", "en"), ("guten Tag, Welt", "de"), ("day", "en"), ("Tag", "de")]
BPE, BYTES, WORDS = ({"kind": kind, "vocab_size": None, "lowercase": False} for kind in ("bpe", "byte", "word"))


def text_source(path: str, tokenizer: dict[str, Any] = BPE, **settings: Any) -> Text:
    return Text(path, tokenizer, **settings)


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def csv_of(folder: Path, rows: list[tuple[str, str]] = ROWS, name: str = "texts.csv") -> str:
    write_csv(folder / name, rows)
    return str(folder / name)


def parquet_of(folder: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), folder / "texts.parquet")
    return str(folder / "texts.parquet")


def class_folder(root: Path) -> str:
    for text, label in ROWS:
        write(root / label / f"{len(text)}.txt", text)
    return str(root)


def texts_of(source: Text, path: str | None = None) -> list[str]:
    return source.read(path).inputs.to_pylist()  # type: ignore[no-any-return]


def message(source: Text, path: str | None = None) -> str:
    with pytest.raises(DataError) as raised:
        source.read(path)
    return str(raised.value)


# What is read


def test_all_kinds_of_tables_hold_the_same(tmp_path: Path) -> None:
    texts, labels = ([row[column] for row in ROWS] for column in (0, 1))
    write_json_lines(tmp_path / "texts.jsonl", ROWS)
    paths = [
        csv_of(tmp_path),
        str(tmp_path / "texts.jsonl"),
        write(tmp_path / "texts.ndjson.gz", gzip.compress((tmp_path / "texts.jsonl").read_bytes())),
        write(tmp_path / "texts.tsv", "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in ROWS)),
        parquet_of(tmp_path, text=texts, label=labels),
    ]
    for path in paths:
        samples = text_source(path).read()
        assert samples.inputs.to_pylist() == texts
        assert samples.targets is not None
        assert samples.targets.tolist() == labels
        assert samples.place(1) == f"{path}: row 2"
        assert samples.target_names == ("label",)


def test_the_smallest_settings_and_those_of_a_config_are_the_same(tmp_path: Path) -> None:
    settings = TextSettings(type="text", path="texts.csv")
    source, smallest = Text(**settings.arguments(), base=str(tmp_path)), text_source(csv_of(tmp_path))
    assert source.fit(source.read()) == smallest.fit(smallest.read())
    assert settings.arguments()["tokenizer"] == TokenizerSettings().model_dump() == smallest.tokenizer


def test_a_folder_has_a_folder_of_text_files_for_each_class(tmp_path: Path) -> None:
    root = class_folder(tmp_path / "texts")
    write(tmp_path / "texts/en/notes.md", "not read")
    samples = text_source(root).read()
    assert samples.inputs.to_pylist() == ["guten Tag, Welt", "Tag", "day", "good day"]
    assert samples.targets is not None
    assert samples.targets.tolist() == ["de", "de", "en", "en"]
    assert samples.place(0) == f"{root}/de/15.txt"
    assert samples.splits is None


def test_folders_and_columns_may_say_the_splits(tmp_path: Path) -> None:
    for split in ("train", "val"):
        class_folder(tmp_path / "texts" / split)
    samples = text_source(str(tmp_path / "texts")).read()
    assert samples.splits is not None
    assert samples.splits.tolist() == ["train"] * 4 + ["val"] * 4
    path = write(tmp_path / "x.csv", "text,label,part\na,1,train\nb,0,test\n")
    samples = text_source(path, split_column="part").read()
    assert samples.splits is not None
    assert samples.splits.tolist() == ["train", "test"]
    assert text_source(path, split_column="part").read(csv_of(tmp_path)).splits is None  # a file of a split has none
    write(tmp_path / "x.csv", "text,label,part\na,1,train\nb,0,trian\n")
    assert message(text_source(path, split_column="part")) == (
        f"{path}: row 2, column 'part': 'trian' is none of train, val, test"
    )


def test_texts_are_stripped_and_whatever_else_stays(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", 'text,label\n"  two\nlines, ""quoted"" \t",a\nnan,b\nNULL,a\n')
    assert texts_of(text_source(path)) == ['two\nlines, "quoted"', "nan", "NULL"]
    write(tmp_path / "c/a/1.txt", b"\xef\xbb\xbf two\r\nlines \n")
    assert texts_of(text_source(str(tmp_path / "c"))) == ["two\nlines"]


def test_columns_have_the_names_of_the_settings(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "id,review,stars\n7,good,4.5\n8,bad,1\n")
    samples = text_source(path, column="review", target="stars").read()
    assert samples.inputs.to_pylist() == ["good", "bad"]
    assert samples.targets is not None
    assert samples.targets.tolist() == [4.5, 1.0]
    assert samples.target_names == ("stars",)


@pytest.mark.parametrize(
    ("cells", "kind", "values"),
    [
        (["1", "0"], "i", [1, 0]),
        (["1.5", "-2e1"], "f", [1.5, -20.0]),
        (["red|round", "red"], "U", ["red|round", "red"]),
        (["007", "1"], "U", ["007", "1"]),
        (["1", "one"], "U", ["1", "one"]),
    ],
)
def test_targets_are_integers_numbers_or_text(tmp_path: Path, cells: list[str], kind: str, values: list[Any]) -> None:
    path = csv_of(tmp_path, [("a", cells[0]), ("b", cells[1])])
    targets = text_source(path).read().targets
    assert targets is not None
    assert targets.dtype.kind == kind
    assert targets.tolist() == values


def test_targets_of_json_and_parquet_are_what_their_author_made_them(tmp_path: Path) -> None:
    for label, kind in (("007", "U"), (7, "i"), (7.0, "f"), (True, "U")):
        path = write(tmp_path / "x.jsonl", json.dumps({"text": "a", "label": label}))
        assert (targets := text_source(path).read().targets) is not None
        assert targets.dtype.kind == kind, label
        path = parquet_of(tmp_path, text=["a"], label=[label])
        assert (targets := text_source(path).read().targets) is not None
        assert targets.dtype.kind == kind, label


def test_several_targets_are_numbers_or_true_and_false(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "text,toxic,score\na,true,0.5\nb,False,1\n")
    samples = text_source(path, target=["toxic", "score"]).read()
    assert samples.targets is not None
    assert samples.targets.tolist() == [[1.0, 0.5], [0.0, 1.0]]
    assert samples.target_names == ("toxic", "score")
    write(tmp_path / "x.csv", "text,toxic,score\na,1,0.5\nb,0,much\n")
    assert (
        message(text_source(path, target=["toxic", "score"]))
        == f"{path}: row 2, column 'score': 'much' is not a number"
    )


# Token ids


def test_the_tokenizer_learns_from_the_training_texts(tmp_path: Path) -> None:
    source = text_source(csv_of(tmp_path), tokenizer=WORDS)
    samples = source.read()
    state = source.fit(samples.take(np.array([0, 2])))
    assert json.loads(json.dumps(state)) == state
    assert (state["vocab_size"], state["max_length"]) == (6, 512)  # day and good
    (ids,) = source.encode(samples, state)
    assert ids[torch.arange(4)].tolist() == [[5, 4, 0, 0], [1, 1, 1, 1], [4, 0, 0, 0], [1, 0, 0, 0]]
    assert source.notes == []


def test_long_texts_are_cut_and_a_note_says_so(tmp_path: Path) -> None:
    source = text_source(csv_of(tmp_path), tokenizer=BYTES, max_length=4)
    samples = source.read()
    state = source.fit(samples)
    (ids,) = source.encode(samples, state)
    tokenizer = Tokenizer.from_json(state["tokenizer"])
    assert [tokenizer.decode(row.tolist()) for row in ids[torch.arange(4)]] == ["good", "gute", "day", "Tag"]
    assert len(ids.values) == 4 + 4 + 3 + 3  # what is cut off takes no memory
    assert ids.values.dtype == torch.int32
    assert source.notes == ["2 of 4 texts are longer than max_length and were cut to 4 tokens"]


def test_blocks_change_no_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = text_source(csv_of(tmp_path), tokenizer=BYTES, max_length=4)
    samples = source.read()
    state = source.fit(samples)
    (whole,) = source.encode(samples, state)
    monkeypatch.setattr("dltrain.data.sources.text.BLOCK_TEXTS", 3)
    (in_blocks,) = source.encode(samples, source.fit(samples))
    assert torch.equal(whole.values, in_blocks.values)
    assert torch.equal(whole.lengths, in_blocks.lengths)


def test_a_fingerprint_changes_with_the_texts(tmp_path: Path) -> None:
    root = class_folder(tmp_path / "texts")
    source = text_source(root)
    assert [name for name, _ in source.files()] == ["de/15.txt", "de/3.txt", "en/3.txt", "en/8.txt"]
    before = source.fingerprint()
    write(tmp_path / "texts/en/8.txt", "bad day")
    assert source.fingerprint() != before
    table = text_source(csv_of(tmp_path))
    assert table.files() == [("texts.csv", str(tmp_path / "texts.csv"))]
    assert table.fingerprint() == table.fingerprint(str(tmp_path / "texts.csv")) != before


# New texts


def test_new_texts_come_from_tables_files_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dltrain.data.sources.text.BLOCK_TEXTS", 3)
    source = text_source(csv_of(tmp_path))
    state = source.fit(source.read())
    table = write(tmp_path / "new.csv", "id,text\n1,good\n2,\n")
    lines = write(tmp_path / "new.jsonl", '{"text": "bad"}\n{"id": 7}\n')
    file, folder = write(tmp_path / "one.TXT", " day\n"), class_folder(tmp_path / "more")
    blocks = list(source.read_inputs([table, lines, file, folder], state))
    found = [(block.place(i), text) for block in blocks for i, text in enumerate(block.inputs.to_pylist())]
    assert found == [
        (f"{table}: row 1", "good"),
        (f"{table}: row 2", None),
        (f"{lines}: row 1", "bad"),
        (f"{lines}: row 2", None),
        (file, "day"),
        (f"{folder}/de/15.txt", "guten Tag, Welt"),
        (f"{folder}/de/3.txt", "Tag"),
        (f"{folder}/en/3.txt", "day"),
        (f"{folder}/en/8.txt", "good day"),
    ]
    assert all(block.targets is None for block in blocks)
    (ids,) = source.encode(blocks[0], state)
    assert ids.lengths.tolist()[1] == 0  # an empty text is predicted, too


def test_rows_of_later_blocks_keep_their_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dltrain.data.sources.table_files.BLOCK_ROWS", 3)
    source = text_source(csv_of(tmp_path))
    path = csv_of(tmp_path, [(f"text {i}", "a") for i in range(7)], "new.csv")
    blocks = list(source.read_inputs([path], source.fit(source.read())))
    places = [block.place(i) for block in blocks for i in range(len(block))]
    assert places == [f"{path}: row {n}" for n in range(1, 8)]


def test_what_is_wrong_with_new_texts_is_an_error(tmp_path: Path) -> None:
    source = text_source(csv_of(tmp_path), on_bad_sample="skip")
    state = source.fit(source.read())

    def of(path: str) -> str:
        with pytest.raises(DataError) as raised:
            list(source.read_inputs([path], state))
        return str(raised.value)

    bad, other = write(tmp_path / "bad.txt", b"day\n\xff"), write(tmp_path / "other.csv", "txt\nday\n")
    assert of(bad) == f"{bad}: line 2 is not UTF-8 text; save the file as UTF-8"
    assert of(other) == f"{other}: no column 'text'; did you mean 'txt'? the columns: txt"
    assert of(str(tmp_path / "no.txt")) == f"{tmp_path}/no.txt: No such file or directory"
    (tmp_path / "empty").mkdir()
    assert of(str(tmp_path / "empty")) == f"{tmp_path}/empty: holds no text file"


# Bad texts


def test_one_error_names_all_bad_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "text,label\ngood,a\n,a\nbad,\n  ,\n")
    assert message(text_source(path)) == (
        "3 of 4 texts cannot be used:\n"
        f"{path}: row 2, column 'text': is empty\n"
        f"{path}: row 3, column 'label': is empty\n"
        f"{path}: row 4, column 'text': is empty"
    )
    write(tmp_path / "x.csv", "text,label\ngood,a\n" + ",b\n" * 12)
    assert message(text_source(path)).endswith(f"{path}: row 11, column 'text': is empty\nand 2 more")
    write(tmp_path / "x.csv", "text,label\ngood,a\n,b\n")
    assert message(text_source(path)) == f"{path}: row 2, column 'text': is empty"


def test_bad_rows_can_be_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "text,label\n,oops\ngood,1\nbad,\nday,0\n")
    source = text_source(path, on_bad_sample="skip")
    samples = source.read()
    assert samples.inputs.to_pylist() == ["good", "day"]
    assert samples.targets is not None
    assert samples.targets.tolist() == [1, 0]  # the rows left out do not decide what targets are
    assert [samples.place(i) for i in range(2)] == [f"{path}: row 2", f"{path}: row 4"]
    assert source.num_skipped == 2
    assert source.notes == [f"2 of 4 texts were left out; the first: {path}: row 1, column 'text': is empty"]
    write(tmp_path / "x.csv", "text,label\n,a\n,b\n")
    assert message(source).startswith("2 of 2 texts cannot be used:\n")


def test_bad_files_are_named_or_left_out(tmp_path: Path) -> None:
    root = class_folder(tmp_path / "texts")
    bad, empty = write(tmp_path / "texts/de/bad.txt", b"Tag\xff"), write(tmp_path / "texts/en/empty.txt", " \n")
    assert message(text_source(root)) == (
        f"2 of 6 texts cannot be used:\n{bad}: line 1 is not UTF-8 text; save the file as UTF-8\n{empty}: is empty"
    )
    source = text_source(root, on_bad_sample="skip")
    assert len(source.read()) == 4
    assert source.num_skipped == 2


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "x.csv: the file is empty"),
        ("text,label\n", "x.csv: has column names but no rows"),
        ("txt,label\na,b\n", "x.csv: no column 'text'; did you mean 'txt'? the columns: txt, label"),
        ("text,lable\na,b\n", "x.csv: no column 'label'; did you mean 'lable'? the columns: text, lable"),
        ("text,label\n1,b\n2.5,a\n", "x.csv: column 'text' holds numbers, not text"),
        (
            b"text,label\ngood,a\nf\xfcr,b\n",
            "x.csv: row 2, column 'text': the cell is not UTF-8 text; save the file as ",
        ),
        ("text,label\ngood,1\nbad,inf\n", "x.csv: row 2, column 'label': 'inf' is not a finite number"),
        (f"text,label\ngood,{'x' * 1001}\n", "x.csv: row 1, column 'label': 1001 characters are no label"),
    ],
)
def test_wrong_tables(tmp_path: Path, content: str | bytes, expected: str) -> None:
    path = write(tmp_path / "x.csv", content)
    assert message(text_source(path)).replace(f"{tmp_path}/", "").startswith(expected)


def test_columns_of_other_types_than_text(tmp_path: Path) -> None:
    path = parquet_of(tmp_path, text=[1.5, None], label=["a", "b"])
    assert message(text_source(path, on_bad_sample="skip")) == f"{path}: column 'text' holds numbers, not text"
    path = parquet_of(tmp_path, text=[["a"]], label=["a"])
    assert re.search(r"column 'text' holds values of type list<.*>, not text$", message(text_source(path)))
    path = write(tmp_path / "x.jsonl", '{"text": "a", "label": ["red", "round"]}')
    assert message(text_source(path)).endswith(
        ", which cannot be a target; several labels of a text are written as one text with | between them"
    )


def test_wrong_places(tmp_path: Path) -> None:
    one = write(tmp_path / "one.txt", "a text")
    assert message(text_source(one)) == (
        f"{one}: is a text file; the data are a CSV, JSON lines or Parquet file with texts and targets, or a folder "
        "with a folder of text files for each class"
    )
    csv_of(tmp_path)
    assert (
        message(text_source(str(tmp_path / "text.csv")))
        == f"{tmp_path}/text.csv: no such file; did you mean 'texts.csv'?"
    )
    write(tmp_path / "texts/a/1.md", "x")
    assert message(text_source(str(tmp_path / "texts"))) == (
        f"{tmp_path}/texts/a: holds no text file, 1 other files, such as '1.md'; add text files of the class or remove "
        "the folder"
    )


@pytest.mark.parametrize("setting", ["column", "target", "split_column"])
def test_settings_of_tables_have_no_place_with_a_folder(tmp_path: Path, setting: str) -> None:
    source = text_source(class_folder(tmp_path), **{setting: "x"})
    with pytest.raises(ConfigError, match=f"^{setting}: is for a table, and .* is a folder; remove it$"):
        source.read()


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^column, target and split_column must be different columns$"):
        text_source("x.csv", target=["a", "text"])
    with pytest.raises(ConfigError, match=r"^vocab_size 100 is too small; the kind bpe needs at least 260"):
        text_source("x.csv", BPE | {"vocab_size": 100})


# JSON lines


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "the file is empty"),
        ("\n \n", "has no rows"),
        ('{"text": "a"}\n\n{"text": \n', "row 2: is not JSON (Expecting value"),
        ('[{"text": "a"}]\n', 'row 1: is a list; each line holds one object, like {"text": ...}'),
        ("null\n", 'row 1: is null; each line holds one object, like {"text": ...}'),
        ('{"text": "a"}\n3\n', 'row 2: is a number; each line holds one object, like {"text": ...}'),
        (b'{"text": "a"}\n{"text": "\xff"}\n', "row 2: is not UTF-8 text; save the file as UTF-8"),
        ('{"text": "a", "text": "b"}\n', "row 1: has the key 'text' twice"),
        ('{"text": "\\ud83d"}\n', "row 1, column 'text': holds half of a surrogate pair, which is no character"),
        (
            '{"text": "a"}\n{"text": 3}\n',
            "row 2, column 'text': is a number, and text in row 1; a column holds one kind",
        ),
        ('{"txt": "a", "label": 1}\n', "no column 'text'; did you mean 'txt'? the columns: txt, label"),
        ("{}\n", "no column 'text'; the columns: "),
    ],
)
def test_wrong_json_lines(tmp_path: Path, content: str | bytes, expected: str) -> None:
    path = write(tmp_path / "x.jsonl", content)
    assert message(text_source(path)).startswith(f"{path}: {expected}")


def test_long_rows_of_json_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dltrain.data.sources.json_lines._LONGEST_ROW_MIB", 1)
    path = write(tmp_path / "x.jsonl", f'{{"text": "{"x" * 500_000}", "label": 1}}\n' * 3)
    assert len(text_source(path).read()) == 3
    write(tmp_path / "x.jsonl", f'{{"text": "{"x" * 3_000_000}", "label": 1}}\n' * 2)
    assert message(text_source(path)) == f"{path}: a row is longer than 1 MiB; JSON lines hold one object on each line"


def test_json_that_is_not_lines_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", '[{"text": "a"}]')
    assert message(text_source(path)) == f"{path}: save it as JSON lines, one object on each line, and call it .jsonl"


def test_the_table_source_reads_json_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.jsonl",
        '{"age": 31, "city": "Bern", "since": "2020-01-15", "label": "yes"}\n'
        '{"age": 45.5, "city": "007", "since": "2021-01-15", "label": "no"}\n',
    )
    source = Table(path, "label")
    samples = source.read()
    state = source.fit(samples)
    kinds = {column["name"]: column["kind"] for column in state["columns"]}
    assert kinds == {"age": "numeric", "city": "category", "since": "date"}
    (block,) = source.read_inputs([path], state)
    for old, new in zip(source.encode(samples, state), source.encode(block, state), strict=True):
        assert torch.equal(old, new)


# From the config to predictions


def config_of(folder: Path, settings: str) -> Path:
    return Path(write(folder / "c.yaml", settings))


@pytest.mark.usefixtures("no_curves")
@pytest.mark.parametrize(
    ("labels", "task", "metric"),
    [
        (["en", "de"], "classification", "accuracy"),
        (["short|en", "long"], "multilabel", "micro_f1"),
        (["1.5", "-3"], "regression", "rmse"),
    ],
)
def test_texts_train_and_are_predicted(tmp_path: Path, labels: list[str], task: str, metric: str) -> None:
    csv_of(tmp_path, [(text, labels[i % 2]) for i, (text, _) in enumerate(ROWS * 10)])
    config = config_of(
        tmp_path,
        f"""
data: {{type: text, path: texts.csv, tokenizer: {{kind: word}}}}
task: {{type: {task}}}
model: {{type: bag_of_embeddings, embedding_dim: 8}}
optimizer: {{type: adamw, lr: 0.1}}
train: {{duration: 8 epochs, batch_size: 8}}
""",
    )
    summary = fit(load_config(config), root=tmp_path / "runs")
    assert evaluate(summary["run"])["metrics"][metric] == pytest.approx(0 if task == "regression" else 1, abs=0.2)
    new = write(tmp_path / "new.csv", "text\nday\n\nTag\n")
    rows = list(predict(summary["run"], [new]))
    assert [row["input"] for row in rows] == [f"{new}: row {n}" for n in (1, 2, 3)]


def test_wrong_settings_of_a_tokenizer_stand_in_the_config(tmp_path: Path) -> None:
    path = config_of(
        tmp_path,
        "data: {type: text, path: texts.csv, tokenizer: {kind: byte, vocab_size: 300}}\nmodel: {type: text_convnet}\n",
    )
    csv_of(tmp_path)
    with pytest.raises(ConfigError) as raised:
        fit(load_config(path), root=tmp_path / "runs")
    assert str(raised.value) == (
        f"{path}:1:7: data: vocab_size cannot take effect: with the kind byte it is always 260"
    )


# The data of the tests


def test_made_texts_are_always_the_same_and_all_different() -> None:
    rows = make_rows(5)
    assert rows == make_rows(5)
    assert len({text for text, _ in rows}) == len(rows)
    assert sorted(label for _, label in rows) == sorted(LANGUAGES * 5)
