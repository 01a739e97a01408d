"""Predictions: streamed, complete, and written whole or not at all."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dltrain.errors import ConfigError, DataError
from dltrain.prediction import predict, predict_to_file
from tests.small_runs import train, write_arrays

pytestmark = pytest.mark.usefixtures("no_curves")


def new_array(folder: Path, number: int = 9) -> str:
    np.save(folder / "new.npy", np.random.default_rng(5).normal(size=(number, 6)).astype(np.float32))
    return str(folder / "new.npy")


def test_a_row_says_where_its_sample_is_from_what_it_is_and_how_probably(tmp_path: Path) -> None:
    rows = list(predict(train(tmp_path), [new_array(tmp_path)]))
    assert [row["input"] for row in rows] == [f"{tmp_path / 'new.npy'}[{i}]" for i in range(9)]
    assert list(rows[0]) == ["input", "prediction", "probability_0", "probability_1", "probability_2"]


def test_several_labels_are_joined_and_regression_is_in_units_of_the_data(tmp_path: Path) -> None:
    write_arrays(tmp_path / "data.npz", targets="labels")
    row = next(predict(train(tmp_path), [new_array(tmp_path)]))
    names = [name.removeprefix("probability_") for name in row if name.startswith("probability_")]
    assert row["prediction"] == "|".join(name for name in names if row[f"probability_{name}"] > 0.5)
    write_arrays(tmp_path / "data.npz", targets="numbers")
    rows = list(predict(train(tmp_path, {"train": {"duration": "30 epochs"}}), [new_array(tmp_path, 200)]))
    small, large = (name for name in rows[0] if name.startswith("prediction_"))
    assert np.std([row[large] for row in rows]) > 20 * np.std([row[small] for row in rows])


def test_a_variance_that_is_learnt_too_is_no_prediction(tmp_path: Path) -> None:
    write_arrays(tmp_path / "data.npz", targets="numbers")
    row = next(predict(train(tmp_path, {"loss": {"type": "gaussian_nll"}}), [new_array(tmp_path)]))
    assert len(row) == 3  # the input and the two means


def test_predictions_do_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    path = new_array(tmp_path)
    large = list(predict(train(tmp_path), [path]))
    small = list(predict(train(tmp_path, {"train": {"eval_batch_size": 2}}), [path]))
    for row, expected in zip(small, large, strict=True):
        assert row == pytest.approx(expected, abs=1e-6)


def test_several_inputs_follow_each_other(tmp_path: Path) -> None:
    path = new_array(tmp_path, 3)
    assert len(list(predict(train(tmp_path), [path, path]))) == 6


def test_rows_come_before_the_end_of_the_input_is_read(tmp_path: Path) -> None:
    """A second input that is broken does not keep the rows of the first from coming."""
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY")
    rows = predict(train(tmp_path), [new_array(tmp_path, 3), str(tmp_path / "broken.npy")])
    assert len([next(rows) for _ in range(3)]) == 3
    with pytest.raises(DataError, match=r"broken\.npy"):
        next(rows)


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_a_file_appears_whole_or_not_at_all(name: str, tmp_path: Path) -> None:
    run, output = train(tmp_path), tmp_path / name
    output.write_text("old")
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError):
        predict_to_file(run, [new_array(tmp_path), str(tmp_path / "broken.npy")], output, device="cpu", trusted=[])
    assert output.read_text() == "old"
    assert not list(tmp_path.glob("*.tmp"))
    assert predict_to_file(run, [new_array(tmp_path)], output, device="cpu", trusted=[]) == 9


def test_another_ending_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"-o out\.parquet: must end in \.csv or \.jsonl"):
        predict_to_file(tmp_path, [], Path("out.parquet"), device="cpu", trusted=[])


def test_class_names_are_no_formulas_in_a_spreadsheet_and_exact_in_json(tmp_path: Path) -> None:
    write_arrays(tmp_path / "data.npz")
    with np.load(tmp_path / "data.npz") as data:
        arrays = dict(data)
    for split in ("train", "val", "test"):
        arrays[f"y_{split}"] = np.array(["=1+1", '@a,"b"', "+c"])[arrays[f"y_{split}"]]
    np.savez(tmp_path / "data.npz", **arrays)
    run = train(tmp_path)
    for name in ("out.csv", "out.jsonl"):
        predict_to_file(run, [new_array(tmp_path)], tmp_path / name, device="cpu", trusted=[])
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    with (tmp_path / "out.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {line["prediction"] for line in lines} <= {"=1+1", '@a,"b"', "+c"}
    assert [row["prediction"] for row in rows] == [f"'{line['prediction']}" for line in lines]


def test_a_prediction_that_is_not_finite_is_null(tmp_path: Path) -> None:
    write_arrays(tmp_path / "data.npz", targets="counts")
    run = train(tmp_path, {"loss": {"type": "poisson_nll"}, "task": {"type": "regression"}})
    np.save(
        tmp_path / "far.npy", np.full((1, 6), 1e30, np.float32) * np.sign(np.array([1, 1, -1, 1, -1, 1], np.float32))
    )
    predict_to_file(run, [str(tmp_path / "far.npy")], tmp_path / "out.jsonl", device="cpu", trusted=[])
    value = json.loads((tmp_path / "out.jsonl").read_text())["prediction"]
    assert value is None or np.isfinite(value)
    assert "NaN" not in (tmp_path / "out.jsonl").read_text()
    assert "Infinity" not in (tmp_path / "out.jsonl").read_text()


def test_samples_of_another_shape_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "narrow.npy", np.zeros((2, 5), np.float32))
    with pytest.raises(DataError, match=r"narrow\.npy"):
        list(predict(train(tmp_path), [str(tmp_path / "narrow.npy")]))


def test_predicting_needs_neither_the_config_nor_the_training_data(tmp_path: Path) -> None:
    run = train(tmp_path)
    expected = list(predict(run, [new_array(tmp_path)]))
    (tmp_path / "data.npz").unlink()
    (tmp_path / "small.yaml").unlink()
    (run / "resolved.yaml").unlink()
    assert list(predict(run / "checkpoints" / "best.safetensors", [new_array(tmp_path)])) == expected
    assert not torch.is_inference_mode_enabled()
