"""How trials get their points: as functions of seed and trial, and from what a resumed sweep knows of earlier ones."""

from __future__ import annotations

from typing import Any

import pytest

from dltrain.config.schema.sweep import Sweep
from dltrain.errors import ConfigError
from dltrain.sweep import points as points_
from dltrain.sweep.journal import Trial, TrialRun
from dltrain.sweep.points import Points, num_trials

SPACE = {"a": {"uniform": [0, 1]}, "b": {"log_int": [1, 64]}, "c": [[1], [1, 1], {"x": 1}]}


def sweep(**settings: Any) -> Sweep:
    return Sweep.model_validate({"space": SPACE, **settings})


def value_of(params: dict[str, Any]) -> float:
    return abs(params["a"] - 0.3) + params["b"] / 64 + len(params["c"])


def ended(number: int, params: dict[str, Any], reports: list[float | None], state: str = "finished") -> Trial:
    run = TrialRun(state, values=[value_of(params)] if state == "finished" else [], reports=reports)
    return Trial(number, params, [run])


def run_sweep(points: Points, first: int, last: int) -> list[Trial]:
    """Ask for trials and tell their values, with two reports each; end those that are hopeless."""
    trials = []
    for number in range(first, last + 1):
        params = points.ask(number)
        reports: list[float | None] = []
        state = "finished"
        for evaluation in (1, 2):
            reports.append(value_of(params) / evaluation)
            if points.is_hopeless(number, evaluation, reports[-1]):
                state = "pruned"
                break
        trials.append(ended(number, params, reports, state))
        points.tell(trials[-1])
    return trials


@pytest.mark.parametrize("sampler", ["random", "sobol", "tpe", "gp", "cmaes"])
@pytest.mark.parametrize("pruner", ["none", "median", "asha", "hyperband"])
def test_a_resumed_sweep_goes_on_as_it_would_have(sampler: str, pruner: str) -> None:
    settings = sweep(sampler=sampler, pruner=pruner)
    whole = run_sweep(Points(settings, 7, [False]), 1, 14)
    resumed = Points(settings, 7, [False])
    for trial in whole[:12]:
        resumed.restore(trial)
    assert run_sweep(resumed, 13, 14) == whole[12:]
    if pruner != "none":
        assert any(trial.state == "pruned" for trial in whole)


@pytest.mark.parametrize("sampler", ["random", "sobol", "tpe"])
def test_points_depend_on_the_seed_and_lie_in_the_space(sampler: str) -> None:
    runs = {seed: run_sweep(Points(sweep(sampler=sampler), seed, [False]), 1, 6) for seed in (1, 2)}
    again = run_sweep(Points(sweep(sampler=sampler), 1, [False]), 1, 6)
    assert runs[1] == again
    assert runs[1] != runs[2]
    for trial in runs[1]:
        assert list(trial.params) == ["a", "b", "c"]
        assert 0 <= trial.params["a"] <= 1
        assert trial.params["b"] in range(1, 65)
        assert trial.params["c"] in SPACE["c"]


def test_a_grid_has_each_point_once() -> None:
    settings = sweep(sampler="grid", space={"a": [1, 2, 3], "b": {"int": [0, 1]}, "c": [["x"], ["y"]]})
    assert num_trials(settings) == 12
    points = Points(settings, 0, [False])
    found = [points.ask(number) for number in range(1, 13)]
    assert found[:3] == [{"a": 1, "b": 0, "c": ["x"]}, {"a": 1, "b": 0, "c": ["y"]}, {"a": 1, "b": 1, "c": ["x"]}]
    assert len({str(params) for params in found}) == 12
    assert num_trials(settings.model_copy(update={"trials": 5})) == 5
    assert num_trials(sweep()) == 32


def test_tpe_learns_from_trials_and_avoids_what_diverged() -> None:
    points = Points(sweep(sampler="tpe", trials=60), 0, [False])
    trials = []
    for number in range(1, 61):
        params = points.ask(number)
        diverged = params["a"] > 0.6
        trial = ended(number, params, [], "failed" if diverged else "finished")
        trial.runs[0].diverged = diverged
        points.tell(trial)
        trials.append(trial)
    assert sum(trial.diverged for trial in trials[:20]) > 2 * sum(trial.diverged for trial in trials[40:])
    assert min(t.values[0] for t in trials[20:] if not t.diverged) < 1.1


def test_several_objectives_can_be_searched() -> None:
    points = Points(sweep(sampler="tpe"), 0, [False, True])
    for number in range(1, 14):
        params = points.ask(number)
        points.tell(Trial(number, params, [TrialRun("finished", values=[params["a"], float(params["b"])])]))
    assert points.ask(14).keys() == SPACE.keys()


def test_an_open_trial_can_be_told_after_a_resume() -> None:
    points = Points(sweep(sampler="tpe"), 0, [False])
    params = {"a": 0.5, "b": 3, "c": {"x": 1}}
    trial = Trial(1, params, [TrialRun()])
    points.restore(trial)
    trial.runs[0] = TrialRun("finished", values=[1.0])
    points.tell(trial)
    assert points.ask(2).keys() == SPACE.keys()


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str, extra: str, purpose: str) -> None:
        raise ConfigError(f"{package} {extra} {purpose}")

    monkeypatch.setattr(points_, "require", missing)
    Points(sweep(sampler="sobol"), 0, [False])
    with pytest.raises(ConfigError, match="optuna sweep for sampler tpe with pruner none"):
        Points(sweep(sampler="tpe"), 0, [False])
