"""What a report says of a sweep, before it is said: the trials, how good and how bad they are, and how they look."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dltrain.config.schema.sweep import Sweep
from dltrain.config.validate import ConfigFile
from dltrain.run import read_metrics
from dltrain.sweep.axes import Axis, axis_of_setting, axis_of_values, is_number
from dltrain.sweep.charts import Mark
from dltrain.sweep.journal import Trial, ranked, trials_of

NUM_SHADES = 9
"""Colours from the worst to the best."""


@dataclass(frozen=True)
class Facts:
    """A sweep's config and journal, and what follows from them."""

    folder: Path
    file: ConfigFile
    settings: Sweep
    events: list[dict[str, Any]]

    @cached_property
    def trials(self) -> list[Trial]:
        """All trials, in the order of their numbers."""
        return list(trials_of(self.events, self.settings.seeds).values())

    @cached_property
    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """Run directory, relative to the sweep's -> its lines of metrics."""
        folders = [run.folder for trial in self.trials for run in trial.runs if run.folder]
        return {folder: read_metrics(self.folder / folder) for folder in folders}

    @cached_property
    def objectives(self) -> list[str]:
        """What the trials are judged by."""
        return [name for name, _ in self.events[0]["goals"]]

    @cached_property
    def higher(self) -> list[bool]:
        """Of each objective, whether higher is better."""
        return [higher for _, higher in self.events[0]["goals"]]

    @cached_property
    def values(self) -> dict[int, list[float]]:
        """Trial -> its objectives, for those that finished with numbers."""
        found = [t for t in self.trials if t.state == "finished"]
        width = len(self.objectives)
        found = [t for t in found if all(len(r.values) == width and all(map(is_number, r.values)) for r in t.runs)]
        return {trial.number: trial.values for trial in found}

    @cached_property
    def best(self) -> list[Trial]:
        """All finished trials, the best first; of several objectives those of the Pareto front."""
        return ranked({trial.number: trial for trial in self.trials if trial.number in self.values}, self.higher)

    @cached_property
    def marks(self) -> dict[int, Mark]:
        """Trial -> how it looks; colours are by rank in the first objective, so that no outlier uses them up."""
        order = sorted(self.values, key=lambda number: self.values[number][0], reverse=not self.higher[0])
        last = max(1, len(order) - 1)
        looks = {number: f"c{(NUM_SHADES - 1) * place // last}" for place, number in enumerate(order)}
        best = {trial.number for trial in (self.best[:1] if len(self.objectives) == 1 else self.best)}
        return {
            trial.number: Mark(trial.number, looks.get(trial.number, _look(trial)), trial.number in best)
            for trial in self.trials
        }

    @cached_property
    def worst_first(self) -> list[Trial]:
        """All trials in the order in which they are drawn over each other."""

        def depth(trial: Trial) -> tuple[bool, bool, float]:
            value = self.values.get(trial.number, [0.0])[0]
            is_best = self.marks[trial.number].is_best
            return is_best, trial.number in self.values, value if self.higher[0] else -value

        return sorted(self.trials, key=depth)

    @cached_property
    def axes(self) -> list[Axis]:
        """The axes of the settings of the space."""
        return [axis_of_setting(key, dimension) for key, dimension in self.settings.space.items()]

    @cached_property
    def columns(self) -> list[list[float]]:
        """Of each objective the values of all finished trials."""
        return [[values[index] for values in self.values.values()] for index in range(len(self.objectives))]

    @cached_property
    def goals(self) -> list[Axis]:
        """The axes of the objectives."""
        parts = zip(self.objectives, self.columns, self.higher, strict=True)
        return [axis_of_values(name, values, higher) for name, values, higher in parts]

    @cached_property
    def elapsed_s(self) -> float:
        """Time in which the sweep was at work, without the pauses before it was resumed."""
        total_s, last = 0.0, None
        for event in self.events:
            now = event.get("time")
            if is_number(now) and last is not None and event["event"] != "resumed":
                total_s += max(0.0, now - last)
            last = now if is_number(now) else last
        return total_s


def _look(trial: Trial) -> str:
    return "open" if trial.state == "finished" else trial.state
