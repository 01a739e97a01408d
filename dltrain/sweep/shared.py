"""A sweep that several machines work at: its study lies in a database, which is what the journal is to one machine.

The study is Optuna's (RDBStorage), so its tools read it. A trial of ours is a trial of the study, which holds all that
is known of it in the attribute `sweep`. Workers take turns: who has the lock reads, decides and writes; a worker that
ends without a word is noticed because its counter stands still, and its trainings are open again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

from dltrain import __version__
from dltrain.config.reader import read_text
from dltrain.config.schema.sweep import Sweep
from dltrain.config.validate import ConfigFile, config_file
from dltrain.errors import ConfigError, DataError, TrainingError
from dltrain.extras import require
from dltrain.names import did_you_mean, first_line
from dltrain.sweep.book import next_open
from dltrain.sweep.folder import TRIALS, check_options, check_trials, name_of
from dltrain.sweep.journal import FORMAT_VERSION, Trial, TrialRun, Trials, apply
from dltrain.sweep.points import Points, create_study, num_trials
from dltrain.sweep.space import settings_of

ABOUT = "sweep"
"""Attribute of a study, and of each of its trials, that is ours; trials without it do not count."""
_BEAT = "beat "
_BEAT_S, _IDLE_S = 5.0, 1.0
GRACE_S = 60.0
"""How long a worker's counter stands still before others take over what it had; each by its own clock."""
_MAX_HELD_S = 120
_SQLITE_PATIENCE_S = 60


class Database:
    """The database in which the studies of sweeps lie: PostgreSQL, or SQLite for the processes of one machine."""

    def __init__(self, url: str) -> None:
        """Connect, and make Optuna's tables where there are none. Raises ConfigError."""
        optuna = require("optuna", "sweep", "for --storage")
        sqlalchemy = require("sqlalchemy", "sweep", "for --storage")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            parsed = sqlalchemy.make_url(url)
        except sqlalchemy.exc.ArgumentError:
            parsed = None
        backend = parsed.get_backend_name() if parsed is not None else ""
        if parsed is None or backend not in ("postgresql", "sqlite") or not parsed.database:
            raise ConfigError(
                "--storage: is no URL of a database; possible: postgresql://USER:PASSWORD@HOST/DATABASE, or "
                "sqlite:///FILE for the processes of one machine"
            )
        self.shown = parsed.render_as_string()
        """The URL without its password."""
        self._sqlite = Path(parsed.database) if backend == "sqlite" else None
        if self._sqlite is None:
            require("psycopg", "postgres", "for --storage postgresql://")
            parsed = parsed.set(drivername="postgresql+psycopg")
        url = parsed.render_as_string(hide_password=False)
        self._locks = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool)
        timeout = {"connect_args": {"timeout": _SQLITE_PATIENCE_S}} if self._sqlite is not None else {}
        self.storage: Any = None
        with self.alone(""):
            self.storage = optuna.storages.RDBStorage(url, engine_kwargs=timeout)

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Context in which no other process works at the study `name`; the lock dies with this process.

        Raises TrainingError where the database refuses.
        """
        import optuna
        import sqlalchemy

        try:
            with self._alone(name):
                try:
                    yield
                finally:  # no connection is open when processes are forked
                    if self.storage is not None:
                        self.storage.engine.dispose()
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, OSError) as error:
            cause = error.__cause__ or error
            raise TrainingError(f"--storage {self.shown}: {first_line(cause)}") from None

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        import sqlalchemy

        if self._sqlite is not None:
            with open(f"{self._sqlite}.lock", "w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield
            return
        with self._locks.begin() as connection:
            # A machine that lost its power while it held the lock must not hold it for ever.
            connection.execute(sqlalchemy.text(f"SET LOCAL idle_in_transaction_session_timeout = {_MAX_HELD_S * 1000}"))
            connection.execute(sqlalchemy.text(f"SELECT pg_advisory_xact_lock({zlib.crc32(name.encode())})"))
            yield

    def names(self) -> list[str]:
        """Return the names of the studies."""
        import optuna

        with self.alone(""):
            return list(optuna.get_all_study_names(self.storage))

    def free_name(self, stem: str) -> str:
        """Return `stem`-1, or the first with a higher number that is free."""
        taken = set(self.names())
        return next(name for number in range(1, len(taken) + 2) if (name := f"{stem}-{number}") not in taken)

    def create(self, name: str, file: ConfigFile, goals: list[tuple[str, bool]], data: dict[str, Any]) -> None:
        """Make the study of a sweep. Raises ConfigError if there is one of that name."""
        import optuna

        about = {"format_version": FORMAT_VERSION, "dltrain": __version__, "config": file.document.name}
        about |= {"text": file.text, "set": list(file.overrides), "goals": goals, "data": data}
        with self.alone(name):
            try:
                study = create_study([higher for _, higher in goals], "none", name, self.storage)
            except optuna.exceptions.DuplicatedStudyError:
                raise ConfigError(
                    f"--study {name}: there is a study of that name; to work at it: "
                    f"dltrain sweep-worker {name} --storage {self.shown}"
                ) from None
            study.set_user_attr(ABOUT, about)

    def about(self, name: str) -> dict[str, Any]:
        """Return what a study says of its sweep. Raises ConfigError if there is none of that name."""
        if name not in (names := self.names()):
            raise ConfigError(f"{self.shown}: has no study '{name}'{did_you_mean(name, names)}")
        with self.alone(name):
            about = self.storage.get_study_user_attrs(self.storage.get_study_id_from_name(name)).get(ABOUT, {})
        if about.get("format_version") != FORMAT_VERSION:
            raise ConfigError(f"{self.shown}: the study '{name}' was not made by a sweep of this version of dltrain")
        return dict(about)

    def trials(self, name: str) -> Trials:
        """Return what is known of a study's trials."""
        with self.alone(name):
            found = self.storage.get_all_trials(self.storage.get_study_id_from_name(name), deepcopy=False)
        abouts = [trial.user_attrs[ABOUT] for trial in found if ABOUT in trial.user_attrs]
        return {a["trial"]: Trial(a["trial"], a["params"], [TrialRun(**run) for run in a["runs"]]) for a in abouts}

    def config(self, name: str, options: Sequence[str] = ()) -> ConfigFile:
        """Return the config of a study, changed by `options`; its paths start in the working directory."""
        return _config_of(self.about(name), options)

    def change(self, name: str, options: Sequence[str]) -> None:
        """Let the sweep have as many trials as `options` ask for, if they do, with all workers.

        Raises ConfigError for what cannot be changed, and for a number that the sweep cannot come to.
        """
        check_options(options)
        about = self.about(name)
        check_trials(_config_of(about, options), options, len(self.trials(name)))
        if asked_for := [option for option in options if name_of(option) == TRIALS]:
            with self.alone(name):
                study_id = self.storage.get_study_id_from_name(name)
                self.storage.set_study_user_attr(study_id, ABOUT, about | {"set": [*about["set"], *asked_for]})


def _config_of(about: dict[str, Any], options: Sequence[str] = ()) -> ConfigFile:
    return config_file(read_text(about["text"], about["config"]), [*about["set"], *options], ".")


class SharedBook:
    """What `book.Book` is on one machine: which training is next, and what became of each, in the study."""

    def __init__(
        self, database: Database, name: str, file: ConfigFile, settings: Sweep, data: dict[str, Any], folder: Path
    ) -> None:
        """Join the study. Raises DataError if the `data` are not those of the sweep."""
        about = database.about(name)
        if about["data"] != data:
            raise DataError(f"{file.place('data')}: are not the data with which the study '{name}' began")
        self.folder, self.trials = folder, Trials()
        self.name = name
        self.total = 0
        """How many trials there are to be, which may be raised while this worker is at work."""
        self._set: list[str] = []
        self._database, self._settings = database, settings
        self._host = socket.gethostname()
        self._worker = f"{self._host} {os.getpid()} {uuid4().hex[:8]}"
        self._num_beats, self._next_beat, self._next_look = 0, 0.0, 0.0
        self._seen: dict[str, tuple[int, float]] = {}
        higher = [higher for _, higher in about["goals"]]
        with self._alone():
            self._study = create_study(higher, settings.pruner, name, database.storage, join=True)
            self._points = Points(settings, file.config.seed, higher, self._study)
        self.refresh()

    @property
    def waits(self) -> bool:
        """Whether some training is still to end, here or elsewhere."""
        return len(self.trials) < self.total or any(trial.state == "open" for trial in self.trials.values())

    @property
    def how_to_resume(self) -> str:
        """The command that goes on with the sweep."""
        return f"dltrain sweep-worker {self.name} --storage {self._database.shown}"

    def next_run(self) -> tuple[Trial, int] | None:
        """Return the next training and take it: a trial and the index of a seed; None if none can begin now."""
        if time.monotonic() < self._next_look:
            return None
        with self._alone():
            self._read()
            self._release_of_the_dead()
            found = next_open(list(self.trials.values()), self._settings)
            if found is None and len(self.trials) < self.total:
                number = len(self.trials) + 1
                apply(
                    self.trials, {"event": "asked", "trial": number, "params": self._ask(number)}, self._settings.seeds
                )
                found = self.trials[number], 0
            if found is None:
                self._next_look = time.monotonic() + _IDLE_S
                return None
            trial, index = found
            trial.runs[index].state, trial.runs[index].holder = "running", self._worker
            self._write(trial)
        return found

    def note(self, trial: Trial, index: int, kind: str, facts: dict[str, Any]) -> bool:
        """Write down what became of a training; return whether it counts: not if another has taken it over."""
        with self._alone():
            self._read()
            if trial.state != "open" or trial.runs[index].holder != self._worker:
                return False
            apply(
                self.trials, {"event": kind, "trial": trial.number, "seed_index": index, **facts}, self._settings.seeds
            )
            if kind == "started":
                trial.runs[index].folder = f"{self._host}:{(self.folder / facts['run']).resolve()}"
            else:
                trial.runs[index].holder = ""
            self._write(trial)
            if trial.state != "open":
                self._points.tell(trial)
        return True

    def is_hopeless(self, trial: Trial, evaluation: int, value: float | None) -> bool:
        """Report the objective of a trial's first seed; return whether the trial should end there."""
        with self._alone():
            self._read()
            mine = trial.state == "open" and trial.runs[0].holder == self._worker
            return mine and self._points.is_hopeless(trial.number, evaluation, value)

    def place_of(self, run: TrialRun) -> str:
        """Return the run directory of a training, after the name of its machine if that is another."""
        host, _, folder = run.folder.partition(":")
        return os.path.relpath(folder) if host == self._host and os.path.isdir(folder) else run.folder

    def refresh(self) -> None:
        """Tell the others that this worker lives, and hear from them, if it is time to."""
        if time.monotonic() < self._next_beat:
            return
        self._next_beat = time.monotonic() + _BEAT_S
        self._num_beats += 1
        with self._alone():
            self._study.set_user_attr(_BEAT + self._worker, self._num_beats)
            self._read()

    # ---- in the study; all of it while nobody else works there -------------------------------------------------------

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        return self._database.alone(self.name)

    def _ask(self, number: int) -> dict[str, Any]:
        for trial in self._study.get_trials(deepcopy=False):
            if ABOUT not in trial.user_attrs and not trial.state.is_finished():  # whoever asked for it died at once
                self._study_trial(trial.number, fail=True)
        return self._points.ask(number)

    def _study_trial(self, study_number: int, *, fail: bool = False) -> Any:
        """Return a trial of the study by its number there; or end it as one that does not count."""
        from optuna.trial import Trial as StudyTrial
        from optuna.trial import TrialState

        storage = self._database.storage
        study_id = storage.get_study_id_from_name(self.name)
        trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, study_number)
        return storage.set_trial_state_values(trial_id, TrialState.FAIL) if fail else StudyTrial(self._study, trial_id)

    def _write(self, trial: Trial) -> None:
        runs = [asdict(run) for run in trial.runs]
        about = {"trial": trial.number, "params": trial.params, "runs": runs}
        self._points.trials[trial.number].set_user_attr(ABOUT, about)

    def _read(self) -> None:
        """Bring `trials` and `total` up to date; the trials and their lists of runs stay the same objects."""
        for found in self._study.get_trials(deepcopy=False):
            if (about := found.user_attrs.get(ABOUT)) is None:
                continue
            trial = self.trials.setdefault(about["trial"], Trial(about["trial"], about["params"], []))
            trial.runs[:] = [TrialRun(**run) for run in about["runs"]]
            if not found.state.is_finished() and trial.number not in self._points.trials:
                self._points.trials[trial.number] = self._study_trial(found.number)
            if not found.state.is_finished() and trial.state != "open":  # whoever wrote that died before telling it
                self._points.tell(trial)
        about = self._study.user_attrs[ABOUT]
        if about["set"] != self._set or not self.total:
            self._set, self.total = about["set"], max(num_trials(settings_of(_config_of(about))), len(self.trials))

    def _release_of_the_dead(self) -> None:
        """Open again the trainings of workers whose counters have stood still for too long."""
        now, beats = time.monotonic(), self._study.user_attrs
        for trial in self.trials.values():
            dead = [run for run in trial.runs if run.state == "running" and self._is_dead(run.holder, beats, now)]
            for run in dead:
                run.state, run.holder = "open", ""
            if dead and trial.state == "open":
                self._write(trial)

    def _is_dead(self, worker: str, beats: dict[str, Any], now: float) -> bool:
        beat = beats.get(_BEAT + worker, 0)
        seen, since = self._seen.get(worker, (-1, now))
        if seen != beat:
            seen, since = beat, now
        self._seen[worker] = seen, since
        return worker != self._worker and now - since >= GRACE_S
