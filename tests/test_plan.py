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
from dltrain.plan import make_plan
from tests.small_runs import Sections, plan_of, refusal, small_config

OWN = """
import torch
from torch import nn

def vector(output, target): return torch.nn.functional.cross_entropy(output, target, reduction="none")

class Detached(nn.Linear):
    def __init__(self, in_features, num_classes): super().__init__(in_features, num_classes)
    def forward(self, x): return super().forward(x).detach()
"""


def test_a_loss_of_your_own_is_tried(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    assert "own.py:vector" in refusal(tmp_path, {"loss": {"type": "own.py:vector"}})


def test_a_model_that_cannot_learn_is_refused(tmp_path: Path) -> None:
    small_config(tmp_path)
    path = tmp_path / "small.yaml"
    (tmp_path / "own.py").write_text(OWN)
    text = path.read_text().replace("  hidden:\n  - 8\n", "").replace("type: mlp", "type: own.py:Detached")
    path.write_text(text)
    with pytest.raises(ConfigError, match="its output has no gradient"):
        make_plan(Builder(load_config(path)))


def test_a_device_that_is_not_there_is_said_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refusal(tmp_path, {"train": {"device": "cuda:1"}}).startswith(
        "train.device: 'cuda:1' asks for a CUDA device"
    )


def test_micro_batches_larger_than_the_batch_are_refused(tmp_path: Path) -> None:
    found = refusal(tmp_path, {"train": {"micro_batch_size": 17}})
    assert found == "train.micro_batch_size: 17 cannot take effect: train.batch_size is 16"


@pytest.mark.parametrize(("batch_size", "micro_batch_size"), [(49, None), (7, None), (50, 49), (1, None)])
def test_a_batch_of_one_is_refused_for_a_model_that_normalises_batches(
    batch_size: int, micro_batch_size: int | None, tmp_path: Path
) -> None:
    train = {"batch_size": batch_size, "micro_batch_size": micro_batch_size}
    found = refusal(tmp_path, {"model": {"type": "mlp", "hidden": [8], "norm": "batch"}, "train": train})
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
