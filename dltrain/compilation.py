"""`train.compile`: whether the loop calls the model as it is, or the form that torch.compile makes of it.

Both give the same numbers but for the last bits. So that a resumed run gives the same bits, it uses the form that the
run began with, and what is compiled for a batch depends on the shape of that batch alone, not on those before it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from dltrain.config.schema.sections import Config
from dltrain.data.cache_entries import compiled_folder
from dltrain.data.prepare import Inputs
from dltrain.device import autocast, missing_compiler
from dltrain.errors import DltrainError, TrainingError
from dltrain.names import first_line
from dltrain.network import augmented
from dltrain.plan import Plan
from dltrain.state import set_buffers

# On two CPU cores: 11 to 22 s for mlp, convnet and resnet18, 2 to 4 s where the cache holds the code.
_COST_S = 20.0
_MOST_SAVED = 0.25
_NUM_TRIES = 5
_LONGEST_S = 5.0


def training_form(plan: Plan, config: Config) -> tuple[nn.Module, str]:
    """Return the form of the model that is called in training, and what the user is told of it; may be "".

    Which it is, is kept in the state and its checkpoints. Weights are always taken from the model itself.

    Raises TrainingError if torch cannot compile a model that has to be compiled.
    """
    state, setting, steps_left = plan.state, config.train.compile, plan.state.total_steps - plan.state.step
    if state.compiled is None and setting != "auto":
        state.compiled = setting is True
    if state.compiled is False or steps_left <= 0:
        return plan.network.model, ""
    with left_as_it_is(state.model, plan.device):
        form, told = _try(plan, config, steps_left, must=state.compiled is True)
    state.compiled = form is not None
    return (state.model if form is None else form), f"compile: {told}"


def _try(plan: Plan, config: Config, steps_left: int, *, must: bool) -> tuple[nn.Module | None, str]:
    """Return the compiled form if it pays, or `must` be, else None; and what is found, in words."""
    model, (inputs, target) = plan.state.model, _batch(plan, config)
    passes_left = steps_left * math.ceil(config.train.batch_size / len(target))
    passes_left *= 2 if config.regularization.sam is not None else 1

    def pass_s(form: nn.Module) -> float:
        """Return the seconds that a forward and a backward pass of the batch take."""
        began = time.perf_counter()
        with autocast(plan.device, config.train.precision):
            loss = plan.network.loss(form(*inputs).float(), target)
        torch.autograd.backward(loss)
        if plan.device.type == "cuda":
            torch.cuda.synchronize(plan.device)
        return time.perf_counter() - began

    if not must:
        (eager_s,) = _fastest(pass_s, [model])
        if plan.budget is not None:
            passes_left = int((plan.budget.seconds - plan.state.elapsed_s) / eager_s)
        if reason := _not_worth_a_try(plan.device, eager_s * passes_left):
            return None, f"no, {reason}"
    form = _compiled(model, dynamic=plan.train.has_sequences)
    try:
        compiling_s = pass_s(form)
    except DltrainError:
        raise
    except Exception as error:  # whatever the compiler does with a model of the user's own
        reason = f"torch cannot compile the model: {first_line(getattr(error, 'inner_exception', error))}"
        if must:
            raise TrainingError(f"train.compile: {reason}; false trains it as it is") from error
        return None, f"no, {reason}"
    if must:
        return form, f"took {compiling_s:.0f} s"
    eager_s, compiled_s = _fastest(pass_s, [model, form])
    # Batches of another shape, as the last of an epoch, are compiled for in turn, which takes as long once more.
    pays = (eager_s - compiled_s) * passes_left > compiling_s
    return form if pays else None, (
        f"{'yes' if pays else 'no'}, forward and backward take {1000 * compiled_s:.3g} ms compiled and "
        f"{1000 * eager_s:.3g} ms as they are; compiling took {compiling_s:.0f} s"
    )


def _batch(plan: Plan, config: Config) -> tuple[Inputs, Tensor]:
    """Return the first samples of the training as the model is called with: as many as are in memory at once."""
    size = min(config.train.micro_batch_size or config.train.batch_size, len(plan.train))
    inputs, target = plan.train.batch(slice(0, size), plan.device)
    return augmented(plan.network.transform(inputs), plan.augment, torch.Generator(plan.device)), target


def _not_worth_a_try(device: torch.device, left_s: float) -> str:
    """Return why a training with `left_s` of forward and backward passes before it is not compiled; "" if it may be."""
    if missing := missing_compiler(device):
        return missing
    if left_s * _MOST_SAVED < _COST_S:
        return (
            f"forward and backward take about {left_s:.2g} s in all; compiling takes some {_COST_S:.0f} s and saves "
            f"hardly more than {_MOST_SAVED:.0%}"
        )
    return ""


def _fastest(pass_s: Callable[[nn.Module], float], forms: Sequence[nn.Module]) -> list[float]:
    """Return the least seconds of several passes of each form; they take turns, since a machine has other work."""
    for form in forms:
        pass_s(form)  # the first is slower
    rounds: list[list[float]] = []
    began = time.perf_counter()
    while len(rounds) < _NUM_TRIES and (not rounds or time.perf_counter() - began < _LONGEST_S):
        rounds.append([pass_s(form) for form in forms])
    return [min(times_s) for times_s in zip(*rounds, strict=True)]


def _compiled(model: nn.Module, *, dynamic: bool) -> nn.Module:
    """Return the compiled form of `model`; the first batch of a shape, or if `dynamic` the first of all, compiles.

    What is compiled is kept in the cache of dltrain, unless that is switched off or torch is told of another place.
    """
    import torch.fx.experimental._config as shapes
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    told = os.environ.get("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())  # torch sets it itself as it is imported
    if told == default_cache_dir() and (folder := compiled_folder()) is not None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    torch.compiler.reset()  # of a training before this one in the same process
    shapes.use_duck_shape = False  # else a batch whose sizes are equal by chance gets code of its own, if it is first
    return cast(nn.Module, torch.compile(model, dynamic=dynamic))


@contextmanager
def left_as_it_is(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Context in which `model` may be run: its buffers, gradients and torch's random numbers are then as before."""
    buffers = [buffer.clone() for buffer in model.buffers()]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    set_buffers(model, buffers)
    for parameter in model.parameters():
        parameter.grad = None
