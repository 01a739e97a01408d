"""Where and how exactly tensors are computed: device, precision, threads, and what must be recorded about the host."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from dltrain.errors import ConfigError
from dltrain.machine import num_cores

# Torch knows the cores that the process may run on, and not that a container may give it less of their time.
if "OMP_NUM_THREADS" not in os.environ and num_cores() < torch.get_num_threads():
    torch.set_num_threads(num_cores())
_most_threads = torch.get_num_threads()

# Below this many multiplications in a forward pass one CPU thread is enough; see benchmarks/LOG.md.
_WORTH_THREADS = 10_000_000
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def open_device(name: str, index: int = 0) -> torch.device:
    """Return the device called "auto", "cpu", "cuda" or "cuda:n", of those without a number the one with `index`.

    Raises ConfigError where there is none such.
    """
    if not re.fullmatch("auto|cpu|cuda(:[0-9]+)?", name):
        raise ConfigError(f"device: is '{name}'; possible: auto, cpu, cuda, cuda:1")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(name.partition(":")[2] or index)
        if count == 0:
            built = "" if torch.version.cuda else " (this torch is built without CUDA)"
            raise ConfigError(
                f"device: '{name}' asks for a CUDA device and this machine has none{built}; use cpu or auto"
            )
        if index >= count:
            raise ConfigError(f"device: '{name}' asks for device {index}; there are {count}, counted from 0")
        return torch.device("cuda", index)
    return torch.device(name)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which forward passes run with activations of `precision`."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=_DTYPES[precision])


def set_deterministic(on: bool) -> None:
    """Allow only operations that give the same bits in every run, or any."""
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if on != torch.are_deterministic_algorithms_enabled():  # the setter imports the compiler: 1 s
        torch.use_deterministic_algorithms(on)


def set_threads(setting: int | None, model: nn.Module, inputs: tuple[Tensor, ...], batch_size: int) -> None:
    """Choose the number of CPU threads of the process: as set, as OMP_NUM_THREADS says, or by the size of the model.

    Where a forward pass of a batch takes less than ten million multiplications a second thread gains a tenth on an idle
    machine, and loses a factor of ten or more where a neighbour has its core. `inputs` are some samples for the model.
    """
    if setting is None and "OMP_NUM_THREADS" not in os.environ:
        per_sample = _multiplications(model, inputs) / len(inputs[0])
        setting = 1 if 0 < per_sample * batch_size < _WORTH_THREADS else None
    torch.set_num_threads(setting or _most_threads)


def limit_threads(number: int) -> None:
    """Let `set_threads` take at most so many threads where none are set: the share of one process of several."""
    global _most_threads
    _most_threads = min(_most_threads, number)


def _multiplications(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Return about how many multiplications a forward pass takes, counted at the linear and convolutional layers."""
    total = 0

    def count(layer: nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal total
        total += output.numel() * cast(Tensor, layer.weight)[0].numel()

    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with evaluating(model), torch.no_grad():
        model(*inputs)
    for handle in handles:
        handle.remove()
    return total


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context in which all of `model` is in evaluation mode; then each module is as before, frozen ones too."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def missing_compiler(device: torch.device) -> str:
    """Return what torch.compile needs on `device` and this machine has not, in words; "" if it may work."""
    if device.type == "cuda":
        return "" if importlib.util.find_spec("triton") else "triton is not installed, which torch compiles with"
    program = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    return "" if shutil.which(program) else f"there is no C++ compiler ({program}), which torch compiles with"


def without_compiler() -> None:
    """Keep torch's optimizers from importing torch._dynamo, which takes over a second, for a run that compiles nothing.

    Some methods of Optimizer import it on their first call to shield themselves from compilation; here each is told
    that it is shielded already. Without effect where torch does this otherwise.
    """
    if "torch._dynamo" in sys.modules:
        return
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        method = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if method is not None:
            method.__dynamo_disable = method


def environment(device: torch.device) -> dict[str, Any]:
    """Return what the numbers of a run depend on besides its config."""
    import dltrain

    return {
        "dltrain": dltrain.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine(),
        "device_type": device.type,
        "num_threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "host": platform.node(),
    }
