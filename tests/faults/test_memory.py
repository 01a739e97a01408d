"""Memory that runs out: the run goes on in smaller portions, with the same result, and says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dltrain import checkpoint as checkpoints
from dltrain.errors import TrainingError
from dltrain.memory import is_out_of_memory
from dltrain.train import fit
from tests.small_runs import (
    Sections,
    dltrain,
    fit_with_stops,
    newest_run,
    small_config,
    train,
    weights_of,
    write_config,
)

pytestmark = pytest.mark.usefixtures("no_curves")

# A model that has room for so many samples at once.
OWN = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, in_features, out_features, room=1000, eval_room=1000, norm=False):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(in_features, 8), nn.BatchNorm1d(8) if norm else nn.ReLU(), nn.Dropout(0.2))
        self.last = nn.Linear(8, out_features)
        self.room, self.eval_room = room, eval_room

    def forward(self, x):
        if len(x) > (self.room if self.training else self.eval_room):
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
        return self.last(self.net(x))
"""


@pytest.fixture(autouse=True)
def own_model(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)


def sections(room: int = 1000, **changes: object) -> Sections:
    return {"model": {"type": "own.py:Net", "room": room, **changes}}


@pytest.mark.fault(26)
@pytest.mark.parametrize("sam", [False, True])
def test_a_step_is_taken_in_halves_with_the_same_result(sam: bool, tmp_path: Path) -> None:
    """Batches of 16 where there is room for 5: micro-batches of 4, and the bytes of a run that was told so."""
    smaller: Sections = {"regularization": {"sam": {}}} if sam else {}
    found = Path(fit(small_config(tmp_path, sections(room=5) | smaller), root=tmp_path / "runs")["run"])
    told = small_config(tmp_path, sections() | smaller | {"train": {"micro_batch_size": 4}})
    expected = Path(fit(told, root=tmp_path / "runs")["run"])
    weights = weights_of(expected)
    assert all(torch.equal(weights[name], weight) for name, weight in weights_of(found).items())
    log = (found / "log.txt").read_text()
    assert "step 0: out of memory; going on with a micro_batch_size of 8" in log
    assert "step 0: out of memory; going on with a micro_batch_size of 4" in log
    assert log.count("out of memory") == 2


@pytest.mark.fault(26)
def test_a_resumed_run_remembers_what_there_was_room_for(tmp_path: Path) -> None:
    run = fit_with_stops(small_config(tmp_path, sections(room=5)), tmp_path / "runs", (4,))
    assert (run / "log.txt").read_text().count("out of memory") == 2
    assert checkpoints.load(run / "checkpoints" / checkpoints.LAST).meta["micro_batch_size"] == 4


@pytest.mark.fault(26)
def test_no_room_for_one_sample_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"^out of memory with one sample at a time: .*; choose a smaller model"):
        train(tmp_path, sections(room=0))


@pytest.mark.fault(26)
def test_statistics_of_smaller_batches_are_not_taken_without_a_word(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"BatchNorm .* would change the result: set train.micro_batch_size: 8 if"):
        train(tmp_path, sections(room=5, norm=True))


@pytest.mark.fault(27)
def test_an_evaluation_is_made_in_halves_with_the_same_result(tmp_path: Path) -> None:
    results = []
    for room in (1000, 3):
        file = small_config(tmp_path, sections(eval_room=room))
        results.append(fit(file, root=tmp_path / "runs"))
    log = (newest_run(tmp_path / "runs") / "log.txt").read_text()
    assert "going on with a eval_batch_size of 2" in log
    losses = [result["metrics"]["val/loss"] for result in results]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert results[1]["metrics"]["val/accuracy"] == results[0]["metrics"]["val/accuracy"]
    evaluated = dltrain("evaluate", results[1]["run"], "--json", "--trust", "own.py", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr


@pytest.mark.fault(26)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_DATA")
def test_a_process_with_too_little_memory_trains_all_the_same(tmp_path: Path) -> None:
    """A real limit: the hidden layer of a whole batch takes 64 MB some four times over, and there are 150 MB left."""
    rng = np.random.default_rng(0)
    arrays = {f"x_{split}": rng.normal(size=(n, 6)).astype(np.float32) for split, n in (("train", 8192), ("val", 8192))}
    np.savez(tmp_path / "many.npz", **arrays, y_train=np.arange(8192) % 3, y_val=np.arange(8192) % 3)
    config = write_config(
        tmp_path,
        {
            "data": {"type": "arrays", "path": "many.npz"},
            "model": {"type": "mlp", "hidden": [2048], "norm": "none"},
            "train": {"batch_size": 8192, "eval_batch_size": 8192, "duration": "2 steps"},
        },
    )

    # In a process of its own: one that has run other tests may hold freed memory, which the limit does not count again.
    code = f"""
import resource
from dltrain.config.validate import load_config
from dltrain.train import fit
config = {str(config)!r}
fit(load_config(config, ["train.batch_size=8", "train.eval_batch_size=8"]), root="before")  # loads all that is needed
used = next(line for line in open("/proc/self/status") if line.startswith("VmData"))
limit = int(used.split()[1]) * 2**10 + 150 * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
fit(load_config(config), root="runs")
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    log = (newest_run(tmp_path / "runs") / "log.txt").read_text()
    assert "step 0: out of memory; going on with a micro_batch_size of 4096" in log
    assert "finished at step 2" in log


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.80 GiB",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_what_the_libraries_of_a_gpu_say_of_memory_is_understood(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text))
