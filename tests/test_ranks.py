"""One model on several processes: the result is that of one, the first alone writes, and all stop together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dltrain import checkpoint as checkpoints
from dltrain.checkpoint import LAST
from dltrain.config.validate import ConfigFile, load_config
from dltrain.launch import held_port
from dltrain.ranks import ALONE, Ranks, StepSum
from dltrain.run import read_metrics
from dltrain.train import fit
from tests.in_ranks import Ended, in_ranks, train_in_ranks
from tests.make_pairs import make_numbers
from tests.small_runs import (
    PATIENCE_S,
    Sections,
    StopAt,
    command,
    dltrain,
    newest_run,
    one_json,
    result_of,
    rows_of,
    small_config,
    train,
    weights_of,
    write_config,
)

pytestmark = pytest.mark.usefixtures("no_curves")

DONE = Ended(0, "")
SGD: Sections = {"optimizer": {"type": "sgd", "lr": 0.1}}
NOISY: Sections = {"model": {"dropout": 0.3, "norm": "batch"}, "regularization": {"average": {"type": "ema"}}}
NOISY_TRAIN: Sections = {"batch_size": 15}  # the last batch of an epoch holds five


def assert_alike(run: Path, expected: Path) -> None:
    """Weights and losses are equal to 1e-6 and counts exactly: as far as sums in another order can be."""
    for name in (LAST, checkpoints.BEST):
        for key, value in checkpoints.load(run / "checkpoints" / name).tensors.items():
            other = checkpoints.load(expected / "checkpoints" / name).tensors[key]
            torch.testing.assert_close(value, other, rtol=1e-6, atol=1e-6, msg=key)
    for row, one in zip(rows_of(run), rows_of(expected), strict=True):
        assert row == pytest.approx(one, rel=1e-5, abs=1e-6)
        assert {key: row[key] for key in row if "accuracy" in key} == {
            key: one[key] for key in one if "accuracy" in key
        }


# ---- equal to one process -------------------------------------------------------------------------------------------

CASES: dict[str, Sections] = {
    "plain": SGD,
    "adamw": {},
    "micro-batches": {**SGD, "train": {"micro_batch_size": 3}},
    "class weights": {**SGD, "loss": {"type": "cross_entropy", "class_weights": [0.2, 1.0, 5.0]}},
    "penalties, clipping and noise": {
        **SGD,
        "regularization": {
            "penalties": [{"type": "l2", "strength": 0.01}],
            "clip": {"type": "norm", "max_norm": 0.5},
            "gradient_noise": {"eta": 0.01},
        },
    },
    "ema and max-norm": {"regularization": {"average": {"type": "ema"}, "max_norm": {"limit": 1.0}}},
    "schedule-free": {"optimizer": {"type": "schedule_free_adamw"}},
    "sam": {**SGD, "regularization": {"sam": {"rho": 0.1}}},
    "mixup": {**SGD, "regularization": {"mix": {"type": "mixup", "alpha": 1.0}}},
    "augmentation": {**SGD, "augment": [{"type": "noise", "std": 0.1}]},
    "balanced": {**SGD, "train": {"sampler": "balanced"}},
    "monitor of training": {**SGD, "train": {"monitor": "train/loss", "evaluate_every": "3 steps"}},
}


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_several_processes_train_the_model_that_one_does(name: str, number: int, tmp_path: Path) -> None:
    """The last batch of an epoch holds two samples: of three processes one has none of it."""
    file = small_config(tmp_path, CASES[name])
    one = Path(fit(file, root=tmp_path / "one")["run"])
    assert train_in_ranks(file, tmp_path / "several", number) == [DONE] * number
    assert_alike(newest_run(tmp_path / "several"), one)


def test_sequences_of_different_lengths_count_by_their_tokens(tmp_path: Path) -> None:
    make_numbers(tmp_path / "numbers.csv", "en", "fr", 60)
    text = """
data: {type: pairs, path: numbers.csv, tokenizer: {kind: character}}
model: {type: encoder_decoder, dim: 16, num_heads: 2, encoder_depth: 1, decoder_depth: 1, dropout: 0.0}
optimizer: {type: sgd, lr: 0.1}
train: {duration: 2 epochs, batch_size: 7, device: cpu, eval_batch_size: 4}
"""
    (tmp_path / "numbers.yaml").write_text(text, encoding="utf-8")
    file = load_config(tmp_path / "numbers.yaml")
    one = Path(fit(file, root=tmp_path / "one")["run"])
    assert train_in_ranks(file, tmp_path / "several") == [DONE] * 2
    assert_alike(newest_run(tmp_path / "several"), one)


def test_a_parameter_without_a_gradient_stays_without_one() -> None:
    def work(ranks: Ranks) -> None:
        used, unused, other = (torch.zeros(2, 3, requires_grad=True) for _ in range(3))
        add_up = StepSum(ranks, [used, unused, other])
        used.grad = torch.full((2, 3), 1.0 + ranks.index)
        if ranks.first:
            other.grad = torch.ones(2, 3)
        assert add_up(torch.tensor(0.5) if ranks.first else None, 7.0 + ranks.index, not ranks.first) == 0.5
        assert used.grad.tolist() == [[3.0] * 3] * 2
        assert unused.grad is None
        assert other.grad is not None
        assert (add_up.elapsed_s, add_up.stop) == (7.0, True)

    assert in_ranks(work) == [DONE] * 2


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("number", [0, 1, 5, 7, 16])
def test_shares_are_stretches_that_make_up_the_whole(size: int, number: int) -> None:
    shares = [range(number)[Ranks(index, size).share(number)] for index in range(size)]
    assert [i for share in shares for i in share] == list(range(number))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert ALONE.share(number) == slice(0, number)


# ---- one speaks and writes, and a run goes on -----------------------------------------------------------------------


@pytest.mark.parametrize("stops", [(5,), (3, 9)])
def test_a_resumed_run_ends_with_the_bytes_of_the_uninterrupted_run(stops: tuple[int, ...], tmp_path: Path) -> None:
    file = small_config(tmp_path, {**NOISY, "train": {**NOISY_TRAIN, "checkpoint_every": "2 steps"}})
    assert train_in_ranks(file, tmp_path / "whole") == [DONE] * 2
    run = None
    for stop in stops:
        first, second = train_in_ranks(file, tmp_path / "stopped", resume=run, progress=StopAt(stop))
        run = newest_run(tmp_path / "stopped")
        assert (first.code, second) == (130, Ended(130, ""))
        assert f"stopped at step {stop + 1} of 12; the checkpoint is saved" in first.said
    assert train_in_ranks(file, tmp_path / "stopped", resume=run) == [DONE] * 2
    assert run is not None
    assert result_of(run) == result_of(newest_run(tmp_path / "whole"))


def on_their_own_disks(folder: Path, sections: Sections, *stops: int) -> list[Ended]:
    """Train on two processes, each in a folder of its own; where the first has a run there, it is gone on with."""

    config = write_config(folder, sections)

    def work(ranks: Ranks) -> None:
        own = folder / f"disk {ranks.index}"
        own.mkdir(exist_ok=True)
        os.chdir(own)
        resume = newest_run(Path("runs")) if Path("runs").exists() else None
        fit(load_config(config), root=Path("runs"), resume=resume, progress=StopAt(*stops), ranks=ranks)

    return in_ranks(work)


def test_a_process_that_cannot_see_the_run_takes_the_state_from_the_first(tmp_path: Path) -> None:
    sections = {**NOISY, "train": {**NOISY_TRAIN, "checkpoint_every": "2 steps"}}
    assert train_in_ranks(small_config(tmp_path, sections), tmp_path / "whole") == [DONE] * 2
    assert [code for code, _ in on_their_own_disks(tmp_path, sections, 5)] == [130, 130]
    assert on_their_own_disks(tmp_path, sections) == [DONE] * 2
    ended, whole = (result_of(newest_run(tmp_path / root)) for root in ("disk 0/runs", "whole"))
    for name in (LAST, checkpoints.BEST):  # the way from the working directory to the config differs
        assert ended[f"{name}/meta"].pop("folder") != whole[f"{name}/meta"].pop("folder")
    assert ended == whole
    assert list((tmp_path / "disk 1").iterdir()) == []


def test_a_process_that_cannot_see_the_run_rolls_back_with_the_first(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    train: Sections = {"on_nonfinite": "rollback", "checkpoint_every": "1 steps"}
    ended = on_their_own_disks(tmp_path, {"model": {"type": "own.py:Net"}, "train": train})
    assert [code for code, _ in ended] == [4, 4]
    assert "3 rollbacks are enough" in ended[0].said + ended[1].said


def test_watching_and_saving_change_no_bit(tmp_path: Path) -> None:
    """Batch statistics differ between processes until they are evaluated or saved."""
    plain = small_config(tmp_path, {**NOISY, "train": NOISY_TRAIN})
    assert train_in_ranks(plain, tmp_path / "plain") == [DONE] * 2
    watched = small_config(
        tmp_path, {**NOISY, "train": {**NOISY_TRAIN, "evaluate_every": "1 steps", "checkpoint_every": "0.001 s"}}
    )
    assert train_in_ranks(watched, tmp_path / "watched") == [DONE] * 2
    saved, other = (
        checkpoints.load(newest_run(tmp_path / name) / "checkpoints" / LAST) for name in ("plain", "watched")
    )
    assert all(torch.equal(value, other.tensors[key]) for key, value in saved.tensors.items())


def test_there_is_one_run_and_it_says_how_many_worked(tmp_path: Path) -> None:
    assert train_in_ranks(small_config(tmp_path), tmp_path / "runs", 3) == [DONE] * 3
    (run,) = (tmp_path / "runs" / "small").iterdir()
    assert json.loads((run / "environment.json").read_text())["num_processes"] == 3
    assert (run / "log.txt").read_text().count("start at step 0 of 12 on 3 processes on cpu") == 1
    assert [row["step"] for row in read_metrics(run)] == [4, 8, 12]


OWN = """
import os
import torch
from torch import nn


class Net(nn.Module):
    '''Says NaN in training for inputs above a limit: the same samples on one process and on several.'''

    def __init__(self, in_features, out_features):
        super().__init__()
        self.last = nn.Linear(in_features, out_features)

    def forward(self, x):
        bad = (x > 4.5).any(1, keepdim=True) & torch.tensor(self.training)
        return self.last(x) + torch.where(bad, torch.nan, 0.0)
"""


def assert_policy(policy: str, ended: list[Ended], run: Path, alone: ConfigFile, root: Path, message: str) -> None:
    """Assert that all did as `train.on_nonfinite` says: stopped with the message, or skipped as one process does."""
    if policy == "skip":
        one = Path(fit(alone, root=root)["run"])
        assert ended == [DONE] * 2
        assert rows_of(one)[-1]["skipped_steps"] > 0
        assert_alike(run, one)
    else:
        assert [code for code, _ in ended] == [4, 4]
        (said,) = [said for _, said in ended if said]
        assert message in said
        assert ("rollbacks are enough" in said) == (policy == "rollback")


@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
def test_what_is_not_finite_on_one_process_is_so_on_all(policy: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    train: Sections = {"on_nonfinite": policy, "checkpoint_every": "1 steps"}
    file = small_config(tmp_path, {"model": {"type": "own.py:Net"}, "train": train})
    ended = train_in_ranks(file, tmp_path / "several")
    message = "the loss is not finite, first in the output of the model (Net)"
    assert_policy(policy, ended, newest_run(tmp_path / "several"), file, tmp_path / "one", message)


# ---- what several processes cannot share ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"batch_size": 1}}, "train.batch_size: 1 samples of a step cannot be shared by 2"),
        ({"train": {"device": "cuda:0"}}, "is 'cuda:0', and each of 2 processes has a device of its own; use cuda"),
        (
            {"model": {"norm": "batch"}, "train": {"batch_size": 49}},
            "50 samples in batches of 49 on 2 processes leave a batch of one, which BatchNorm cannot normalise",
        ),
    ],
)
def test_an_error_that_all_meet_is_said_once(sections: Sections, message: str, tmp_path: Path) -> None:
    ended = train_in_ranks(small_config(tmp_path, sections), tmp_path / "runs")
    assert [code for code, _ in ended] == [2, 2]
    (said,) = [said for _, said in ended if said]
    assert message in said
    assert not (tmp_path / "runs").exists()


# ---- the command line -----------------------------------------------------------------------------------------------


def test_a_wrong_config_is_said_once_before_torch_is_loaded(tmp_path: Path) -> None:
    write_config(tmp_path, {"model": {"hiden": [8]}})
    result = dltrain("fit", "small.yaml", "--devices", "2", cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "model.hiden: unknown key" in result.stderr


def test_devices_and_what_it_cannot_be_combined_with(tmp_path: Path) -> None:
    write_config(tmp_path)
    result = dltrain("fit", "small.yaml", "--devices", "2", "--seeds", "2", cwd=tmp_path)
    assert (result.returncode, "--seeds: trains one model after the other" in result.stderr) == (2, True)
    several = {"RANK": "0", "WORLD_SIZE": "3"}
    result = dltrain("fit", "small.yaml", "--devices", "2", cwd=tmp_path, **several)
    assert (result.returncode, "--devices 2: 3 processes were started already" in result.stderr) == (2, True)


def test_a_held_port_is_for_the_processes_that_meet_there() -> None:
    with held_port() as port:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False).set("word", "x")
        assert store.get("word") == b"x"


@pytest.mark.slow
def test_devices_prints_one_json_line_and_a_signal_to_the_launcher_stops_all(tmp_path: Path) -> None:
    write_config(tmp_path, {"train": {"duration": "100000 steps"}})
    arguments = ("fit", "small.yaml", "--devices", "2", "--json")
    with subprocess.Popen(command(*arguments), cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.strip().startswith(b"2 "):  # the row of the second epoch
                break
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (143, b"")
    assert err.count(b"the checkpoint is saved. Go on with: dltrain fit --resume runs/small/1") == 1
    step = checkpoints.load(tmp_path / "runs" / "small" / "1" / "checkpoints" / LAST).meta["step"]
    result = dltrain(
        *arguments, "--resume", "auto", "--quiet", "--set", f"train.duration={step + 5} steps", cwd=tmp_path
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert one_json(result.stdout)["step"] == step + 5


@pytest.mark.slow
def test_torchrun_starts_the_processes_again_and_they_go_on(tmp_path: Path) -> None:
    """The second process kills itself at step 6 of its first life."""
    code = OWN.replace("> 4.5", "> 99.0").replace(
        "    def forward(self, x):\n",
        "        self.calls = 0\n\n    def forward(self, x):\n        self.calls += self.training\n"
        "        first_life = os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'\n"
        "        if self.calls == 6 and os.environ['RANK'] == '1' and first_life:\n"
        "            os.kill(os.getpid(), 9)\n",
    )
    (tmp_path / "own.py").write_text(code)
    write_config(tmp_path, {"model": {"type": "own.py:Net"}, "train": {"checkpoint_every": "1 steps"}})
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    fit_again = ["--max-restarts", "1", "-m", "dltrain", "fit", "small.yaml", "--resume", "auto", "--json", "--quiet"]
    result = subprocess.run(
        [*torchrun, *fit_again], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, env=dict(os.environ)
    )
    assert result.returncode == 0, result.stderr
    assert one_json(result.stdout)["run"] == "runs/small/1"
    log: Any = (tmp_path / "runs" / "small" / "1" / "log.txt").read_text()
    assert "resume at step 5 of 12 on 2 processes on cpu" in log
    (tmp_path / "own.py").write_text(OWN.replace("> 4.5", "> 99.0"))
    for name, value in weights_of(train(tmp_path, {"model": {"type": "own.py:Net"}})).items():
        torch.testing.assert_close(value, weights_of(tmp_path / "runs" / "small" / "1")[name], rtol=0, atol=1e-6)
