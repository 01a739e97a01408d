"""The loop: what it computes, what it reports, and what every setting of the config does in a short training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dltrain import checkpoint as checkpoints
from dltrain.checkpoint import BEST, LAST
from dltrain.config.schema import losses, optimizers, regularization, schedules
from dltrain.config.schema.base import type_name
from dltrain.config.validate import load_config
from dltrain.data.order import epoch_order
from dltrain.errors import ConfigError, DataError, TrainingError
from dltrain.evaluation import evaluate
from dltrain.regularization import ema
from dltrain.run import read_metrics
from dltrain.schedules import cosine
from dltrain.seeds import WEIGHTS, seed_of
from dltrain.train import fit
from tests.small_runs import (
    BATCH_SIZE,
    NUM_TRAIN,
    STEPS_PER_EPOCH,
    Sections,
    newest_run,
    required_arguments,
    rows_of,
    small_config,
    train,
    weights_of,
    write_arrays,
    write_config,
)

pytestmark = pytest.mark.usefixtures("no_curves")

TOTAL_STEPS = 3 * STEPS_PER_EPOCH
IMAGES: Sections = {"model": {"type": "convnet", "channels": [4]}}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def final_weights(run: Path) -> dict[str, Tensor]:
    return checkpoints.load(run / "checkpoints" / LAST).evaluated_weights


# ---- what a step computes -------------------------------------------------------------------------------------------


def by_hand(data: Any, penalty_strength: float = 0.0) -> tuple[dict[str, Tensor], list[float], list[float]]:
    """Train as the small config says, as one would write it without dltrain; return weights, losses, penalties."""
    x, y = torch.from_numpy(data["x_train"]), torch.from_numpy(data["y_train"])
    torch.manual_seed(seed_of(0, WEIGHTS))
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.01, fused=True)
    losses, penalties = [], []
    for epoch in range(3):
        loss_sum = penalty_sum = 0.0
        for indices in epoch_order(NUM_TRAIN, 0, epoch, "shuffle").split(BATCH_SIZE):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[indices]), y[indices])
            loss.backward()
            if penalty_strength:
                penalty = penalty_strength * sum(w.abs().sum() for w in (model[0].weight, model[2].weight))
                penalty.backward()
                penalty_sum += penalty.item() * len(indices)
            optimizer.step()
            loss_sum += loss.item() * len(indices)
        losses.append(loss_sum / NUM_TRAIN)
        penalties.append(penalty_sum / NUM_TRAIN)
    return {f"layers.{name}": value for name, value in model.state_dict().items()}, losses, penalties


def test_the_weights_are_those_of_a_loop_written_by_hand_bit_for_bit(tmp_path: Path) -> None:
    run = train(tmp_path, {"optimizer": {"decay_all": True}})
    with np.load(tmp_path / "data.npz") as data:
        weights, losses, _ = by_hand(data)
    assert same(weights_of(run), weights)
    assert [row["train/loss"] for row in read_metrics(run)] == pytest.approx(losses, rel=1e-6)


def test_a_penalty_changes_the_gradient_and_not_the_reported_loss(tmp_path: Path) -> None:
    run = train(
        tmp_path,
        {"optimizer": {"decay_all": True}, "regularization": {"penalties": [{"type": "l1", "strength": 0.01}]}},
    )
    with np.load(tmp_path / "data.npz") as data:
        weights, losses, penalties = by_hand(data, 0.01)
    rows = read_metrics(run)
    assert [row["train/loss"] for row in rows] == pytest.approx(losses, rel=1e-5)
    assert [row["train/penalty"] for row in rows] == pytest.approx(penalties, rel=1e-5)
    for name, value in weights_of(run).items():
        torch.testing.assert_close(value, weights[name], rtol=1e-4, atol=1e-5)


def test_without_a_penalty_there_is_no_penalty_column(tmp_path: Path) -> None:
    assert not any("penalty" in name for row in read_metrics(train(tmp_path)) for name in row)


def test_penalties_of_several_kinds_add_up(tmp_path: Path) -> None:
    one = {"type": "l2", "strength": 0.02, "params": "layers.0.weight"}
    other = {"type": "group_lasso", "strength": 0.03, "params": ["layers.2.weight"]}
    sgd = {"optimizer": {"type": "sgd", "lr": 1e-12}}
    single = [
        read_metrics(train(tmp_path / name, {**sgd, "regularization": {"penalties": [penalty]}}))[0]["train/penalty"]
        for name, penalty in (("one", one), ("other", other))
    ]
    both = read_metrics(train(tmp_path / "both", {**sgd, "regularization": {"penalties": [one, other]}}))
    assert both[0]["train/penalty"] == pytest.approx(sum(single), rel=1e-6)


def test_a_penalty_on_no_parameter_is_refused_with_the_names_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'head\*' matches no parameter; the nearest are layers\.0\.weight"):
        train(tmp_path, {"regularization": {"penalties": [{"type": "l1", "strength": 1.0, "params": "head*"}]}})


def test_the_lr_column_is_the_rate_of_the_step_before_the_row(tmp_path: Path) -> None:
    run = train(tmp_path, {"schedule": {"type": "cosine", "warmup": "2 steps"}, "train": {"evaluate_every": "1 steps"}})
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == list(range(1, TOTAL_STEPS + 1))
    expected = [0.01 * cosine(step, TOTAL_STEPS, warmup=2) for step in range(TOTAL_STEPS)]
    assert [row["lr"] for row in rows] == pytest.approx(expected, rel=1e-12)


def test_a_group_has_its_own_rate_and_follows_the_schedule(tmp_path: Path) -> None:
    run = train(tmp_path, {"optimizer": {"groups": [{"params": "layers.0.*", "lr_scale": 1e-30}]}})
    start = train(tmp_path / "start", {"optimizer": {"lr": 1e-30}})
    moved, fixed = weights_of(run), weights_of(start)
    assert torch.equal(moved["layers.0.weight"], fixed["layers.0.weight"])
    assert not torch.equal(moved["layers.2.weight"], fixed["layers.2.weight"])


def test_the_val_columns_are_those_of_evaluate_for_the_same_weights(tmp_path: Path) -> None:
    run = train(tmp_path, {"model": {"dropout": 0.5, "norm": "batch"}})
    row = read_metrics(run)[-1]
    found = evaluate(run / "checkpoints" / LAST, split="val")["metrics"]
    assert {f"val/{name}": value for name, value in found.items()} == {
        name: value for name, value in row.items() if name.startswith("val/")
    }


def test_frozen_and_unused_parameters_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        """
import torch
from torch import nn

class Partly(nn.Module):
    def __init__(self, in_features, num_classes):
        super().__init__()
        self.frozen = nn.Linear(in_features, 8).requires_grad_(False)
        self.head = nn.Linear(8, num_classes)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return self.head(self.frozen(x).relu())
"""
    )
    sections = {
        "model": {"type": "own.py:Partly"},
        "regularization": {
            "clip": {"type": "adaptive"},
            "gradient_noise": {},
            "sam": {},
            "average": {"type": "ema"},
            "max_norm": {"limit": 3.0, "params": "head.weight"},
        },
    }
    run = train(tmp_path, sections)
    weights = weights_of(run)
    torch.manual_seed(seed_of(0, WEIGHTS))
    frozen, _, unused = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(2, 2)
    assert torch.equal(weights["frozen.weight"], frozen.weight)
    assert torch.equal(weights["unused.weight"], unused.weight)


# ---- best, early stopping, what is not finite -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("monitor", "pick"), [("val/loss", min), ("val/accuracy", max), ("train/loss", min), ("train/macro_f1", max)]
)
def test_the_best_checkpoint_is_the_best_row(monitor: str, pick: Any, tmp_path: Path) -> None:
    often = {"monitor": monitor, "duration": "6 epochs", "evaluate_every": "2 steps"}
    file = small_config(tmp_path, {"seed": 0, "optimizer": {"lr": 1.0}, "train": often})
    summary = fit(file, root=tmp_path / "runs")
    run = Path(summary["run"])
    rows = read_metrics(run)
    best_value = pick(row[monitor] for row in rows)
    best_row = next(row for row in rows if row[monitor] == best_value)
    saved = checkpoints.load(run / "checkpoints" / BEST)
    assert saved.meta["step"] == best_row["step"] < rows[-1]["step"]
    assert saved.meta["metrics"] == best_row
    assert summary["best"] == {"metric": monitor, "value": best_value}
    again = evaluate(run, split="val")["metrics"]
    assert again["loss"] == best_row["val/loss"]
    assert again["accuracy"] == best_row["val/accuracy"]


def test_early_stopping_ends_a_run_that_no_longer_improves(tmp_path: Path) -> None:
    sections: Sections = {
        "optimizer": {"type": "sgd", "lr": 1e-30},
        "regularization": {"early_stopping": {"patience": 3}},
        "train": {"duration": "100 epochs", "evaluate_every": "2 steps"},
    }
    summary = fit(small_config(tmp_path, sections), root=tmp_path / "runs")
    assert summary["stopped_early"]
    assert summary["step"] == 8  # the first row, and three that are no better
    assert checkpoints.load(Path(summary["run"]) / "checkpoints" / LAST).meta["step"] == 8


BAD_LOSS = """
import torch
from torch.nn import functional as F

class Bad:
    '''Cross-entropy that goes wrong in the training step number `step`.'''

    def __init__(self, step, value="loss"):
        self.step, self.value, self.calls = step, value, 0

    def __call__(self, output, target):
        loss = F.cross_entropy(output, target)
        if not output.requires_grad:
            return loss
        self.calls += 1
        if self.calls != self.step:
            return loss
        if self.value == "loss":
            return loss * float("nan")
        return loss + (output.sum() * 0).sqrt() * 0  # finite, with a gradient of 0 * inf
"""


@pytest.mark.parametrize("evaluate_every", ["1 steps", "1 epochs"])
def test_a_loss_that_is_not_finite_stops_before_the_update_and_keeps_the_last_checkpoint(
    evaluate_every: str, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(BAD_LOSS)
    every = {"checkpoint_every": "1 steps", "evaluate_every": evaluate_every}
    file = small_config(tmp_path, {"loss": {"type": "own.py:Bad", "step": 8}, "train": every})
    with pytest.raises(TrainingError) as caught:
        fit(file, root=tmp_path / "runs")
    run = newest_run(tmp_path / "runs")
    assert caught.value.exit_code == 4
    samples = epoch_order(NUM_TRAIN, 0, 1, "shuffle")[2 * BATCH_SIZE : 3 * BATCH_SIZE].tolist()
    assert str(caught.value) == (
        f"step 6 (epoch 2): the loss is not finite, first in the gradient of layers.0.weight; the last checkpoint is "
        f"kept in {run}. Try a lower optimizer.lr (it was 0.01), schedule.warmup, or regularization.clip. The batch "
        f"held the training samples {', '.join(map(str, samples))}"
    )
    good = train(tmp_path, {"train": {"duration": "6 steps"}})
    assert checkpoints.load(run / "checkpoints" / LAST).meta["step"] == 6
    assert same(weights_of(run), weights_of(good))


def test_what_was_best_before_the_loss_went_wrong_is_kept(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(BAD_LOSS)
    file = small_config(tmp_path, {"loss": {"type": "own.py:Bad", "step": 11}})
    with pytest.raises(TrainingError):
        fit(file, root=tmp_path / "runs")
    rows = read_metrics(newest_run(tmp_path / "runs"))
    best = max(rows, key=lambda row: (row["val/accuracy"], -row["step"]))
    assert checkpoints.load(checkpoints.find(newest_run(tmp_path / "runs"))).meta["step"] == best["step"]


def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(BAD_LOSS)
    loss = {"type": "own.py:Bad", "step": TOTAL_STEPS, "value": "gradient"}
    file = small_config(tmp_path, {"loss": loss, "train": {"checkpoint_every": "1 steps"}})
    with pytest.raises(TrainingError):
        fit(file, root=tmp_path / "runs")
    assert all(torch.isfinite(w).all() for w in weights_of(newest_run(tmp_path / "runs")).values())


def test_a_rate_that_blows_up_the_weights_is_a_training_error(tmp_path: Path) -> None:
    file = small_config(tmp_path, {"optimizer": {"type": "sgd", "lr": 1e30}})
    with pytest.raises(TrainingError, match=r"Try a lower optimizer\.lr \(it was 1e\+30\)"):
        fit(file, root=tmp_path / "runs")


def test_a_metric_that_is_undefined_is_null_and_never_the_best(tmp_path: Path) -> None:
    write_arrays(tmp_path / "data.npz", targets="numbers")
    with np.load(tmp_path / "data.npz") as data:
        arrays = dict(data)
    arrays["y_val"][:] = 1.0  # for which R2 is not defined
    np.savez(tmp_path / "data.npz", **arrays)
    file = small_config(tmp_path, {"train": {"monitor": "val/r2"}})
    summary = fit(file, root=tmp_path / "runs")
    rows = read_metrics(Path(summary["run"]))
    assert [row["val/r2"] for row in rows] == [None] * 3
    assert summary["best"]["value"] is None
    assert not (Path(summary["run"]) / "checkpoints" / BEST).exists()


# ---- what is read ---------------------------------------------------------------------------------------------------


def test_fit_does_not_look_at_the_test_targets(tmp_path: Path) -> None:
    write_arrays(tmp_path / "data.npz")
    with np.load(tmp_path / "data.npz") as data:
        arrays = dict(data)
    arrays["y_test"] = arrays["y_test"] + 100  # classes that cannot be encoded
    np.savez(tmp_path / "data.npz", **arrays)
    run = train(tmp_path)
    with pytest.raises(DataError, match="class '100' is not in the training split"):
        evaluate(run)


def test_the_test_samples_change_nothing_in_a_run(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain")
    write_arrays(tmp_path / "data.npz")
    with np.load(tmp_path / "data.npz") as data:
        arrays = dict(data)
    arrays["x_test"] = arrays["x_test"] * 1000
    (tmp_path / "other").mkdir()
    np.savez(tmp_path / "other" / "data.npz", **arrays)
    other = train(tmp_path / "other")
    assert rows_of(other) == rows_of(plain)
    assert same(weights_of(other), weights_of(plain))


def test_without_a_validation_split_the_training_loss_or_metric_chooses(tmp_path: Path) -> None:
    write_arrays(tmp_path / "data.npz")
    with np.load(tmp_path / "data.npz") as data:
        np.savez(tmp_path / "only.npz", x=data["x_train"], y=data["y_train"])
    file = small_config(tmp_path, {"data": {"path": "only.npz"}, "split": {"val": 0.0, "test": 0.0}})
    summary = fit(file, root=tmp_path / "runs")
    assert summary["best"]["metric"] == "train/accuracy"
    assert not any(name.startswith("val/") for name in summary["metrics"])


def test_a_batch_larger_than_the_training_split_is_one_step(tmp_path: Path) -> None:
    summary = fit(small_config(tmp_path, {"train": {"batch_size": 1000}}), root=tmp_path / "runs")
    assert (summary["step"], summary["epoch"]) == (3, 3.0)


def test_drop_last_that_would_drop_everything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.drop_last: drops every batch: 50 samples are fewer than"):
        train(tmp_path, {"train": {"batch_size": 1000, "drop_last": True}})


def test_class_weights_move_predictions_to_the_heavy_class(tmp_path: Path) -> None:
    loss = {"type": "cross_entropy", "class_weights": [1.0, 1.0, 1e6]}
    run = train(tmp_path, {"loss": loss, "optimizer": {"lr": 0.1}})
    matrix = np.array(evaluate(run / "checkpoints" / LAST, split="val")["report"]["confusion_matrix"])
    assert matrix[:, 2].sum() == matrix.sum()


def test_the_balanced_sampler_shows_rare_classes_as_often_as_frequent_ones(tmp_path: Path) -> None:
    write_arrays(tmp_path / "data.npz")
    with np.load(tmp_path / "data.npz") as data:
        arrays = dict(data)
    arrays["y_train"] = np.where(np.arange(NUM_TRAIN) < 3, np.arange(NUM_TRAIN), 0)  # 48 samples of class 0, 1 and 1
    np.savez(tmp_path / "data.npz", **arrays)
    sections: Sections = {"model": {"type": "linear", "init": "zeros"}, "optimizer": {"lr": 0.1}}
    predicted = {}
    for sampler in ("shuffle", "balanced"):
        run = train(tmp_path, {**sections, "train": {"duration": "20 epochs", "sampler": sampler}})
        matrix = np.array(evaluate(run / "checkpoints" / LAST, split="train")["report"]["confusion_matrix"])
        predicted[sampler] = matrix[1, 1] + matrix[2, 2]
    assert predicted["shuffle"] < predicted["balanced"] == 2


def test_the_balanced_sampler_needs_classes(tmp_path: Path) -> None:
    write_arrays(tmp_path / "data.npz", targets="numbers")
    with pytest.raises(ConfigError, match="balanced needs classes"):
        train(tmp_path, {"train": {"sampler": "balanced"}})


def test_the_sampler_by_length_needs_sequences(tmp_path: Path) -> None:
    write_arrays(tmp_path / "data.npz")
    with pytest.raises(ConfigError, match="by_length needs sequences; all samples have one shape"):
        train(tmp_path, {"train": {"sampler": "by_length"}})


# ---- every component trains -----------------------------------------------------------------------------------------


def assert_learns(run: Path) -> None:
    """The weights are finite, and the loss of the training samples fell."""
    assert all(torch.isfinite(w).all() for w in final_weights(run).values())
    rows = read_metrics(run)
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]


@pytest.mark.parametrize("cls", optimizers.ALL, ids=type_name)
def test_every_optimizer_lowers_the_loss(cls: Any, tmp_path: Path) -> None:
    assert_learns(train(tmp_path, {"model": {"hidden": [8, 8]}, "optimizer": {**required_arguments(cls), "lr": 0.01}}))


@pytest.mark.parametrize("cls", schedules.ALL, ids=type_name)
def test_every_schedule_trains_by_its_function(cls: Any, tmp_path: Path) -> None:
    run = train(tmp_path, {"schedule": required_arguments(cls), "train": {"evaluate_every": "1 steps"}})
    rows = read_metrics(run)
    assert rows[-1]["val/loss"] < rows[0]["val/loss"]
    rates = [row["lr"] for row in rows]
    assert max(rates) == pytest.approx(0.01)
    assert (len(set(rates)) > 1) == (type_name(cls) != "constant")


@pytest.mark.parametrize("cls", losses.ALL, ids=type_name)
def test_every_loss_trains_for_its_task(cls: Any, tmp_path: Path) -> None:
    by_task = {"classification": "classes", "multilabel": "labels", "regression": "numbers"}
    targets = "counts" if type_name(cls) == "poisson_nll" else by_task[cls.tasks[0]]
    write_arrays(tmp_path / "data.npz", targets=targets)
    run = train(tmp_path, {"loss": required_arguments(cls), "task": {"type": cls.tasks[0]}})
    assert_learns(run)
    found = evaluate(run)["metrics"]
    assert all(value is not None and math.isfinite(value) for value in found.values())


BITING: dict[str, Sections] = {"norm": {"max_norm": 0.01}, "value": {"limit": 1e-3}, "swa": {"start": "2 steps"}}
"""Settings with which a component acts within a dozen steps."""


def regularizations() -> dict[str, Sections]:
    """Return a config section for each thing that the section `regularization` can hold."""
    cases: dict[str, Sections] = {}
    kinds = {
        "penalties": regularization.PENALTIES,
        "mix": regularization.MIXING,
        "clip": regularization.CLIPPING,
        "average": regularization.AVERAGES,
    }
    for key, classes in kinds.items():
        for cls in classes:
            name = type_name(cls)
            component = required_arguments(cls) | BITING.get(name, {})
            cases[name] = {key: [component] if key == "penalties" else component}
    return cases | {
        "sam": {"sam": {}},
        "asam": {"sam": {"adaptive": True}},
        "gradient_noise": {"gradient_noise": {}},
        "max_norm": {"max_norm": {"limit": 0.5}},
    }


@pytest.mark.parametrize("name", regularizations())
def test_every_regularization_takes_effect_and_keeps_the_weights_finite(name: str, tmp_path: Path) -> None:
    write_arrays(tmp_path / "data.npz", side=8)
    plain = train(tmp_path, IMAGES)
    run = train(tmp_path, {**IMAGES, "regularization": regularizations()[name]})
    weights = final_weights(run)
    assert all(torch.isfinite(w).all() for w in weights.values())
    assert not same(weights, final_weights(plain))


def test_an_average_leaves_the_training_alone_and_is_what_is_evaluated(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain")
    run = train(tmp_path / "ema", {"regularization": {"average": {"type": "ema", "decay": 0.9}}})
    assert same(weights_of(run), weights_of(plain))
    saved = checkpoints.load(run / "checkpoints" / LAST)
    assert not same(saved.part("averaged"), saved.part("model"))
    assert evaluate(run / "checkpoints" / LAST, split="val")["metrics"]["loss"] == read_metrics(run)[-1]["val/loss"]
    assert read_metrics(run)[-1]["val/loss"] != read_metrics(plain)[-1]["val/loss"]


def test_ema_is_its_definition(tmp_path: Path) -> None:
    every = {"evaluate_every": "1 steps", "checkpoint_every": "1 steps", "duration": "5 steps"}
    steps = [weights_of(train(tmp_path, {"train": {**every, "duration": f"{n} steps"}})) for n in range(1, 6)]
    torch.manual_seed(seed_of(0, WEIGHTS))
    average = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).state_dict()
    for step, weights in enumerate(steps):
        share = ema(step, 5, decay=0.9)
        average = {n: v + share * (weights[f"layers.{n}"] - v) for n, v in average.items()}
    run = train(tmp_path, {"train": every, "regularization": {"average": {"type": "ema", "decay": 0.9}}})
    averaged = checkpoints.load(run / "checkpoints" / LAST).part("averaged")
    for name, value in average.items():
        torch.testing.assert_close(averaged[f"layers.{name}"], value)


def test_max_norm_holds_in_the_saved_weights(tmp_path: Path) -> None:
    run = train(tmp_path, {"regularization": {"max_norm": {"limit": 0.3}}})
    for name, value in weights_of(run).items():
        if name.endswith("weight"):
            assert value.norm(dim=1).max() <= 0.3 * (1 + 1e-5)


def test_sam_updates_batch_statistics_once_a_step(tmp_path: Path) -> None:
    run = train(tmp_path, {"model": {"norm": "batch"}, "regularization": {"sam": {}}})
    assert weights_of(run)["layers.1.num_batches_tracked"] == TOTAL_STEPS


# ---- tasks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "metrics"),
    [
        ("classes", ["loss", "accuracy", "macro_f1"]),
        ("labels", ["loss", "exact_match", "micro_f1", "macro_f1"]),
        ("numbers", ["loss", "mae", "rmse", "r2"]),
    ],
)
def test_the_task_is_inferred_and_measured_in_its_own_metrics(targets: str, metrics: list[str], tmp_path: Path) -> None:
    write_arrays(tmp_path / "data.npz", targets=targets)
    run = train(tmp_path)
    assert_learns(run)
    rows = read_metrics(run)
    assert [name.removeprefix("val/") for name in rows[0] if name.startswith("val/")] == metrics
    assert [name.removeprefix("train/") for name in rows[0] if name.startswith("train/")] == metrics


def test_regression_of_several_targets_is_measured_in_their_units(tmp_path: Path) -> None:
    write_arrays(tmp_path / "data.npz", targets="numbers")  # the second is a hundred times the first
    run = train(tmp_path, {"train": {"duration": "30 epochs"}, "optimizer": {"lr": 0.03}})
    small, large = evaluate(run, split="val")["report"]["per_target"]
    assert 20 * small["rmse"] < large["rmse"]
    assert small["r2"] > 0.5
    assert large["r2"] > 0.5


# ---- the user's own parts -------------------------------------------------------------------------------------------

OWN = """
import numpy as np
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self, in_features, num_classes, width=4):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(in_features, width), nn.Tanh(), nn.Linear(width, num_classes))

    def forward(self, x):
        return self.layers(x)

class Loss:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, output, target):
        return self.scale * nn.functional.cross_entropy(output, target)

def loss_function(output, target, scale=1.0):
    return scale * nn.functional.cross_entropy(output, target)

def nuclear(parameters, strength):
    return strength * sum(torch.linalg.matrix_norm(p, "nuc") for p in parameters)

class Descent(torch.optim.Optimizer):
    def __init__(self, params, lr=0.5):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] * p.grad

def triangle(step, total, peak=0.5):
    return min(step / (peak * total), (total - step) / ((1 - peak) * total))

def load(number=60):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(number, 5))
    return x, np.where(x[:, 0] > 0, "hoch", "tief")
"""


def test_every_part_can_be_your_own(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    sections: Sections = {
        "data": {"type": "own.py:load", "number": 90},
        "split": {"val": 0.2, "test": 0.2},
        "model": {"type": "own.py:Model", "width": 7},
        "loss": {"type": "own.py:Loss", "scale": 2.0},
        "optimizer": {"type": "own.py:Descent", "lr": 0.25},
        "schedule": {"type": "own.py:triangle", "peak": 0.25},
        "regularization": {"penalties": [{"type": "own.py:nuclear", "strength": 1e-3}]},
    }
    file = small_config(tmp_path, sections)
    summary = fit(file, root=tmp_path / "runs")
    run = Path(summary["run"])
    assert_learns(run)
    rows = read_metrics(run)
    assert rows[0]["train/penalty"] > 0
    assert weights_of(run)["layers.0.weight"].shape == (7, 5)
    steps_per_epoch = math.ceil(54 / BATCH_SIZE)
    total = 3 * steps_per_epoch
    assert rows[0]["lr"] == pytest.approx(0.25 * (total - 3) / (0.75 * total))  # of step 3, past the peak


def test_a_loss_of_your_own_may_be_a_function(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    run = train(tmp_path, {"loss": {"type": "own.py:loss_function", "scale": 3.0}})
    plain = train(tmp_path)
    assert read_metrics(run)[0]["val/loss"] > 2 * read_metrics(plain)[0]["val/loss"]


def test_a_penalty_of_your_own_is_for_the_parameters_it_names(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    rows = {}
    for pattern in ("layers.0.weight", "*weight"):
        penalty = {"type": "own.py:nuclear", "strength": 1.0, "params": pattern}
        run = train(tmp_path, {"optimizer": {"type": "sgd", "lr": 1e-12}, "regularization": {"penalties": [penalty]}})
        rows[pattern] = read_metrics(run)[0]["train/penalty"]
    assert 0 < rows["layers.0.weight"] < rows["*weight"]


def test_an_optimizer_of_your_own_has_the_rate_of_its_signature(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    run = train(tmp_path, {"optimizer": {"type": "own.py:Descent"}})
    assert read_metrics(run)[0]["lr"] == 0.5


def test_a_torch_optimizer_by_path_has_the_weight_decay_of_its_signature(tmp_path: Path) -> None:
    by_path = train(tmp_path, {"optimizer": {"type": "torch.optim:AdamW", "lr": 0.01}})
    by_name = train(tmp_path, {"optimizer": {"type": "adamw", "lr": 0.01}})
    assert same(weights_of(by_path), weights_of(by_name))


# ---- precision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains_to_nearly_the_same_loss_with_weights_in_float32(precision: str, tmp_path: Path) -> None:
    sections = {"train": {"duration": "10 epochs"}}
    full = read_metrics(train(tmp_path, sections))[-1]
    run = train(tmp_path, {"train": {"duration": "10 epochs", "precision": precision}})
    half = read_metrics(run)[-1]
    assert half["train/loss"] == pytest.approx(full["train/loss"], rel=0.05)
    assert half["train/loss"] != full["train/loss"]
    assert {w.dtype for w in weights_of(run).values()} == {torch.float32}


def test_a_float16_step_that_overflows_is_skipped_and_training_goes_on(tmp_path: Path) -> None:
    write_arrays(tmp_path / "data.npz")
    with np.load(tmp_path / "data.npz") as data:
        arrays = {name: value * 50 if name.startswith("x") else value for name, value in data.items()}
    np.savez(tmp_path / "data.npz", **arrays)
    run = train(tmp_path, {"train": {"precision": "float16", "duration": "10 epochs"}})
    saved = checkpoints.load(run / "checkpoints" / LAST)
    assert saved.meta["scaler"]["scale"] < 65536.0  # where it begins
    assert_learns(run)


def test_deterministic_algorithms_are_on_for_the_run_that_asks_for_them(tmp_path: Path) -> None:
    train(tmp_path, {"train": {"deterministic": True}})
    assert torch.are_deterministic_algorithms_enabled()
    train(tmp_path)
    assert not torch.are_deterministic_algorithms_enabled()


def test_durations_of_a_config_mean_the_same_in_steps_and_epochs(tmp_path: Path) -> None:
    by_epochs = train(tmp_path, {"train": {"duration": "2 epochs"}})
    by_steps = train(tmp_path, {"train": {"duration": f"{2 * STEPS_PER_EPOCH} steps"}})
    assert rows_of(by_epochs) == rows_of(by_steps)


def test_a_run_leaves_the_files_that_it_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    run = train(tmp_path)
    assert {path.relative_to(run).as_posix() for path in run.rglob("*") if path.name != ".lock"} == {
        "config.yaml",
        "resolved.yaml",
        "environment.json",
        "metrics.jsonl",
        "log.txt",
        "curves.png",
        "checkpoints",
        "checkpoints/last.safetensors",
        "checkpoints/best.safetensors",
    }
    assert (run / "config.yaml").read_text() == (tmp_path / "small.yaml").read_text()
    assert load_config(run / "resolved.yaml").config == load_config(tmp_path / "small.yaml").config


def test_a_part_that_a_model_keeps_in_evaluation_mode_stays_there(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "class Frozen(nn.Module):\n"
        "    def __init__(self, in_features, num_classes):\n"
        "        super().__init__()\n"
        "        self.norm = nn.BatchNorm1d(in_features).eval()\n"
        "        self.head = nn.Linear(in_features, num_classes)\n"
        "    def forward(self, x):\n"
        "        return self.head(self.norm(x))\n"
    )
    path = write_config(tmp_path)
    text = path.read_text().replace("  hidden:\n  - 8\n", "").replace("type: mlp", "type: own.py:Frozen")
    path.write_text(text)
    run = Path(fit(load_config(path), root=tmp_path / "runs")["run"])
    assert weights_of(run)["norm.num_batches_tracked"] == 0
