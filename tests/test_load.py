"""Trainings that are long, and many at once: neither memory nor file handles grow, and no weight depends on neighbours.

`pytest -s` shows the figures.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dltrain.console import Progress
from dltrain.run import read_metrics
from dltrain.train import fit
from tests.small_runs import Sections, newest_run, result_of, small_config, start_child

pytestmark = pytest.mark.usefixtures("no_curves")

NUM_EPOCHS = 10_000
MAX_GROWTH_BYTES = 4 << 20  # what 10,000 epochs of 1 KB each would take twice over


class Meter(Progress):
    """Measures the process every 1000 epochs, which are one step each."""

    def __init__(self) -> None:
        super().__init__("off")
        self.sizes: list[int] = []
        self.handles: list[int] = []

    def step(self, state: Any) -> None:
        if state.step % 1000 == 0:
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.sizes.append(pages * os.sysconf("SC_PAGE_SIZE"))
            self.handles.append(len(os.listdir("/proc/self/fd")))


@pytest.mark.slow
def test_ten_thousand_epochs_leak_neither_memory_nor_file_handles(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 6)).astype(np.float32), np.arange(64) % 3
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_val=x[:9], y_val=y[:9])
    train = {"batch_size": 64, "evaluate_every": "10 epochs", "checkpoint_every": "100 epochs"}
    settings: Sections = {"train": {"duration": f"{NUM_EPOCHS} epochs", **train}}
    meter = Meter()
    run = Path(fit(small_config(tmp_path, settings), root=tmp_path / "runs", progress=meter)["run"])
    assert len(read_metrics(run)) == NUM_EPOCHS // 10
    growth_bytes = meter.sizes[-1] - meter.sizes[1]
    print(
        f"{NUM_EPOCHS:,} epochs: {meter.sizes[1] / 2**20:.1f} MiB after 2000, {growth_bytes / 2**10:+.0f} KiB since; "
        f"{meter.handles[1]} file handles then, {meter.handles[-1]} at the end"
    )
    assert growth_bytes < MAX_GROWTH_BYTES
    assert {*meter.handles} == {meter.handles[0]}


@pytest.mark.slow
def test_eight_runs_at_once_end_as_each_would_alone(tmp_path: Path) -> None:
    settings: Sections = {"model": {"hidden": [32], "dropout": 0.2}, "train": {"duration": "30 epochs"}}
    file = small_config(tmp_path, settings)
    alone = result_of(Path(fit(file, root=tmp_path / "alone")["run"]))
    children = [start_child(lambda: fit(file, root=tmp_path / "together")) for _ in range(8)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 8
    assert newest_run(tmp_path / "together").name == "8"
    for number in range(1, 9):
        assert result_of(tmp_path / "together" / "small" / str(number)) == alone
