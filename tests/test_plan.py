"""What is wrong with a config once data and model are there is said with its place, before a run directory is made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dltrain.build import Builder
from dltrain.config.durations import parse_interval
from dltrain.config.validate import load_config
from dltrain.errors import ConfigError
from dltrain.network import Network
from dltrain.plan import Plan, make_plan
from tests.small_runs import Sections, small_config

OWN = """
import torch
from torch import nn

def nothing(parameters): return None
def several(parameters): return parameters[0].abs().sum(dim=0)
def broken(parameters): return undefined
def vector(output, target): return torch.nn.functional.cross_entropy(output, target, reduction="none")
def learning_rate(step, total, every): return 1.0
def no_rate(step, total): return None

class Detached(nn.Linear):
    def __init__(self, in_features, num_classes): super().__init__(in_features, num_classes)
    def forward(self, x): return super().forward(x).detach()
"""


def plan_of(folder: Path, sections: Sections) -> Plan:
    (folder / "own.py").write_text(OWN)
    return make_plan(Builder(small_config(folder, sections)))


def message(folder: Path, sections: Sections) -> str:
    with pytest.raises(ConfigError) as caught:
        plan_of(folder, sections)
    text = str(caught.value)
    assert text.startswith(f"{folder / 'small.yaml'}:"), text
    return text.partition(": ")[2]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("nothing", "gives a NoneType; a penalty is a scalar tensor"),
        ("several", "gives a tensor of shape (6,); a penalty is a scalar tensor"),
        ("broken", "failed: NameError: name 'undefined' is not defined (own.py:7)"),
    ],
)
def test_a_penalty_of_your_own_is_tried(name: str, what: str, tmp_path: Path) -> None:
    sections: Sections = {"regularization": {"penalties": [{"type": f"own.py:{name}"}]}}
    assert message(tmp_path, sections) == f"regularization.penalties.0: {what}"


def test_a_loss_of_your_own_is_tried(tmp_path: Path) -> None:
    assert "own.py:vector" in message(tmp_path, {"loss": {"type": "own.py:vector"}})


def test_a_schedule_of_your_own_needs_all_of_its_arguments(tmp_path: Path) -> None:
    assert "needs every" in message(tmp_path, {"schedule": {"type": "own.py:learning_rate"}})


def test_a_schedule_that_does_not_fit_the_training_is_said_with_its_place(tmp_path: Path) -> None:
    found = message(tmp_path, {"schedule": {"type": "cosine", "warmup": "500 steps"}})
    assert found == "schedule: warmup: 500 steps do not fit in a training of 12; possible: less than 12"


def test_a_schedule_of_your_own_must_give_a_factor(tmp_path: Path) -> None:
    found = message(tmp_path, {"schedule": {"type": "own.py:no_rate"}})
    assert found == "schedule: gives None for step 0; a factor of the learning rate is a number >= 0"


def test_a_model_that_cannot_learn_is_refused(tmp_path: Path) -> None:
    small_config(tmp_path)
    path = tmp_path / "small.yaml"
    (tmp_path / "own.py").write_text(OWN)
    text = path.read_text().replace("  hidden:\n  - 8\n", "").replace("type: mlp", "type: own.py:Detached")
    path.write_text(text)
    with pytest.raises(ConfigError, match="its output has no gradient"):
        make_plan(Builder(load_config(path)))


def test_an_optimizer_without_a_type_is_the_default_one(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    small_config(tmp_path)
    path.write_text(path.read_text().replace("  type: adamw\n", ""))
    plan = make_plan(Builder(load_config(path)))
    assert isinstance(plan.state.optimizer, torch.optim.AdamW)
    assert plan.lr == 0.01


def test_micro_batches_larger_than_the_batch_are_refused(tmp_path: Path) -> None:
    found = message(tmp_path, {"train": {"micro_batch_size": 17}})
    assert found == "train.micro_batch_size: 17 cannot take effect: train.batch_size is 16"


def test_mixing_that_does_not_fit_the_data_is_said_with_its_place(tmp_path: Path) -> None:
    found = message(tmp_path, {"regularization": {"mix": {"type": "cutmix"}}})
    assert found.startswith("regularization.mix: cutmix needs images")


def test_an_optimizer_that_evaluates_the_loss_itself_is_refused(tmp_path: Path) -> None:
    found = message(tmp_path, {"optimizer": {"type": "torch.optim:LBFGS", "lr": 0.1}})
    assert found == "optimizer: torch.optim:LBFGS needs several evaluations of the loss a step; choose another"


@pytest.mark.parametrize("fused", [True, False])
def test_an_optimizer_is_fused_unless_the_config_says_otherwise(fused: bool, tmp_path: Path) -> None:
    options = {} if fused else {"fused": False}
    plan = plan_of(tmp_path, {"optimizer": {"type": "torch.optim:Adam", "lr": 0.01, **options}})
    assert plan.state.optimizer.param_groups[0]["fused"] is fused


def test_the_learning_rate_is_that_of_the_config_whatever_the_groups_have(tmp_path: Path) -> None:
    groups = [{"params": "layers.0.*", "lr": 1e-9}]
    plan = plan_of(tmp_path, {"optimizer": {"type": "adamw", "lr": 0.1, "groups": groups}})
    assert plan.lr == 0.1
    assert {group["base_lr"] for group in plan.state.optimizer.param_groups} == {0.1, 1e-9}


@pytest.mark.parametrize(("batch_size", "micro_batch_size"), [(49, None), (7, None), (50, 49), (1, None)])
def test_a_batch_of_one_is_refused_for_a_model_that_normalises_batches(
    batch_size: int, micro_batch_size: int | None, tmp_path: Path
) -> None:
    train = {"batch_size": batch_size, "micro_batch_size": micro_batch_size}
    found = message(tmp_path, {"model": {"type": "mlp", "hidden": [8], "norm": "batch"}, "train": train})
    assert found == (
        f"train.batch_size: 50 samples in batches of {batch_size} leave a batch of one, which BatchNorm cannot "
        "normalise; set train.drop_last: true or another size"
    )


@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"batch_size": 49}},  # no batch normalisation
        {"model": {"type": "mlp", "hidden": [8], "norm": "batch"}, "train": {"batch_size": 49, "drop_last": True}},
        {"model": {"type": "mlp", "hidden": [8], "norm": "batch"}, "train": {"batch_size": 48}},
    ],
)
def test_other_batches_are_possible(sections: Sections, tmp_path: Path) -> None:
    assert isinstance(plan_of(tmp_path, sections).network, Network)


def test_targets_in_several_units_are_compared_by_their_loss(tmp_path: Path) -> None:
    from tests.small_runs import write_arrays

    write_arrays(tmp_path / "data.npz", targets="numbers")
    assert plan_of(tmp_path, {}).goal.metric == "val/loss"


def test_the_first_checkpoint_by_the_clock_comes_early(tmp_path: Path) -> None:
    assert str(parse_interval("30 s")) == "30 s"
    plan = plan_of(tmp_path, {"train": {"checkpoint_every": "30 s"}})
    due = []
    for elapsed_s in (0.5, 1.9, 2.1, 20.0, 32.0, 32.2, 40.0, 62.3):
        plan.state.elapsed_s = elapsed_s
        due.append(plan.save_due(plan.state))
    assert due == [False, False, True, False, False, True, False, True]


def test_a_small_model_has_one_thread_and_the_config_the_last_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr("dltrain.device._most_threads", 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    plan_of(tmp_path, {})
    plan_of(tmp_path, {"train": {"threads": 3}})
    plan_of(tmp_path, {"model": {"type": "mlp", "hidden": [4096, 4096]}})
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    plan_of(tmp_path, {})
    assert chosen == [1, 3, 8, 8]
