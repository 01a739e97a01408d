"""What surrounds a recorded step, with a stand-in for CUDA's recording that runs on a CPU; tests/test_cuda.py has CUDA.

The stand-in obeys CUDA's contract: nothing is computed while recording, and a replay reads and writes where the
recording did.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dltrain import graphs
from dltrain.errors import ConfigError, TrainingError
from dltrain.graphs import RecordedGradients
from dltrain.profiling import Profile
from dltrain.train import fit
from tests.small_runs import Sections, bytes_of, fit_with_stops, rows_of, small_config, weights_of, write_arrays

pytestmark = pytest.mark.usefixtures("no_curves")

RECORDED = {"train": {"cuda_graphs": True}}
CASES: dict[str, Sections] = {
    "plain": {},
    "dropout and batch norm": {"model": {"type": "mlp", "hidden": [8], "dropout": 0.5, "norm": "batch"}},
    "micro-batches": {"train": {"micro_batch_size": 5}},
    "mixup": {"regularization": {"mix": {"type": "mixup"}}},
    "sam": {"regularization": {"sam": {}}, "model": {"type": "mlp", "hidden": [8], "norm": "batch"}},
    "penalties and clipping": {
        "regularization": {"penalties": [{"type": "l2", "strength": 0.01}], "clip": {"type": "norm", "max_norm": 0.1}}
    },
    "skip": {"train": {"on_nonfinite": "skip"}},
    "other optimizer": {"optimizer": {"type": "muon", "lr": 0.01}},
}


class Recorder:
    """In the place of CUDA: counts what is recorded and replayed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_recorded = self.num_replayed = 0
        self.last: Any = None
        monkeypatch.setattr("dltrain.plan._check_graphs", lambda *_: None)
        monkeypatch.setattr("dltrain.train.RecordedGradients", self.make)
        monkeypatch.setattr(graphs, "_record", self.record)

    def make(self, *arguments: Any) -> RecordedGradients:
        self.last = RecordedGradients(*arguments)
        return self.last

    def record(self, step: Callable[[], Any], _: torch.device) -> tuple[Callable[[], None], Any]:
        self.num_recorded += 1
        before = {id(output) for output, _ in self.last._outputs}
        result = step()
        rooms = [room for room in self.tensors(result) if id(room) not in before]
        for room in rooms:
            room.fill_(torch.nan if room.is_floating_point() else 0)

        def replay() -> None:
            self.num_replayed += 1
            for room, value in zip(rooms, self.tensors(step())[: len(rooms)], strict=True):
                room.copy_(value)

        return replay, result

    def tensors(self, result: tuple[Any, ...]) -> list[torch.Tensor]:
        gradients = [p.grad for p in self.last._parameters if p.grad is not None]
        outputs = [output for output, _ in self.last._outputs]
        return [*(x for x in result if isinstance(x, torch.Tensor)), *gradients, *outputs]


def results(run: Path) -> tuple[Any, Any]:
    return rows_of(run), {name: bytes_of(tensor) for name, tensor in weights_of(run).items()}


@pytest.mark.parametrize("case", CASES)
def test_a_recorded_training_is_the_same_training(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    eager = Path(fit(small_config(tmp_path, CASES[case]), root=tmp_path / "eager")["run"])
    recorder = Recorder(monkeypatch)
    train = {**CASES[case].get("train", {}), **RECORDED["train"]}
    file = small_config(tmp_path, {**CASES[case], "train": train})
    recorded = Path(fit(file, root=tmp_path / "recorded")["run"])
    assert results(recorded) == results(eager)
    passes = 2 if case == "sam" else 1
    assert recorder.num_recorded == 2 * passes  # of a whole batch, and of the last of an epoch
    assert recorder.num_replayed == 12 * passes


def test_a_recorded_training_is_resumed_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Recorder(monkeypatch)
    file = small_config(tmp_path, {**CASES["dropout and batch norm"], **RECORDED})
    whole = Path(fit(file, root=tmp_path / "whole")["run"])
    resumed = fit_with_stops(file, tmp_path / "resumed", (3, 6))
    assert results(resumed) == results(whole)


def test_batches_of_many_shapes_are_computed_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_MOST_SHAPES", 1)
    recorder = Recorder(monkeypatch)
    eager = Path(fit(small_config(tmp_path), root=tmp_path / "eager")["run"])
    recorded = Path(fit(small_config(tmp_path, RECORDED), root=tmp_path / "recorded")["run"])
    assert (recorder.num_recorded, recorder.num_replayed) == (1, 9)
    assert results(recorded) == results(eager)


def test_memory_that_runs_out_while_recording_halves_the_micro_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    record = recorder.record

    def scarce(step: Callable[[], Any], device: torch.device) -> Any:
        if recorder.last._recordings or recorder.num_recorded:
            return record(step, device)
        recorder.num_recorded += 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(graphs, "_record", scarce)
    run = Path(fit(small_config(tmp_path, RECORDED), root=tmp_path / "runs")["run"])
    assert "going on with a micro_batch_size of 8" in (run / "log.txt").read_text()


def test_what_cannot_be_recorded_is_said_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Recorder(monkeypatch)

    def refuse(*_: Any) -> Any:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(graphs, "_record", refuse)
    with pytest.raises(TrainingError) as caught:
        fit(small_config(tmp_path, RECORDED), root=tmp_path / "runs")
    assert str(caught.value) == (
        "train.cuda_graphs: a step cannot be recorded as a CUDA graph: CUDA error: operation not permitted when stream "
        "is capturing; false computes it as it comes"
    )


def test_a_profile_sees_a_recorded_step_as_one_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Recorder(monkeypatch)
    said: list[str] = []
    with Profile(said.append) as profile:
        fit(small_config(tmp_path, RECORDED), root=tmp_path / "runs", watcher=profile)
    backward = next(line for line in said if line.startswith("  backward"))
    assert backward.split()[1] == "0.000"
    assert not any(line.startswith("  forward ") and line.split()[1] == "0.000" for line in said)


class Marks:
    """A watcher that marks what autograd keeps of each parameter while a step is computed."""

    def begin(self, run: Path, plan: Any) -> None:
        self.parameters, self.num_steps = list(plan.network.model.parameters()), 0

    def part(self, name: str, function: Any) -> Any:
        def marked(*arguments: Any) -> Any:
            for kept in self.kept():
                kept["marked"] = True
            return function(*arguments)

        return marked if name == "backward" else function

    def step(self, state: Any, num_samples: int) -> None:
        assert not any("marked" in kept for kept in self.kept())
        self.num_steps += 1

    def kept(self) -> list[dict[Any, Any]]:
        return [p.view_as(p).grad_fn.next_functions[0][0].metadata for p in self.parameters]


@pytest.mark.parametrize("case", CASES)
def test_a_step_leaves_nothing_of_autograd_behind_that_belongs_to_its_stream(case: str, tmp_path: Path) -> None:
    marks = Marks()
    fit(small_config(tmp_path, CASES[case]), root=tmp_path / "runs", watcher=marks)
    assert marks.num_steps == 12


def test_without_a_gpu_graphs_are_refused_with_the_place(tmp_path: Path) -> None:
    write_arrays(tmp_path / "data.npz")
    with pytest.raises(
        ConfigError, match=r"small.yaml:\d+:\d+: train.cuda_graphs: is true, and the device is cpu; set"
    ):
        fit(small_config(tmp_path, RECORDED), root=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_recording_leaves_the_model_and_the_random_numbers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 1))
    recorder = Recorder(monkeypatch)

    def gradients(size: int, inputs: Any, target: Any, mixed: Any, *, measure: bool) -> Any:
        for parameter in model.parameters():
            parameter.grad = None
        loss = (model(inputs[0]) - target).square().mean()
        loss.backward()
        return loss.detach(), size

    recorded = recorder.make(gradients, [], model, torch.device("cpu"))
    torch.manual_seed(0)
    recorded(4, (torch.randn(4, 3),), torch.randn(4, 1), None, measure=False)
    assert model[0].num_batches_tracked == 1  # by the replay alone
    found = torch.rand(())
    torch.manual_seed(0)
    torch.randn(4, 3), torch.randn(4, 1)
    nn.functional.dropout(torch.ones(4, 3), 0.5)
    assert torch.equal(found, torch.rand(()))
