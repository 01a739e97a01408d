"""Devices, precision, seeds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dltrain.device import autocast, environment, open_device, set_deterministic
from dltrain.errors import ConfigError

CPU = torch.device("cpu")


def pretend_devices(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)


def test_auto_takes_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_devices(monkeypatch, 0)
    assert open_device("auto") == CPU
    pretend_devices(monkeypatch, 2)
    assert open_device("auto") == torch.device("cuda", 0)
    assert open_device("cuda:1") == torch.device("cuda", 1)


def test_cuda_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_devices(monkeypatch, 0)
    with pytest.raises(
        ConfigError, match=r"'cuda:0' asks for a CUDA device and this machine has none.*; use cpu or auto"
    ):
        open_device("cuda:0")
    pretend_devices(monkeypatch, 2)
    with pytest.raises(ConfigError, match="'cuda:2' asks for device 2; there are 2, counted from 0"):
        open_device("cuda:2")


@pytest.mark.parametrize("name", ["banana", "", "cuda:", "cuda:x", "cuda:-1", "CPU", "cpu:0", "meta", "mps"])
def test_a_device_that_does_not_exist_is_answered_with_those_that_do(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_device(name)
    assert str(caught.value) == f"device: is '{name}'; possible: auto, cpu, cuda, cuda:1"


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
def test_precision_is_that_of_activations_and_not_of_weights(precision: str, dtype: torch.dtype) -> None:
    layer = nn.Linear(2, 2)
    with autocast(CPU, precision):
        assert layer(torch.ones(1, 2)).dtype == dtype
    with autocast(CPU, precision):  # a context can be entered again
        assert layer(torch.ones(1, 2)).dtype == dtype
    assert layer.weight.dtype == torch.float32


def test_deterministic_is_switched_on_and_off() -> None:
    set_deterministic(True)
    assert torch.are_deterministic_algorithms_enabled()
    set_deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_environment_names_what_numbers_depend_on() -> None:
    found = environment(CPU)
    assert found["torch"] == torch.__version__
    assert found["num_threads"] == torch.get_num_threads()
    assert found.keys() >= {"dltrain", "python", "device", "device_type", "platform", "host"}
