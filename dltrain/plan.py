"""What the loop is given, built from the config before the first step: optimizer, regularization, goal; and the checks
of what can only be known once data and model are there.
"""

from __future__ import annotations

import fnmatch
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dltrain.build import Builder, Clock
from dltrain.config.durations import DurationValue
from dltrain.config.names import did_you_mean
from dltrain.config.schema.base import Component, Settings, UserComponent
from dltrain.data.columns import Columns
from dltrain.data.prepare import Inputs, Prepared
from dltrain.errors import ConfigError
from dltrain.metrics import HIGHER_IS_BETTER, PRIMARY
from dltrain.optimizers import muon_matrices, parameter_groups, supports_fused
from dltrain.regularization import Mixed, early_stop, gradient_noise, max_norm_, sam_perturb_
from dltrain.state import State

_SHARE_OF_DEVICE = 0.5


@dataclass(frozen=True)
class Regularizer:
    """The functions of the config's regularization, bound to the model's parameters; None where it asks for nothing."""

    penalties: list[Callable[[], Tensor]]
    mix: Callable[[Inputs, torch.Generator], Mixed] | None
    sam_perturb: Callable[[list[Tensor]], list[Tensor]] | None
    clip: Callable[[list[Tensor]], Tensor] | None
    gradient_noise: Callable[[list[Tensor], int, torch.Generator], None] | None
    max_norm: Callable[[], None] | None
    average: Callable[[int, int], float] | None
    """(step, total) -> weight of the current weights in the average."""
    early_stop: Callable[[list[float]], bool]


@dataclass(frozen=True)
class Goal:
    """The metric by which checkpoints are compared."""

    metric: str
    sign: float
    """By which it is multiplied so that lower is better."""

    def score(self, row: Mapping[str, Any]) -> float:
        """Return the score of a line of metrics; lower is better, NaN is no score."""
        value = float(row.get(self.metric, math.nan))
        return self.sign * value if math.isfinite(value) else math.nan


def build_optimizer(builder: Builder, model: nn.Module, device: torch.device) -> Optimizer:
    """Build the optimizer with its parameter groups; each has a `base_lr` that the schedule's factor scales."""
    settings = builder.file.config.optimizer
    target, arguments = builder.target_and_arguments(settings, ("optimizer",), {"params": None}, None)
    defaults = {name: p.default for name, p in inspect.signature(target).parameters.items()}
    lr = arguments.get("lr", defaults.get("lr", 1e-3))
    groups = parameter_groups(
        model.named_parameters(),
        lr,
        arguments.get("weight_decay", defaults.get("weight_decay", 0.0)),
        getattr(settings, "decay_all", False),
        [group.model_dump(exclude_none=True) for group in getattr(settings, "groups", [])],
        muon_matrices(model, settings.adamw) if settings.type == "muon" else None,  # type: ignore[attr-defined]
    )
    fused = {"fused": True} if supports_fused(target, device.type) else {}
    try:
        optimizer = target(**{**arguments, "params": groups, **fused})
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{builder.file.place('optimizer')}: {settings.type}: {error}") from error
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"{builder.file.place('optimizer')}: {settings.type} is no torch.optim.Optimizer")
    return optimizer


def build_regularizer(builder: Builder, model: nn.Module, clock: Clock) -> Regularizer:
    """Build the regularization of the config. Raises ConfigError where a pattern matches no parameter."""
    settings = builder.file.config.regularization

    def chosen(component: Component | None, name: str) -> Callable[..., Any] | None:
        return None if component is None else builder.partial(component, ("regularization", name), clock)

    def bound(function: Callable[..., Any], options: Settings | None) -> Callable[..., Any] | None:
        return None if options is None else functools.partial(function, **options.model_dump())

    penalties: list[Callable[[], Tensor]] = []
    for index, component in enumerate(settings.penalties):
        keys = ("regularization", "penalties", index)
        patterns = getattr(component, "params", "*weight")
        if isinstance(component, UserComponent):  # `params` is ours, whoever the penalty is
            component = UserComponent(**{k: v for k, v in component.model_dump().items() if k != "params"})
        penalty = builder.partial(component, keys)
        penalties.append(functools.partial(penalty, matching(builder, model, patterns, (*keys, "params"))))
    max_norm = None
    if settings.max_norm is not None:
        parameters = matching(builder, model, settings.max_norm.params, ("regularization", "max_norm", "params"))
        max_norm = functools.partial(max_norm_, parameters, limit=settings.max_norm.limit)
    average = chosen(settings.average, "average")
    if average is not None:
        average(0, clock.total_steps)  # settings that would average nothing are errors now
    return Regularizer(
        penalties,
        mix=chosen(settings.mix, "mix"),
        sam_perturb=bound(sam_perturb_, settings.sam),
        clip=chosen(settings.clip, "clip"),
        gradient_noise=bound(gradient_noise, settings.gradient_noise),
        max_norm=max_norm,
        average=average,
        early_stop=bound(early_stop, settings.early_stopping) or (lambda scores: False),
    )


def matching(
    builder: Builder, model: nn.Module, patterns: str | list[str], keys: tuple[str | int, ...]
) -> list[Tensor]:
    """Return the trainable parameters whose names match a pattern; one that matches nothing is a ConfigError."""
    names = {name: p for name, p in model.named_parameters() if p.requires_grad}
    chosen: dict[str, Tensor] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = fnmatch.filter(names, pattern)
        if not found:
            shown = ", ".join(list(names)[:10]) + did_you_mean(pattern, names)
            raise ConfigError(f"{builder.file.place(*keys)}: '{pattern}' matches no parameter; there are: {shown}")
        chosen |= {name: names[name] for name in found}
    return list(chosen.values())


def needs_raw_targets(builder: Builder) -> bool:
    """Return whether the loss of the config wants regression targets in their own units."""
    loss = builder.file.config.loss
    return loss is not None and bool(getattr(builder.target(loss, ("loss",)), "raw_targets", False))


def goal(builder: Builder, data: Prepared) -> Goal:
    """Return what the best checkpoint is best in: the config's monitor, or the task's own metric."""
    config = builder.file.config
    split = "val" if "val" in data.splits else "train"
    if config.train.monitor is None:
        # Mixed targets have no accuracy.
        name = "loss" if split == "train" and config.regularization.mix is not None else PRIMARY[data.task.type]
        metric = f"{split}/{name}"
    else:
        metric = config.train.monitor
        place = builder.file.place("train", "monitor")
        possible = ["loss", *data.task.metrics(torch.device("cpu")).compute()]
        if metric.startswith("val/") and split != "val":
            raise ConfigError(f"{place}: is '{metric}', and there is no validation split; set split.val")
        if metric.partition("/")[2] not in possible:
            raise ConfigError(
                f"{place}: is '{metric}'; possible for {data.task.type}: {', '.join(possible)} after val/ or train/"
            )
        if metric.startswith("train/") and not metric.endswith("/loss") and config.regularization.mix is not None:
            raise ConfigError(
                f"{place}: is '{metric}', which mixed samples do not have; use train/loss or a val/ metric"
            )
    return Goal(metric, -1.0 if HIGHER_IS_BETTER[metric.partition("/")[2]] else 1.0)


def check(builder: Builder, data: Prepared, state: State, steps_per_epoch: int) -> None:
    """Raise ConfigError for settings that cannot take effect together or would fail in the middle of an epoch."""
    config, file = builder.file.config, builder.file
    size, num_samples = config.train.batch_size, len(data.splits["train"])
    if config.train.sampler == "balanced" and data.task.type != "classification":
        raise ConfigError(f"{file.place('train', 'sampler')}: balanced needs classes; the task is {data.task.type}")
    if hasattr(state.optimizer, "average_into") and config.regularization.average is not None:
        raise ConfigError(f"{file.place('regularization', 'average')}: {config.optimizer.type} is an average already")
    if config.regularization.sam is not None and config.train.precision == "float16":
        raise ConfigError(f"{file.place('regularization', 'sam')}: cannot be combined with float16; use bfloat16")
    if config.train.drop_last and num_samples < size:
        raise ConfigError(
            f"{file.place('train', 'drop_last')}: drops every batch: {num_samples} samples are fewer than "
            f"train.batch_size {size}"
        )
    last = num_samples - (steps_per_epoch - 1) * size if not config.train.drop_last else size
    micro = config.train.micro_batch_size or size
    sizes = {min(size, micro), size % micro or micro, last % micro or min(micro, last)}
    if 1 in sizes and any(isinstance(m, nn.BatchNorm1d) for m in state.model.modules()):
        raise ConfigError(
            f"{file.place('train', 'batch_size')}: {num_samples} samples in batches of {size} leave a batch of one, "
            "which BatchNorm cannot normalise; set train.drop_last: true or another size"
        )


def placed(columns: Columns, device: torch.device) -> Columns:
    """Return `columns` on the device if they fit beside the training, else where they are, pinned for copies."""
    if device.type == "cpu":
        return columns
    free_bytes, _ = torch.cuda.mem_get_info(device)
    if columns.size_bytes < _SHARE_OF_DEVICE * free_bytes:
        return columns.to(device)
    return columns.pinned()


def save_due(interval: DurationValue, clock: Clock) -> Callable[[State], bool]:
    """Return what says after each step whether a checkpoint is due: every so many steps, or seconds of training.

    When checkpoints are written changes no result, so a clock may decide it.
    """
    if interval.unit != "s":
        every = max(1, clock.steps(interval))
        return lambda state: state.step % every == 0
    last_s: float | None = None

    def due(state: State) -> bool:
        nonlocal last_s
        if last_s is None or state.elapsed_s - last_s >= interval.amount:
            first, last_s = last_s is None, state.elapsed_s
            return not first
        return False

    return due
