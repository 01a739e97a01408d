"""The promise: a run that was stopped anywhere and resumed is, byte for byte, the run that was not stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dltrain import checkpoint as checkpoints
from dltrain.checkpoint import BEST, LAST
from dltrain.config.schema import optimizers, regularization, schedules
from dltrain.config.schema.base import type_name
from dltrain.config.validate import load_config
from dltrain.console import Progress
from dltrain.errors import CheckpointError, ConfigError, DataError, Stopped
from dltrain.run import read_metrics
from dltrain.train import fit
from tests.small_runs import (
    PATIENCE_S,
    STEPS_PER_EPOCH,
    Sections,
    StopAt,
    command,
    dltrain,
    dltrain_here,
    fit_with_stops,
    newest_run,
    required_arguments,
    result_of,
    rows_of,
    small_config,
    wait_for,
    write_arrays,
    write_config,
)

pytestmark = pytest.mark.usefixtures("no_curves")

MIDDLE = 6  # of the second of three epochs

EVERYTHING: Sections = {
    "model": {"type": "convnet", "channels": [4], "dropout": 0.3},
    "augment": [{"type": "flip"}, {"type": "crop", "padding": 1}, {"type": "noise", "std": 0.1}],
    "loss": {"type": "cross_entropy", "label_smoothing": 0.1, "class_weights": "balanced"},
    "schedule": {"type": "cosine", "warmup": "2 steps"},
    "regularization": {
        "penalties": [{"type": "l1", "strength": 1e-3}],
        "mix": {"type": "mixup"},
        "clip": {"type": "norm"},
        "gradient_noise": {},
        "average": {"type": "ema", "decay": 0.9},
    },
    "train": {"micro_batch_size": 5, "evaluate_every": "3 steps"},
}

CASES: dict[str, Sections] = {
    "everything at once": EVERYTHING,
    "dropout": {"model": {"dropout": 0.5}},
    "batch normalisation": {"model": {"norm": "batch"}},
    "micro-batches": {"train": {"micro_batch_size": 3}},
    "sam": {"model": {"dropout": 0.2, "norm": "batch"}, "regularization": {"sam": {}}},
    "asam": {"regularization": {"sam": {"adaptive": True, "rho": 0.5}}},
    "max-norm": {"regularization": {"max_norm": {"limit": 0.5}}},
    "balanced sampler": {"train": {"sampler": "balanced"}},
    "sampler of blocks": {"train": {"sampler": "blocks"}},
    "drop_last": {"train": {"drop_last": True}},
    "rows in the middle of an epoch": {"train": {"evaluate_every": "5 steps"}},
    "bfloat16": {"train": {"precision": "bfloat16"}},
    "float16": {"train": {"precision": "float16"}},
    "early stopping": {
        "optimizer": {"lr": 1e-9},
        "regularization": {"early_stopping": {"patience": 4}},
        "train": {"monitor": "val/loss", "evaluate_every": "2 steps"},
    },
    **{
        f"optimizer {type_name(cls)}": {"model": {"hidden": [8, 8]}, "optimizer": required_arguments(cls)}
        for cls in optimizers.ALL
    },
    "sgd with momentum": {"optimizer": {"type": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True}},
    "schedule-free with batch normalisation": {
        "model": {"norm": "batch"},
        "optimizer": {"type": "schedule_free_adamw"},
    },
    **{f"schedule {type_name(cls)}": {"schedule": required_arguments(cls)} for cls in schedules.ALL},
    **{
        f"average {type_name(cls)}": {
            "regularization": {"average": required_arguments(cls)},
            "train": {"duration": "8 epochs"},
        }
        for cls in regularization.AVERAGES
    },
    "swa that has begun": {
        "regularization": {"average": {"type": "swa", "start": "2 steps", "every": "3 steps"}},
    },
}


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_ends_with_the_bytes_of_the_uninterrupted_run(name: str, tmp_path: Path) -> None:
    if CASES[name] is EVERYTHING:
        write_arrays(tmp_path / "data.npz", side=8)
    file = small_config(tmp_path, CASES[name])
    whole = fit_with_stops(file, tmp_path / "whole", ())
    resumed = fit_with_stops(file, tmp_path / "resumed", (MIDDLE,))
    assert result_of(resumed) == result_of(whole)


@pytest.mark.parametrize(
    "stops",
    [
        (1,),
        (STEPS_PER_EPOCH - 1,),
        (STEPS_PER_EPOCH,),
        (STEPS_PER_EPOCH + 1,),
        (11,),
        (5, 6),
        (5, 7),
        (4, 8),
        (2, 3, 9),
    ],
    ids=lambda stops: "at " + " and ".join(map(str, stops)),
)
def test_where_and_how_often_a_run_is_stopped_does_not_matter(stops: tuple[int, ...], tmp_path: Path) -> None:
    write_arrays(tmp_path / "data.npz", side=8)
    file = small_config(tmp_path, EVERYTHING)
    whole = fit_with_stops(file, tmp_path / "whole", ())
    resumed = fit_with_stops(file, tmp_path / "resumed", stops)
    assert result_of(resumed) == result_of(whole)
    assert len(read_metrics(resumed)) == 4


def test_an_optimizer_of_your_own_that_counts_in_plain_numbers_resumes_exactly(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        """
import torch

class Falling(torch.optim.Optimizer):
    '''Steps of lr / count, the count in the state of each parameter and a second one in the group.'''

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr, "decay": 1.0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["decay"] *= 0.9
            for p in group["params"]:
                state = self.state[p]
                state["count"] = state.get("count", 0) + 1
                p -= group["lr"] * group["decay"] / state["count"] * p.grad
"""
    )
    file = small_config(tmp_path, {"optimizer": {"type": "own.py:Falling", "lr": 0.3}})
    whole = fit_with_stops(file, tmp_path / "whole", ())
    resumed = fit_with_stops(file, tmp_path / "resumed", (MIDDLE,))
    assert result_of(resumed) == result_of(whole)


def test_resuming_a_finished_run_changes_nothing_but_the_log(tmp_path: Path) -> None:
    file = small_config(tmp_path)
    first = fit(file, root=tmp_path / "runs")
    run = Path(first["run"])
    before = result_of(run)
    again = fit(file, resume=run)
    assert result_of(run) == before
    assert again == first


def test_a_run_that_stopped_early_does_not_go_on_when_resumed(tmp_path: Path) -> None:
    file = small_config(tmp_path, CASES["early stopping"])
    first = fit(file, root=tmp_path / "runs")
    again = fit(file, resume=first["run"])
    assert first["stopped_early"]
    assert again["step"] == first["step"] < first["total_steps"]


def test_a_longer_duration_goes_on_where_the_run_ended(tmp_path: Path) -> None:
    short = small_config(tmp_path, {"train": {"duration": "2 epochs"}})
    run = Path(fit(short, root=tmp_path / "longer")["run"])
    fit(load_config(tmp_path / "small.yaml", ["train.duration=3 epochs"]), resume=run)
    whole = fit_with_stops(small_config(tmp_path), tmp_path / "whole", ())
    assert rows_of(run) == rows_of(whole)


def test_a_changed_config_is_refused_with_the_place_and_both_values(tmp_path: Path) -> None:
    file = small_config(tmp_path, {"optimizer": {"lr": 0.01}})
    run = Path(fit(file, root=tmp_path / "runs")["run"])
    path = write_config(tmp_path, {"optimizer": {"lr": 0.02}, "train": {"batch_size": 8}})
    line = path.read_text().splitlines().index("  lr: 0.02") + 1
    before = result_of(run)
    with pytest.raises(ConfigError) as caught:
        fit(load_config(path), resume=run)
    first, second, last = caught.value.problems
    assert first == f"{path}:{line}:7: optimizer.lr: is 0.02, the run was made with 0.01"
    assert second.endswith("train.batch_size: is 8, the run was made with 16")
    assert "is not resumed with another config; may change: " in last
    assert "train.duration" in last
    assert result_of(run) == before


def test_another_model_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    run = fit(small_config(tmp_path), root=tmp_path / "runs")["run"]
    other = small_config(tmp_path, {"model": {"hidden": [9]}})
    with pytest.raises(ConfigError, match=r"model\.hidden: is \[9\], the run was made with \[8\]"):
        fit(other, resume=run)


def test_a_renamed_config_may_resume(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        fit(small_config(tmp_path), root=tmp_path / "runs", progress=StopAt(MIDDLE))
    run = newest_run(tmp_path / "runs")
    renamed = load_config(write_config(tmp_path, name="renamed.yaml"))
    assert fit(renamed, resume=run)["step"] == 3 * STEPS_PER_EPOCH


def test_changed_data_are_refused(tmp_path: Path) -> None:
    file = small_config(tmp_path)
    with pytest.raises(Stopped):
        fit(file, root=tmp_path / "runs", progress=StopAt(MIDDLE))
    with np.load(tmp_path / "data.npz") as data:
        arrays = dict(data)
    arrays["x_train"][7, 2] += 1e-3
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError, match="is not resumed: the data have changed since"):
        fit(file, resume=newest_run(tmp_path / "runs"))


def test_a_moved_run_directory_resumes_and_holds_no_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = small_config(Path())
    whole = fit_with_stops(file, Path("whole"), ())
    with pytest.raises(Stopped):
        fit(file, root="runs", progress=StopAt(MIDDLE))
    moved = Path("elsewhere", "renamed")
    moved.parent.mkdir()
    shutil.move(newest_run(Path("runs")), moved)
    for path in moved.rglob("*"):
        if path.is_file():
            assert os.fsencode(tmp_path) not in path.read_bytes(), path
    fit(file, resume=moved)
    assert result_of(moved) == result_of(whole)


def test_rows_past_the_checkpoint_and_a_torn_last_line_are_cut_off(tmp_path: Path) -> None:
    file = small_config(tmp_path)
    whole = fit_with_stops(file, tmp_path / "whole", ())
    with pytest.raises(Stopped):
        fit(file, root=tmp_path / "runs", progress=StopAt(MIDDLE))
    run = newest_run(tmp_path / "runs")
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({"step": 8, "epoch": 2.0, "train/loss": 123.0}) + '\n{"step": 12, "epo')
    fit(file, resume=run)
    assert result_of(run) == result_of(whole)


def test_a_lost_metrics_file_does_not_hinder_resuming(tmp_path: Path) -> None:
    file = small_config(tmp_path)
    with pytest.raises(Stopped):
        fit(file, root=tmp_path / "runs", progress=StopAt(MIDDLE))
    run = newest_run(tmp_path / "runs")
    (run / "metrics.jsonl").unlink()
    fit(file, resume=run)
    assert [row["step"] for row in read_metrics(run)] == [8, 12]


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no run directory"):
        fit(small_config(tmp_path), resume=tmp_path)


def test_a_best_checkpoint_is_not_resumed_from(tmp_path: Path) -> None:
    file = small_config(tmp_path)
    run = Path(fit(file, root=tmp_path / "runs")["run"])
    shutil.copy(run / "checkpoints" / checkpoints.BEST, run / "checkpoints" / checkpoints.LAST)
    with pytest.raises(CheckpointError, match=r"last\.safetensors"):
        fit(file, resume=run)


def test_a_signal_in_the_last_step_is_no_stop(tmp_path: Path) -> None:
    summary = fit(small_config(tmp_path), root=tmp_path / "runs", progress=StopAt(3 * STEPS_PER_EPOCH))
    assert summary["step"] == 3 * STEPS_PER_EPOCH


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_schedulers_signals_stop_with_a_checkpoint(number: signal.Signals, tmp_path: Path) -> None:
    with pytest.raises(Stopped) as caught:
        fit(small_config(tmp_path), root=tmp_path / "runs", progress=StopAt(MIDDLE, number=number))
    run = newest_run(tmp_path / "runs")
    assert caught.value.exit_code == 128 + number
    assert str(caught.value) == (
        f"stopped at step {MIDDLE} of 12; the checkpoint is saved. Go on with: dltrain fit --resume {run}"
    )
    assert checkpoints.load(run / "checkpoints" / checkpoints.LAST).meta["step"] == MIDDLE


# ---- by processes ---------------------------------------------------------------------------------------------------

LONG: Sections = {
    "model": {"dropout": 0.3, "hidden": [64]},
    "train": {"duration": "100000 steps", "evaluate_every": "50 steps", "checkpoint_every": "20 steps"},
}


def wait_for_rows(process: subprocess.Popen[str], root: Path, number: int) -> Path:
    """Wait until the run of a process has written so many lines of metrics; return its directory."""
    try:
        wait_for(
            lambda: list(root.glob("*/1/metrics.jsonl")) and len(read_metrics(newest_run(root))) >= number, process
        )
    except AssertionError as error:
        process.kill()
        raise AssertionError(f"no metrics were written: {process.communicate()}") from error
    return newest_run(root)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_killed_process_is_resumed_by_another_to_the_same_bytes(
    number: signal.Signals, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, LONG)
    with subprocess.Popen(
        command("fit", config, "--out", "runs"), cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        run = wait_for_rows(process, tmp_path / "runs", 2)
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, err
    assert "Traceback" not in err
    if code != -9:
        assert f"Go on with: dltrain fit --resume runs/{run.parent.name}/1" in err
        assert out == ""
    # A kill can fall between the two renames of a save: the state is then the previous one's.
    _, saved, _ = checkpoints.load_last(run)
    stopped_at = saved.meta["step"]
    end = [f"train.duration={stopped_at + 77} steps"]
    monkeypatch.chdir(tmp_path)  # the run was made in that folder
    fit(load_config(config, end), resume=run)
    whole = fit(load_config(config, end), root=tmp_path / "whole")["run"]
    expected, found = result_of(Path(whole)), result_of(run)
    for result in (expected, found):
        # It was written when the run still had its old duration.
        result[f"{checkpoints.BEST}/meta"]["config"]["train"].pop("duration")
    assert found == expected


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_at_once_and_the_run_can_be_resumed(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        """
import os, signal
from torch import nn

class Slow(nn.Linear):
    '''Its tenth batch never comes to an end by itself.'''

    calls = 0

    def forward(self, x):
        if self.training:
            Slow.calls += 1
        while Slow.calls == 10:
            os.kill(os.getpid(), signal.SIGINT)
        return super().forward(x)
"""
    )
    model = {"type": "own.py:Slow"}
    config = write_config(tmp_path, {"model": model, "train": {"checkpoint_every": "1 steps"}})
    stopped = dltrain("fit", config, "--out", "runs", cwd=tmp_path)
    assert stopped.returncode == 130, stopped.stderr
    assert "Traceback" not in stopped.stderr
    run = newest_run(tmp_path / "runs")
    assert checkpoints.load(run / "checkpoints" / checkpoints.LAST).meta["step"] == 9
    resumed = dltrain_here("fit", config, "--resume", run, "--json", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["step"] == 12


@pytest.mark.slow
def test_resuming_a_finished_run_says_so(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    assert dltrain_here("fit", config, "--out", "runs", cwd=tmp_path).returncode == 0
    again = dltrain_here("fit", "--resume", "runs/small/1", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "the run is finished already; nothing is left to train" in again.stderr


def test_two_processes_do_not_share_a_run(tmp_path: Path) -> None:
    file = small_config(tmp_path)

    class ResumeInStep(StopAt):
        def step(self, state: object) -> None:
            with pytest.raises(ConfigError, match="another process is at work in this run directory"):
                fit(file, resume=newest_run(tmp_path / "runs"))

    fit(file, root=tmp_path / "runs", progress=ResumeInStep())


# ---- a damaged checkpoint -------------------------------------------------------------------------------------------


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_damaged_last_checkpoint_gives_way_to_the_one_before_it(tmp_path: Path) -> None:
    file = small_config(tmp_path, {"train": {"checkpoint_every": "3 steps"}})
    expected = result_of(Path(fit(file, root=tmp_path / "whole")["run"]))
    with pytest.raises(Stopped):
        fit(file, root=tmp_path / "runs", progress=StopAt(7))
    run = newest_run(tmp_path / "runs")
    damage(run / "checkpoints" / LAST)
    lines: list[str] = []
    progress = Progress("off")
    progress.say = lines.append  # type: ignore[method-assign]
    fit(file, root=tmp_path / "runs", resume=run, progress=progress)
    (said,) = (line for line in lines if "is damaged" in line)
    assert said.endswith(
        "last.safetensors: is damaged: its SHA-256 does not fit its contents; "
        "going on from the one before it, previous.safetensors, at step 6"
    )
    assert said in (run / "log.txt").read_text()
    assert result_of(run) == expected
    assert (run / "checkpoints" / "damaged.safetensors").exists()  # and not in the place of a good one
    assert checkpoints.load(run / "checkpoints" / "previous.safetensors").meta["step"] == 9


def test_without_its_config_a_run_goes_on_from_the_one_before_it_too(tmp_path: Path) -> None:
    file = small_config(tmp_path, {"train": {"checkpoint_every": "3 steps"}})
    expected = result_of(Path(fit(file, root=tmp_path / "whole")["run"]))
    with pytest.raises(Stopped):
        fit(file, root=tmp_path / "runs", progress=StopAt(7))
    run = newest_run(tmp_path / "runs")
    damage(run / "checkpoints" / LAST)
    result = dltrain_here("fit", "--resume", run, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "going on from the one before it, previous.safetensors, at step 6" in result.stderr
    found = result_of(run)
    assert {key for key in found if found[key] != expected[key]} <= {f"{LAST}/meta", f"{BEST}/meta"}  # the folder


def test_two_damaged_checkpoints_are_an_error(tmp_path: Path) -> None:
    file = small_config(tmp_path, {"train": {"checkpoint_every": "3 steps"}})
    run = Path(fit(file, root=tmp_path / "runs")["run"])
    for name in (LAST, "previous.safetensors"):
        damage(run / "checkpoints" / name)
    with pytest.raises(CheckpointError, match=r"previous\.safetensors: is damaged"):
        fit(file, root=tmp_path / "runs", resume=run)


def test_a_run_killed_between_two_renames_goes_on_from_the_previous_checkpoint(tmp_path: Path) -> None:
    file = small_config(tmp_path, {"train": {"checkpoint_every": "3 steps"}})
    expected = result_of(Path(fit(file, root=tmp_path / "whole")["run"]))
    with pytest.raises(Stopped):
        fit(file, root=tmp_path / "runs", progress=StopAt(7))
    run = newest_run(tmp_path / "runs")
    (run / "checkpoints" / LAST).unlink()
    fit(file, root=tmp_path / "runs", resume=run)
    assert result_of(run) == expected
