"""The promise: how the work is portioned, watched and saved does not change the result."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dltrain import checkpoint as checkpoints
from dltrain.checkpoint import LAST
from dltrain.evaluation import evaluate
from dltrain.run import read_metrics
from tests.small_runs import (
    BATCH_SIZE,
    NUM_VAL,
    Sections,
    bytes_of,
    dltrain,
    result_of,
    rows_of,
    train,
    weights_of,
    write_arrays,
    write_config,
)

pytestmark = pytest.mark.usefixtures("no_curves")


def weight_bytes(run: Path) -> dict[str, bytes]:
    return {name: bytes_of(value) for name, value in weights_of(run).items()}


# ---- micro-batches --------------------------------------------------------------------------------------------------

MICRO_CASES: dict[str, Sections] = {
    "plain": {},
    "class weights": {"loss": {"type": "cross_entropy", "class_weights": [0.2, 1.0, 5.0]}},
    "focal with class weights": {"loss": {"type": "focal", "class_weights": [0.2, 1.0, 5.0]}},
    "label smoothing": {"loss": {"type": "cross_entropy", "label_smoothing": 0.1, "class_weights": "balanced"}},
    "mixup": {"regularization": {"mix": {"type": "mixup", "alpha": 1.0}}},
    "mixup with class weights": {
        "loss": {"type": "cross_entropy", "class_weights": [0.2, 1.0, 5.0]},
        "regularization": {"mix": {"type": "mixup", "alpha": 1.0}},
    },
    "penalty": {"regularization": {"penalties": [{"type": "l2", "strength": 0.01}]}},
    "sam": {"regularization": {"sam": {"rho": 0.1}}},
    "augmentation": {"augment": [{"type": "noise", "std": 0.1}]},
}


@pytest.mark.parametrize("micro_batch_size", [1, 3, 5, 16])
@pytest.mark.parametrize("name", MICRO_CASES)
def test_micro_batches_add_up_to_the_whole_batch(name: str, micro_batch_size: int, tmp_path: Path) -> None:
    """SGD, whose steps are in proportion to the gradients, shows a wrong scale; the last batch of an epoch holds 2."""
    sections = copy.deepcopy(MICRO_CASES[name]) | {"optimizer": {"type": "sgd", "lr": 0.1}}
    whole = train(tmp_path, sections)
    micro = train(tmp_path, sections | {"train": {"micro_batch_size": micro_batch_size}})
    for parameter, value in weights_of(micro).items():
        torch.testing.assert_close(value, weights_of(whole)[parameter], rtol=0, atol=1e-6)
    for row, expected in zip(rows_of(micro), rows_of(whole), strict=True):
        assert row == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("targets", ["labels", "numbers"])
def test_micro_batches_add_up_for_other_tasks(targets: str, tmp_path: Path) -> None:
    write_arrays(tmp_path / "data.npz", targets=targets)
    sections: Sections = {"optimizer": {"type": "sgd", "lr": 0.1}}
    whole, micro = train(tmp_path, sections), train(tmp_path, sections | {"train": {"micro_batch_size": 3}})
    for parameter, value in weights_of(micro).items():
        torch.testing.assert_close(value, weights_of(whole)[parameter], rtol=0, atol=1e-6)


def test_a_micro_batch_as_large_as_the_batch_changes_no_bit(tmp_path: Path) -> None:
    whole = train(tmp_path, {"model": {"dropout": 0.5}})
    same = train(tmp_path, {"model": {"dropout": 0.5}, "train": {"micro_batch_size": BATCH_SIZE}})
    assert weight_bytes(same) == weight_bytes(whole)


# ---- evaluation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", ["classes", "labels", "numbers"])
def test_the_evaluation_does_not_depend_on_its_batch_size(targets: str, tmp_path: Path) -> None:
    write_arrays(tmp_path / "data.npz", targets=targets)
    loss: Sections = (
        {"loss": {"type": "cross_entropy", "class_weights": [0.2, 1.0, 5.0]}} if targets == "classes" else {}
    )
    rows = []
    for size in (1, 3, 7, NUM_VAL - 1, NUM_VAL, 512):
        run = train(tmp_path, {**loss, "model": {"norm": "batch"}, "train": {"eval_batch_size": size}})
        rows.append({name: value for name, value in read_metrics(run)[-1].items() if name.startswith("val/")})
    for row in rows:
        assert row == pytest.approx(rows[-1], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    "watching",
    [
        {"evaluate_every": "1 steps"},
        {"evaluate_every": "5 steps"},
        {"evaluate_every": "3 epochs"},
        {"checkpoint_every": "1 steps"},
        {"checkpoint_every": "5 steps"},
        {"checkpoint_every": "0.001 s"},
        {"eval_batch_size": 3},
        {"monitor": "val/loss"},
    ],
    ids=lambda watching: " ".join(f"{key} {value}" for key, value in watching.items()),
)
@pytest.mark.parametrize("average", [None, "ema"])
def test_watching_and_saving_change_no_bit(watching: dict[str, Any], average: str | None, tmp_path: Path) -> None:
    sections: Sections = {"model": {"dropout": 0.3, "norm": "batch"}}
    if average:
        sections["regularization"] = {"average": {"type": average}}
    plain, watched = train(tmp_path, sections), train(tmp_path, {**sections, "train": watching})
    assert weight_bytes(watched) == weight_bytes(plain)
    for part in ("averaged", "optimizer"):
        expected = checkpoints.load(plain / "checkpoints" / LAST).part(part)
        found = checkpoints.load(watched / "checkpoints" / LAST).part(part)
        assert {k: bytes_of(v) for k, v in found.items()} == {k: bytes_of(v) for k, v in expected.items()}


def test_watching_a_schedule_free_optimizer_changes_no_bit(tmp_path: Path) -> None:
    sections: Sections = {"model": {"norm": "batch"}, "optimizer": {"type": "schedule_free_adamw"}}
    often = {"evaluate_every": "1 steps", "checkpoint_every": "1 steps"}
    plain, watched = train(tmp_path, sections), train(tmp_path, {**sections, "train": often})
    assert weight_bytes(watched) == weight_bytes(plain)


def test_the_length_of_a_line_of_metrics_does_not_change_its_meaning(tmp_path: Path) -> None:
    """The training loss of an epoch is the mean over its samples, however many lines it has."""
    sections: Sections = {"optimizer": {"type": "sgd", "lr": 1e-12}}
    whole = read_metrics(train(tmp_path, sections))[0]["train/loss"]
    steps = read_metrics(train(tmp_path, {**sections, "train": {"evaluate_every": "1 steps"}}))[:4]
    sizes = [16, 16, 16, 2]
    assert sum(row["train/loss"] * size for row, size in zip(steps, sizes, strict=True)) / 50 == pytest.approx(whole)


# ---- seeds and threads ----------------------------------------------------------------------------------------------


def test_two_runs_of_one_config_leave_the_same_bytes(tmp_path: Path) -> None:
    write_arrays(tmp_path / "data.npz", side=8)
    sections: Sections = {
        "model": {"type": "convnet", "channels": [4], "dropout": 0.3},
        "augment": [
            {"type": "flip"},
            {"type": "crop", "padding": 1},
            {"type": "erasing"},
            {"type": "rotation", "degrees": 10},
        ],
        "regularization": {"mix": {"type": "cutmix"}, "gradient_noise": {}},
    }
    first = train(tmp_path, sections)
    torch.manual_seed(99)  # nothing of the process's own state matters
    torch.rand(7)
    assert result_of(train(tmp_path, sections)) == result_of(first)


@pytest.mark.parametrize("sections", [{}, {"model": {"dropout": 0.5}}, {"augment": [{"type": "noise", "std": 0.1}]}])
def test_another_seed_gives_other_weights_on_the_same_split(sections: Sections, tmp_path: Path) -> None:
    write_arrays(tmp_path / "data.npz")
    first, other = train(tmp_path, {**sections, "seed": 0}), train(tmp_path, {**sections, "seed": 1})
    assert weight_bytes(first) != weight_bytes(other)
    facts = [checkpoints.load(run / "checkpoints" / LAST).meta["facts"] for run in (first, other)]
    assert facts[0] == facts[1]


def test_dropout_and_noise_differ_from_step_to_step(tmp_path: Path) -> None:
    """With one batch over and over and a rate of nothing, only what is drawn anew can change the loss."""
    sections: Sections = {"optimizer": {"type": "sgd", "lr": 1e-30}}
    every_step: Sections = {
        "train": {"batch_size": 50, "sampler": "sequential", "duration": "4 steps", "evaluate_every": "1 steps"}
    }
    mixed = {"regularization": {"mix": {"type": "mixup"}}}
    for drawn in ({"model": {"dropout": 0.5}}, {"augment": [{"type": "noise", "std": 0.1}]}, mixed):
        rows = read_metrics(train(tmp_path, {**sections, **every_step, **drawn}))
        assert len({row["train/loss"] for row in rows}) == 4
    rows = read_metrics(train(tmp_path, {**sections, **every_step}))
    assert len({row["train/loss"] for row in rows}) == 1


def test_what_the_numbers_depend_on_is_recorded(tmp_path: Path) -> None:
    environment = json.loads((train(tmp_path) / "environment.json").read_text())
    assert environment["num_threads"] == torch.get_num_threads()
    assert environment["torch"] == torch.__version__
    assert environment["device_type"] == "cpu"
    assert environment["num_samples"] == {"train": 50, "val": 20, "test": 15}


@pytest.mark.slow
def test_the_number_of_threads_changes_little_and_is_recorded(tmp_path: Path) -> None:
    one = train(tmp_path)
    config = write_config(tmp_path)
    result = dltrain("fit", config, "--out", "two", "--quiet", cwd=tmp_path, OMP_NUM_THREADS="2")
    assert result.returncode == 0, result.stderr
    two = tmp_path / "two" / "small" / "1"
    assert json.loads((two / "environment.json").read_text())["num_threads"] == 2
    for name, value in weights_of(two).items():
        torch.testing.assert_close(value, weights_of(one)[name], rtol=0, atol=1e-5)


def test_evaluating_a_run_twice_gives_the_same_numbers(tmp_path: Path) -> None:
    run = train(tmp_path, {"model": {"dropout": 0.5, "norm": "batch"}})
    assert evaluate(run) == evaluate(run)
