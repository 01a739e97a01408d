"""Which parameter has which options: patterns over names, what decays, what Muon takes."""

from typing import Any

import pytest
from torch import nn

from dltrain.errors import ConfigError
from dltrain.optimizers import Muon
from dltrain.parameter_groups import muon_matrices, parameter_groups


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4))
        self.head = nn.Linear(4, 2)


def names_in(model: nn.Module, groups: list[dict[str, Any]]) -> list[list[str]]:
    by_id = {id(p): name for name, p in model.named_parameters()}
    return [[by_id[id(p)] for p in group["params"]] for group in groups]


def test_norms_and_biases_do_not_decay() -> None:
    model = Model()
    groups = parameter_groups(model.named_parameters(), lr=0.1, weight_decay=0.01)
    decayed, others = groups
    assert names_in(model, groups)[0] == ["embed.weight", "body.0.weight", "body.2.weight", "head.weight"]
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.01, 0.0)
    assert {group[key] for group in groups for key in ("lr", "base_lr")} == {0.1}


@pytest.mark.parametrize("options", [{"weight_decay": 0.0}, {"weight_decay": 0.01, "decay_all": True}])
def test_one_group_where_all_are_equal(options: dict[str, Any]) -> None:
    (group,) = parameter_groups(Model().named_parameters(), lr=0.1, **options)
    assert len(group["params"]) == len(list(Model().parameters()))


def test_the_first_matching_pattern_wins() -> None:
    model = Model()
    settings = [
        {"params": "head.*", "lr": 0.5},
        {"params": ["*.weight", "body.*"], "lr": None, "lr_scale": 0.5, "weight_decay": 0.2},
    ]
    groups = parameter_groups(model.named_parameters(), 0.1, 0.01, groups=settings)
    found = {
        name: (group["lr"], group["base_lr"], group["weight_decay"])
        for group, names in zip(groups, names_in(model, groups), strict=True)
        for name in names
    }
    assert found["head.weight"] == (0.5, 0.5, 0.01)
    assert found["head.bias"] == (0.5, 0.5, 0.0)
    assert found["body.0.weight"] == (0.05, 0.05, 0.2)
    assert found["body.1.weight"] == (0.05, 0.05, 0.0)
    assert len(found) == len(list(model.parameters()))


def test_frozen_parameters_are_left_out() -> None:
    model = Model()
    model.body.requires_grad_(False)
    names = names_in(model, parameter_groups(model.named_parameters(), 0.1, 0.0))
    assert names == [["embed.weight", "head.weight", "head.bias"]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            [{"params": "haed.*", "lr": 0.5}],
            "groups.0.params: 'haed.*' matches no parameter; the nearest are head.bias, head.weight",
        ),
        (
            [{"params": "*", "lr": 0.5}, {"params": "head.*", "lr": 0.5}],
            "groups.1.params: all it matches is frozen or in a group before it; move it up",
        ),
        (
            [{"params": "*.bias", "weight_decay": 0.5}],
            "groups.0.weight_decay: biases and norms do not decay; set decay_all: true",
        ),
    ],
)
def test_groups_without_effect_are_errors(settings: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parameter_groups(Model().named_parameters(), 0.1, 0.01, groups=settings)
    assert str(error.value) == message


def test_a_frozen_model_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no trainable parameter"):
        parameter_groups(Model().requires_grad_(False).named_parameters(), 0.1, 0.0)


def test_muon_takes_hidden_matrices() -> None:
    model = Model()
    assert muon_matrices(model) == {"body.0.weight", "body.2.weight"}
    assert muon_matrices(model, ["body.0.*"]) == {"body.2.weight"}
    chosen = muon_matrices(model)
    groups = parameter_groups(model.named_parameters(), 0.1, 0.01, orthogonalize=chosen)
    names = names_in(model, groups)
    assert {n for g, ns in zip(groups, names, strict=True) if g["orthogonalize"] for n in ns} == chosen
    Muon(groups)


def test_muon_without_hidden_matrix_is_an_error() -> None:
    with pytest.raises(ConfigError, match="this model has none; use adamw"):
        muon_matrices(nn.Linear(3, 2))
    with pytest.raises(ConfigError, match=r"^adamw: 'boby.\*' matches no parameter"):
        muon_matrices(Model(), ["boby.*"])
