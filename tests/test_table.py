from __future__ import annotations

import gzip
import inspect
import json
import math
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import TypeAdapter
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from dltrain.config.schema.data_table import Table as TableSettings
from dltrain.data.columns import Samples
from dltrain.data.sources.table import Table
from dltrain.errors import ConfigError, DataError

PEOPLE = """age,income,city,member,joined,name,label
31,1200.5,Bern,true,2020-01-15,Ann,yes
45,900,Basel,false,2020-07-01,Bob,no
28,2100,Bern,true,2021-12-31,Cid,yes
52,1500,Genf,true,2019-03-04,Dan,no
"""


def write(folder: Path, text: str | bytes, name: str = "people.csv") -> str:
    content = text.encode() if isinstance(text, str) else text
    (folder / name).write_bytes(content)
    return name


def source(folder: Path, text: str | bytes, **settings: Any) -> Table:
    return Table(write(folder, text), **{"target": "label", "base": str(folder)} | settings)


def fitted(table: Table) -> tuple[Samples, dict[str, Any], tuple[torch.Tensor, ...]]:
    samples = table.read()
    state = json.loads(json.dumps(table.fit(samples)))  # as it will be kept in a checkpoint
    return samples, state, table.encode(samples, state)


def kinds(state: dict[str, Any]) -> dict[str, str]:
    return {column["name"]: column["kind"] for column in state["columns"]}


def message(table: Table) -> str:
    with pytest.raises(DataError) as caught:
        fitted(table)
    return str(caught.value)


# Reading and kinds


def test_mixed_table_becomes_numbers_and_codes(tmp_path):
    samples, state, (numeric, categories) = fitted(source(tmp_path, PEOPLE, columns={"name": "ignore"}))
    assert kinds(state) == {
        "age": "numeric", "income": "numeric", "city": "category", "member": "category", "joined": "date",
        "name": "ignore",
    }  # fmt: skip
    assert samples.targets.tolist() == ["yes", "no", "yes", "no"]
    assert samples.target_names == ("label",)
    assert samples.place(2) == "people.csv: row 3"
    assert state["cardinalities"] == [4, 3]
    assert categories.dtype == torch.int64
    assert categories.tolist() == [[2, 2], [1, 1], [2, 2], [3, 2]]
    assert numeric.dtype == torch.float32
    assert state["features"][:4] == ["age", "income", "joined.year", "joined.month_sin"]
    assert "joined.seconds" not in state["features"]
    expected = StandardScaler().fit_transform([[31, 1200.5], [45, 900], [28, 2100], [52, 1500]])
    np.testing.assert_allclose(numeric[:, :2].numpy(), expected, rtol=1e-6)


def test_minmax_and_no_scaling(tmp_path):
    values = [[31, 1200.5], [45, 900], [28, 2100], [52, 1500]]
    _, _, (numeric, _) = fitted(source(tmp_path, PEOPLE, scale="minmax"))
    np.testing.assert_allclose(numeric[:, :2].numpy(), MinMaxScaler().fit_transform(values), rtol=1e-6)
    _, _, (numeric, _) = fitted(source(tmp_path, PEOPLE, scale="none"))
    np.testing.assert_allclose(numeric[:, :2].numpy(), values)


def test_csv_gzip_tsv_and_parquet_read_alike(tmp_path):
    rows = [line.split(",") for line in PEOPLE.split()]
    write(tmp_path, PEOPLE)
    write(tmp_path, gzip.compress(PEOPLE.encode()), "people.csv.gz")
    write(tmp_path, PEOPLE.replace(",", "\t"), "people.tsv")
    write(tmp_path, "\ufeff" + PEOPLE.replace(",", " , ").replace("\n", "\r\n"), "spaces.csv")
    columns = dict(zip(rows[0], zip(*rows[1:], strict=True), strict=True))
    typed: dict[str, Any] = {name: list(values) for name, values in columns.items()}
    typed["age"] = pa.array([int(v) for v in columns["age"]], pa.int8())
    typed["income"] = [float(v) for v in columns["income"]]
    typed["member"] = [v == "true" for v in columns["member"]]
    typed["joined"] = [date.fromisoformat(v) for v in columns["joined"]]
    typed["city"] = pa.array(columns["city"]).dictionary_encode()
    pq.write_table(pa.table(typed), tmp_path / "people.parquet")
    results = {}
    for name in ("people.csv", "people.csv.gz", "people.tsv", "spaces.csv", "people.parquet"):
        samples, state, tensors = fitted(Table(name, "label", base=str(tmp_path)))
        results[name] = (samples.targets.tolist(), state, [tensor.tolist() for tensor in tensors])
    assert all(result == results["people.csv"] for result in results.values())


def test_text_that_nearly_always_differs_is_left_out_and_said(tmp_path):
    text = "id,key,x,label\n" + "".join(f"{i},name {i},{i % 3}.5,{i % 2}\n" for i in range(30))
    _, state, _ = fitted(source(tmp_path, text))
    by_name = {column["name"]: column for column in state["columns"]}
    assert by_name["key"]["kind"] == "ignore"
    assert by_name["key"]["note"] == "text that nearly always differs (30 different of 30)"
    assert "whole numbers that all differ" in by_name["id"]["note"]
    _, state, _ = fitted(source(tmp_path, text, columns={"key": "category", "id": "ignore"}))
    assert kinds(state) == {"id": "ignore", "key": "category", "x": "numeric"}


def test_columns_without_name_or_values_are_left_out_and_said(tmp_path):
    _, state, (numeric,) = fitted(source(tmp_path, ",x,label,empty\n0,1,a,\n1,2,b,\n"))
    assert [(column["kind"], column["note"]) for column in state["columns"]] == [
        ("ignore", "has no name; a saved row index?"),
        ("numeric", "1 to 2"),
        ("ignore", "has no values in the training split"),
    ]
    assert numeric.tolist() == [[-1], [1]]


def test_numbers_as_text_in_parquet_stay_a_category(tmp_path):
    pq.write_table(pa.table({"zip": ["01", "02", "01"], "label": [0, 1, 0]}), tmp_path / "people.csv")
    samples, state, (numeric, codes) = fitted(Table("people.csv", "label", base=str(tmp_path)))
    assert samples.inputs.column_names == ["zip"]
    assert kinds(state) == {"zip": "category"}
    assert numeric.shape == (3, 0)
    assert codes.tolist() == [[1], [2], [1]]


@pytest.mark.parametrize(
    ("cells", "dtype", "values"),
    [
        (["b", "a"], "U", ["b", "a"]),
        (["1", "0"], "i", [1, 0]),
        (["+1", "-1", "007"], "i", [1, -1, 7]),
        (["1.5", "-2e3"], "f", [1.5, -2000]),
        (["true", "false"], "U", ["true", "false"]),
        (["9007199254740993", "-1"], "i", [9007199254740993, -1]),
    ],
)
def test_targets_keep_their_kind(tmp_path, cells, dtype, values):
    samples = source(tmp_path, "x,label\n" + "".join(f"1,{cell}\n" for cell in cells)).read()
    assert samples.targets.dtype.kind == dtype
    assert samples.targets.tolist() == values


def test_target_kind_can_be_set(tmp_path):
    assert source(tmp_path, "x,label\n1,0\n2,1\n", columns={"label": "category"}).read().targets.tolist() == [
        "0",
        "1",
    ]


def test_several_targets_are_a_matrix(tmp_path):
    samples = source(tmp_path, "x,a,b\n1,true,0\n2,false,1.5\n", target=["b", "a"]).read()
    assert samples.targets.dtype == np.float64
    assert samples.targets.tolist() == [[0, 1], [1.5, 0]]
    assert samples.target_names == ("b", "a")
    assert samples.inputs.column_names == ["x"]


def test_split_column_is_no_feature(tmp_path):
    table = source(tmp_path, "x,part,label\n1,train,a\n2,test,b\n3,val,b\n", split_column="part")
    samples = table.read()
    assert samples.splits.tolist() == ["train", "test", "val"]
    assert kinds(table.fit(samples)) == {"x": "numeric"}
    other = write(tmp_path, "x,label\n1,a\n", "other.csv")
    assert table.read(str(tmp_path / other)).splits is None
    wrong = source(tmp_path, "x,part,label\n1,train,a\n2,valid,b\n", split_column="part")
    assert message(wrong) == "people.csv: row 2, column 'part': 'valid' is none of train, val, test"


def test_quoted_cells_hold_delimiters_and_line_ends(tmp_path):
    samples = source(tmp_path, 'x;label\n1;"a;b"\n2;"c\nd"\n3;"e ""f"""\n', delimiter=";").read()
    assert samples.targets.tolist() == ["a;b", "c\nd", 'e "f"']
    assert source(tmp_path, 'x,label\n1,a\n2,"b\nc"\n\n').read().targets.tolist() == ["a", "b\nc"]


# What the training rows teach


def test_only_training_rows_teach(tmp_path):
    table = source(tmp_path, PEOPLE, columns={"name": "ignore"}, scale="minmax")
    samples = table.read()
    train, val = samples.take(np.array([0, 1])), samples.take(np.array([3, 2]))
    state = table.fit(train)
    numeric, categories = table.encode(val, state)
    assert state["cardinalities"] == [3, 3]
    assert categories.tolist() == [[0, 2], [2, 2]]  # Genf is unknown
    np.testing.assert_allclose(numeric[:, 0], [(52 - 31) / 14, (28 - 31) / 14], rtol=1e-6)
    assert val.place(0) == "people.csv: row 4"


def test_onehot_of_an_unknown_value_is_zeros(tmp_path):
    table = source(tmp_path, PEOPLE, categories="onehot", columns={"joined": "ignore", "name": "ignore"})
    samples = table.read()
    state = table.fit(samples.take(np.arange(3)))
    (numeric,) = table.encode(samples, state)
    assert state["cardinalities"] == []
    assert state["features"][2:] == ["city=Basel", "city=Bern", "member=false", "member=true"]
    assert numeric[:, 2:].tolist() == [[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 0, 1]]


def test_onehot_refuses_thousands_of_values(tmp_path):
    text = "x,label\n" + "".join(f"v{i % 1500},0\n" for i in range(3000))
    assert "people.csv: column 'x' has 1500 values, and onehot takes at most 1000" in message(
        source(tmp_path, text, categories="onehot")
    )


@pytest.mark.parametrize("scale", ["standard", "minmax"])
def test_constant_column_becomes_zeros(tmp_path, scale):
    # The deviation of three times 0.1 is 1e-17, not 0: dividing by it would make noise of rounding.
    _, state, (numeric,) = fitted(source(tmp_path, "x,label\n0.1,a\n0.1,b\n0.1,a\n", scale=scale))
    assert numeric.tolist() == [[0], [0], [0]]
    assert state["columns"][0]["note"] == "always 0.1 in the training split"


def test_dates_become_year_circle_and_seconds(tmp_path):
    text = "when,label\n2024-05-31 06:00:01.5,a\n1969-12-29,b\n"
    _, state, (numeric,) = fitted(source(tmp_path, text, scale="none"))
    parts = dict(zip(state["features"], numeric.T.tolist(), strict=True))
    assert parts["when.year"] == [2024, 1969]
    assert parts["when.seconds"] == [6 * 3600 + 1.5, 0]
    angles = {"month": [4 / 12, 11 / 12], "weekday": [4 / 7, 0]}  # a Friday and a Monday
    for name, turns in angles.items():
        assert parts[f"when.{name}_sin"] == pytest.approx([math.sin(2 * math.pi * t) for t in turns], abs=1e-6)
        assert parts[f"when.{name}_cos"] == pytest.approx([math.cos(2 * math.pi * t) for t in turns], abs=1e-6)


def test_times_with_a_zone_are_taken_in_utc(tmp_path):
    text = "when,label\n2024-01-01T00:30:00+02:00,a\n2024-01-01T12:00:00.123456789Z,b\n"
    table = source(tmp_path, text, scale="none")
    _, state, (numeric,) = fitted(table)
    assert numeric[0, 0] == 2023
    assert state["columns"][0]["note"] == "2023-12-31 to 2024-01-01 (UTC)"
    pq.write_table(
        pa.table({"when": pa.array([datetime(2024, 1, 1, tzinfo=UTC)], pa.timestamp("ns", "Europe/Zurich"))}),
        tmp_path / "new.parquet",
    )
    (block,) = table.read_inputs([str(tmp_path / "new.parquet")], state)
    assert table.encode(block, state)[0][0, -1] == 0
    naive = str(tmp_path / write(tmp_path, "when\n2024-01-01T12:00:00\n", "naive.csv"))
    (block,) = table.read_inputs([naive], state)
    with pytest.raises(DataError, match=r"row 1, column 'when': '2024-01-01T12:00:00' is not a date with a time and"):
        table.encode(block, state)


# Missing values

GAPS = "age,city,when,label\n10,a,2020-01-01,x\n,b,2021-01-01,y\n50,,,x\n30,b,2020-01-01,y\n"


def test_missing_values_are_refused_by_default(tmp_path):
    assert message(source(tmp_path, GAPS)) == (
        "people.csv: row 2, column 'age': the value is missing; set missing: drop, mean, median or "
        "indicator, or leave the column out with columns: {age: ignore}"
    )
    assert "row 3, column 'city': the value is missing" in message(source(tmp_path, GAPS, columns={"age": "ignore"}))


def test_rows_with_missing_values_are_dropped_and_counted(tmp_path):
    table = source(tmp_path, GAPS, missing="drop", columns={"when": "ignore"})
    samples, _, (numeric, _) = fitted(table)
    assert len(numeric) == len(samples) == 2
    assert [samples.place(i) for i in range(2)] == ["people.csv: row 1", "people.csv: row 4"]
    assert table.notes == ["people.csv: dropped 2 of 4 rows: missing 'age' in 1, 'city' in 1"]
    assert "dropped 2 of 2 rows" in message(source(tmp_path, "x,y,label\n1,,a\n,2,b\n", missing="drop"))


@pytest.mark.parametrize(("missing", "filled"), [("mean", 30), ("median", 20)])
def test_missing_numbers_are_filled_from_the_training_rows(tmp_path, missing, filled):
    text = "age,city,label\n10,a,x\n,b,y\n60,,x\n20,b,y\n"
    _, state, (numeric, codes) = fitted(source(tmp_path, text, missing=missing, scale="none"))
    assert numeric[:, 0].tolist() == [10, filled, 60, 20]
    assert codes[:, 0].tolist() == [1, 2, 0, 2]
    assert [column["note"] for column in state["columns"]] == [
        f"10 to 60; 1 missing, taken as the {missing}",
        "2 values: a, b; 1 missing, taken as unknown",
    ]


def test_indicator_marks_what_was_missing(tmp_path):
    _, state, (numeric, _) = fitted(source(tmp_path, GAPS, missing="indicator"))
    at = {name: i for i, name in enumerate(state["features"])}
    assert numeric[:, at["age.missing"]].tolist() == [0, 1, 0, 0]
    assert numeric[:, at["when.missing"]].tolist() == [0, 0, 1, 0]
    assert numeric[1, at["age"]] == pytest.approx(0)  # the mean


def test_which_texts_mean_missing(tmp_path):
    text = "x,label\n1,a\nNA,b\n3,a\n"
    table = source(tmp_path, text, missing="mean", missing_values=["NA"], scale="none")
    assert fitted(table)[2][0].tolist() == [[1], [2], [3]]
    assert fitted(source(tmp_path, text.replace("NA", "nan"), missing="mean", scale="none"))[2][0][1] == 2
    pq.write_table(pa.table({"x": [1.0, float("nan"), 3.0, None], "label": [1, 2, 1, 2]}), tmp_path / "people.csv")
    assert "row 2, column 'x': the value is missing (the first of 2" in message(
        Table("people.csv", "label", base=str(tmp_path))
    )


def test_target_must_be_there(tmp_path):
    text = "x,label\n1,a\n2,\n3,b\n"
    assert message(source(tmp_path, text, missing="mean")) == (
        "people.csv: row 2, column 'label': the value is missing; fill in the target, remove the row, "
        "or set missing: drop"
    )
    assert source(tmp_path, text, missing="drop").read().targets.tolist() == ["a", "b"]


# Prediction


def test_prediction_streams_and_equals_training(tmp_path):
    rng = np.random.default_rng(0)
    rows = [f"{rng.normal():.6f},{rng.choice(list('abc'))},{i % 2}" for i in range(30_000)]
    table = source(tmp_path, "x,c,label\n" + "\n".join(rows))
    _, state, tensors = fitted(table)
    new = "extra,c,x\n" + "\n".join(f"\xff,{c},{x}" for x, c, _ in (row.split(",") for row in rows))
    path = str(tmp_path / write(tmp_path, new.encode("latin1"), "new.csv"))
    again = Table("gone.csv", "label", base="nowhere")  # the training file is not needed
    blocks = list(again.read_inputs([path, path], state))
    assert max(len(block) for block in blocks) <= 8192
    assert all(block.targets is None for block in blocks)
    encoded = [again.encode(block, state) for block in blocks]
    for i, tensor in enumerate(tensors):
        assert torch.equal(torch.cat([block[i] for block in encoded]), torch.cat([tensor, tensor]))
    assert blocks[-1].place(len(blocks[-1]) - 1) == f"{path}: row 30000"


def test_prediction_from_parquet(tmp_path):
    table = source(tmp_path, "x,c,label\n1,a,0\n2,b,1\n")
    _, state, _ = fitted(table)
    path = str(tmp_path / "new.parquet")
    pq.write_table(pa.table({"c": ["b", "z"] * 5000, "z": [[1]] * 10000, "x": [2, 1] * 5000}), path)
    blocks = list(table.read_inputs([path], state))
    assert [len(block) for block in blocks] == [8192, 1808]
    numeric, codes = table.encode(blocks[1].take(np.array([0, 1])), state)
    assert numeric.tolist() == [[1], [-1]]
    assert codes.tolist() == [[2], [0]]


def test_one_column_with_an_empty_line_keeps_its_rows(tmp_path):
    table = source(tmp_path, "x,label\n1,0\n3,1\n,1\n", missing="mean", scale="none")
    state = table.fit(table.read())
    path = str(tmp_path / write(tmp_path, "x\n5\n\n7\n", "new.csv"))
    (block,) = table.read_inputs([path], state)
    assert table.encode(block, state)[0].tolist() == [[5], [2], [7]]


def test_prediction_says_what_is_wrong(tmp_path):
    table = source(tmp_path, "age,c,label\n1,a,0\n2,b,1\n", missing="drop")
    state = table.fit(table.read())
    path = str(tmp_path / "new.csv")
    for text, expected in [
        ("ag,c\n1,a\n", f"{path}: no column 'age'; did you mean 'ag'? the columns: ag, c"),
        ("age,c\n", f"{path}: has column names but no rows"),
        ("age,c\n1,a\n2\n", f"{path}: row 2: 1 cell where the header has 2: '2'"),
        ('age,c,z\n1,a,\n2,b,"\n3,c,\n', f"{path}: row 2: a quote (\") is not closed: '\\n3,c,'"),
        ("age,c\n1,a\nx,a\n", f"{path}: row 2, column 'age': 'x' is not a number; if it means"),
        (
            "age,c\n1,a\n,a\n",
            f"{path}: row 2, column 'age': the value is missing; the training left such rows out",
        ),
    ]:
        write(tmp_path, text, "new.csv")
        with pytest.raises(DataError) as caught:
            [table.encode(block, state) for block in table.read_inputs([path], state)]
        assert str(caught.value).startswith(expected)


# Mistakes in the data


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "people.csv: the file is empty"),
        ("x,label\n", "people.csv: has column names but no rows"),
        ("\n\n", 'people.csv: has no column names, or a quote (") in them is not closed'),
        ("x,label,x\n1,2,3\n", "people.csv: columns 1 and 3 have the same name, 'x'; rename one"),
        ("x,label\n1,a\n2\n", "people.csv: row 2: 1 cell where the header has 2: '2'"),
        ("x,label\n1,a\n2,b,c\n", "people.csv: row 2: 3 cells where the header has 2: '2,b,c'"),
        (
            'x,label\n1,a\n"2,b\n3,c\n',
            "people.csv: row 2: 1 cell where the header has 2: '\"2,b\\n3,c'; is a quote (\") not closed?",
        ),
        ('x,label\n1,a\n2,"b\n3,c\n', "people.csv: row 2: a quote (\") is not closed: 'b\\n3,c'"),
        (
            f"x,label\n1,{'a' * 2000}\n",
            "people.csv: row 1, column 'label': 2000 characters are no label: 'aaa",
        ),
        (
            b"x,label\n1,a\n2,\xe9t\xe9\n",
            "people.csv: row 2, column 'label': the cell is not UTF-8 text; save the file as UTF-8",
        ),
        (b"x,\xe9t\xe9\n1,2\n", "people.csv: the column names are not UTF-8 text; save the file as UTF-8"),
        ("x,label\n1,a\n".encode("utf-16"), "people.csv: the text is UTF-16; save it as UTF-8"),
        (b"PK\x03\x04rest", "people.csv: is an Excel or zip file; save the table as CSV or Parquet"),
        ("x,lable\n1,2\n", "people.csv: no column 'label'; did you mean 'lable'? the columns: x, lable"),
        (
            "x;label\n1;2\n",
            "people.csv: no column 'label'; did you mean 'x;label'? the columns: x;label. "
            "Only one column: is the delimiter ';'? Then set delimiter",
        ),
        ("label\na\nb\n", "people.csv: no column is left as a feature"),
        (
            "age,label\n12,a\n13,b\nn/a,a\n",
            "people.csv: row 3, column 'age': 'n/a' is not a number; if it means a missing value, add it to "
            "missing_values; if the column holds something else, set columns: {age: category} or "
            "columns: {age: ignore}",
        ),
        ("age,label\n12,a\ninf,b\n13,a\n", "people.csv: row 2, column 'age': 'inf' is not a finite number"),
        ("age,label\n12,a\n1e999,b\n", "people.csv: row 2, column 'age': '1e999' is not a finite number"),
        (
            "age,label\n1e308,a\n-1e308,b\n",
            "people.csv: column 'age': numbers this far apart are too large to be scaled",
        ),
        (
            "d,label\n2020-01-01,a\n2020-02-30,b\n",
            "people.csv: row 2, column 'd': '2020-02-30' is not a date",
        ),
        ("x,label\n1,0\n2,1\n3,?\n", "people.csv: row 3, column 'label': '?' is not a number"),
        ("x,label\n1,2020-01-01\n", "people.csv: row 1, column 'label': is a date, which cannot be a target"),
    ],
)
def test_wrong_files_say_where_and_what(tmp_path, text, expected):
    assert message(source(tmp_path, text)).startswith(expected)


def test_set_kinds_must_fit(tmp_path):
    assert message(source(tmp_path, PEOPLE, columns={"city": "numeric"})).startswith(
        "people.csv: row 1, column 'city': 'Bern' is not a number"
    )
    assert message(source(tmp_path, PEOPLE, columns={"city": "date"})).startswith(
        "people.csv: row 1, column 'city': 'Bern' is not a date without a time zone"
    )
    assert "no column 'agee'; did you mean 'age'?" in message(source(tmp_path, PEOPLE, columns={"agee": "numeric"}))


def test_later_rows_are_held_to_the_kinds_of_the_training_rows(tmp_path):
    table = source(tmp_path, "x,label\n1,a\n2,b\nthree,a\n4,b\n")
    samples = table.read()
    state = table.fit(samples.take(np.array([0, 1])))
    with pytest.raises(DataError, match=r"people\.csv: row 3, column 'x': 'three' is not a number"):
        table.encode(samples.take(np.array([3, 2])), state)


def test_overflow_of_float32_is_found(tmp_path):
    assert message(source(tmp_path, "x,label\n1,a\n1e39,b\n", scale="none")) == (
        "people.csv: row 2, column 'x': 1e+39, scaled, is too large for float32"
    )


def test_wrong_places(tmp_path):
    write(tmp_path, PEOPLE)
    assert message(Table("peple.csv", "label", base=str(tmp_path))) == (
        "peple.csv: no such file; did you mean 'people.csv'?"
    )
    assert message(Table(".", "label", base=str(tmp_path))) == ".: is a folder, not a CSV, JSON lines or Parquet file"
    write(tmp_path, gzip.compress(PEOPLE.encode() * 500)[:-200], "cut.csv.gz")
    assert message(Table("cut.csv.gz", "label", base=str(tmp_path))).startswith("cut.csv.gz: cannot be read as CSV")


def test_wrong_parquet(tmp_path):
    write(tmp_path, PEOPLE, "people.parquet")
    table = Table("people.parquet", "label", base=str(tmp_path))
    assert message(table).startswith("people.parquet: is not a Parquet file")
    pq.write_table(pa.table({"x": [[1], [2]], "y": [1, 2], "label": [1, 2]}), tmp_path / "people.parquet")
    assert message(table).startswith(
        "people.parquet: row 1, column 'x': is of type list<element: int64>, of which no feature"
    )
    assert "ignore" in message(table)
    content = (tmp_path / "people.parquet").read_bytes()
    (tmp_path / "people.parquet").write_bytes(content[: len(content) // 2])
    assert message(table).startswith("people.parquet: the Parquet file is damaged or incomplete")


def test_settings_that_contradict_each_other():
    for settings, expected in [
        ({"target": []}, "target: name at least one column"),
        ({"split_column": "label"}, "split_column: 'label' is a target"),
        (
            {"columns": {"label": "date"}},
            "columns: 'label' is a target, which can be numeric or category, not date",
        ),
        ({"delimiter": "::"}, "delimiter: '::' is not one character"),
    ]:
        with pytest.raises(ConfigError) as caught:
            Table("people.csv", **{"target": "label"} | settings)
        assert str(caught.value).startswith(expected)


def test_fingerprint_changes_with_the_file(tmp_path):
    table = source(tmp_path, PEOPLE)
    before = table.fingerprint()
    write(tmp_path, PEOPLE)
    assert table.fingerprint() == before
    write(tmp_path, PEOPLE.replace("31,", "32,"))
    assert table.fingerprint() != before


def test_fingerprint_of_another_file_is_that_of_its_content(tmp_path):
    table = source(tmp_path, PEOPLE)
    before = table.fingerprint(str(tmp_path / write(tmp_path, PEOPLE, "later.csv")))
    assert table.fingerprint(str(tmp_path / write(tmp_path, PEOPLE + PEOPLE[-20:], "later.csv"))) != before


def test_a_row_that_changed_in_the_middle_of_a_large_file_changes_the_fingerprint(tmp_path):
    table = source(tmp_path, "")
    with (tmp_path / "people.csv").open("r+b") as file:
        file.write(b"x,label\n")
        file.truncate(100 * 2**20)
        before = table.fingerprint()
        file.seek(50 * 2**20)
        file.write(b"1,a\n")
        file.flush()
        assert table.fingerprint() != before


# The settings


def test_schema_describes_the_source():
    adapter = TypeAdapter(TableSettings)
    settings = adapter.validate_python({"type": "table", "path": "a.csv", "target": ["a", "b"]})
    arguments = settings.model_dump(exclude={"type"})
    parameters = inspect.signature(Table).parameters
    assert set(arguments) == set(parameters) - {"base"}
    for name, value in arguments.items():
        default = parameters[name].default
        if default is not inspect.Parameter.empty:
            assert value == (list(default) if isinstance(default, tuple) else default)
    assert all(field.description for name, field in TableSettings.model_fields.items() if name != "type")


# Larger than the memory


@pytest.mark.parametrize("name", ["big.csv", "big.csv.gz", "big.tsv", "big.parquet"])
@pytest.mark.parametrize("settings", [{}, {"missing": "drop"}, {"categories": "onehot"}, {"split_column": "part"}])
def test_a_table_mapped_from_the_disk_is_the_one_in_memory(
    name: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    cells = {
        "x": pa.array([None if i % 11 == 3 else float(v) for i, v in enumerate(rng.normal(size=100).round(3))]),
        "city": pa.array([None if i % 7 == 2 else "abcdefgh"[i // 13] for i in range(100)]),
        "day": pa.array([date(2020, 1 + i % 12, 1 + i % 28) for i in range(100)]),
        "part": pa.array(["train"] * 60 + ["val"] * 40),
        "label": pa.array([f"class {i // 34}" for i in range(100)]),
    }
    path = tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(pa.table(cells), path, row_group_size=30)
    else:
        between = "\t" if "tsv" in name else ","
        rows = zip(*(column.to_pylist() for column in cells.values()), strict=True)
        lines = [between.join(cells), *(between.join("" if c is None else str(c) for c in row) for row in rows)]
        content = ("\n".join(lines) + "\n").encode()
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)

    def results() -> tuple[Any, ...]:
        table = Table(name, **{"target": "label", "missing": "mean", "base": str(tmp_path)} | settings)
        samples = table.read()
        part = samples.take(rng.permutation(len(samples))[: len(samples) // 2])
        state = table.fit(part)
        place = samples.place(len(samples) - 1)
        return samples.targets.tolist(), state, table.encode(part, state), table.encode(samples, state), place  # type: ignore[union-attr]

    rng = np.random.default_rng(1)
    targets, state, *tensors, place = results()
    for target, limit in (("table_files.BLOCK_ROWS", 8), ("table_rows._ROWS_AT_ONCE", 9)):
        monkeypatch.setattr(f"dltrain.data.sources.{target}", limit)
    monkeypatch.setattr("dltrain.data.sources.table_files.is_large", lambda size_bytes: size_bytes > 0)
    monkeypatch.setattr("pyarrow.csv.read_csv", None)
    rng = np.random.default_rng(1)
    mapped_targets, mapped_state, *mapped_tensors, mapped_place = results()
    assert (mapped_targets, mapped_state, mapped_place) == (targets, state, place)
    for mapped, expected in zip(mapped_tensors, tensors, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(mapped, expected, strict=True))


def test_an_error_in_a_table_mapped_from_the_disk_names_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dltrain.data.sources.table_files.is_large", lambda _: True)
    monkeypatch.setattr("dltrain.data.sources.table_rows._ROWS_AT_ONCE", 3)
    table = source(tmp_path, PEOPLE + "1,2,Bern,true,2020-01-01,Eva,no\n" + "1,,Bern,true,2020-01-01,Fee,no\n")
    samples = table.read()
    state = table.fit(samples.take(np.arange(5)))
    with pytest.raises(DataError, match=r"people\.csv: row 6, column 'income'"):
        table.encode(samples, state)


def test_a_full_disk_is_told_for_a_table_larger_than_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dltrain.data.sources.table_files.is_large", lambda _: True)
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    assert "there is no room on the disk to lay it out: No space left on device" in message(source(tmp_path, PEOPLE))
