"""Evaluation: the same numbers as by hand, and the model left as it was found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from typer.testing import CliRunner

from dltrain import checkpoint as checkpoints
from dltrain.checkpoint import BEST
from dltrain.cli import app
from dltrain.config.validate import load_config
from dltrain.errors import ConfigError, DataError
from dltrain.evaluation import evaluate
from dltrain.train import fit
from tests.small_runs import (
    NUM_TEST,
    NUM_TRAIN,
    NUM_VAL,
    Sections,
    train,
    weights_of,
    write_arrays,
    write_config,
)

pytestmark = pytest.mark.usefixtures("no_curves")


def outputs_by_hand(run: Path, x: np.ndarray) -> torch.Tensor:
    weights = weights_of(run, BEST)
    hidden = torch.relu(torch.from_numpy(x) @ weights["layers.0.weight"].T + weights["layers.0.bias"])
    return hidden @ weights["layers.2.weight"].T + weights["layers.2.bias"]


@pytest.mark.parametrize(("split", "number"), [("train", NUM_TRAIN), ("val", NUM_VAL), ("test", NUM_TEST)])
def test_each_split_is_measured_as_by_hand(split: str, number: int, tmp_path: Path) -> None:
    run = train(tmp_path)
    found = evaluate(run, split=split)
    with np.load(tmp_path / "data.npz") as data:
        x, y = data[f"x_{split}"], data[f"y_{split}"]
    output = outputs_by_hand(run, x)
    predicted = output.argmax(1).numpy()
    assert (found["split"], found["num_samples"]) == (split, number)
    loss = torch.nn.functional.cross_entropy(output, torch.from_numpy(y)).item()
    assert found["metrics"]["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["metrics"]["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(y, predicted))
    assert found["report"]["confusion_matrix"] == sklearn_metrics.confusion_matrix(y, predicted).tolist()
    assert found["labels"] == ["0", "1", "2"]


def test_regression_is_measured_in_the_units_of_the_data(tmp_path: Path) -> None:
    write_arrays(tmp_path / "data.npz", targets="numbers")
    run = train(tmp_path)
    facts = checkpoints.load(run / "checkpoints" / BEST).meta["facts"]["task"]
    with np.load(tmp_path / "data.npz") as data:
        x, y = data["x_test"], data["y_test"]
    predicted = outputs_by_hand(run, x).numpy() * facts["std"] + facts["mean"]
    found = evaluate(run)["metrics"]
    assert found["mae"] == pytest.approx(sklearn_metrics.mean_absolute_error(y, predicted), rel=1e-5)
    assert found["r2"] == pytest.approx(sklearn_metrics.r2_score(y, predicted), rel=1e-5)
    assert found["rmse"] == pytest.approx(np.sqrt(((y - predicted) ** 2).mean(0)).mean(), rel=1e-5)


def test_an_undefined_metric_is_null_in_json(tmp_path: Path) -> None:
    write_arrays(tmp_path / "data.npz", targets="numbers")
    with np.load(tmp_path / "data.npz") as data:
        arrays = dict(data)
    arrays["y_test"][:] = 5.0
    np.savez(tmp_path / "data.npz", **arrays)
    found = evaluate(train(tmp_path))
    assert found["metrics"]["r2"] is None
    json.dumps(found, allow_nan=False)


def test_other_data_are_encoded_as_the_training_was(tmp_path: Path) -> None:
    """Scaling comes from the checkpoint, not from the data that are evaluated."""
    run = train(tmp_path, {"data": {"scale": "standard"}})
    with np.load(tmp_path / "data.npz") as data:
        np.savez(tmp_path / "half.npz", x=data["x_test"][:7], y=data["y_test"][:7])
        np.savez(tmp_path / "rest.npz", x=data["x_test"][7:], y=data["y_test"][7:])
    parts = [evaluate(run, data=str(tmp_path / name)) for name in ("half.npz", "rest.npz")]
    whole = evaluate(run)
    loss = sum(part["metrics"]["loss"] * part["num_samples"] for part in parts) / NUM_TEST
    assert loss == pytest.approx(whole["metrics"]["loss"], rel=1e-5)


def test_data_that_changed_since_the_training_need_to_be_given(tmp_path: Path) -> None:
    by_ratio, by_keys = tmp_path / "ratio", tmp_path / "keys"
    by_ratio.mkdir()
    rng = np.random.default_rng(0)
    np.savez(by_ratio / "data.npz", x=rng.normal(size=(60, 6)).astype(np.float32), y=np.arange(60) % 3)
    run = train(by_ratio)
    np.savez(by_ratio / "data.npz", x=rng.normal(size=(60, 6)).astype(np.float32), y=np.arange(60) % 3)
    with pytest.raises(DataError, match="the data have changed since the training"):
        evaluate(run)

    run = train(by_keys)  # the keys of the file say which samples are for testing, whatever has changed
    write_arrays(by_keys / "data.npz", seed=1)
    assert evaluate(run)["notes"] == ["the data have changed since the training"]


def test_classes_that_the_training_did_not_know_are_an_error(tmp_path: Path) -> None:
    run = train(tmp_path)
    np.savez(tmp_path / "new.npz", x=np.zeros((2, 6), np.float32), y=np.array([0, 7]))
    with pytest.raises(DataError, match=r"new\.npz.*class '7' is not in the training split"):
        evaluate(run, data=str(tmp_path / "new.npz"))


def test_a_config_for_other_data_is_evaluated_by_its_split(tmp_path: Path) -> None:
    run = train(tmp_path)
    (tmp_path / "other").mkdir()
    write_arrays(tmp_path / "other" / "data.npz", seed=1)
    config = write_config(tmp_path / "other")
    found = evaluate(run, data=str(config), split="val")
    assert found["num_samples"] == NUM_VAL
    assert found["metrics"] != evaluate(run, split="val")["metrics"]


def test_rows_that_are_left_out_of_the_measure_are_noted(tmp_path: Path) -> None:
    cells = [f"{i % 7},{'ab'[i % 2]}" for i in range(40)]
    (tmp_path / "data.csv").write_text("\n".join(["x,label", *cells]) + "\n")
    (tmp_path / "later.csv").write_text("\n".join(["x,label", ",a", *cells[:8], ",b"]) + "\n")
    table = {"type": "table", "path": "data.csv", "target": "label", "missing": "drop"}
    file = load_config(write_config(tmp_path, {"data": table}), [])
    run = Path(fit(file, root=tmp_path / "runs")["run"])
    found = evaluate(run, data=str(tmp_path / "later.csv"))
    assert found["num_samples"] == 8
    assert found["notes"] == [f"{tmp_path / 'later.csv'}: dropped 2 of 10 rows: missing 'x' in 2"]
    shown = CliRunner().invoke(app, ["evaluate", str(run), "--data", str(tmp_path / "later.csv")])
    assert found["notes"][0] in shown.stdout
    assert evaluate(run, split="val")["notes"] == []


def test_data_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--data nothing: there is no such file or folder"):
        evaluate(train(tmp_path), data="nothing")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_evaluation_has_the_precision_of_the_training(precision: str, tmp_path: Path) -> None:
    run = train(tmp_path, {"train": {"precision": precision}})
    row: dict[str, Any] = checkpoints.load(run / "checkpoints" / BEST).meta["metrics"]
    assert evaluate(run, split="val")["metrics"]["loss"] == row["val/loss"]


def test_an_evaluation_in_the_middle_leaves_dropout_on_for_the_training(tmp_path: Path) -> None:
    sections: Sections = {"model": {"dropout": 0.5}, "optimizer": {"type": "sgd", "lr": 1e-30}}
    often = load_config(write_config(tmp_path, sections), ["train.evaluate_every=1 steps"])
    seldom = load_config(write_config(tmp_path, sections), ["train.evaluate_every=12 steps"])
    means = []
    for file in (often, seldom):
        run = Path(fit(file, root=tmp_path / "runs")["run"])
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        sizes = [16, 16, 16, 2] * 3 if len(rows) == 12 else [1]
        means.append(np.average([row["train/loss"] for row in rows], weights=sizes))
    assert means[0] == pytest.approx(means[1])


def test_a_run_is_evaluated_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    run = train(project)
    expected = evaluate(run)["metrics"]
    monkeypatch.chdir(tmp_path)
    assert evaluate(run)["metrics"] == expected
    project.rename(tmp_path / "moved")
    assert evaluate(tmp_path / "moved" / run.relative_to(project))["metrics"] == expected
