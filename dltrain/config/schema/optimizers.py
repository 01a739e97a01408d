"""Settings of the optimizers, torch's and our own, and of parameter groups.

Fields in `build_only` are not arguments of the optimizer: `dltrain.optimization` reads them.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dltrain.config.schema.base import Component, Settings

Beta = Annotated[float, Field(ge=0, lt=1)]
Pattern = Annotated[str, Field(min_length=1)]

_LR = "learning rate at the peak of the schedule"
_BETAS = "decay of the mean of gradients and of the mean of their squares"
_EPS = "added to the denominator for stability"
_L2 = "added to the gradient times the weights (L2 penalty)"
_DECOUPLED = "decay of the weights, apart from the gradient, in units of the learning rate"
_DECOUPLE = "decay the weights apart from the gradient, as AdamW does"


class ParameterGroup(Settings):
    """Options of the parameters whose names match; a parameter belongs to the first group that matches."""

    params: Pattern | Annotated[list[Pattern], Field(min_length=1)] = Field(
        description="glob pattern over parameter names, or a list of them: 'head.*', '*.norm?.weight'"
    )
    lr: float | None = Field(None, gt=0, description="learning rate of the group; null: the optimizer's")
    lr_scale: float | None = Field(None, gt=0, description="factor of the optimizer's learning rate; null: 1")
    weight_decay: float | None = Field(None, ge=0, description="weight decay of the group; null: the optimizer's")

    @model_validator(mode="after")
    def _one_lr(self) -> Self:
        if self.lr is not None and self.lr_scale is not None:
            raise ValueError("lr and lr_scale exclude each other; give one")
        return self


class OptimizerComponent(Component):
    """What all optimizers have."""

    build_only: ClassVar[tuple[str, ...]] = ("decay_all", "groups")
    decay_all: bool = Field(False, description="decay norms, biases and other one-dimensional parameters too")
    groups: list[ParameterGroup] = Field(
        [], description="options by pattern over parameter names; the first match wins"
    )


class SGD(OptimizerComponent):
    """Stochastic gradient descent, with momentum if wanted (Sutskever et al. 2013)."""

    builds: ClassVar[str] = "torch.optim:SGD"
    type: Literal["sgd"]
    lr: float = Field(1e-3, gt=0, description=_LR)
    momentum: float = Field(0.0, ge=0, lt=1, description="decay of the sum of gradients; 0: plain gradient descent")
    dampening: float = Field(0.0, ge=0, le=1, description="part of each gradient that is kept out of the momentum")
    weight_decay: float = Field(0.0, ge=0, description=_L2)
    nesterov: bool = Field(False, description="look ahead along the momentum; needs momentum, and no dampening")

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError("nesterov needs momentum above 0 and dampening 0")
        if self.dampening and not self.momentum:
            raise ValueError("dampening has no effect without momentum")
        return self


class Adam(OptimizerComponent):
    """Adaptive moments (Kingma & Ba 2015, https://arxiv.org/abs/1412.6980)."""

    builds: ClassVar[str] = "torch.optim:Adam"
    type: Literal["adam"]
    lr: float = Field(1e-3, gt=0, description=_LR)
    betas: list[Beta] = Field([0.9, 0.999], min_length=2, max_length=2, description=_BETAS)
    eps: float = Field(1e-8, gt=0, description=_EPS)
    weight_decay: float = Field(0.0, ge=0, description=_L2)
    amsgrad: bool = Field(False, description="divide by the largest mean of squares so far")


class AdamW(OptimizerComponent):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101)."""

    builds: ClassVar[str] = "torch.optim:AdamW"
    type: Literal["adamw"]
    lr: float = Field(1e-3, gt=0, description=_LR)
    betas: list[Beta] = Field([0.9, 0.999], min_length=2, max_length=2, description=_BETAS)
    eps: float = Field(1e-8, gt=0, description=_EPS)
    weight_decay: float = Field(0.01, ge=0, description=_DECOUPLED)
    amsgrad: bool = Field(False, description="divide by the largest mean of squares so far")


class NAdam(OptimizerComponent):
    """Adam with Nesterov momentum (Dozat 2016, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ)."""

    builds: ClassVar[str] = "torch.optim:NAdam"
    type: Literal["nadam"]
    lr: float = Field(2e-3, gt=0, description=_LR)
    betas: list[Beta] = Field([0.9, 0.999], min_length=2, max_length=2, description=_BETAS)
    eps: float = Field(1e-8, gt=0, description=_EPS)
    weight_decay: float = Field(0.0, ge=0, description=_L2)
    momentum_decay: float = Field(4e-3, ge=0, description="how fast the momentum reaches its full value")
    decoupled_weight_decay: bool = Field(False, description=_DECOUPLE)


class RAdam(OptimizerComponent):
    """Adam whose early steps are tamed (Liu et al. 2020, https://arxiv.org/abs/1908.03265)."""

    builds: ClassVar[str] = "torch.optim:RAdam"
    type: Literal["radam"]
    lr: float = Field(1e-3, gt=0, description=_LR)
    betas: list[Beta] = Field([0.9, 0.999], min_length=2, max_length=2, description=_BETAS)
    eps: float = Field(1e-8, gt=0, description=_EPS)
    weight_decay: float = Field(0.0, ge=0, description=_L2)
    decoupled_weight_decay: bool = Field(False, description=_DECOUPLE)


class RMSprop(OptimizerComponent):
    """Gradients divided by the root of their mean square (Hinton 2012, lecture 6 of Neural Networks)."""

    builds: ClassVar[str] = "torch.optim:RMSprop"
    type: Literal["rmsprop"]
    lr: float = Field(1e-2, gt=0, description=_LR)
    alpha: Beta = Field(0.99, description="decay of the mean of squares")
    eps: float = Field(1e-8, gt=0, description=_EPS)
    weight_decay: float = Field(0.0, ge=0, description=_L2)
    momentum: float = Field(0.0, ge=0, lt=1, description="decay of the sum of updates")
    centered: bool = Field(False, description="divide by the deviation rather than the mean square")


class Adagrad(OptimizerComponent):
    """Gradients divided by the root of the sum of their squares (Duchi et al. 2011)."""

    builds: ClassVar[str] = "torch.optim:Adagrad"
    type: Literal["adagrad"]
    lr: float = Field(1e-2, gt=0, description=_LR)
    lr_decay: float = Field(0.0, ge=0, description="further fall of the learning rate with the steps")
    weight_decay: float = Field(0.0, ge=0, description=_L2)
    initial_accumulator_value: float = Field(0.0, ge=0, description="where the sums of squares begin")
    eps: float = Field(1e-10, gt=0, description=_EPS)


class Lion(OptimizerComponent):
    """The sign of a momentum (Chen et al. 2023, https://arxiv.org/abs/2302.06675); wants a smaller lr."""

    builds: ClassVar[str] = "dltrain.optimizers:Lion"
    type: Literal["lion"]
    lr: float = Field(1e-4, gt=0, description=_LR)
    betas: list[Beta] = Field(
        [0.9, 0.99],
        min_length=2,
        max_length=2,
        description="decay of the momentum in the update and in the memory",
    )
    weight_decay: float = Field(0.0, ge=0, description=_DECOUPLED)


class Muon(OptimizerComponent):
    """Orthogonalized momentum for hidden matrices (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon).
    """

    builds: ClassVar[str] = "dltrain.optimizers:Muon"
    build_only: ClassVar[tuple[str, ...]] = ("decay_all", "groups", "adamw")
    type: Literal["muon"]
    lr: float = Field(1e-3, gt=0, description=_LR)
    weight_decay: float = Field(0.1, ge=0, description=_DECOUPLED)
    momentum: float = Field(0.95, ge=0, lt=1, description="decay of the mean of gradients of orthogonalized matrices")
    nesterov: bool = Field(True, description="look ahead along the momentum")
    ns_steps: int = Field(5, ge=1, lt=100, description="Newton-Schulz steps of an update")
    adjust_lr: Literal["match_rms_adamw", "original"] = Field(
        "match_rms_adamw",
        description="size of matrix updates: as AdamW's, so that one lr serves all, or as published",
    )
    betas: list[Beta] = Field([0.9, 0.999], min_length=2, max_length=2, description=f"AdamW's: {_BETAS}")
    eps: float = Field(1e-8, gt=0, description=f"AdamW's: {_EPS}")
    adamw: list[Pattern] = Field(
        [], description="patterns of parameters that AdamW updates, besides vectors, embeddings and the head"
    )


class ScheduleFreeAdamW(OptimizerComponent):
    """AdamW that averages its path in place of a schedule (Defazio et al. 2024,
    https://arxiv.org/abs/2405.15682).
    """

    builds: ClassVar[str] = "dltrain.optimizers:ScheduleFreeAdamW"
    type: Literal["schedule_free_adamw"]
    lr: float = Field(2.5e-3, gt=0, description=_LR)
    betas: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        [0.9, 0.999],
        min_length=2,
        max_length=2,
        description="weight of the average in the point of gradients; decay of squares",
    )
    eps: float = Field(1e-8, gt=0, description=_EPS)
    weight_decay: float = Field(0.0, ge=0, description=_DECOUPLED)


ALL: tuple[type[Component], ...] = (
    SGD,
    Adam,
    AdamW,
    NAdam,
    RAdam,
    RMSprop,
    Adagrad,
    Lion,
    Muon,
    ScheduleFreeAdamW,
)
