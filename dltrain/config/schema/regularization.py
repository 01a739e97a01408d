"""Regularization in the config: penalties, clipping, averages of weights, mixing, and the settings without a
choice of type.

What each does stands in `dltrain.regularization`. `build_only` names the settings that choose what a function
is given, and so are no arguments of it.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dltrain.config.durations import Duration, DurationValue
from dltrain.config.schema.base import Component, Settings

Patterns = str | Annotated[list[str], Field(min_length=1)]
"""One or several patterns over parameter names, such as "*weight" or ["encoder.*.weight", "head.weight"]."""

PENALIZED = "names of the parameters it is for: a pattern such as '*weight', or several in a list"


class L1(Component):
    """Lasso: strength * sum |w|, for few large weights (Tibshirani 1996)."""

    builds: ClassVar[str] = "dltrain.regularization:l1"
    build_only: ClassVar[tuple[str, ...]] = ("params",)
    type: Literal["l1"]
    strength: float = Field(gt=0, description="factor of the sum of absolute weights")
    params: Patterns = Field("*weight", description=PENALIZED)


class L2(Component):
    """Ridge: strength * sum w^2, for small weights; no factor 1/2 (Krogh & Hertz 1991)."""

    builds: ClassVar[str] = "dltrain.regularization:l2"
    build_only: ClassVar[tuple[str, ...]] = ("params",)
    type: Literal["l2"]
    strength: float = Field(gt=0, description="factor of the sum of squared weights")
    params: Patterns = Field("*weight", description=PENALIZED)


class ElasticNet(Component):
    """A blend of l1 and l2 (Zou & Hastie 2005)."""

    builds: ClassVar[str] = "dltrain.regularization:elastic_net"
    build_only: ClassVar[tuple[str, ...]] = ("params",)
    type: Literal["elastic_net"]
    strength: float = Field(gt=0, description="factor of the blend")
    l1_ratio: float = Field(0.5, ge=0, le=1, description="share of l1; the rest is l2")
    params: Patterns = Field("*weight", description=PENALIZED)


class GroupLasso(Component):
    """Drives all that a unit reads to zero together: rows and filters (Yuan & Lin 2006)."""

    builds: ClassVar[str] = "dltrain.regularization:group_lasso"
    build_only: ClassVar[tuple[str, ...]] = ("params",)
    type: Literal["group_lasso"]
    strength: float = Field(gt=0, description="factor of the sum of row norms, each times the root of its length")
    params: Patterns = Field("*weight", description=PENALIZED)


class ClipNorm(Component):
    """Scales all gradients together so that their total norm keeps a limit (Pascanu et al. 2013)."""

    builds: ClassVar[str] = "dltrain.regularization:clip_norm"
    type: Literal["norm"]
    max_norm: float = Field(1.0, gt=0, description="largest total norm")


class ClipValue(Component):
    """Clamps every element of the gradients by itself (Mikolov 2012)."""

    builds: ClassVar[str] = "dltrain.regularization:clip_value"
    type: Literal["value"]
    limit: float = Field(gt=0, description="largest absolute value of an element")


class ClipAdaptive(Component):
    """Scales each unit's gradient to a share of the norm of its weights (AGC, Brock et al. 2021)."""

    builds: ClassVar[str] = "dltrain.regularization:clip_adaptive"
    type: Literal["adaptive"]
    clipping: float = Field(
        0.01, gt=0, description="largest norm of a unit's gradient, as a share of its weights' norm"
    )
    eps: float = Field(1e-3, gt=0, description="norm that a unit's weights count with at least")


class Ema(Component):
    """Exponential moving average of the weights (after Polyak & Juditsky 1992)."""

    builds: ClassVar[str] = "dltrain.regularization:ema"
    type: Literal["ema"]
    decay: float = Field(0.999, gt=0, lt=1, description="share of the average that a step keeps")
    warmup: bool = Field(
        True, description="start with a smaller decay, so that the initial weights are forgotten early"
    )


class Swa(Component):
    """Stochastic weight averaging: the uniform average of the last part of training (Izmailov 2018)."""

    builds: ClassVar[str] = "dltrain.regularization:swa"
    type: Literal["swa"]
    start: Duration = Field(DurationValue(75.0, "%"), description="when the average begins")
    every: Duration = Field(DurationValue(1.0, "epochs"), description="how often the weights are added to the average")


class Mixup(Component):
    """Trains on blends of two samples and of their targets (Zhang et al. 2018)."""

    builds: ClassVar[str] = "dltrain.regularization:mixup"
    type: Literal["mixup"]
    alpha: float = Field(0.2, gt=0, description="how even the blends are: 0.2 mostly one sample, 1 any blend alike")


class Cutmix(Component):
    """Pastes a box of one image into another and mixes their targets by area (Yun et al. 2019)."""

    builds: ClassVar[str] = "dltrain.regularization:cutmix"
    type: Literal["cutmix"]
    alpha: float = Field(
        1.0, gt=0, description="how the box's area is spread: 1 any size alike, below 1 mostly extremes"
    )


class Sam(Settings):
    """Sharpness-aware minimization: two passes a step, for flat minima (Foret et al. 2021)."""

    rho: float = Field(0.05, gt=0, description="distance of the second pass from the weights; about 0.5 if adaptive")
    adaptive: bool = Field(False, description="measure the distance relative to each weight (ASAM, Kwon et al. 2021)")


class GradientNoise(Settings):
    """Normal noise on the gradients that fades with the steps (Neelakantan et al. 2015)."""

    eta: float = Field(0.01, gt=0, description="variance of the noise at the first step")
    gamma: float = Field(0.55, ge=0, description="how fast it fades: variance eta / (1 + step)^gamma")


class MaxNorm(Settings):
    """Scales the weights that a unit reads back to a largest norm after each update (Hinton et al. 2012)."""

    build_only: ClassVar[tuple[str, ...]] = ("params",)
    limit: float = Field(gt=0, description="largest norm of a row or filter; 3 to 4 is usual with dropout")
    params: Patterns = Field("*weight", description=PENALIZED)


class EarlyStopping(Settings):
    """Ends training when evaluations stop improving (Prechelt 1998)."""

    patience: int = Field(5, ge=1, description="evaluations in a row without improvement before it stops")
    min_delta: float = Field(0.0, ge=0, description="by how much a score must be better to count as an improvement")


PENALTIES: tuple[type[Component], ...] = (L1, L2, ElasticNet, GroupLasso)
CLIPPING: tuple[type[Component], ...] = (ClipNorm, ClipValue, ClipAdaptive)
AVERAGES: tuple[type[Component], ...] = (Ema, Swa)
MIXING: tuple[type[Component], ...] = (Mixup, Cutmix)
