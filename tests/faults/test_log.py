"""log.txt and metrics.jsonl tell the story of a run: who trained what, where, from when to when, and what ended it."""

from __future__ import annotations

import os
import platform
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import dltrain
from dltrain.errors import Stopped
from dltrain.listing import read_run
from dltrain.records import newest_unfinished
from dltrain.run import read_metrics
from dltrain.train import fit
from tests.small_runs import StopAt, in_child, newest_run, small_config, write_arrays

pytestmark = pytest.mark.usefixtures("no_curves")

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


def test_the_log_tells_of_a_run_that_was_killed_stopped_and_finished(tmp_path: Path) -> None:
    file, root = small_config(tmp_path, {"train": {"checkpoint_every": "2 steps"}}), tmp_path / "runs"
    assert in_child(lambda: fit(file, root=root, progress=StopAt(5, number=signal.SIGKILL))) == -signal.SIGKILL
    run = newest_run(root)
    with pytest.raises(Stopped):
        fit(file, resume=run, progress=StopAt(7, number=signal.SIGTERM))
    fit(file, resume=run)
    lines = (run / "log.txt").read_text().splitlines()
    assert all(re.match(f"{TIME} ", line) for line in lines)
    begun = [line[20:].partition(";") for line in lines if line[20:].startswith(("start", "resume"))]
    assert [first for first, _, _ in begun] == [
        "start at step 0 of 12 on cpu",
        "resume at step 4 of 12 on cpu",
        "resume at step 7 of 12 on cpu",
    ]
    for _, _, rest in begun:
        assert f"dltrain {dltrain.__version__}, torch {torch.__version__}, python {platform.python_version()}" in rest
        assert f"host {platform.node()} " in rest
        assert f"{torch.get_num_threads()} threads" in rest
    assert [re.search(r"process (\d+)", rest)[1] == str(os.getpid()) for _, _, rest in begun] == [False, True, True]
    others = [line[20:] for line in lines if not line[20:].startswith(("start", "resume"))]
    assert others[0].startswith("ended by Stopped (SIGTERM): stopped at step 7 of 12; the checkpoint is saved.")
    assert others[1].startswith("finished at step 12: {")
    assert len(others) == 2  # the process that was killed had no time for a word
    assert [row["step"] for row in read_metrics(run)] == [4, 8, 12]


def test_what_is_odd_about_the_data_is_in_the_log(tmp_path: Path) -> None:
    with np.load(write_arrays(tmp_path / "data.npz")) as data:
        arrays = dict(data)
    arrays["x_val"][:3] = arrays["x_train"][:3]
    np.savez(tmp_path / "data.npz", **arrays)
    run = Path(fit(small_config(tmp_path), root=tmp_path / "runs")["run"])
    assert re.search(rf"{TIME} note: .*3 ", (run / "log.txt").read_text())


def test_a_run_left_by_a_second_ctrl_c_counts_as_stopped(tmp_path: Path) -> None:
    class Twice(StopAt):
        def step(self, state: object) -> None:
            super().step(state)
            super().step(state)

    file = small_config(tmp_path, {"train": {"checkpoint_every": "2 steps"}})
    with pytest.raises(KeyboardInterrupt):
        fit(file, root=tmp_path / "runs", progress=Twice(5))
    run = newest_run(tmp_path / "runs")
    assert "ended by Stopped (SIGINT twice): left at once" in (run / "log.txt").read_text()
    assert read_run(run).about["state"] == "stopped"
    assert newest_unfinished(tmp_path / "runs", file) == run
