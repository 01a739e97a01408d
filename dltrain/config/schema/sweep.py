"""Settings of `dltrain sweep`: which values of which settings are tried, how they are chosen, and when it ends."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema, model_validator

from dltrain.config.durations import DurationValue, more_than_nothing, parse_interval
from dltrain.config.schema.base import InWords, Settings

DEFAULT_TRIALS = 32
KINDS = ("choice", "uniform", "log_uniform", "int", "log_int")
"""The ways to say which values a setting may have; of each dimension one is given."""

Whole = Annotated[int, Field()]
Bounds = Annotated[list[float], Field(min_length=2, max_length=2)]
WholeBounds = Annotated[list[int], Field(min_length=2, max_length=2)]
Objective = Annotated[
    str,
    Field(pattern="^((train|val)/[a-z0-9_]+|elapsed_s|num_parameters)$"),
    InWords("train/ or val/ and a metric, such as 'val/loss', or elapsed_s, or num_parameters"),
]


def _parse_time(text: object) -> DurationValue:
    """Read a time such as "10 min". Raises ValueError with what is possible."""
    try:
        duration = parse_interval(text)
    except ValueError:
        duration = None
    if duration is None or duration.unit != "s":
        raise ValueError("possible: a time: '30 s', '10 min', '1 h'")
    return duration


Time = Annotated[
    DurationValue,
    BeforeValidator(_parse_time),
    AfterValidator(more_than_nothing),
    PlainSerializer(str),
    WithJsonSchema({"type": "string", "examples": ["30 s", "10 min", "1 h"]}),
    InWords("a time: '30 s', '10 min', '1 h'"),
]


class Dimension(Settings):
    """Values that one setting may have: a choice of any values, or a range of numbers. A bare list is a choice."""

    choice: Annotated[list[Any], Field(min_length=1)] | None = Field(
        None, description="any values, whole components too: [[64], [128, 128]]"
    )
    uniform: Bounds | None = Field(None, description="numbers of a range [low, high], all alike")
    log_uniform: Bounds | None = Field(None, description="numbers of a range, every order of magnitude alike")
    int: WholeBounds | None = Field(None, description="whole numbers of a range, both ends included")
    log_int: WholeBounds | None = Field(None, description="whole numbers, every order of magnitude alike")
    step: float | None = Field(None, gt=0, description="of uniform and int: distance of the values from low on")
    points: Whole | None = Field(
        None, ge=2, description="of a grid: how many values of the range, evenly spaced, both ends included"
    )

    @property
    def kind(self) -> str:
        """Which of KINDS is given."""
        return next(name for name in KINDS if getattr(self, name) is not None)

    @property
    def bounds(self) -> tuple[float, float]:
        """The ends of the range; of whole numbers they are whole."""
        low, high = getattr(self, self.kind)
        return low, high

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        return {"choice": value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"has {found} of {', '.join(KINDS)}; give exactly one of them")
        if self.kind == "choice":
            self._refuse("step", "points")
            return self
        low, high = self.bounds
        if low >= high:
            raise ValueError(f"{self.kind} is [{low}, {high}]; the second must be larger than the first")
        if self.kind.startswith("log_"):
            self._refuse("step")
            if low <= 0:
                raise ValueError(f"{self.kind} begins at {low}; a logarithmic range begins above 0")
        if self.step is not None:
            self._refuse("points")
            if self.kind == "int" and self.step != round(self.step):
                raise ValueError(f"step is {self.step}; of int it is a whole number")
            if self.step > high - low:
                raise ValueError(f"step is {self.step:g}, which is more than the whole range [{low}, {high}]")
        return self

    def _refuse(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) is not None:
                beside = "step" if self.kind != "choice" and self.step is not None else self.kind
                raise ValueError(f"{name} cannot take effect beside {beside}")


class Sweep(Settings):
    """A search over settings of this config: each trial is a training with some of them changed."""

    space: Annotated[dict[str, Dimension], Field(min_length=1)] = Field(
        description="dotted setting -> its values, such as optimizer.lr: {log_uniform: [1.0e-4, 1.0e-1]}"
    )
    sampler: Literal["random", "grid", "sobol", "tpe", "gp", "cmaes"] = Field(
        "random",
        description="how points are chosen: grid tries all, sobol spreads evenly; tpe, gp and cmaes learn from trials",
    )
    pruner: Literal["none", "median", "asha", "hyperband"] = Field(
        "none", description="what ends trials early that are worse than others at the same evaluation"
    )
    trials: Whole | None = Field(
        None, ge=1, description=f"how many points; null: {DEFAULT_TRIALS}, or all points of a grid"
    )
    time: Time | None = Field(None, description="after it no further training begins; each call has as much")
    seeds: Whole = Field(
        1, ge=1, description="trainings of each point, with seeds from the config's on; their mean counts"
    )
    objective: Objective | list[Objective] | None = Field(
        None, description="what is judged, at the best checkpoint; several: the Pareto front; null: train.monitor"
    )
    retries: Whole = Field(
        1,
        ge=0,
        description="how often a training is repeated that may have failed by chance, as when its process dies",
    )
    same_errors: Whole = Field(3, ge=1, description="so many equal errors in a row stop the sweep")
    slots: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="trainings at once; auto: the CPU's cores, or one for each GPU"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        objectives = self.objectives
        if self.objective == []:
            raise ValueError("objective is an empty list; leave it out for train.monitor")
        if len(set(objectives)) < len(objectives):
            raise ValueError("objective names one thing twice")
        if self.pruner != "none" and len(objectives) > 1:
            raise ValueError(f"pruner is {self.pruner}; with several objectives there is none, as no order says worse")
        if self.pruner != "none" and objectives[:1] in (["elapsed_s"], ["num_parameters"]):
            raise ValueError(f"pruner is {self.pruner}; it needs a metric as the objective, not {objectives[0]}")
        return self

    @property
    def objectives(self) -> list[str]:
        """The objectives as a list; empty where it is the trained config's own."""
        if self.objective is None:
            return []
        return [self.objective] if isinstance(self.objective, str) else self.objective
