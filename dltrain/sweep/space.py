"""The values that a sweep may try, checked before anything runs, and the config of a trial with one of each.

A trial is what `dltrain fit CONFIG --set key=value ...` would train: its changes are the same overrides, in the order
of the space.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dltrain.config.reader import Document, Keys
from dltrain.config.schema.sweep import Dimension, Sweep
from dltrain.config.validate import ConfigFile, config_file
from dltrain.errors import ConfigError
from dltrain.names import shortened, spell

SPACE = ("sweep", "space")
_NEVER = {
    "sweep": "a sweep cannot change itself",
    "name": "it names the runs and changes no result",
}


def settings_of(file: ConfigFile) -> Sweep:
    """Return the sweep section of a config. Raises ConfigError if it has none, or if its space does not fit it."""
    settings = file.config.sweep
    if settings is None:
        example = "sweep: {space: {optimizer.lr: {log_uniform: [1.0e-4, 1.0e-1]}}}"
        raise ConfigError(f"{file.document.name}: has no section 'sweep', which says what to try; such as {example}")
    check_space(file, settings)
    return settings


def check_space(file: ConfigFile, settings: Sweep) -> None:
    """Raise ConfigError for each value of the space that its setting cannot have, at its place in the config.

    Of a range both ends are tried, of a choice all values; the other settings of the space have their first value.
    """
    problems = [problem for key in settings.space if (problem := _problem_of_key(file, settings, key))]
    if problems:
        raise ConfigError(*problems)
    first = {key: _extremes(dimension)[0] for key, dimension in settings.space.items()}
    for key, dimension in settings.space.items():
        for extreme in _extremes(dimension):
            problems += _problems_of(file, {**first, key: extreme}, key)
    if problems:
        raise ConfigError(*dict.fromkeys(problems))


def trial_file(file: ConfigFile, options: Sequence[str]) -> ConfigFile:
    """Return the config of a trial: `file` without its sweep, changed by `options` as by `--set`.

    Raises ConfigError if the changes do not fit each other.
    """
    document = copy.deepcopy(file.document)
    document.value.pop(SPACE[0], None)
    changed = config_file(document, options, file.folder)
    return replace(changed, overrides=(*options_of_trainings(file), *options))


def options_of_trainings(file: ConfigFile) -> list[str]:
    """Return the overrides of a sweep's config that are for its trainings, not for the sweep."""
    return [option for option in file.overrides if not option.strip().startswith(f"{SPACE[0]}.")]


def options_of(params: Mapping[str, Any]) -> list[str]:
    """Return the `key=value` overrides that give the settings these values, exactly."""
    return [f"{key}={text_of(value)}" for key, value in params.items()]


def text_of(value: Any) -> str:
    """Return `value` as YAML of one line that is read as the same value."""
    return json.dumps(value, ensure_ascii=False)


def at_unit(dimension: Dimension, u: float) -> Any:
    """Return the value at `u`, 0 <= u < 1, of the way through a dimension; equal parts of it are equally likely."""
    if dimension.choice is not None:
        return dimension.choice[int(u * len(dimension.choice))]
    low, high = dimension.bounds
    if dimension.kind == "log_uniform":
        return min(high, max(low, math.exp(math.log(low) + u * (math.log(high) - math.log(low)))))
    if dimension.kind == "log_int":  # each whole number is as likely as its surroundings
        ends = math.log(low - 0.5), math.log(high + 0.5)
        return int(min(high, max(low, round(math.exp(ends[0] + u * (ends[1] - ends[0]))))))
    steps = _num_steps(dimension)
    return low + u * (high - low) if steps is None else _at_step(dimension, int(u * (steps + 1)))


def grid_values(dimension: Dimension, place: str) -> list[Any]:
    """Return the values of a dimension that a grid holds. Raises ConfigError at `place` if there is no end of them."""
    if dimension.choice is not None:
        return dimension.choice
    steps, points = _num_steps(dimension), dimension.points
    if points is None:
        if steps is None:
            raise ConfigError(
                f"{place}: a grid needs to know which values of {dimension.kind}; add points: 5, or "
                f"{'a step or ' if dimension.kind == 'uniform' else ''}write a list"
            )
        return [_at_step(dimension, index) for index in range(steps + 1)]
    low, high = dimension.bounds
    shares = [index / (points - 1) for index in range(points)]
    if dimension.kind.startswith("log_"):
        inner: list[float] = [low * (high / low) ** share for share in shares[1:-1]]
    else:
        inner = [low + share * (high - low) for share in shares[1:-1]]
    if dimension.kind.endswith("int"):
        return sorted({int(low), *map(round, inner), int(high)})
    return [low, *(float(f"{value:.12g}") for value in inner), high]


def grid_size(settings: Sweep) -> int:
    """Return how many points a grid has."""
    return math.prod(len(grid_values(dimension, "")) for dimension in settings.space.values())


def _num_steps(dimension: Dimension) -> int | None:
    """Return how many steps lie between the ends; None where the values lie as close as numbers do."""
    low, high = dimension.bounds
    step = dimension.step or (1 if dimension.kind == "int" else None)
    return None if step is None or dimension.kind.startswith("log_") else int((high - low) / step + 1e-9)


def _at_step(dimension: Dimension, index: int) -> Any:
    low = dimension.bounds[0]
    value = low + index * (dimension.step or 1)
    return int(value) if dimension.kind == "int" else float(f"{value:.12g}")  # 0.1 + 2 * 0.1 is meant as 0.3


# ---- the check -------------------------------------------------------------------------------------------------------


def _problem_of_key(file: ConfigFile, settings: Sweep, key: str) -> str | None:
    """Return what is wrong with searching this setting at all."""
    place = file.document.place_of_key((*SPACE, key))
    section = key.partition(".")[0]
    if section in _NEVER:
        return f"{place}: {key} cannot be searched: {_NEVER[section]}"
    if "=" in key:
        return f"{place}: '{shortened(key)}' is no dotted setting, such as optimizer.lr"
    if key == "seed" and settings.seeds > 1:
        return f"{place}: seed cannot be searched beside sweep.seeds: {settings.seeds}, which sets it"
    if settings.sampler == "grid":
        try:
            grid_values(settings.space[key], f"{place}: {key}")
        except ConfigError as error:
            return str(error)
    return None


def _extremes(dimension: Dimension) -> list[tuple[Keys, Any]]:
    """Return where in a dimension its outermost values stand, and these."""
    if dimension.choice is not None:
        return [(("choice", index), value) for index, value in enumerate(dimension.choice)]
    return [((dimension.kind, index), value) for index, value in enumerate(dimension.bounds)]


def _problems_of(file: ConfigFile, point: Mapping[str, tuple[Keys, Any]], key: str) -> list[str]:
    """Return what is wrong with a point of the space, {key: (where its value stands, value)}, in which `key` is new."""
    try:
        trial_file(file, options_of({name: value for name, (_, value) in point.items()}))
    except ConfigError as error:
        return [_at_place(file.document, problem, point, key) for problem in error.problems]
    return []


def _at_place(document: Document, problem: str, point: Mapping[str, tuple[Keys, Any]], key: str) -> str:
    """Return the message with the place in the space instead of that of an option, which nobody wrote."""
    for name, (where, value) in point.items():
        (option,) = options_of({name: value})
        said = f"--set {shortened(option, 100)}: "
        if not problem.startswith(said):
            continue
        rest = problem.removeprefix(said)
        if "unknown key" in rest:
            return f"{document.place_of_key((*SPACE, name))}: {rest}"
        kinds = {"uniform": "int", "log_uniform": "log_int"}
        if "a whole number" in rest and where[0] in kinds:
            rest = f"{rest.partition('; write')[0]}; give the range as {kinds[str(where[0])]}"
        return f"{_place_of_value(document, name, where)}: {rest}"
    where, value = point[key]
    return f"{_place_of_value(document, key, where)}: with {key}: {shortened(spell(value))}: {problem}"


def _place_of_value(document: Document, key: str, where: Keys) -> str:
    """Return the place of a value; a choice may be written as a bare list."""
    keys = (*SPACE, key, *where)
    return document.place_of_value(keys if keys in document.value_places else (*SPACE, key, where[-1]))
