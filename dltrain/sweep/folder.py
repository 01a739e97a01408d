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
from dltrain.config.reader import override, read_text
from dltrain.config.validate import ConfigFile, validate
from dltrain.errors import ConfigError, DataError
from dltrain.run import make_numbered
from dltrain.sweep.journal import EVENTS, FORMAT_VERSION, Journal
from dltrain.sweep.space import SPACE

CONFIG = "sweep.yaml"
HEAD = "sweep.json"
MAY_CHANGE = ("trials", "time", "slots", "retries", "same_errors")
"""Settings of a sweep that --set may change when it is resumed."""


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
    process is at work in it, or another change is asked for.
    """
    if not (folder / EVENTS).is_file() and (folder / HEAD).is_file():
        _write_journal_anew(folder)
    if not (folder / EVENTS).is_file():
        raise ConfigError(
            f"--resume {folder}: is no folder of a sweep (it has no {EVENTS}); such as runs/digits-sweep/1"
        )
    journal = Journal(folder)
    journal.close()
    for option in options:
        name = option.partition("=")[0].strip()
        if name not in [f"{SPACE[0]}.{key}" for key in MAY_CHANGE]:
            raise ConfigError(
                f"--set {option}: a sweep is not resumed with another config; "
                f"may change: {', '.join(f'{SPACE[0]}.{key}' for key in MAY_CHANGE)}"
            )
    return config_of(folder, journal.events, options)


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
    override(document, overrides)
    config_folder = os.path.relpath(folder / head["folder_from_sweep"])
    return ConfigFile(validate(document), document, config_folder, document.text, tuple(overrides))
