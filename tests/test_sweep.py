"""A sweep from its config to its result: trials are what fit would train, and nothing is lost however it ends."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dltrain.config.validate import load_config
from dltrain.errors import ConfigError, DataError, TrainingError
from dltrain.run import read_metrics
from dltrain.sweep.folder import reopened
from dltrain.sweep.journal import EVENTS, Journal, trials_of
from dltrain.sweep.pool import Slots, find_slots
from dltrain.sweep.space import options_of
from dltrain.sweep.sweep import sweep
from dltrain.train import fit
from tests.small_runs import (
    HELD,
    PATIENCE_S,
    Sections,
    command,
    dltrain,
    dltrain_here,
    one_json,
    result_of,
    wait_for,
    write_arrays,
    write_config,
)

pytestmark = pytest.mark.usefixtures("no_curves")

SPACE = {"optimizer.lr": {"log_uniform": [1e-3, 1e-1]}, "model.hidden": [[4], [8, 8]]}
SLOW = """
import time

def slowly(step, total_steps):
    time.sleep({pause_s})
    return 1.0
"""


def run(folder: Path, settings: Sections, sections: Sections | None = None, *overrides: str) -> dict[str, Any]:
    """Sweep the small config with these settings."""
    path = write_config(folder, {**(sections or {}), "sweep": {"space": SPACE, **settings}})
    return sweep(load_config(path, overrides), root=folder / "runs")


def resume(folder: Path, *overrides: str) -> dict[str, Any]:
    return sweep(reopened(folder, overrides), resume=folder)


def events_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / EVENTS).read_text().splitlines()]


def params_of(folder: Path) -> list[dict[str, Any]]:
    return [event["params"] for event in events_of(folder) if event["event"] == "asked"]


def assert_each_once(folder: Path, total: int) -> None:
    """Each trial was asked for once and finished once, and its run directory is there."""
    events = events_of(folder)
    asked = [event["trial"] for event in events if event["event"] == "asked"]
    finished = Counter(event["trial"] for event in events if event["event"] == "finished")
    assert asked == list(range(1, total + 1))
    assert finished == dict.fromkeys(range(1, total + 1), 1)
    for trial in trials_of(events, 1).values():
        assert len(read_metrics(folder / trial.runs[0].folder)) == 3


# ---- a trial is a fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 2])
def test_a_trial_is_the_fit_with_the_same_settings(tmp_path: Path, slots: int) -> None:
    summary = run(tmp_path, {"trials": 4, "slots": slots}, {"regularization": {"average": {"type": "ema"}}})
    assert (summary["finished"], summary["failed"], summary["pruned"]) == (4, 0, 0)
    for row in summary["best"]:
        file = load_config(tmp_path / "small.yaml", options_of(row["params"]))
        plain = Path(fit(file, root=tmp_path / "plain")["run"])
        trial = Path(row["runs"][0])
        assert result_of(trial) == result_of(plain)
        for name in ("config.yaml", "resolved.yaml", "environment.json"):
            assert (trial / name).read_text() == (plain / name).read_text()


def test_seeds_are_those_of_fit_and_give_mean_and_deviation(tmp_path: Path) -> None:
    summary = run(tmp_path, {"trials": 2, "seeds": 3, "slots": 2, "objective": "val/loss"}, {"seed": 5})
    row = summary["best"][0]
    values = []
    for index, trial in enumerate(row["runs"]):
        options = [*options_of(row["params"]), f"seed={5 + index}"]
        plain = Path(fit(load_config(tmp_path / "small.yaml", options), root=tmp_path / "plain")["run"])
        assert result_of(Path(trial)) == result_of(plain)
        values.append(next(r["val/loss"] for r in reversed(read_metrics(plain)) if r["best"]))
    mean = sum(values) / 3
    assert math.isclose(row["values"]["val/loss"], mean)
    assert math.isclose(row["deviations"]["val/loss"], math.sqrt(sum((v - mean) ** 2 for v in values) / 2))


def test_fit_does_not_look_at_the_sweep(tmp_path: Path) -> None:
    with_sweep = write_config(tmp_path, {"sweep": {"space": SPACE}})
    without = write_config(tmp_path, name="without.yaml")
    runs = [Path(fit(load_config(path, ["name=a"]), root=tmp_path / "runs")["run"]) for path in (with_sweep, without)]
    assert result_of(runs[0]) == result_of(runs[1])
    assert (runs[0] / "resolved.yaml").read_text() == (runs[1] / "resolved.yaml").read_text()


def test_settings_of_the_data_can_be_searched(tmp_path: Path) -> None:
    summary = run(tmp_path, {"space": {"data.scale": ["none", "minmax"]}, "sampler": "grid", "slots": 1})
    assert sorted(row["params"]["data.scale"] for row in summary["best"]) == ["minmax", "none"]
    for row in summary["best"]:
        file = load_config(tmp_path / "small.yaml", options_of(row["params"]))
        assert result_of(Path(row["runs"][0])) == result_of(Path(fit(file, root=tmp_path / "plain")["run"]))


def test_a_process_is_started_for_each_slot_and_not_for_each_trial(tmp_path: Path) -> None:
    summary = run(tmp_path, {"trials": 6, "slots": 2}, own_code(tmp_path, "print(os.getpid())\n    return 1.0"))
    processes = (Path(summary["sweep"]) / "workers.log").read_text().split()
    assert len(set(processes)) <= 2
    assert str(os.getpid()) not in processes


# ---- what is tried and how it is judged ------------------------------------------------------------------------------


def test_the_best_come_first_by_what_the_config_monitors(tmp_path: Path) -> None:
    summary = run(tmp_path, {"trials": 5, "slots": 1}, None, "train.monitor=val/loss")
    values = [row["values"]["val/loss"] for row in summary["best"]]
    assert (summary["objectives"], summary["higher_is_better"]) == (["val/loss"], [False])
    assert values == sorted(values)
    assert len(values) == 5


def test_several_objectives_leave_those_that_no_other_beats(tmp_path: Path) -> None:
    objectives = ["val/loss", "num_parameters"]
    summary = run(tmp_path, {"trials": 8, "objective": objectives, "slots": 2})
    front = [tuple(row["values"].values()) for row in summary["best"]]
    assert front == sorted(front)
    assert [size for _, size in front] == sorted({size for _, size in front}, reverse=True)


def test_the_points_of_one_slot_depend_on_the_seed_alone(tmp_path: Path) -> None:
    settings = {"trials": 13, "sampler": "tpe", "slots": 1}
    first, second, other = (
        params_of(Path(run(tmp_path / name, settings, {"seed": seed})["sweep"]))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == second != other


def test_hopeless_trials_are_pruned(tmp_path: Path) -> None:
    space = {"optimizer.lr": [0.03, 0.02, 0.01, 1e-7]}
    settings = {"space": space, "trials": 12, "pruner": "median", "objective": "val/loss", "slots": 1}
    summary = run(tmp_path, settings)
    assert summary["pruned"] > 0
    assert summary["finished"] + summary["pruned"] == 12
    pruned = [e for e in events_of(Path(summary["sweep"])) if e["event"] == "pruned"]
    assert all(len(event["reports"]) < 3 for event in pruned)
    folder = Path(summary["sweep"])
    trial = trials_of(events_of(folder), 1)[pruned[0]["trial"]]
    assert trial.params == {"optimizer.lr": 1e-7}
    assert "pruned after" in (folder / trial.runs[0].folder / "log.txt").read_text()


def test_an_objective_that_the_task_does_not_have_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sweep.objective: is 'val/rmse'; possible for this task: loss, accuracy, "):
        run(tmp_path, {"objective": "val/rmse", "slots": 1})
    assert not (tmp_path / "runs").exists()


def test_what_is_wrong_with_the_config_itself_is_an_error_of_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"small.yaml:\d+:\d+: train.sampler: balanced needs classes"):
        run(tmp_path, {"slots": 1}, {"task": {"type": "regression"}, "train": {"sampler": "balanced"}})


# ---- failures --------------------------------------------------------------------------------------------------------


def own_code(folder: Path, code: str) -> Sections:
    """Return sections with a schedule of the user's own that does `code` at each step."""
    folder.mkdir(exist_ok=True)
    head = "import os\nfrom pathlib import Path\n\ndef f(step, total_steps):\n"
    (folder / "own.py").write_text(f"{head}    {code}\n")
    return {"schedule": {"type": "own.py:f"}}


def test_diverged_trials_are_listed_and_do_not_stop_the_sweep(tmp_path: Path) -> None:
    space = {"optimizer": [{"type": "sgd", "lr": 0.1}, {"type": "sgd", "lr": 1e30}]}
    summary = run(tmp_path, {"space": space, "trials": 9, "slots": 1, "same_errors": 1})
    assert summary["finished"] + summary["failed"] == 9
    assert summary["failed"] > 1
    assert all("the loss is not finite" in failure["error"] for failure in summary["failures"])
    assert all(f["params"]["optimizer"]["lr"] == 1e30 for f in summary["failures"])
    events = events_of(Path(summary["sweep"]))
    assert not any(event["again"] for event in events if event["event"] == "failed")


def test_equal_errors_in_a_row_stop_the_sweep(tmp_path: Path) -> None:
    code = "1 / (total_steps - step - 9 if os.environ.get('BROKEN') else 1)\n    return 1.0"
    sections = own_code(tmp_path, code)
    os.environ["BROKEN"] = "1"
    try:
        with pytest.raises(TrainingError, match="after 1 of 9 trials: 3 trainings in a row failed alike") as caught:
            run(tmp_path, {"trials": 9, "slots": 1}, sections)
    finally:
        del os.environ["BROKEN"]
    assert "ZeroDivisionError: division by zero (own.py:5)" in str(caught.value)
    folder = tmp_path / "runs" / "small-sweep" / "1"
    assert f"go on with: dltrain sweep --resume {folder}" in str(caught.value)
    assert [e["again"] for e in events_of(folder) if e["event"] == "failed"] == [True, False, True]
    summary = resume(folder)
    assert (summary["finished"], summary["failed"]) == (8, 1)


def test_a_trial_that_fails_by_chance_is_repeated(tmp_path: Path) -> None:
    name = f"Path({str(tmp_path / 'flag')!r})"
    code = f"if step == 5 and not {name}.exists():\n        {name}.touch()\n        os._exit(9)\n    return 1.0"
    summary = run(tmp_path, {"trials": 3, "slots": 2}, own_code(tmp_path, code))
    folder = Path(summary["sweep"])
    assert_each_once(folder, 3)
    (failed,) = [event for event in events_of(folder) if event["event"] == "failed"]
    assert failed["error"] == "the training's process ended with exit code 9"
    assert failed["again"]


def test_processes_can_be_started_after_gp_has_computed_in_this_one(tmp_path: Path) -> None:
    name = f"Path({str(tmp_path / 'flag')!r})"
    late = f"Path({str(tmp_path / 'runs/small-sweep/1/small/12')!r}).exists()"
    code = f"if {late} and not {name}.exists():\n        {name}.touch()\n        os._exit(9)\n    return 1.0"
    summary = run(tmp_path, {"trials": 13, "slots": 1, "sampler": "gp"}, own_code(tmp_path, code))
    assert (tmp_path / "flag").exists()
    assert_each_once(Path(summary["sweep"]), 13)


@pytest.mark.parametrize(
    ("said", "slots"), [(None, 6), ("", 6), ("3", 2), ("3,2", 2), (" 2 , 1", 3), ("0", 6), ("all", 6), ("-3", 6)]
)
def test_as_many_train_at_once_as_there_are_cores_for_their_threads(
    monkeypatch: pytest.MonkeyPatch, said: str | None, slots: int
) -> None:
    monkeypatch.setattr("dltrain.sweep.pool.num_cores", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert len(find_slots("cpu", None, None).devices) == slots
    assert len(find_slots("cpu", 1, None).devices) == 6
    assert find_slots("cpu", None, 2) == Slots([None, None], False, 3)


@pytest.mark.slow
def test_workers_that_start_empty_do_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they must where the device is a GPU."""
    monkeypatch.setattr("dltrain.sweep.sweep.find_slots", lambda device, threads, number: Slots(["0", None], True, 1))
    summary = run(tmp_path, {"trials": 4})
    assert_each_once(Path(summary["sweep"]), 4)
    row = summary["best"][0]
    plain = fit(load_config(tmp_path / "small.yaml", options_of(row["params"])), root=tmp_path / "plain")["run"]
    assert result_of(Path(row["runs"][0])) == result_of(Path(plain))


def test_without_a_finished_trial_the_sweep_has_failed(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"none of 2 trials finished; the last error: .*loss is not finite"):
        run(tmp_path, {"space": {"optimizer.lr": [1e30]}, "trials": 2, "slots": 1}, {"optimizer": {"type": "sgd"}})


def test_a_point_that_does_not_fit_the_data_fails_alone(tmp_path: Path) -> None:
    space = {"train.batch_size": [16, 64], "train.drop_last": [True]}
    summary = run(tmp_path, {"space": space, "sampler": "grid", "slots": 1})
    assert summary["finished"] == 1
    (failure,) = summary["failures"]
    assert failure["params"]["train.batch_size"] == 64
    assert "drops every batch: 50 samples are fewer than train.batch_size 64" in failure["error"]


# ---- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampler", ["random", "tpe", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gp", "cmaes"))]
)
def test_a_resumed_sweep_is_the_uninterrupted_one(tmp_path: Path, sampler: str) -> None:
    settings = {"sampler": sampler, "slots": 1, "trials": 14}
    whole = run(tmp_path / "whole", settings)
    part = run(tmp_path / "part", settings, None, "sweep.trials=11")
    folder = Path(part["sweep"])
    with (folder / EVENTS).open("a") as file:
        file.write('{"event": "asked", "trial": 12, "par')  # torn
    summary = resume(folder, "sweep.trials=14")
    assert_each_once(folder, 14)
    assert params_of(folder) == params_of(Path(whole["sweep"]))
    assert [row["values"] for row in summary["best"]] == [row["values"] for row in whole["best"]]
    assert resume(folder)["finished"] == 14
    assert_each_once(folder, 14)


def test_a_sweep_is_resumed_from_any_folder_and_where_it_was_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_config(Path(), {"sweep": {"space": SPACE, "trials": 2, "slots": 1}})
    folder = tmp_path / sweep(load_config(path))["sweep"]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert resume(Path("../runs/small-sweep/1"), "sweep.trials=4")["finished"] == 4
    assert_each_once(folder, 4)


def test_only_what_changes_no_trial_may_change_on_resuming(tmp_path: Path) -> None:
    folder = Path(run(tmp_path, {"trials": 1, "slots": 1})["sweep"])
    with pytest.raises(ConfigError) as caught:
        reopened(folder, ["optimizer.lr=3"])
    assert str(caught.value) == (
        "--set optimizer.lr=3: a sweep is not resumed with another config; may change: sweep.trials, sweep.time, "
        "sweep.slots, sweep.retries, sweep.same_errors"
    )
    with pytest.raises(ConfigError, match=r"is no folder of a sweep \(it has no trials.jsonl\); such as runs/"):
        reopened(tmp_path, [])


def test_a_sweep_that_has_ended_goes_on_to_more_trials_but_not_to_fewer(tmp_path: Path) -> None:
    folder = Path(run(tmp_path, {"trials": 2, "slots": 1, "sampler": "sobol"})["sweep"])
    assert resume(folder, "sweep.trials=4")["total"] == 4
    assert_each_once(folder, 4)
    assert resume(folder)["total"] == 4
    with pytest.raises(
        ConfigError, match=r"--set sweep\.trials=3: the sweep has 4 trials already; possible: that or m"
    ):
        reopened(folder, ["sweep.trials=3"])
    assert resume(folder, "sweep.trials=4")["finished"] == 4
    assert_each_once(folder, 4)


def test_a_grid_does_not_go_on_beyond_its_points(tmp_path: Path) -> None:
    settings = {"space": {"model.hidden": [[4], [8, 8]]}, "sampler": "grid", "slots": 1}
    folder = Path(run(tmp_path, settings, None, "sweep.trials=1")["sweep"])
    with pytest.raises(ConfigError, match=r"--set sweep\.trials=3: the grid has 2 points, which are all that can"):
        reopened(folder, ["sweep.trials=3"])
    assert resume(folder, "sweep.trials=2")["finished"] == 2
    assert_each_once(folder, 2)


def test_a_lost_journal_of_a_sweep_that_went_on_still_has_all_trials(tmp_path: Path) -> None:
    folder = Path(run(tmp_path, {"trials": 1, "slots": 1})["sweep"])
    resume(folder, "sweep.trials=3")
    (folder / EVENTS).unlink()
    assert resume(folder)["total"] == 3
    assert_each_once(folder, 3)


def test_time_ends_a_sweep_and_the_next_call_has_as_much(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(SLOW.format(pause_s=0.02))
    sections = {"schedule": {"type": "own.py:slowly"}}
    summary = run(tmp_path, {"trials": 4, "slots": 1, "time": "0.3 s"}, sections)
    assert 0 < summary["finished"] < 4
    folder = Path(summary["sweep"])
    while summary["finished"] < 4:
        before = summary["finished"]
        summary = resume(folder)
        assert summary["finished"] > before
    assert_each_once(folder, 4)


@pytest.mark.parametrize("settings", [{"seeds": 2, "sampler": "sobol"}, {"sampler": "tpe"}])
def test_a_lost_journal_is_written_anew_from_the_run_directories(tmp_path: Path, settings: Sections) -> None:
    first = run(tmp_path, {"trials": 3, "slots": 1, **settings}, None, "sweep.retries=2")
    folder = Path(first["sweep"])
    before = events_of(folder)
    (folder / "small" / "2" / "log.txt").write_text("")  # as of a training that was killed
    (folder / EVENTS).unlink()
    summary = resume(folder, "sweep.trials=4")
    assert (summary["finished"], summary["failed"]) == (4, 0)
    rows, olds = ({row["trial"]: row for row in result["best"]} for result in (summary, first))
    for number, old in olds.items():
        assert (rows[number]["params"], rows[number]["values"]) == (old["params"], old["values"])
    num_old = len(first["best"]) * len(first["best"][0]["runs"])
    num_new = len(list((folder / "small").iterdir())) - num_old
    assert num_new == 1 + len(first["best"][0]["runs"])  # what was killed, and the new trial
    assert events_of(folder)[0] == before[0]


def test_changed_data_are_noticed_on_resuming(tmp_path: Path) -> None:
    folder = Path(run(tmp_path, {"trials": 1, "slots": 1})["sweep"])
    events = events_of(folder)
    write_arrays(tmp_path / "data.npz", seed=1)
    with pytest.raises(DataError, match=f"{folder}: is not resumed: the data have changed since; begin a new sweep"):
        resume(folder, "sweep.trials=2")
    assert events_of(folder) == events


@pytest.mark.slow
def test_the_data_are_in_memory_once_for_all_workers(tmp_path: Path) -> None:
    mib, num_samples, num_features = 2**20, 20_000, 2_500
    x = np.random.default_rng(0).normal(size=(num_samples, num_features)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(num_samples) % 3)
    target = f"Path({str(tmp_path)!r}, f'memory-{{os.getpid()}}')"
    code = f"{target}.write_text(Path('/proc/self/smaps_rollup').read_text())\n    return 1.0"
    sections = own_code(tmp_path, code) | {"train": {"duration": "1 epochs", "batch_size": 1024}}
    run(tmp_path, {"trials": 6, "slots": 3}, sections)
    workers = []
    for path in tmp_path.glob("memory-*"):
        lines = [line.split() for line in path.read_text().splitlines()[1:]]
        kib = {line[0].rstrip(":"): int(line[1]) for line in lines}
        private = kib["Private_Clean"] + kib["Private_Dirty"]
        workers.append({"all": kib["Rss"] * 1024, "share": kib["Pss"] * 1024, "own": private * 1024})
    shown = "; ".join(", ".join(f"{name} {size / mib:.0f}" for name, size in worker.items()) for worker in workers)
    print(f"{x.nbytes / mib:.0f} MiB of data; MiB of each of {len(workers)} workers: {shown}")
    assert len(workers) > 1
    assert all(worker["all"] > x.nbytes > 2 * worker["own"] for worker in workers)


def test_two_processes_do_not_share_a_sweep(tmp_path: Path) -> None:
    folder = Path(run(tmp_path, {"trials": 1, "slots": 1})["sweep"])
    journal = Journal(folder)
    with pytest.raises(ConfigError, match="another process is at work in this sweep"):
        reopened(folder, [])
    journal.close()


# ---- killed ----------------------------------------------------------------------------------------------------------


def children_of(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(child) for child in text.split()]


@pytest.fixture
def slow_sweep(tmp_path: Path) -> Any:
    """A sweep of 6 trials in a process of its own, of which one has finished and two go slowly until there is "go"."""
    (tmp_path / "own.py").write_text(HELD.format(num_quick=2))
    sections = {"schedule": {"type": "own.py:held"}, "sweep": {"space": SPACE, "trials": 6, "slots": 2}}
    write_config(tmp_path, sections)
    path, begun = tmp_path / "runs" / "small-sweep" / "1" / EVENTS, tmp_path / "begun"
    with subprocess.Popen(command("sweep", "small.yaml"), cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: begun.exists() and begun.stat().st_size > 3, process)
            wait_for(lambda: '"finished"' in path.read_text(), process)
            yield process, path.parent
        finally:
            process.kill()


@pytest.mark.slow
def test_a_killed_worker_costs_a_repetition(slow_sweep: Any, tmp_path: Path) -> None:
    process, folder = slow_sweep
    os.kill(children_of(process.pid)[0], signal.SIGKILL)
    (tmp_path / "go").touch()
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert_each_once(folder, 6)
    (failed,) = [event for event in events_of(folder) if event["event"] == "failed"]
    assert failed["error"].startswith("the training's process was killed by SIGKILL")


@pytest.mark.slow
def test_workers_die_with_a_killed_coordinator_and_the_sweep_goes_on(slow_sweep: Any, tmp_path: Path) -> None:
    process, folder = slow_sweep
    children = children_of(process.pid)
    assert len(children) == 2
    process.kill()
    process.communicate()
    wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
    (tmp_path / "go").touch()
    result = dltrain("sweep", "--resume", folder, "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert one_json(result.stdout)["finished"] == 6
    assert_each_once(folder, 6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGUSR1, 138)]
)
def test_a_signal_stops_the_sweep_cleanly(slow_sweep: Any, tmp_path: Path, number: int, code: int) -> None:
    process, folder = slow_sweep
    children = children_of(process.pid)
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE_S)
    (tmp_path / "go").touch()
    assert process.returncode == code
    assert "of 6 trials; go on with: dltrain sweep --resume runs/small-sweep/1" in err.splitlines()[-1]
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert [event["event"] for event in events_of(folder)].count("stopped") > 0
    assert resume(folder)["finished"] == 6
    assert_each_once(folder, 6)


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_lines_without_control_codes(tmp_path: Path) -> None:
    write_config(tmp_path, {"sweep": {"space": SPACE, "trials": 3, "slots": 1, "seeds": 2}})
    result = dltrain_here("sweep", "small.yaml", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0].startswith("3 of 3 trials (3 finished) in ")
    assert " ± " in result.stdout
    assert "next  dltrain evaluate runs/small-sweep/1/small/" in result.stdout
    assert "3/3  trial 3 seed 2/2: val/accuracy " in result.stderr
    for text in (result.stdout, result.stderr):
        assert not [character for character in text if not character.isprintable() and character != "\n"]


def test_json_is_one_object_and_quiet_is_quiet(tmp_path: Path) -> None:
    write_config(tmp_path, {"sweep": {"space": SPACE, "slots": 1}})
    result = dltrain_here("sweep", "small.yaml", "--json", "--quiet", "--set", "sweep.trials=2", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    summary = one_json(result.stdout)
    assert (summary["total"], summary["finished"], summary["sweep"]) == (2, 2, "runs/small-sweep/1")
    assert all((tmp_path / run / "checkpoints").is_dir() for row in summary["best"] for run in row["runs"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "sweep: needs either a CONFIG or --resume SWEEP"),
        (["small.yaml"], "small.yaml: has no section 'sweep'"),
        (["small.yaml", "--slots", "0"], "--slots"),
        (["--resume", "nowhere"], "--resume nowhere: is no folder of a sweep"),
    ],
)
def test_what_is_wrong_with_the_command_is_said(tmp_path: Path, arguments: list[str], message: str) -> None:
    write_config(tmp_path)
    result = dltrain_here("sweep", *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
