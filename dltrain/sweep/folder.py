"""The folder of a sweep, `runs/<name>-sweep/<n>/`: made for a new one, read again to go on with one.

It holds sweep.yaml (the config as written), sweep.json (the first event), trials.jsonl (see `journal`), workers.log
(what trainings print), and the run directories of all trainings in `<name>/<n>`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dltrain import __version__
from dltrain.config.reader import read_text
from dltrain.config.validate import ConfigFile, config_file
from dltrain.errors import ConfigError, DataError
from dltrain.run import make_numbered
from dltrain.sweep.journal import EVENTS, FORMAT_VERSION, Journal
from dltrain.sweep.space import SPACE, grid_size, settings_of

CONFIG = "sweep.yaml"
HEAD = "sweep.json"
TRIALS = f"{SPACE[0]}.trials"
MAY_CHANGE = (TRIALS, *(f"{SPACE[0]}.{name}" for name in ("time", "slots", "retries", "same_errors")))
"""Settings that --set may change of a sweep that has begun."""


def create(root: Path, file: ConfigFile, goals: list[tuple[str, bool]], data: dict[str, Any]) -> Journal:
    """Make the folder `root`/name-sweep/n with the config as it is written, and begin the journal.

    `goals` are what trials are judged by, `data` tells whether the data are the same when the sweep is resumed.
    """
    try:
        folder = make_numbered(root / f"{file.name}-sweep")
        (folder / CONFIG).write_text(file.text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {root}: no folder for the sweep can be made there: {error.strerror}") from None
    head = {"event": "sweep", "format_version": FORMAT_VERSION, "dltrain": __version__, "config": file.document.name}
    head |= {"folder_from_sweep": os.path.relpath(file.folder, folder), "set": list(file.overrides)}
    head |= {"goals": goals, "data": data}
    head["time"] = time.time()
    (folder / HEAD).write_text(json.dumps(head) + "\n", encoding="utf-8")
    journal = Journal(folder)
    journal.append(head)
    return journal


def folder_of_worker(root: Path, study: str) -> Path:
    """Make the folder `root`/study/n for the runs of one of many workers."""
    try:
        return make_numbered(root / study)
    except OSError as error:
        raise ConfigError(f"--out {root}: no folder for the runs can be made there: {error.strerror}") from None


def check_data(journal: Journal, data: dict[str, Any]) -> None:
    """Raise DataError if the data are not those that the sweep began with."""
    if journal.events[0]["data"] != data:
        raise DataError(f"{journal.path.parent}: is not resumed: the data have changed since; begin a new sweep")


def reopened(folder: Path, options: Sequence[str]) -> ConfigFile:
    """Return the config of the sweep in `folder`, changed by `options` as MAY_CHANGE allows.

    A journal that is lost is written anew from the run directories. Raises ConfigError if there is no sweep, another
    process is at work in it, another change is asked for, or fewer trials than there are.
    """
    if not (folder / EVENTS).is_file() and (folder / HEAD).is_file():
        _write_journal_anew(folder)
    if not (folder / EVENTS).is_file():
        raise ConfigError(
            f"--resume {folder}: is no folder of a sweep (it has no {EVENTS}); such as runs/digits-sweep/1"
        )
    journal = Journal(folder)
    journal.close()
    check_options(options)
    file = config_of(folder, journal.events, options)
    check_trials(file, options, sum(event["event"] == "asked" for event in journal.events))
    return file


def check_options(options: Sequence[str]) -> None:
    """Raise ConfigError if `options` change more of a sweep that has begun than MAY_CHANGE allows."""
    for option in options:
        if name_of(option) not in MAY_CHANGE:
            raise ConfigError(
                f"--set {option}: a sweep is not resumed with another config; may change: {', '.join(MAY_CHANGE)}"
            )


def check_trials(file: ConfigFile, options: Sequence[str], num_asked: int) -> None:
    """Raise ConfigError if `options`, which `file` has, ask for a number that a sweep of `num_asked` cannot come to."""
    settings = settings_of(file)
    asked_for = [option for option in options if name_of(option) == TRIALS]
    if not asked_for or settings.trials is None:
        return
    if settings.trials < num_asked:
        raise ConfigError(f"--set {asked_for[-1]}: the sweep has {num_asked} trials already; possible: that or more")
    if settings.sampler == "grid" and settings.trials > (size := grid_size(settings)):
        raise ConfigError(f"--set {asked_for[-1]}: the grid has {size} points, which are all that can be tried")


def name_of(option: str) -> str:
    """Return the dotted setting of a `key=value` override."""
    return option.partition("=")[0].strip()


def _write_journal_anew(folder: Path) -> None:
    from dltrain.sweep.rebuild import events_of_runs

    head = json.loads((folder / HEAD).read_text(encoding="utf-8"))
    events = events_of_runs(folder, config_of(folder, [head]), [name for name, _ in head["goals"]])
    text = "".join(json.dumps(event) + "\n" for event in [head, *events])
    temporary = folder / f"{EVENTS}.tmp"
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, folder / EVENTS)


def config_of(folder: Path, events: list[dict[str, Any]], options: Sequence[str] = ()) -> ConfigFile:
    """Return the config of the sweep in `folder` with these events, changed by `options`. Raises ConfigError."""
    if not events or events[0].get("format_version") != FORMAT_VERSION:
        raise DataError(f"{folder / EVENTS}: was not written by this version of dltrain")
    head = events[0]
    overrides = [*head["set"], *(o for e in events if e["event"] == "resumed" for o in e["set"][len(head["set"]) :])]
    overrides += options
    try:
        document = read_text((folder / CONFIG).read_text(encoding="utf-8"), head["config"])
    except OSError as error:
        raise ConfigError(f"{folder / CONFIG}: cannot be read: {error.strerror}") from None
    return config_file(document, overrides, os.path.relpath(folder / head["folder_from_sweep"]))
