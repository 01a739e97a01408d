"""What changes from step to step, and its way into a checkpoint and back, bit for bit."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dltrain import checkpoint as checkpoints
from dltrain.checkpoint import BEST, LAST, PREVIOUS, Checkpoint
from dltrain.metrics import Metrics
from dltrain.optimizers import averages
from dltrain.ranks import Ranks
from dltrain.sharding import Shards

_SUMS = ("loss_sum", "penalty_sum", "weight_sum")


@dataclass
class State:
    """A training between two steps. Everything else that decides the next step is a function of config and step."""

    model: nn.Module
    optimizer: Optimizer
    averaged: nn.Module | None
    """The model with averaged weights, where the config asks for an average."""
    scaler: Any
    """torch.amp.GradScaler for float16, else None."""
    metrics: Metrics
    """Of the training batches since the last line of metrics."""
    shards: Shards | None = None
    """Where the model is in slices, of which `model` and `averaged` hold this process's."""
    step: int = 0
    total_steps: int = 0
    """Of the whole training; for one whose length is a time, about as many as there will be."""
    elapsed_s: float = 0.0
    scores: list[float] = field(default_factory=list)
    """The monitored metric at each evaluation, with the sign by which lower is better."""
    micro_batch_size: int = 0
    """Samples of a step that are in memory at once; halved where it runs out."""
    eval_batch_size: int = 0
    """The same of an evaluation."""
    first_loss: float | None = None
    """Of the training batches, in the first line of metrics."""
    num_skipped_steps: int = 0
    """Steps whose update was left out, since loss or gradient was not finite."""
    num_rollbacks: int = 0
    """Returns to a checkpoint for the same reason; each halves the learning rate."""
    compiled: bool | None = None
    """Whether the compiled form of the model is trained, on which the last bits depend; None until it is decided."""
    row: dict[str, Any] = field(default_factory=dict)
    """The last line of metrics."""
    best: Checkpoint | None = None
    """The best weights so far, where they are not on disk yet."""
    loss_sum: Tensor = field(init=False)
    """Float64 scalar since the last line of metrics: losses, each times its weight; the next two likewise."""
    penalty_sum: Tensor = field(init=False)
    weight_sum: Tensor = field(init=False)

    def __post_init__(self) -> None:
        device = next(self.model.parameters()).device
        for name in _SUMS:
            setattr(self, name, torch.zeros((), dtype=torch.float64, device=device))
        self._found, self._one = torch.zeros(1, device=device), torch.ones(1, device=device)

    @property
    def lr_factor(self) -> float:
        """What rollbacks have left of the learning rate."""
        return 0.5**self.num_rollbacks

    @property
    def evaluated(self) -> nn.Module:
        """The form of the model that is evaluated."""
        return self.model if self.averaged is None else self.averaged

    @contextlib.contextmanager
    def evaluated_form(self) -> Iterator[nn.Module]:
        """Context of the form of the model that is evaluated, to be called; slices of averages stand in for others."""
        if self.shards is None:
            yield self.evaluated
            return
        if self.averaged is None:
            yield self.shards.network.model
            return
        held = tensors_of(self.model)
        before = [tensor.clone() for tensor in held]
        try:
            _copy(held, tensors_of(self.averaged))
            yield self.shards.network.model
        finally:
            _copy(held, before)

    @property
    def rows(self) -> Callable[[int], slice] | None:
        """Which rows of the tensors in shards a checkpoint is to be read for; None: all."""
        return None if self.shards is None else self.shards.rows

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of what was computed of each slice of the weights; of those that are whole, `value`."""
        return value if self.shards is None else self.shards.total(value)

    @property
    def best_is_last(self) -> bool:
        """Whether the last evaluation was the best so far."""
        return not math.isnan(self.scores[-1]) and not any(score <= self.scores[-1] for score in self.scores[:-1])

    def not_finite(self, loss: Tensor, parameters: Sequence[Tensor]) -> str:
        """Return "loss is" or "gradient is" where that is not finite, else ""; waits for the device.

        Scaled gradients may overflow: their scaler leaves out such a step.
        """
        if not math.isfinite(loss.item()):
            return "loss is"
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.scaler is not None or not gradients:
            return ""
        # The operation of mixed precision that looks at all in one go: 4 us for a small MLP, isfinite takes 170.
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, self._found.zero_(), self._one)
        return "gradient is" if self.total(self._found).item() else ""

    def refresh_average(self) -> None:
        """Bring averages up to date that an optimizer keeps in its own state (schedule-free)."""
        if self.averaged is not None and averages(self.optimizer):
            names = {parameter: name for name, parameter in self.model.named_parameters()}
            targets = dict(self.averaged.named_parameters())
            in_order = [p for group in self.optimizer.param_groups for p in group["params"]]
            cast(Any, self.optimizer).average_into([targets[names[p]] for p in in_order])
            for target, buffer in zip(self.averaged.buffers(), self.model.buffers(), strict=True):
                target.copy_(buffer)

    def bring_together(self, ranks: Ranks) -> None:
        """Give all processes the buffers of the first, such as batch statistics, and the first the metrics of all."""
        if ranks.alone:
            return
        ranks.take_from_first(self.model.buffers())
        if self.averaged is not None:
            ranks.take_from_first(self.averaged.buffers())
        sums = self.metrics.state
        ranks.add(sums)
        self.metrics.load(sums if ranks.first else torch.zeros_like(sums))

    def reset_sums(self) -> None:
        """Begin a new line of metrics."""
        for name in _SUMS:
            getattr(self, name).zero_()
        self.metrics.reset()

    def save(self, folder: Path, meta: dict[str, Any]) -> None:
        """Write the best checkpoint, if there is a new one, and then the last: together the state of the run."""
        self.save_best(folder)
        self._write(folder / LAST, self.last_checkpoint(meta), keep_as=PREVIOUS)

    def save_best(self, folder: Path) -> None:
        """Write the best checkpoint, if there is a new one."""
        if self.best is not None:
            self._write(folder / BEST, self.best)
            self.best = None

    def _write(self, path: Path, checkpoint: Checkpoint, *, keep_as: str | None = None) -> None:
        (checkpoints.save if self.shards is None else self.shards.save)(path, checkpoint, keep_as=keep_as)

    def last_checkpoint(self, meta: dict[str, Any]) -> Checkpoint:
        """Return all of the state, with `meta` about the run; the tensors are the live ones."""
        self.refresh_average()
        tensors = _prefixed("model", self.model.state_dict())
        if self.averaged is not None:
            tensors |= _prefixed("averaged", self.averaged.state_dict())
        tensors |= _prefixed("optimizer", checkpoints.optimizer_state(self.optimizer, self.model))
        tensors |= {f"running/{name}": getattr(self, name) for name in _SUMS}
        tensors["running/metrics"] = self.metrics.state
        scores = [None if math.isnan(score) else score for score in self.scores]
        numbers = {
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "metrics": self.row,
            "scores": scores,
            "micro_batch_size": self.micro_batch_size,
            "eval_batch_size": self.eval_batch_size,
            "first_loss": self.first_loss,
            "num_skipped_steps": self.num_skipped_steps,
            "num_rollbacks": self.num_rollbacks,
            "compiled": self.compiled,
        }
        return Checkpoint(tensors, {**meta, **numbers, "scaler": self.scaler.state_dict() if self.scaler else None})

    def best_checkpoint(self, meta: dict[str, Any]) -> Checkpoint:
        """Return a copy of the weights that were evaluated, enough to evaluate and predict with."""
        weights = {name: value.detach().clone() for name, value in self.evaluated.state_dict().items()}
        return Checkpoint(_prefixed("model", weights), {**meta, "step": self.step, "metrics": self.row})

    def restore(self, checkpoint: Checkpoint, where: str) -> None:
        """Take over the state of a last checkpoint; `where` names it in messages."""
        if self.shards is not None:
            checkpoint = self.shards.own(checkpoint)
        checkpoints.load_weights(self.model, checkpoint.part("model"), where)
        if self.averaged is not None:
            checkpoints.load_weights(self.averaged, checkpoint.part("averaged"), where)
        checkpoints.load_optimizer_state(self.optimizer, self.model, checkpoint.part("optimizer"))
        running, meta = checkpoint.part("running"), checkpoint.meta
        for name in _SUMS:
            getattr(self, name).copy_(running[name])
        self.metrics.load(running["metrics"].to(self.loss_sum.device))
        if self.scaler is not None:
            self.scaler.load_state_dict(meta["scaler"])
        self.step, self.elapsed_s, self.row = meta["step"], meta["elapsed_s"], meta["metrics"]
        self.scores = [math.nan if score is None else score for score in meta["scores"]]
        self.num_skipped_steps, self.num_rollbacks = meta["num_skipped_steps"], meta["num_rollbacks"]
        # The first checkpoints of the format lack these.
        self.micro_batch_size = min(self.micro_batch_size, meta.get("micro_batch_size", self.micro_batch_size))
        self.eval_batch_size = min(self.eval_batch_size, meta.get("eval_batch_size", self.eval_batch_size))
        self.first_loss = meta.get("first_loss")
        self.compiled = meta.get("compiled")


def averaged_copy(model: nn.Module) -> nn.Module:
    """Return a copy of `model` that will hold averaged weights."""
    return copy.deepcopy(model).requires_grad_(False)


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Return parameters and buffers of `module`, in a fixed order."""
    return [*(p.detach() for p in module.parameters()), *module.buffers()]


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether no element is infinite or NaN; waits for the device."""
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


def set_buffers(model: nn.Module, values: Iterable[Tensor]) -> None:
    """Give the buffers of `model`, such as batch statistics, other values."""
    for buffer, value in zip(model.buffers(), values, strict=True):
        buffer.copy_(value)


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def _prefixed(part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part}/{name}": tensor for name, tensor in tensors.items()}
