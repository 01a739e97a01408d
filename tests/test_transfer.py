"""The order of what is asked of a GPU's streams, with stand-ins for them; tests/test_cuda.py has the copies."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dltrain.data import columns, transfer
from dltrain.data.columns import Columns, Ragged
from dltrain.train import fit
from tests.small_runs import fit_with_stops, result_of, small_config

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Streams:
    """In the place of CUDA's: writes down what is asked of them; a copy to the GPU stays where it is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.locked: set[int] = set()
        self.current = self.computing = _Stream("computing", self)
        copying = _Stream("copying", self)
        monkeypatch.setattr(transfer, "_stream_of_copies", lambda device: copying)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.computing)
        monkeypatch.setattr(torch.cuda, "stream", self.using)
        monkeypatch.setattr(Tensor, "record_stream", lambda x, stream: self.calls.append(f"kept for {stream.name}"))
        monkeypatch.setattr(transfer, "_page_locked", self.lock)
        to = Tensor.to
        monkeypatch.setattr(Tensor, "to", lambda x, *a, **k: self.copy(x, **k) if a[:1] == (GPU,) else to(x, *a, **k))

    @contextmanager
    def using(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def lock(self, x: Tensor) -> Tensor:
        self.locked.add(id(x))
        return x

    def copy(self, x: Tensor, *, non_blocking: bool = False) -> Tensor:
        assert non_blocking
        assert id(x) in self.locked
        self.calls.append(f"copied on {self.current.name}")
        return x.clone()


class _Stream:
    def __init__(self, name: str, streams: Streams) -> None:
        self.name, self.streams = name, streams

    def wait_stream(self, other: "_Stream") -> None:
        self.streams.calls.append(f"{self.name} waits for {other.name}")


def test_copies_are_made_beside_what_is_computed_and_waited_for_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    sent = transfer.send([torch.arange(3), torch.ones(2)], GPU)
    assert [x.tolist() for x in sent] == [[0, 1, 2], [1.0, 1.0]]
    kept = ["kept for computing"] * 2
    assert streams.calls == ["copied on copying"] * 2 + ["computing waits for copying", *kept]


@pytest.mark.parametrize("rows", [torch.tensor([2, 0]), slice(1, 3)], ids=["indices", "a stretch"])
def test_a_batch_goes_to_a_gpu_by_page_locked_memory(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Streams(monkeypatch)
    asked = []
    new_empty = Tensor.new_empty

    def without_gpu(x: Tensor, *size: Any, pin_memory: bool = False) -> Tensor:
        asked.append(pin_memory)
        return new_empty(x, *size)

    monkeypatch.setattr(Tensor, "new_empty", without_gpu)
    ragged = Ragged.from_lengths(torch.arange(6), torch.tensor([1, 2, 3]))
    data = Columns((torch.arange(6.0).view(3, 2), ragged), torch.tensor([7, 8, 9]))
    on_gpu, on_cpu = data.batch(rows, GPU), data.batch(rows, CPU)
    assert asked == ([True, True] if isinstance(rows, Tensor) else [])
    for found, expected in zip((*on_gpu[0], on_gpu[1]), (*on_cpu[0], on_cpu[1]), strict=True):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


@pytest.mark.usefixtures("no_curves")
def test_a_training_whose_batches_are_sent_is_the_same_also_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = small_config(tmp_path)
    plain = result_of(Path(fit(file, root=tmp_path / "plain")["run"]))
    streams = Streams(monkeypatch)
    batch = Columns.batch

    def sent(self: Columns, *arguments: Any) -> Any:
        inputs, target = batch(self, *arguments)
        *inputs, target = transfer.send([*inputs, target], GPU)
        return tuple(inputs), target

    monkeypatch.setattr(Columns, "batch", sent)
    assert result_of(fit_with_stops(file, tmp_path / "sent", (3, 6))) == plain
    assert streams.calls


def test_on_a_cpu_no_stream_is_asked_for_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "send", lambda *_: pytest.fail("was sent"))
    inputs, _ = Columns((torch.ones(3, 2),), torch.arange(3)).batch(torch.tensor([1]), CPU)
    assert not inputs[0].is_pinned()
