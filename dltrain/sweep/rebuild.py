"""The events of a sweep from its run directories, for a journal that is lost.

What has finished there counts; all else is trained again. Trials have the numbers that their points have, or, where
points depend on what other trials came to, the order in which they began.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from dltrain.config.validate import ConfigFile
from dltrain.listing import best_row, environment_of, read_run
from dltrain.run import find_runs, read_metrics
from dltrain.sweep.journal import finite
from dltrain.sweep.points import OWN, num_trials, point
from dltrain.sweep.space import settings_of, text_of


def events_of_runs(folder: Path, file: ConfigFile, objectives: list[str]) -> list[dict[str, Any]]:
    """Return the events of the finished trainings in the sweep's `folder`, after those that ask for their trials."""
    settings, seed = settings_of(file), file.config.seed
    numbers: dict[str, int] = {}
    runs = [*find_runs(folder / file.name)]
    if settings.sampler in OWN:
        # A sweep that went on to more trials has more runs than the config says; a grid has no more points.
        total = num_trials(settings)
        for number in range(total if settings.sampler == "grid" else max(total, len(runs)), 0, -1):
            numbers[text_of(point(settings, seed, number))] = number
    params_of: dict[int, dict[str, Any]] = {}
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for run in runs:
        given = environment_of(run).get("set") or {}
        params = {key: given[key] for key in settings.space if key in given}
        text = text_of(params)
        if len(params) < len(settings.space) or (settings.sampler in OWN and text not in numbers):
            continue
        number = numbers.setdefault(text, len(numbers) + 1)
        params_of[number] = params
        index = given["seed"] - seed if settings.seeds > 1 else 0
        if read_run(run).about["state"] == "finished" and (facts := _facts(run, objectives)) is not None:
            place = {"trial": number, "seed_index": index, "time": time.time()}
            found[number, index] = {"event": "finished", **place, "run": str(run.relative_to(folder)), **facts}
    asked = []
    for number in range(1, max(params_of, default=0) + 1):
        params = params_of.get(number) or point(settings, seed, number)
        asked.append({"event": "asked", "trial": number, "params": params, "time": time.time()})
    return [*asked, *found.values()]


def _facts(run: Path, objectives: list[str]) -> dict[str, Any] | None:
    """Return what the journal keeps of a finished training; None where the run does not say it."""
    rows = read_metrics(run)
    known = {**best_row(rows), "elapsed_s": rows[-1].get("elapsed_s") if rows else None}
    values = [finite(known.get(name)) for name in objectives]
    if None in values:
        return None
    reports = [finite(row.get(objectives[0])) for row in rows]
    return {"values": values, "metrics": best_row(rows), "reports": reports, "elapsed_s": known["elapsed_s"]}
