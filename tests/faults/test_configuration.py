"""Configs and data that are wrong: one clear error, with its place, before any work; nothing is left behind."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from dltrain.errors import DataError, Stopped
from dltrain.train import fit
from tests.faults.mutations import within
from tests.small_runs import StopAt, dltrain_here, newest_run, small_config, write_config

pytestmark = pytest.mark.usefixtures("no_curves")

DATA = "data: {type: sklearn, name: iris}\n"


@pytest.mark.fault(1)
def test_a_misspelt_key_ends_every_command_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(DATA + "model: {type: mlp}\noptimizer:\n  type: adamw\n  lrr: 0.1\n")
    for command in ("fit", "check"):
        result = dltrain_here(command, "c.yaml", cwd=tmp_path)
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.startswith("c.yaml:5:3: optimizer.lrr: unknown key; possible: ")
        assert result.stderr.endswith("did you mean 'lr'?\n")
    assert os.listdir(tmp_path) == ["c.yaml"]


@pytest.mark.fault(6)
def test_aliases_that_multiply_end_soon_and_small(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    (tmp_path / "c.yaml").write_text("\n".join(lines))
    with within(10, 512):
        result = dltrain_here("fit", "c.yaml", cwd=tmp_path)
    assert result.returncode == 2
    assert "the config has more than 20000 values once its aliases are expanded" in result.stderr


@pytest.mark.fault(7)
@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.mkdir [ran]", "!!python/name:os.mkdir", "!include /etc/passwd"]
)
def test_a_tag_runs_nothing_and_reads_nothing(tag: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"{DATA}model: {tag}\n")
    result = dltrain_here("fit", "c.yaml", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("c.yaml:2:8: tags such as '")
    assert os.listdir(tmp_path) == ["c.yaml"]


TABLE = "a,b,y\n" + "".join(f"{i},{i % 5},{'no' if i % 3 else 'yes'}\n" for i in range(40))
WRONG_TABLES = {
    "missing": (None, 3, "t.csv: no such file"),
    "empty": ("", 3, "t.csv: the file is empty"),
    "header alone": ("a,b,y\n", 3, "t.csv: has column names but no rows"),
    "other columns": (TABLE.replace("y\n", "z\n", 1), 3, "t.csv: no column 'y'"),
    "one class": (TABLE.replace("yes", "no"), 3, "all training targets are 'no'; classification needs two classes"),
    "ragged": (TABLE.replace("7,2,", "7,2,3,"), 3, "t.csv: row 8: 4 cells where the header has 3: '7,2,3,no'"),
    "ragged and no text": (TABLE.replace("7,2,", "7,2,\udcff,"), 3, "t.csv: row 8: 4 cells where the header has 3"),
    "text for a number": (TABLE.replace("7,2,", "seven,2,"), 3, "t.csv: row 8, column 'a': 'seven' is not a number"),
    "no value": (TABLE.replace("7,2,", "7,,"), 3, "t.csv: row 8, column 'b': the value is missing"),
    "no target": (TABLE.replace("7,2,no", "7,2,"), 3, "t.csv: row 8, column 'y'"),
    "too large": (TABLE.replace("7,2,", "1e999,2,"), 3, "t.csv: row 8, column 'a'"),
    "not UTF-8": (TABLE.replace("7,2,no", "7,2,n\udcff"), 3, "t.csv: row 8, column 'y': the cell is not UTF-8 text"),
}


@pytest.mark.fault(9, 10)
@pytest.mark.parametrize("name", WRONG_TABLES)
def test_wrong_data_are_named_before_anything_is_built(name: str, tmp_path: Path) -> None:
    content, code, message = WRONG_TABLES[name]
    if content is not None:
        (tmp_path / "t.csv").write_bytes(content.encode("utf-8", "surrogateescape"))
    model = {"type": "own.py:Model"}
    (tmp_path / "own.py").write_text("def Model(**settings):\n    raise AssertionError('is built')\n")
    write_config(tmp_path, {"data": {"type": "table", "path": "t.csv", "target": "y"}, "model": model})
    result = dltrain_here("fit", "small.yaml", cwd=tmp_path)
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.fault(10)
@pytest.mark.parametrize(
    ("array", "value"), [("x_train", np.nan), ("x_val", np.inf), ("x_test", -np.inf), ("y_train", np.nan)]
)
def test_a_number_that_is_none_is_named_with_its_row(array: str, value: float, tmp_path: Path) -> None:
    write_config(tmp_path)
    with np.load(tmp_path / "data.npz") as data:
        arrays = {name: data[name].astype(np.float64) for name in data}
    arrays[array][7] = value
    np.savez(tmp_path / "data.npz", **arrays)
    result = dltrain_here("fit", "small.yaml", cwd=tmp_path)
    assert result.returncode == 3
    assert f"data.npz: {array}[7" in result.stderr
    assert str(value) in result.stderr


@pytest.mark.fault(12)
def test_a_split_that_would_be_empty_is_said(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,y\n1,no\n2,yes\n3,no\n")
    sections = {"data": {"type": "table", "path": "t.csv", "target": "y"}, "split": {"val": 0.1, "test": 0.1}}
    write_config(tmp_path, sections)
    result = dltrain_here("fit", "small.yaml", cwd=tmp_path)
    assert result.returncode == 3
    assert "split: 3 samples are too few for a val split of 0.1; set larger fractions, or 0" in result.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.fault(14)
def test_a_row_more_is_another_data_set(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(TABLE)
    file = small_config(tmp_path, {"data": {"type": "table", "path": "t.csv", "target": "y"}, "split": {"val": 0.2}})
    with pytest.raises(Stopped):
        fit(file, root=tmp_path / "runs", progress=StopAt(2))
    with (tmp_path / "t.csv").open("a") as stream:
        stream.write("1,1,no\n")
    with pytest.raises(DataError, match="is not resumed: the data have changed since"):
        fit(file, resume=newest_run(tmp_path / "runs"))
