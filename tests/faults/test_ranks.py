"""Several processes: odd numbers of samples, another number on resuming, and one that dies, fails or hangs."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from dltrain.config.validate import load_config
from dltrain.console import Progress
from dltrain.errors import DataError
from dltrain.ranks import Ranks
from dltrain.train import fit
from tests.in_ranks import Ended, in_ranks, train_in_ranks
from tests.small_runs import StopAt, dltrain, newest_run, rows_of, small_config, weights_of, write_config

pytestmark = pytest.mark.usefixtures("no_curves")

DONE = Ended(0, "")
PARALLEL = pytest.mark.parametrize("parallel", ["ddp", "fsdp"])


@pytest.mark.fault(41)
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3)])
def test_another_number_of_processes_goes_on_with_the_same_order_and_weights(
    before: int, after: int, tmp_path: Path
) -> None:
    file = small_config(tmp_path)
    whole = Path(fit(file, root=tmp_path / "whole")["run"])
    for number, code in zip(
        train_in_ranks(file, tmp_path / "runs", before, progress=StopAt(5)), [130] * 3, strict=False
    ):
        assert number.code == code
    run = newest_run(tmp_path / "runs")
    assert train_in_ranks(file, tmp_path / "runs", after, resume=run) == [DONE] * after
    for name, value in weights_of(run).items():
        torch.testing.assert_close(value, weights_of(whole)[name], rtol=0, atol=1e-6)
    for row, expected in zip(rows_of(run), rows_of(whole), strict=True):
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-6)
    log = (run / "log.txt").read_text()
    assert (f"on {after} processes on cpu" if after > 1 else "12 on cpu") in log


@pytest.mark.fault(59)
def test_eleven_samples_give_two_processes_the_metrics_of_one(tmp_path: Path) -> None:
    rows = "".join(
        f"{i * 7 % 11},{i % 5},{'ab'[i * 3 % 7 > 2]},{split}\n" for i, split in enumerate(["train", "val"] * 11)
    )
    (tmp_path / "odd.csv").write_text("x,y,class,split\n" + rows)
    (tmp_path / "odd.yaml").write_text(
        "data: {type: table, path: odd.csv, target: class, split_column: split}\n"
        "model: {type: mlp, hidden: [4]}\n"
        "train: {duration: 3 epochs, batch_size: 4, eval_batch_size: 3, device: cpu}\n"
    )
    file = load_config(tmp_path / "odd.yaml")
    one = Path(fit(file, root=tmp_path / "one")["run"])
    assert train_in_ranks(file, tmp_path / "two") == [DONE] * 2
    for row, expected in zip(rows_of(newest_run(tmp_path / "two")), rows_of(one), strict=True):
        assert row == pytest.approx(expected, rel=1e-5)
        for name in ("train/accuracy", "val/accuracy", "train/macro_f1", "val/macro_f1"):
            assert row[name] == expected[name]


class At(Progress):
    """Does something in one process at the fourth step."""

    def __init__(self, work: object) -> None:
        super().__init__("off")
        self.work = work

    def step(self, state: object) -> None:
        if getattr(state, "step", 0) == 4 and callable(self.work):
            self.work()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has started these processes who would end those that are left."""
    monkeypatch.setattr("dltrain.ranks._PATIENCE_S", 0.2)


@pytest.mark.fault(60)
@pytest.mark.usefixtures("impatient")
@PARALLEL
def test_a_process_that_fails_is_the_one_that_says_why(parallel: str, tmp_path: Path) -> None:
    file = small_config(tmp_path, {"train": {"parallel": parallel}})

    def fail() -> None:
        raise DataError("row 7 is no number")

    first, second = train_in_ranks(file, tmp_path / "runs", progress=At(fail))
    assert first == Ended(3, "row 7 is no number")
    assert second.code == 4
    assert second.said == ""


@pytest.mark.fault(60)
@pytest.mark.usefixtures("impatient")
@PARALLEL
def test_a_killed_process_ends_all_and_the_run_goes_on(parallel: str, tmp_path: Path) -> None:
    file = small_config(tmp_path, {"train": {"checkpoint_every": "1 steps", "parallel": parallel}})
    whole = Path(fit(file, root=tmp_path / "whole")["run"])
    first, second = train_in_ranks(file, tmp_path / "runs", progress=At(lambda: os.kill(os.getpid(), signal.SIGKILL)))
    assert (first.code, second.code) == (-signal.SIGKILL, 4)
    run = newest_run(tmp_path / "runs")
    assert train_in_ranks(file, tmp_path / "runs", resume=run) == [DONE] * 2
    for name, value in weights_of(run).items():
        torch.testing.assert_close(value, weights_of(whole)[name], rtol=0, atol=1e-6)


@pytest.mark.fault(60)
@pytest.mark.usefixtures("impatient")
@PARALLEL
def test_a_process_that_hangs_is_given_up_after_the_timeout(parallel: str, tmp_path: Path) -> None:
    file = small_config(tmp_path, {"train": {"parallel": parallel}})

    def work(ranks: Ranks) -> None:
        fit(file, root=tmp_path / "runs", ranks=ranks, progress=At(lambda: time.sleep(4)))

    first, second = in_ranks(work, timeout_s=1.5)
    assert (first.code, second.code) == (4, 4)
    assert "another process of this training does not answer any more" in first.said + second.said


@pytest.mark.slow
@pytest.mark.fault(48, 60)
def test_the_launcher_says_which_process_was_killed(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import os\nfrom torch import nn\n\n\nclass Net(nn.Linear):\n    def forward(self, x):\n"
        "        if self.training and len(x) == 1 and os.environ['RANK'] == '1':\n            os.kill(os.getpid(), 9)\n"
        "        return super().forward(x)\n"
    )
    write_config(tmp_path, {"model": {"type": "own.py:Net"}, "train": {"checkpoint_every": "1 steps"}})
    result = dltrain("fit", "small.yaml", "--devices", "2", "--quiet", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (137, "")
    assert result.stderr == (
        "process 1 of 2 was killed by SIGKILL (the system does that where memory runs out); "
        "the last checkpoint is kept\n"
    )
