"""Settings of the built-in learning-rate schedules. Amounts of training are durations; the build turns them
to steps.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from dltrain.config.durations import Duration, DurationValue, Span
from dltrain.config.schema.base import Component

_NONE = DurationValue(0, "steps")
_WARMUP = "linear warm-up at the start of the training"
_FINAL = "factor of the base learning rate that is reached at the end of the training"


class Constant(Component):
    """The base learning rate throughout, after a warm-up."""

    builds: ClassVar[str] = "dltrain.schedules:constant"
    type: Literal["constant"]
    warmup: Duration = Field(_NONE, description=_WARMUP)


class Step(Component):
    """Multiply the learning rate by gamma at equal distances."""

    builds: ClassVar[str] = "dltrain.schedules:step"
    type: Literal["step"]
    every: Span = Field(description="distance of two changes, counted from the start of the training")
    gamma: float = Field(0.1, gt=0, le=1, description="factor of each change")
    warmup: Duration = Field(_NONE, description=_WARMUP)


class MultiStep(Component):
    """Multiply the learning rate by gamma at given points of the training."""

    builds: ClassVar[str] = "dltrain.schedules:multistep"
    type: Literal["multistep"]
    milestones: list[Span] = Field(min_length=1, description="where it changes, counted from the start of the training")
    gamma: float = Field(0.1, gt=0, le=1, description="factor of each change")
    warmup: Duration = Field(_NONE, description=_WARMUP)


class Exponential(Component):
    """Let the learning rate decay smoothly, by gamma in each `every`."""

    builds: ClassVar[str] = "dltrain.schedules:exponential"
    type: Literal["exponential"]
    every: Span = Field(DurationValue(1, "epochs"), description="time in which the learning rate falls by gamma")
    gamma: float = Field(0.95, gt=0, le=1, description="factor of the decay in each `every`")
    warmup: Duration = Field(_NONE, description=_WARMUP)


class Cosine(Component):
    """Half a cosine from the base learning rate to `final` (Loshchilov & Hutter 2017,
    https://arxiv.org/abs/1608.03983).
    """

    builds: ClassVar[str] = "dltrain.schedules:cosine"
    type: Literal["cosine"]
    final: float = Field(0.0, ge=0, le=1, description=_FINAL)
    warmup: Duration = Field(_NONE, description=_WARMUP)


class OneCycle(Component):
    """One rise and one fall along half cosines (Smith & Topin 2018, https://arxiv.org/abs/1708.07120)."""

    builds: ClassVar[str] = "dltrain.schedules:one_cycle"
    type: Literal["one_cycle"]
    peak_at: Span = Field(DurationValue(30, "%"), description="where the base learning rate is reached")
    start: float = Field(0.04, ge=0, le=1, description="factor of the base learning rate at the first step")
    final: float = Field(4e-6, ge=0, le=1, description=_FINAL)


class Linear(Component):
    """A straight line from the base learning rate to `final`."""

    builds: ClassVar[str] = "dltrain.schedules:linear"
    type: Literal["linear"]
    final: float = Field(0.0, ge=0, le=1, description=_FINAL)
    warmup: Duration = Field(_NONE, description=_WARMUP)


class InverseSqrt(Component):
    """Fall as the inverse square root of the step (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762)."""

    builds: ClassVar[str] = "dltrain.schedules:inverse_sqrt"
    type: Literal["inverse_sqrt"]
    warmup: Span = Field(DurationValue(5, "%"), description="linear warm-up; its length sets the pace of the fall")


class WarmupStableDecay(Component):
    """Warm up, stay, and fall in a straight line at the end (Hägele et al. 2024,
    https://arxiv.org/abs/2405.18392).
    """

    builds: ClassVar[str] = "dltrain.schedules:wsd"
    type: Literal["wsd"]
    decay: Span = Field(DurationValue(20, "%"), description="length of the fall at the end of the training")
    final: float = Field(0.0, ge=0, le=1, description=_FINAL)
    warmup: Duration = Field(_NONE, description=_WARMUP)


ALL: tuple[type[Component], ...] = (
    Constant,
    Step,
    MultiStep,
    Exponential,
    Cosine,
    OneCycle,
    Linear,
    InverseSqrt,
    WarmupStableDecay,
)
