"""What changes the weights: the optimizer, the schedule and the regularization of a config.

All are bound to the model's parameters and tried, so that the loop only calls them.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.optim import Optimizer

from dltrain.build import Builder, Clock, parameters_of, user_failure
from dltrain.config.reader import Keys
from dltrain.config.schema.base import Component, Settings, UserComponent
from dltrain.data.prepare import Inputs
from dltrain.errors import ConfigError
from dltrain.optimizers import supports_fused
from dltrain.parameter_groups import muon_matrices, names_matching, parameter_groups
from dltrain.regularization import Mixed, Norm, early_stop, gradient_noise, max_norm_, sam_perturb_


def build_optimizer(builder: Builder, model: nn.Module, device: torch.device) -> tuple[Optimizer, float]:
    """Build the optimizer; return it and its learning rate. Its groups have a `base_lr` that the schedule scales."""
    settings = builder.file.config.optimizer
    target, arguments = builder.target_and_arguments(settings, ("optimizer",), {"params": None}, None)
    # What a built-in optimizer has beside its arguments; a user's optimizer may use the names for something else.
    built_in: Any = None if isinstance(settings, UserComponent) else settings
    defaults = {name: parameter.default for name, parameter in (parameters_of(target) or {}).items()}
    lr = arguments.get("lr", defaults.get("lr", 1e-3))
    with builder.at("optimizer"):
        groups = parameter_groups(
            model.named_parameters(),
            lr,
            arguments.get("weight_decay", defaults.get("weight_decay", 0.0)),
            built_in is not None and built_in.decay_all,
            [group.model_dump(exclude_none=True) for group in built_in.groups] if built_in is not None else [],
            muon_matrices(model, built_in.adamw) if settings.type == "muon" else None,
        )
        fused: dict[str, Any] = {}
        if supports_fused(target, device.type) and not {"fused", "foreach", "differentiable"} & arguments.keys():
            fused = {"fused": True}
        try:
            optimizer = target(**{**arguments, "params": groups, **fused})
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"{settings.type}: {error}") from error
        if not isinstance(optimizer, Optimizer):
            raise ConfigError(f"{settings.type} is no torch.optim.Optimizer")
        closure = inspect.signature(type(optimizer).step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise ConfigError(f"{settings.type} needs several evaluations of the loss a step; choose another")
    return optimizer, lr


def build_schedule(builder: Builder, clock: Clock) -> Callable[[int, int], float]:
    """Return the schedule: (step, total) -> factor of all learning rates.

    Raises ConfigError where it does not fit the training, or where one of the user's own gives no factor.
    """
    schedule = builder.partial(builder.file.config.schedule, ("schedule",), clock)
    with builder.at("schedule"):
        for step in {0, clock.total_steps // 2, clock.total_steps - 1}:
            factor = schedule(step, clock.total_steps)
            if not isinstance(factor, int | float) or not 0 <= factor < math.inf:
                raise ConfigError(f"gives {factor!r} for step {step}; a factor of the learning rate is a number >= 0")
    return schedule


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


def build_regularizer(
    builder: Builder, model: nn.Module, clock: Clock, example: Inputs, norm_of: Norm = vector_norm
) -> Regularizer:
    """Build the regularization of the config and try it; `example` are some inputs of the model.

    `norm_of` gives the norm of the norms of gradients.

    Raises ConfigError where a pattern matches no parameter, or where something does not fit the data.
    """
    settings, penalties = builder.file.config.regularization, _build_penalties(builder, model)

    def chosen(component: Component | None, name: str) -> Callable[..., Any] | None:
        return None if component is None else builder.partial(component, ("regularization", name), clock)

    def bound(function: Callable[..., Any], options: Settings | None) -> Callable[..., Any] | None:
        return None if options is None else functools.partial(function, **options.model_dump())

    max_norm = None
    if settings.max_norm is not None:
        parameters = _matching(builder, model, settings.max_norm.params, ("regularization", "max_norm", "params"))
        max_norm = functools.partial(max_norm_, parameters, limit=settings.max_norm.limit)
    clip, sam_perturb = chosen(settings.clip, "clip"), bound(sam_perturb_, settings.sam)
    if norm_of is not vector_norm:
        clip = None if clip is None else functools.partial(clip, norm_of=norm_of)
        sam_perturb = None if sam_perturb is None else functools.partial(sam_perturb, norm_of=norm_of)
    average, mixing = chosen(settings.average, "average"), chosen(settings.mix, "mix")
    if average is not None:
        with builder.at("regularization", "average"):
            average(0, clock.total_steps)
    if mixing is not None:
        with builder.at("regularization", "mix"):
            mixing(example, torch.Generator(example[0].device))
    return Regularizer(
        penalties,
        mix=mixing,
        sam_perturb=sam_perturb,
        clip=clip,
        gradient_noise=bound(gradient_noise, settings.gradient_noise),
        max_norm=max_norm,
        average=average,
        early_stop=bound(early_stop, settings.early_stopping) or (lambda scores: False),
    )


def _build_penalties(builder: Builder, model: nn.Module) -> list[Callable[[], Tensor]]:
    penalties: list[Callable[[], Tensor]] = []
    for index, component in enumerate(builder.file.config.regularization.penalties):
        keys = ("regularization", "penalties", index)
        patterns = getattr(component, "params", "*weight")
        if isinstance(component, UserComponent):  # `params` is ours, whoever the penalty is
            component = UserComponent(**{k: v for k, v in component.model_dump().items() if k != "params"})
        penalty = builder.partial(component, keys)
        penalties.append(functools.partial(penalty, _matching(builder, model, patterns, (*keys, "params"))))
        _try_penalty(builder, keys, penalties[-1])
    return penalties


def _try_penalty(builder: Builder, keys: Keys, penalty: Callable[[], Tensor]) -> None:
    """Raise ConfigError if a penalty (of the user's own) gives no scalar tensor."""
    with builder.at(*keys):
        try:
            value = penalty()
        except Exception as error:
            raise ConfigError(f"failed: {user_failure(error)}") from error
        if not isinstance(value, Tensor) or value.dim() != 0:
            found = f"tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(f"gives a {found}; a penalty is a scalar tensor")


def _matching(builder: Builder, model: nn.Module, patterns: str | list[str], keys: Keys) -> list[Tensor]:
    """Return the trainable parameters whose names match a pattern; one that matches nothing is a ConfigError."""
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return [trainable[name] for name in names_matching(patterns, trainable, builder.file.place(*keys))]
