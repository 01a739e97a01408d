"""Which point of the space a trial gets, and which trials are not worth going on with.

`grid`, `random` and `sobol` are functions of (seed, trial). The samplers that learn from trials, and all pruners, are
Optuna's (Akiba et al. 2019, https://doi.org/10.1145/3292500.3330701); each trial has its own seed, so that a resumed
sweep goes on as it would have.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.quasirandom import SobolEngine

from dltrain.config.schema.sweep import DEFAULT_TRIALS, Dimension, Sweep
from dltrain.extras import require
from dltrain.seeds import seed_of
from dltrain.sweep.journal import Trial
from dltrain.sweep.space import at_unit, grid_size, grid_values, text_of

OWN = ("random", "grid", "sobol")
_SAMPLING = 6  # beside the purposes of dltrain.seeds, which are those of one training
_SEED_BITS = 32  # Optuna's seeds are numpy's


def num_trials(settings: Sweep) -> int:
    """Return how many trials a sweep has: as set, but no more than a grid has points."""
    if settings.sampler != "grid":
        return settings.trials or DEFAULT_TRIALS
    size = grid_size(settings)
    return min(size, settings.trials or size)


def point(settings: Sweep, seed: int, number: int) -> dict[str, Any]:
    """Return the values of trial `number`, from 1 on, for a sampler that learns nothing."""
    space = settings.space
    if settings.sampler == "grid":
        return _grid_point(space, number - 1)
    if settings.sampler == "sobol":
        engine: Any = SobolEngine(len(space), scramble=True, seed=seed_of(seed, _SAMPLING))  # type: ignore[no-untyped-call]
        units = engine.draw(number, dtype=torch.float64)[-1].numpy()
    else:
        units = np.random.default_rng(seed_of(seed, _SAMPLING, number)).random(len(space))
    return {key: at_unit(dimension, float(u)) for (key, dimension), u in zip(space.items(), units, strict=True)}


def _grid_point(space: dict[str, Dimension], index: int) -> dict[str, Any]:
    """Return point `index` of the grid; the last setting changes fastest."""
    values: dict[str, Any] = {}
    for key, dimension in reversed(space.items()):
        possible = grid_values(dimension, key)
        index, at = divmod(index, len(possible))
        values[key] = possible[at]
    return {key: values[key] for key in space}


class Points:
    """Chooses the points of a sweep's trials one after the other, and hears how they went."""

    def __init__(self, settings: Sweep, seed: int, higher_is_better: Sequence[bool], study: Any = None) -> None:
        """Choose by a study of Optuna: the given one, or one in memory where sampler or pruner need it."""
        self._settings, self._seed, self._study = settings, seed, study
        self.trials: dict[int, Any] = {}
        """The study's trials by the numbers of ours."""
        if study is None and (settings.sampler not in OWN or settings.pruner != "none"):
            require("optuna", "sweep", f"for sampler {settings.sampler} with pruner {settings.pruner}")
            self._study = create_study(higher_is_better, settings.pruner)
        if settings.sampler == "cmaes":
            require("cmaes", "sweep", "for sampler cmaes")

    def ask(self, number: int) -> dict[str, Any]:
        """Return the values of trial `number`; trials are asked for in order, from 1 on."""
        if self._settings.sampler not in OWN:
            return self._ask_study(number)
        params = point(self._settings, self._seed, number)
        if self._study is not None:
            self._add(number, params)
        return params

    def restore(self, trial: Trial) -> None:
        """Take over a trial of the journal; those that are still open can be reported and told later."""
        if self._study is None:
            return
        if self._settings.sampler == "cmaes":  # it keeps in the trials what it has learnt, where it must learn it again
            self._ask_study(trial.number, trial.params)
        else:
            self._add(trial.number, trial.params)
        if trial.runs[0].state != "open":
            for evaluation, value in enumerate(trial.runs[0].reports, 1):
                self.is_hopeless(trial.number, evaluation, value)
        if trial.state != "open":
            self.tell(trial)

    def is_hopeless(self, number: int, evaluation: int, value: float | None) -> bool:
        """Report the objective at an evaluation, from 1 on; return whether the trial should end there."""
        if self._study is None or self._settings.pruner == "none" or value is None or not math.isfinite(value):
            return False
        trial = self.trials[number]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a value that was reported before its worker died
            trial.report(value, evaluation)
        return bool(trial.should_prune())

    def tell(self, trial: Trial) -> None:
        """Hear how a trial ended. One that diverged counts as a bad one, not as one of which nothing is known."""
        if self._study is None:
            return
        from optuna.trial import TrialState

        states = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
        state = TrialState.PRUNED if trial.diverged else states[trial.state]
        self._study.tell(self.trials[trial.number], trial.values if state == TrialState.COMPLETE else None, state)

    def _add(self, number: int, params: dict[str, Any]) -> None:
        """Give the study a trial of a point that it does not choose, in one transaction: to be asked takes a dozen."""
        from optuna.trial import Trial as StudyTrial
        from optuna.trial import TrialState, create_trial

        new = create_trial(state=TrialState.RUNNING, params=self._to_study(params), distributions=self._distributions())
        self.trials[number] = StudyTrial(self._study, self._study._storage.create_new_trial(self._study._study_id, new))

    def _ask_study(self, number: int, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the point of a trial that the study chooses, or is to believe that it has chosen."""
        self._study.sampler = _sampler(self._settings.sampler, seed_of(self._seed, _SAMPLING, number) % 2**_SEED_BITS)
        if params is not None:
            self._study.enqueue_trial(self._to_study(params))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is experimental in Optuna
            trial = self._study.ask(self._distributions())
            _ = trial.relative_params  # of a restored trial not yet computed, and cmaes learns from that
        self.trials[number] = trial
        space = self._settings.space
        return {key: _from_study(dimension, trial.params[key]) for key, dimension in space.items()}

    def _to_study(self, params: dict[str, Any]) -> dict[str, Any]:
        return {key: _to_study(self._settings.space[key], value) for key, value in params.items()}

    def _distributions(self) -> dict[str, Any]:
        return {key: _distribution(dimension) for key, dimension in self._settings.space.items()}


def create_study(
    higher_is_better: Sequence[bool], pruner: str, name: str = "sweep", storage: Any = None, *, join: bool = False
) -> Any:
    """Return a new study of Optuna, in memory or in a storage, or with `join` the one of that name that lies there."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruners = {
        "none": optuna.pruners.NopPruner,
        "median": optuna.pruners.MedianPruner,
        "asha": optuna.pruners.SuccessiveHalvingPruner,
        "hyperband": optuna.pruners.HyperbandPruner,
    }
    return optuna.create_study(
        directions=["maximize" if higher else "minimize" for higher in higher_is_better],
        pruner=pruners[pruner](),
        sampler=optuna.samplers.RandomSampler(),  # which is not asked
        study_name=name,  # by which hyperband divides the trials
        storage=storage,
        load_if_exists=join,
    )


def _sampler(name: str, seed: int) -> Any:
    import optuna

    samplers = {
        "tpe": optuna.samplers.TPESampler,
        "gp": optuna.samplers.GPSampler,
        "cmaes": optuna.samplers.CmaEsSampler,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is experimental in Optuna
        return samplers[name](seed=seed)


def _distribution(dimension: Dimension) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.choice is not None:
        return CategoricalDistribution(range(len(dimension.choice)))
    low, high = dimension.bounds
    log = dimension.kind.startswith("log_")
    if dimension.kind.endswith("int"):
        return IntDistribution(int(low), int(high), log=log, step=int(dimension.step or 1))
    return FloatDistribution(low, high, log=log, step=dimension.step)


def _to_study(dimension: Dimension, value: Any) -> Any:
    """Return a value as the study knows it: of a choice the position."""
    if dimension.choice is None:
        return value
    return [text_of(item) for item in dimension.choice].index(text_of(value))


def _from_study(dimension: Dimension, value: Any) -> Any:
    return value if dimension.choice is None else dimension.choice[value]
