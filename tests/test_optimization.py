"""Optimizer, schedule and regularization of a config are built for its model and tried before the first step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dltrain.build import Builder
from dltrain.config.validate import load_config
from dltrain.plan import make_plan
from tests.small_runs import Sections, plan_of, refusal, small_config

OWN = """
def nothing(parameters): return None
def several(parameters): return parameters[0].abs().sum(dim=0)
def broken(parameters): return undefined
def learning_rate(step, total, every): return 1.0
def no_rate(step, total): return None
"""


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("nothing", "gives a NoneType; a penalty is a scalar tensor"),
        ("several", "gives a tensor of shape (6,); a penalty is a scalar tensor"),
        ("broken", "failed: NameError: name 'undefined' is not defined (own.py:4)"),
    ],
)
def test_a_penalty_of_your_own_is_tried(name: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    sections: Sections = {"regularization": {"penalties": [{"type": f"own.py:{name}"}]}}
    assert refusal(tmp_path, sections) == f"regularization.penalties.0: {what}"


def test_a_schedule_of_your_own_needs_all_of_its_arguments(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    assert "needs every" in refusal(tmp_path, {"schedule": {"type": "own.py:learning_rate"}})


def test_a_schedule_that_does_not_fit_the_training_is_said_with_its_place(tmp_path: Path) -> None:
    found = refusal(tmp_path, {"schedule": {"type": "cosine", "warmup": "500 steps"}})
    assert found == "schedule.warmup: 500 steps do not fit in a training of 12; possible: less than 12"


def test_a_schedule_of_your_own_must_give_a_factor(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    found = refusal(tmp_path, {"schedule": {"type": "own.py:no_rate"}})
    assert found == "schedule: gives None for step 0; a factor of the learning rate is a number >= 0"


def test_an_optimizer_without_a_type_is_the_default_one(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    small_config(tmp_path)
    path.write_text(path.read_text().replace("  type: adamw\n", ""))
    plan = make_plan(Builder(load_config(path)))
    assert isinstance(plan.state.optimizer, torch.optim.AdamW)
    assert plan.lr == 0.01


def test_mixing_that_does_not_fit_the_data_is_said_with_its_place(tmp_path: Path) -> None:
    found = refusal(tmp_path, {"regularization": {"mix": {"type": "cutmix"}}})
    assert found.startswith("regularization.mix: cutmix needs images")


def test_an_optimizer_that_evaluates_the_loss_itself_is_refused(tmp_path: Path) -> None:
    found = refusal(tmp_path, {"optimizer": {"type": "torch.optim:LBFGS", "lr": 0.1}})
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


@pytest.mark.parametrize(
    ("optimizer", "what"),
    [
        (
            {"groups": [{"params": "haed.*", "lr": 0.5}]},
            "optimizer.groups.0.params: 'haed.*' matches no parameter; the nearest are ",
        ),
        ({"type": "muon", "adamw": ["haed.*"]}, "optimizer.adamw: 'haed.*' matches no parameter; the nearest are "),
        ({"type": "muon", "adamw": ["*"]}, "optimizer: muon is for matrices between the input and the head; "),
    ],
)
def test_options_of_the_optimizer_that_do_not_fit_the_model_are_said_with_their_place(
    optimizer: Sections, what: str, tmp_path: Path
) -> None:
    assert refusal(tmp_path, {"optimizer": optimizer}).startswith(what)
