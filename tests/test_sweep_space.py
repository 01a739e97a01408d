"""The space of a sweep: what is wrong with it is said before anything runs, and values lie where they should."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dltrain.config.schema.sweep import Dimension
from dltrain.config.validate import load_config
from dltrain.errors import ConfigError
from dltrain.sweep.space import at_unit, grid_values, options_of, settings_of, trial_file
from tests.small_runs import small_config, write_config
from tests.test_layers import loaded_by

CONFIG = """data: {type: sklearn, name: iris}
model: {type: mlp, hidden: [8]}
optimizer: {type: adamw, lr: 0.01}
"""


def problems_of(folder: Path, sweep: str, *overrides: str) -> list[str]:
    """Return what is wrong with a config that has this sweep section, without the folder."""
    path = folder / "a.yaml"
    path.write_text(CONFIG + "sweep:\n" + sweep)
    with pytest.raises(ConfigError) as caught:
        settings_of(load_config(path, overrides))
    return [problem.replace(str(path), "a.yaml") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("sweep", "problem"),
    [
        (
            "  space: {optimizer.lrr: {log_uniform: [0.1, 1]}}",
            "a.yaml:5:11: optimizer.lrr: unknown key; possible: type, decay_all, groups, lr, ",
        ),
        ("  space:\n    optimzer.lr: [0.1]", "a.yaml:6:5: optimzer: unknown key; possible: name, seed, "),
        (
            "  space:\n    optimizer.lr: {uniform: [-1, 1]}",
            "a.yaml:6:30: optimizer.lr: is -1.0; possible: a number > 0",
        ),
        (
            "  space:\n    model.dropout: {uniform: [0, 1]}",
            "a.yaml:6:34: model.dropout: is 1.0; possible: a number >= 0 and < 1",
        ),
        (
            "  space:\n    train.batch_size: {log_uniform: [0.5, 64]}",
            "a.yaml:6:38: train.batch_size: is 0.5; possible: a whole number >= 1; give the range as log_int",
        ),
        (
            "  space:\n    model.hidden: [[8], [8, 0]]",
            "a.yaml:6:25: model.hidden.1: is 0; possible: a whole number > 0",
        ),
        (
            "  space:\n    model.hidden:\n      choice:\n        - [8]\n        - 5",
            "a.yaml:9:11: model.hidden: is 5; possible: a list of one or more whole numbers > 0",
        ),
        (
            "  space: {sweep.trials: [1, 2]}",
            "a.yaml:5:11: sweep.trials cannot be searched: a sweep cannot change itself",
        ),
        ("  space: {name: [a, b]}", "a.yaml:5:11: name cannot be searched: it names the runs and changes no result"),
        (
            "  space: {seed: [1, 2]}\n  seeds: 3",
            "a.yaml:5:11: seed cannot be searched beside sweep.seeds: 3, which sets it",
        ),
        (
            "  space: {optimizer.lr: {log_uniform: [0.1, 1]}}\n  sampler: grid",
            "a.yaml:5:11: optimizer.lr: a grid needs to know which values of log_uniform; "
            "add points: 5, or write a list",
        ),
        (
            "  space: {optimizer.lr: {uniform: [0.1, 0.1]}}",
            "a.yaml:5:25: sweep.space.optimizer.lr: uniform is [0.1, 0.1]; the second must be larger than the first",
        ),
        (
            "  space: {optimizer.lr: {log_uniform: [0, 1]}}",
            "a.yaml:5:25: sweep.space.optimizer.lr: log_uniform begins at 0.0; a logarithmic range begins above 0",
        ),
        (
            "  space: {optimizer.lr: {uniform: [0.1, 1], int: [1, 2]}}",
            "a.yaml:5:25: sweep.space.optimizer.lr: has uniform and int of choice, uniform, log_uniform, int, log_int; "
            "give exactly one of them",
        ),
        (
            "  space: {optimizer.lr: [0.1]}\n  prunner: asha",
            "a.yaml:6:3: sweep.prunner: unknown key; possible: space, sampler, pruner, trials, time, seeds, objective, "
            "retries, same_errors, slots; did you mean 'pruner'?",
        ),
        (
            "  space: {optimizer.lr: [0.1]}\n  time: 3 epochs",
            "a.yaml:6:9: sweep.time: is '3 epochs'; possible: a time: '30 s', '10 min', '1 h'",
        ),
        (
            "  space: {optimizer.lr: [0.1]}\n  pruner: median\n  objective: [val/loss, elapsed_s]",
            "a.yaml:5:3: sweep: pruner is median; with several objectives there is none, as no order says worse",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, sweep: str, problem: str) -> None:
    found = problems_of(tmp_path, sweep)
    assert found[0].startswith(problem)


def test_a_misspelt_setting_has_the_nearest_name(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, "  space: {optimizer.weight_deca: {uniform: [0, 1]}}")
    assert problem.endswith("; did you mean 'weight_decay'?")


def test_all_mistakes_are_said_at_once(tmp_path: Path) -> None:
    found = problems_of(tmp_path, "  space:\n    optimizer.lr: {uniform: [-1, 1]}\n    model.dropout: [0.1, 2, 3]")
    assert [problem.split(": ")[0] for problem in found] == ["a.yaml:6:30", "a.yaml:7:26", "a.yaml:7:29"]


def test_without_a_section_it_is_said_what_one_looks_like(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no section 'sweep', which says what to try; such as sweep: \{space: "):
        settings_of(small_config(tmp_path))


def test_settings_that_belong_to_a_searched_component_are_valid(tmp_path: Path) -> None:
    space = {"optimizer.type": ["sgd"], "optimizer.momentum": {"uniform": [0, 0.9]}}
    file = small_config(tmp_path, {"sweep": {"space": space}})
    assert settings_of(file).sampler == "random"
    assert trial_file(file, ["optimizer.type=sgd", "optimizer.momentum=0.5"]).config.optimizer.momentum == 0.5  # type: ignore[attr-defined]


def test_a_trial_has_the_config_of_fit_with_set(tmp_path: Path) -> None:
    path = write_config(tmp_path, {"sweep": {"space": {"optimizer.lr": [0.1]}}})
    params = {"optimizer.lr": 1.2345678901234567e-05, "model.hidden": [4, 4], "schedule": {"type": "cosine"}}
    file = load_config(path, ["train.batch_size=8", "sweep.trials=3"])
    trial = trial_file(file, options_of(params))
    plain = load_config(path, ["train.batch_size=8", *options_of(params)])
    assert trial.config.sweep is None
    assert trial.config.model_dump() == plain.config.model_dump()
    assert trial.changes == plain.changes == {"train.batch_size": 8, **params}
    assert (trial.name, trial.folder, trial.text) == (plain.name, plain.folder, plain.text)
    assert file.config.sweep is not None


# ---- values ----------------------------------------------------------------------------------------------------------


def dimension(**settings: Any) -> Dimension:
    return Dimension.model_validate(settings)


UNITS = [index / 1000 for index in range(1000)]


def test_values_of_a_choice_are_equally_likely() -> None:
    counts = Counter(at_unit(dimension(choice=["a", "b", "c", "d"]), u) for u in UNITS)
    assert counts == dict.fromkeys("abcd", 250)


@pytest.mark.parametrize("kind", ["uniform", "log_uniform"])
def test_numbers_fill_their_range(kind: str) -> None:
    values = [at_unit(dimension(**{kind: [0.001, 10.0]}), u) for u in UNITS]
    assert values == sorted(values)
    assert math.isclose(values[0], 0.001)
    assert 9.9 < values[-1] <= 10.0
    middle = 5.0005 if kind == "uniform" else 0.1
    assert math.isclose(values[500], middle, rel_tol=1e-9)


@pytest.mark.parametrize("kind", ["int", "log_int"])
def test_whole_numbers_reach_both_ends(kind: str) -> None:
    values = [at_unit(dimension(**{kind: [1, 8]}), u) for u in UNITS]
    assert set(values) == set(range(1, 9))
    assert all(type(value) is int for value in values)
    counts = Counter(values)
    assert counts[8] == 125 if kind == "int" else counts[8] < 60 < counts[1]


def test_steps_begin_at_the_low_end() -> None:
    assert {at_unit(dimension(uniform=[0.1, 0.5], step=0.1), u) for u in UNITS} == {0.1, 0.2, 0.3, 0.4, 0.5}
    assert {at_unit(dimension(int=[16, 100], step=32), u) for u in UNITS} == {16, 48, 80}


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        ({"choice": [[1], [2, 3]]}, [[1], [2, 3]]),
        ({"int": [1, 3]}, [1, 2, 3]),
        ({"int": [0, 100], "points": 3}, [0, 50, 100]),
        ({"uniform": [0.0, 0.3], "step": 0.1}, [0.0, 0.1, 0.2, 0.3]),
        ({"uniform": [0.0, 1.0], "points": 3}, [0.0, 0.5, 1.0]),
        ({"log_uniform": [1e-4, 1e-1], "points": 4}, [1e-4, 1e-3, 1e-2, 1e-1]),
        ({"log_int": [1, 100], "points": 3}, [1, 10, 100]),
    ],
)
def test_a_grid_holds_both_ends_and_round_numbers(settings: dict[str, Any], values: list[Any]) -> None:
    assert grid_values(dimension(**settings), "") == values


def test_a_mistake_in_the_space_is_found_before_torch_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(CONFIG + "sweep: {space: {optimizer.lrr: [1]}, sampler: tpe}\n")
    packages, code = loaded_by("sweep", str(path))
    assert code == 2
    assert not packages & {"torch", "numpy", "optuna", "rich"}
