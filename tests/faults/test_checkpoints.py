"""Disks that are full or read-only, a run directory in two hands, and a save that does not end: no state is lost."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from dltrain import checkpoint as checkpoints
from dltrain.console import Progress
from dltrain.errors import CheckpointError, DltrainError, Stopped, TrainingError
from dltrain.listing import read_run
from dltrain.train import fit
from tests.small_runs import (
    PATIENCE_S,
    StopAt,
    command,
    dltrain_here,
    fit_with_stops,
    in_child,
    newest_run,
    result_of,
    rows_of,
    small_config,
    wait_for,
    write_config,
)
from tests.test_checkpoint import example

pytestmark = pytest.mark.usefixtures("no_curves")

HANGS_S = 120


def in_namespace(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a shell script that may mount; skip where the kernel lets no one but root do so."""
    allowed = shutil.which("unshare") and subprocess.run(
        ["unshare", "-rm", "sh", "-c", "mount -t tmpfs none /mnt"], capture_output=True
    )
    if not allowed or allowed.returncode:
        pytest.skip("this system has no user namespaces, or forbids to mount in them")
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S
    )


def fit_command(*arguments: str) -> str:
    return " ".join(command("fit", "small.yaml", "--quiet", *arguments))


@pytest.mark.slow
@pytest.mark.fault(32)
def test_a_disk_that_fills_up_ends_the_run_and_keeps_its_last_checkpoint(tmp_path: Path) -> None:
    """The first checkpoint fits on the disk, the second does not."""
    write_config(tmp_path, {"model": {"hidden": [2000]}, "train": {"checkpoint_every": "4 steps"}})
    disk = "mkdir disk && mount -t tmpfs -o size=340k tmpfs disk"
    result = in_namespace(f"{disk} && {fit_command('--out', 'disk')}; echo $?; cp -r disk copy", tmp_path)
    assert result.stdout.splitlines()[-1] == "5", result.stderr
    assert "cannot be written" in result.stderr
    assert "MiB free" in result.stderr
    assert "Traceback" not in result.stderr
    kept = list((tmp_path / "copy" / "small" / "1" / "checkpoints").iterdir())
    assert not [path for path in kept if path.name.endswith(".tmp")]
    for path in kept:
        assert checkpoints.load(path).meta["step"] >= 1


@pytest.mark.fault(32)
def test_a_run_that_a_full_disk_ended_goes_on_with_more_room(tmp_path: Path) -> None:
    file = small_config(tmp_path, {"model": {"hidden": [500]}})
    whole = fit_with_stops(file, tmp_path / "whole", ())
    with pytest.raises(Stopped):
        fit(file, root=tmp_path / "runs", progress=StopAt(5))
    run = newest_run(tmp_path / "runs")

    def resume_with_little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        with pytest.raises(CheckpointError, match=r"safetensors: cannot be written: .*MiB free"):
            fit(file, resume=run)

    assert in_child(resume_with_little_room) == 0
    assert checkpoints.load(run / "checkpoints" / checkpoints.LAST).meta["step"] == 5
    fit(file, resume=run)
    assert result_of(run) == result_of(whole)


@pytest.mark.slow
@pytest.mark.fault(33)
def test_a_read_only_folder_is_said_before_training(tmp_path: Path) -> None:
    write_config(tmp_path)
    fit(small_config(tmp_path, {"train": {"duration": "1 epochs"}}), root=tmp_path / "runs")
    mount = "mount --bind runs runs && mount -o remount,bind,ro runs"
    result = in_namespace(f"{mount} && {fit_command()}; echo $?", tmp_path)
    assert (result.stdout, result.stderr) == (
        "2\n",
        "--out runs: no run directory can be made there: Read-only file system\n",
    )
    result = in_namespace(f"{mount} && {fit_command('--resume', 'runs/small/1')}; echo $?", tmp_path)
    assert (result.stdout, result.stderr) == (
        "2\n",
        "--resume runs/small/1: cannot be written to: Read-only file system\n",
    )


@pytest.mark.fault(43)
def test_files_of_others_in_the_run_directory_stay(tmp_path: Path) -> None:
    file = small_config(tmp_path, {"train": {"checkpoint_every": "1 steps"}})
    with pytest.raises(Stopped):
        fit(file, root=tmp_path / "runs", progress=StopAt(5))
    run = newest_run(tmp_path / "runs")
    others = [run / "notes.txt", run / "checkpoints" / "mine.safetensors", run / "checkpoints" / "step-3.safetensors"]
    for path in others:
        path.write_text("mine")
    fit(file, resume=run)
    assert [path.read_text() for path in others] == ["mine"] * 3
    best = checkpoints.load(run / "checkpoints" / checkpoints.BEST).meta["step"]
    assert best == next(row["step"] for row in reversed(rows_of(run)) if row["best"])


@pytest.mark.slow
@pytest.mark.fault(45)
def test_a_second_process_in_a_run_directory_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path, {"train": {"duration": "1000000 steps", "checkpoint_every": "1 steps"}})
    with subprocess.Popen(command("fit", "small.yaml", "--quiet"), cwd=tmp_path, stderr=subprocess.PIPE) as first:
        try:
            wait_for((tmp_path / "runs" / "small" / "1" / "checkpoints" / "last.safetensors").exists, first)
            second = dltrain_here("fit", "--resume", "runs/small/1", "--quiet", cwd=tmp_path)
        finally:
            first.kill()
    assert second.returncode == 2
    assert second.stderr == "--resume runs/small/1: another process is at work in this run directory\n"


@pytest.mark.fault(47)
def test_a_save_that_never_ends_is_left_by_a_second_ctrl_c(tmp_path: Path) -> None:
    """As on a file server that does not answer: the third checkpoint is not synced."""
    file = small_config(tmp_path, {"train": {"checkpoint_every": "1 steps"}})

    def hang() -> None:
        calls, sync = 0, checkpoints._sync

        def hanging_sync(path: Path) -> None:
            nonlocal calls
            calls += 1
            if calls == 7:
                signal.raise_signal(signal.SIGINT)  # two by threads might come as one
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
                time.sleep(HANGS_S)
            sync(path)

        checkpoints._sync = hanging_sync
        with pytest.raises(KeyboardInterrupt):
            fit(file, root=tmp_path / "runs")

    began = time.monotonic()
    assert in_child(hang) == 0
    assert time.monotonic() - began < HANGS_S
    run = newest_run(tmp_path / "runs")
    assert checkpoints.load(run / "checkpoints" / checkpoints.LAST).meta["step"] >= 1
    whole = fit_with_stops(file, tmp_path / "whole", ())
    fit(file, resume=run)
    assert result_of(run) == result_of(whole)
    assert not list(run.rglob("*.tmp"))


@pytest.mark.fault(47)
def test_a_save_on_a_slow_disk_is_said_while_it_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path, fsync = tmp_path / "last.safetensors", os.fsync
    checkpoints.save(path, example())
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(checkpoints, "_SLOW_S", 0.05)

    def slow_fsync(descriptor: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not said and time.monotonic() < deadline:
            said.append(capfd.readouterr().err) if (tmp_path / "said").exists() else time.sleep(0.01)
        fsync(descriptor)

    said: list[str] = []
    say_slow = checkpoints._say_slow
    monkeypatch.setattr(checkpoints, "_say_slow", lambda path: (say_slow(path), (tmp_path / "said").touch()))
    monkeypatch.setattr(os, "fsync", slow_fsync)
    checkpoints.save(path, example())
    assert said == [f"still writing {path} after 0.05 s: the disk is slow, or does not answer\n"]
    assert checkpoints.load(path).tensors.keys() == example().tensors.keys()


@pytest.mark.fault(35, 62)
def test_a_swapped_tensor_of_the_same_form_is_noticed(tmp_path: Path) -> None:
    """Two runs that differ in nothing but their seed: the weights of one under the metadata of the other."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    runs = [Path(fit(small_config(tmp_path, {"seed": seed}), root=tmp_path / "runs")["run"]) for seed in (0, 1)]
    ours, theirs = (run / "checkpoints" / checkpoints.BEST for run in runs)
    with safe_open(ours, framework="pt") as file:
        header = file.metadata()
    save_file(load_file(theirs), ours, metadata=header)
    with pytest.raises(DltrainError, match="is damaged: its SHA-256 does not fit its contents"):
        checkpoints.load(ours)


@pytest.mark.fault(32)
def test_a_disk_too_full_for_the_curves_costs_only_these(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path) -> None:
        raise TrainingError(f"{folder}/curves.png: cannot be written: No space left on device")

    monkeypatch.setattr("dltrain.curves.draw_curves", full)
    lines: list[str] = []
    progress = Progress("off")
    progress.say = lines.append  # type: ignore[method-assign]
    run = Path(fit(small_config(tmp_path), root=tmp_path / "runs", progress=progress)["run"])
    warning = f"warning: {run}/curves.png: cannot be written: No space left on device"
    assert lines[-1] == f"{warning}; all else of the run is saved"
    assert warning in (run / "log.txt").read_text()
    assert read_run(run).about["state"] == "finished"
