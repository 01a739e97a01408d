"""Signals at any moment, and outputs that are closed or full: no state is lost, and a person is told in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dltrain import checkpoint as checkpoints
from dltrain import train as training
from dltrain.errors import Stopped
from dltrain.train import fit
from tests.small_runs import (
    PATIENCE_S,
    StopAt,
    command,
    dltrain,
    dltrain_here,
    fit_with_stops,
    in_child,
    newest_run,
    result_of,
    small_config,
    write_config,
)

pytestmark = pytest.mark.usefixtures("no_curves")

SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT]


def stops_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, owner: object, name: str, call: int
) -> int:
    """Let a signal come in the `call`-th call of a function; return the step at which the run stopped.

    The run must end as the uninterrupted one once it is resumed.
    """
    file = small_config(tmp_path, {"train": {"checkpoint_every": "2 steps"}})
    whole = fit_with_stops(file, tmp_path / "whole", ())
    original: Callable[..., object] = getattr(owner, name)
    calls = 0

    def with_signal(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            signal.raise_signal(number)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, with_signal)
    with pytest.raises(Stopped) as caught:
        fit(file, root=tmp_path / "runs")
    monkeypatch.undo()
    monkeypatch.setattr("dltrain.curves.draw_curves", lambda folder: None)
    assert caught.value.exit_code == 128 + number
    run = newest_run(tmp_path / "runs")
    step: int = checkpoints.load(run / "checkpoints" / checkpoints.LAST).meta["step"]
    assert f"stopped at step {step} of 12; the checkpoint is saved" in str(caught.value)
    assert not list(run.rglob("*.tmp"))
    fit(file, resume=run)
    assert result_of(run) == result_of(whole)
    return step


@pytest.mark.fault(48, 50)
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_a_save_lets_the_save_end(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stops_and_goes_on(tmp_path, monkeypatch, number, checkpoints, "_sync", 3) in (2, 3, 4)


@pytest.mark.fault(49, 50)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_an_evaluation_lets_it_end(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stops_and_goes_on(tmp_path, monkeypatch, number, training, "evaluate_columns", 2) == 8


@pytest.mark.fault(48)
def test_a_signal_before_the_first_step_saves_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stops_and_goes_on(tmp_path, monkeypatch, signal.SIGTERM, training, "seed_everything", 1) == 1


@pytest.mark.fault(49)
def test_a_second_ctrl_c_in_a_step_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    file = small_config(tmp_path, {"train": {"checkpoint_every": "2 steps"}})
    whole = fit_with_stops(file, tmp_path / "whole", ())

    class Twice(StopAt):
        def step(self, state: object) -> None:
            super().step(state)
            super().step(state)

    with pytest.raises(KeyboardInterrupt):
        fit(file, root=tmp_path / "runs", progress=Twice(5))
    run = newest_run(tmp_path / "runs")
    assert checkpoints.load(run / "checkpoints" / checkpoints.LAST).meta["step"] == 4
    fit(file, resume=run)
    assert result_of(run) == result_of(whole)


@pytest.mark.fault(48, 49)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_while_data_are_prepared_leaves_no_run(number: signal.Signals, tmp_path: Path) -> None:
    code = f"import os\ndef load():\n    os.kill(os.getpid(), {int(number)})\n    raise ValueError('went on')\n"
    (tmp_path / "own.py").write_text(code)
    write_config(tmp_path, {"data": {"type": "own.py:load"}})

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        result = dltrain_here("fit", "small.yaml", cwd=tmp_path)
        os._exit(130 if (result.returncode, result.stderr) == (130, "stopped\n") else 1)

    assert in_child(prepare) == (130 if number == signal.SIGINT else -number)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.fault(50, 55)
def test_a_training_outlives_the_reader_of_its_progress(tmp_path: Path) -> None:
    write_config(tmp_path)
    line = " ".join(command("fit", "small.yaml")) + " 2>&1 | head -1"
    result = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (result.stdout.split(), result.stderr) == (["run", "runs/small/1"], "")
    run = tmp_path / "runs" / "small" / "1"
    assert checkpoints.load(run / "checkpoints" / checkpoints.LAST).meta["step"] == 12
    assert "finished at step 12" in (run / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.fault(50, 55)
@pytest.mark.parametrize("reader", ["head -1", "true"])
@pytest.mark.parametrize("shared", ["", " --storage sqlite:///study.db"])
def test_a_sweep_outlives_the_reader_of_its_progress(tmp_path: Path, shared: str, reader: str) -> None:
    write_config(tmp_path, {"sweep": {"space": {"optimizer.lr": [0.1, 0.01]}, "trials": 3, "slots": 2}})
    line = f"{{ {' '.join(command('sweep', 'small.yaml', '--json'))}{shared} > result.json; }} 2>&1 | {reader}"
    result = subprocess.run(["bash", "-o", "pipefail", "-c", line], cwd=tmp_path, capture_output=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, b"")
    assert len(result.stdout.splitlines()) == (reader == "head -1")
    summary = json.loads((tmp_path / "result.json").read_text())
    assert (summary["finished"], bool(summary["report"])) == (3, not shared)
    for row in summary["best"]:
        assert checkpoints.load(tmp_path / row["runs"][0] / "checkpoints" / checkpoints.LAST).meta["step"] == 12


@pytest.mark.slow
@pytest.mark.fault(50, 55)
def test_a_training_outlives_a_full_disk_that_its_progress_goes_to(tmp_path: Path) -> None:
    write_config(tmp_path)
    line = " ".join(command("fit", "small.yaml", "--json")) + " 2>/dev/full"
    result = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S)
    assert result.returncode == 0
    assert json.loads(result.stdout)["step"] == 12


@pytest.mark.slow
@pytest.mark.fault(55)
def test_a_language_of_ascii_and_one_column_are_room_enough(tmp_path: Path) -> None:
    write_config(tmp_path)
    odd = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "1", "TERM": "dumb"}
    result = dltrain("fit", "small.yaml", "--json", cwd=tmp_path, **odd)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["step"] == 12
    assert "\x1b" not in result.stderr


@pytest.mark.fault(56)
def test_a_config_says_how_many_threads_a_run_has(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        run = Path(fit(small_config(tmp_path, {"train": {"threads": 1}}), root=tmp_path / "runs")["run"])
    finally:
        torch.set_num_threads(before)
    assert checkpoints.load(run / "checkpoints" / checkpoints.LAST).meta["num_threads"] == 1
