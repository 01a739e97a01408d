"""Sweeps that several processes work at, as several machines would: each trial once, none lost, by one database."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest

from dltrain.config.validate import load_config
from dltrain.errors import ConfigError, DataError, TrainingError
from dltrain.sweep import shared
from dltrain.sweep.folder import folder_of_worker
from dltrain.sweep.shared import ABOUT, Database, SharedBook
from dltrain.sweep.space import options_of, settings_of
from dltrain.sweep.sweep import work
from dltrain.train import fit
from tests.databases import postgresql
from tests.small_runs import (
    HELD,
    PATIENCE_S,
    Sections,
    command,
    dltrain_here,
    one_json,
    result_of,
    wait_for,
    write_arrays,
    write_config,
)

pytestmark = pytest.mark.usefixtures("no_curves")

SPACE = {"optimizer.lr": {"log_uniform": [1e-3, 1e-1]}, "model.hidden": [[4], [8, 8]]}
GOALS = [("val/loss", False)]
WAITING = """
import time
from pathlib import Path

def wait_for_another(step, total_steps):
    while step == 5 and not any(Path(__file__).with_name("elsewhere").rglob("checkpoints")):
        time.sleep(0.01)
    return 1.0
"""
"""A schedule in which the trainings of the first worker go on when another one has begun to train."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgresql() as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database of either kind; on the server the tests share it, each with a study of its own."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("server"))
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def name(tmp_path: Path) -> str:
    return tmp_path.name


def config(folder: Path, settings: Sections, sections: Sections | None = None) -> Path:
    return write_config(folder, {**(sections or {}), "sweep": {"space": SPACE, "slots": 1, **settings}})


def begin(folder: Path, url: str, name: str, settings: Sections, sections: Sections | None = None) -> dict[str, Any]:
    file = load_config(config(folder, settings, sections))
    return work(file, Database(url), name, new=True, root=folder / "runs")


def join(folder: Path, url: str, name: str, *options: str, trusted: tuple[str, ...] = ()) -> dict[str, Any]:
    database = Database(url)
    os.chdir(folder)
    return work(database.config(name, options), database, name, new=False, root=folder / "runs", trusted=trusted)


@pytest.fixture(autouse=True)
def _comes_back() -> Iterator[None]:
    before = Path.cwd()
    yield
    os.chdir(before)


def trials_in(url: str, name: str) -> list[Any]:
    """Return the trials of the study as Optuna reads them."""
    database = Database(url)
    with database.alone(name):
        return optuna.load_study(study_name=name, storage=database.storage).trials


def assert_each_once(url: str, name: str, total: int) -> None:
    """The study has each trial once, finished, with a run directory of its own."""
    trials = trials_in(url, name)
    assert [trial.user_attrs[ABOUT]["trial"] for trial in trials] == list(range(1, total + 1))
    assert all(trial.state == optuna.trial.TrialState.COMPLETE for trial in trials)
    folders = [run["folder"].partition(":")[2] for trial in trials for run in trial.user_attrs[ABOUT]["runs"]]
    assert len(set(folders)) == len(folders)
    assert all(Path(folder, "checkpoints").is_dir() for folder in folders)


# ---- who does what ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_many_workers_that_ask_at_once_get_each_trial_once(tmp_path: Path, url: str, name: str, sampler: str) -> None:
    file = load_config(config(tmp_path, {"trials": 12, "sampler": sampler, "seeds": 2}))
    settings, data = settings_of(file), {"fingerprint": "x"}
    Database(url).create(name, file, GOALS, data)

    def take(number: int) -> list[tuple[int, int]]:
        book = SharedBook(Database(url), name, file, settings, data, folder_of_worker(tmp_path, str(number)))
        taken = []
        while found := book.next_run():
            trial, index = found
            taken.append((trial.number, index))
            facts = {"values": [trial.params["optimizer.lr"]], "metrics": {}, "reports": [], "elapsed_s": 0.0}
            assert book.note(trial, index, "finished", facts)
        return taken

    with ThreadPoolExecutor(3) as pool:
        taken = [entry for found in pool.map(take, range(3)) for entry in found]
    assert sorted(taken) == [(number, index) for number in range(1, 13) for index in (0, 1)]
    trials = trials_in(url, name)
    assert len(trials) == 12
    assert all(trial.values == [trial.params["optimizer.lr"]] for trial in trials)


def test_a_worker_needs_the_address_and_the_name_and_trains_what_fit_would(tmp_path: Path, url: str, name: str) -> None:
    (tmp_path / "own.py").write_text(WAITING)
    path = config(tmp_path, {"trials": 8, "sampler": "tpe"}, {"schedule": {"type": "own.py:wait_for_another"}})
    arguments = command("sweep", path.name, "--storage", url, "--study", name, "--json")
    other = tmp_path / "elsewhere"
    other.mkdir()
    os.link(tmp_path / "data.npz", other / "data.npz")
    with subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.PIPE) as first:
        try:
            database = Database(url)
            wait_for(lambda: name in database.names() and database.trials(name), first)
            summary = join(other, url, name, trusted=(str(tmp_path / "own.py"),))
            first.communicate(timeout=PATIENCE_S)
        finally:
            first.kill()
    assert first.returncode == 0
    assert (summary["finished"], summary["failed"]) == (8, 0)
    assert_each_once(url, name, 8)
    runs = {row["trial"]: row["runs"][0] for row in summary["best"]}
    by_worker = [sum(path.startswith(prefix) for path in runs.values()) for prefix in ("runs/", "../runs/")]
    assert min(by_worker) > 0
    assert sum(by_worker) == 8
    for row in summary["best"][:2]:
        plain = fit(load_config(path, options_of(row["params"])), root=tmp_path / "plain")["run"]
        ours, theirs = result_of(Path(row["runs"][0])), result_of(Path(plain))
        assert ours["rows"] == theirs["rows"]
        assert {k: v for k, v in ours.items() if "meta" not in k} == {
            k: v for k, v in theirs.items() if "meta" not in k
        }


def test_seeds_pruning_and_failures_are_those_of_a_sweep_on_one_machine(tmp_path: Path, url: str, name: str) -> None:
    space = {"optimizer.lr": [0.1, 0.05, 0.03, 1e-7, 1e30]}
    settings = {"space": space, "trials": 16, "seeds": 2, "pruner": "median", "objective": "val/loss"}
    summary = begin(tmp_path, url, name, settings, {"optimizer": {"type": "sgd"}})
    assert summary["finished"] + summary["pruned"] + summary["failed"] == 16
    assert summary["pruned"] > 0
    assert all("the loss is not finite" in failure["error"] for failure in summary["failures"])
    assert {failure["params"]["optimizer.lr"] for failure in summary["failures"]} == {1e30}
    assert all(len(row["runs"]) == 2 for row in summary["best"])
    again = join(tmp_path, url, name)
    assert {key: again[key] for key in ("finished", "pruned", "failed")} == {
        key: summary[key] for key in ("finished", "pruned", "failed")
    }
    assert again["failures"] == summary["failures"]


def test_a_training_that_fails_by_chance_is_repeated(tmp_path: Path, url: str, name: str) -> None:
    flag = f"Path({str(tmp_path / 'flag')!r})"
    (tmp_path / "own.py").write_text(
        f"import os\nfrom pathlib import Path\n\ndef f(step, total_steps):\n"
        f"    if step == 5 and not {flag}.exists():\n        {flag}.touch()\n        os._exit(9)\n    return 1.0\n"
    )
    summary = begin(tmp_path, url, name, {"trials": 3}, {"schedule": {"type": "own.py:f"}})
    assert summary["finished"] == 3
    assert_each_once(url, name, 3)
    (failed,) = [run for t in trials_in(url, name) for run in t.user_attrs[ABOUT]["runs"] if run["num_failures"]]
    assert failed["error"] == "the training's process ended with exit code 9"


# ---- more trials -----------------------------------------------------------------------------------------------------


def test_a_sweep_that_has_ended_goes_on_to_more_trials(tmp_path: Path, url: str, name: str) -> None:
    begin(tmp_path, url, name, {"trials": 2, "sampler": "tpe"})
    line = ("sweep-worker", name, "--storage", url, "--json", "--quiet")
    result = dltrain_here(*line, "--set", "sweep.trials=4", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [one_json(result.stdout)[key] for key in ("total", "finished")] == [4, 4]
    assert_each_once(url, name, 4)
    assert join(tmp_path, url, name)["total"] == 4
    result = dltrain_here(*line, "--set", "sweep.trials=3", cwd=tmp_path)
    assert (result.returncode, result.stderr.count("the sweep has 4 trials already; possible: that or more")) == (2, 1)
    result = dltrain_here(*line, "--set", "optimizer.lr=1", cwd=tmp_path)
    assert (result.returncode, result.stderr.count("is not resumed with another config; may change: sweep.t")) == (2, 1)
    assert_each_once(url, name, 4)


def test_workers_that_are_at_work_hear_that_there_are_to_be_more_trials(tmp_path: Path, url: str, name: str) -> None:
    file = load_config(config(tmp_path, {"trials": 1}))
    Database(url).create(name, file, GOALS, {})
    book = SharedBook(Database(url), name, file, settings_of(file), {}, tmp_path)
    facts = {"values": [1.0], "metrics": {}, "reports": [], "elapsed_s": 0.0}
    trial, _ = book.next_run() or pytest.fail("there is a trial")
    Database(url).change(name, ["sweep.trials=2"])
    assert book.note(trial, 0, "finished", facts)
    assert (book.total, book.waits) == (2, True)
    trial, _ = book.next_run() or pytest.fail("there is another trial")
    assert book.note(trial, 0, "finished", facts)
    assert (trial.number, book.waits) == (2, False)


# ---- killed ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def held_sweep(folder: Path, url: str, name: str, settings: Sections) -> Iterator[subprocess.Popen[str]]:
    """Context of a sweep in a process of its own, the second trial of which goes slowly until there is "go"."""
    (folder / "own.py").write_text(HELD.format(num_quick=1))
    path = config(folder, settings, {"schedule": {"type": "own.py:held"}})
    arguments, begun = command("sweep", path.name, "--storage", url, "--study", name), folder / "begun"
    with subprocess.Popen(arguments, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: begun.exists() and begun.stat().st_size > 1, process)
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_what_a_killed_worker_had_is_trained_by_another(
    tmp_path: Path, url: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "GRACE_S", 1.0)
    with held_sweep(tmp_path, url, name, {"trials": 5}) as first:
        first.kill()
    (tmp_path / "go").touch()
    assert trials_in(url, name)[-1].user_attrs[ABOUT]["runs"][0]["state"] == "running"
    summary = join(tmp_path, url, name, trusted=("own.py",))
    assert summary["finished"] == 5
    assert_each_once(url, name, 5)


@pytest.mark.slow
def test_a_stopped_worker_gives_back_what_it_had(tmp_path: Path, url: str, name: str) -> None:
    with held_sweep(tmp_path, url, name, {"trials": 3}) as first:
        first.send_signal(signal.SIGTERM)
        _, err = first.communicate(timeout=PATIENCE_S)
    (tmp_path / "go").touch()
    assert first.returncode == 143
    assert f"go on with: dltrain sweep-worker {name} --storage {Database(url).shown}" in err.splitlines()[-1]
    assert trials_in(url, name)[-1].user_attrs[ABOUT]["runs"][0]["state"] == "open"
    assert join(tmp_path, url, name, trusted=("own.py",))["finished"] == 3
    assert_each_once(url, name, 3)


def test_a_result_of_a_training_that_another_has_taken_over_does_not_count(
    tmp_path: Path, url: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = load_config(config(tmp_path, {"trials": 1}))
    settings = settings_of(file)
    Database(url).create(name, file, GOALS, {})
    slow, quick = (SharedBook(Database(url), name, file, settings, {}, tmp_path / folder) for folder in "ab")
    trial, index = slow.next_run() or pytest.fail("there is a trial")
    assert quick.next_run() is None
    assert quick.waits
    monkeypatch.setattr(shared, "GRACE_S", 0.0)
    time.sleep(shared._IDLE_S)
    taken, _ = quick.next_run() or pytest.fail("it is taken over")
    facts = {"values": [1.0], "metrics": {}, "reports": [], "elapsed_s": 0.0}
    assert not slow.note(trial, index, "finished", {**facts, "values": [2.0]})
    assert quick.note(taken, 0, "finished", facts)
    assert not slow.note(trial, index, "finished", {**facts, "values": [2.0]})
    assert [trial.values for trial in trials_in(url, name)] == [[1.0]]


def test_a_worker_that_dies_between_two_writes_loses_nothing(
    tmp_path: Path, url: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = load_config(config(tmp_path, {"trials": 2, "sampler": "tpe"}))
    settings = settings_of(file)
    Database(url).create(name, file, GOALS, {})
    first = SharedBook(Database(url), name, file, settings, {}, tmp_path)
    with monkeypatch.context() as patched:  # dies when the study has the trial, and not yet what is ours
        patched.setattr(first, "_write", lambda trial: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            first.next_run()
    second = SharedBook(Database(url), name, file, settings, {}, tmp_path)
    facts = {"values": [1.0], "metrics": {}, "reports": [], "elapsed_s": 0.0}
    trial, _ = second.next_run() or pytest.fail("there is a trial")
    with monkeypatch.context() as patched:  # dies when the result is written, and the study is not yet told
        patched.setattr(second._points, "tell", lambda trial: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            second.note(trial, 0, "finished", facts)
    third = SharedBook(Database(url), name, file, settings, {}, tmp_path)
    trial, _ = third.next_run() or pytest.fail("there is another trial")
    assert trial.number == 2
    assert third.note(trial, 0, "finished", facts)
    assert not third.waits
    ours = [trial for trial in trials_in(url, name) if ABOUT in trial.user_attrs]
    assert [(t.user_attrs[ABOUT]["trial"], t.values) for t in ours] == [(1, [1.0]), (2, [1.0])]
    assert all(trial.state.is_finished() for trial in trials_in(url, name))


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_code_that_a_study_names_runs_only_if_trusted(tmp_path: Path, url: str, name: str) -> None:
    (tmp_path / "own.py").write_text(HELD.format(num_quick=9))
    begin(tmp_path, url, name, {"trials": 1}, {"schedule": {"type": "own.py:held"}})
    result = dltrain_here("sweep-worker", name, "--storage", url, cwd=tmp_path)
    assert result.returncode == 5
    assert "small.yaml:" in result.stderr
    assert "schedule.type: names code of its own, 'own.py', which runs only if you trust it: read" in result.stderr
    result = dltrain_here(
        "sweep-worker", name, "--storage", url, "--trust", "own.py", "--json", "--quiet", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert one_json(result.stdout)["finished"] == 1


def test_a_worker_with_other_data_is_refused(tmp_path: Path, url: str, name: str) -> None:
    begin(tmp_path, url, name, {"trials": 1})
    (tmp_path / "other").mkdir()
    write_arrays(tmp_path / "other" / "data.npz", seed=1)
    with pytest.raises(DataError, match=f"data: are not the data with which the study '{name}' began"):
        join(tmp_path / "other", url, name)


def test_names_and_addresses_that_are_wrong_are_said(tmp_path: Path, url: str, name: str) -> None:
    begin(tmp_path, url, name, {"trials": 1})
    with pytest.raises(
        ConfigError, match=f"there is a study of that name; to work at it: dltrain sweep-worker {name} "
    ):
        begin(tmp_path, url, name, {"trials": 1})
    with pytest.raises(ConfigError, match=f"has no study '{name}x'; did you mean '{name}'"):
        join(tmp_path, url, f"{name}x")
    database = Database(url)
    with database.alone(name):
        optuna.create_study(storage=database.storage, study_name=f"{name}-foreign")
    with pytest.raises(ConfigError, match="was not made by a sweep of this version of dltrain"):
        join(tmp_path, url, f"{name}-foreign")


@pytest.mark.parametrize("address", ["study.db", "sqlite://", "mysql://host/database", "postgresql://host"])
def test_what_is_no_database_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="--storage: is no URL of a database; possible: postgresql://"):
        Database(address)


def test_a_server_that_does_not_answer_is_named_without_its_password() -> None:
    with pytest.raises(TrainingError) as caught:
        Database("postgresql://somebody:secret@localhost:1/sweeps")
    assert "--storage postgresql://somebody:***@localhost:1/sweeps: " in str(caught.value)
    assert "secret" not in str(caught.value)
