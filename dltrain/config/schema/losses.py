"""Settings of the built-in losses. `tasks` says which tasks a loss can serve."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dltrain.config.schema.base import Component

Positive = Annotated[float, Field(gt=0)]
ClassWeights = Annotated[list[Positive], Field(min_length=1)] | Literal["balanced"] | None

_CLASS_WEIGHTS = (
    "one number per class, in the order of the classes, or 'balanced': n / (classes * samples of the class)"
)
_SMOOTHING = "part of each target that is spread over all answers"


class CrossEntropy(Component):
    """Cross-entropy of the classes, or of the tokens of a text, under the softmax of the outputs."""

    builds: ClassVar[str] = "dltrain.losses:CrossEntropy"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "language_model", "translation")
    type: Literal["cross_entropy"]
    label_smoothing: float = Field(0.0, ge=0, lt=1, description=_SMOOTHING)
    class_weights: ClassWeights = Field(None, description=_CLASS_WEIGHTS)


class Focal(Component):
    """Cross-entropy with easy samples weighed down (Lin et al. 2017, https://arxiv.org/abs/1708.02002)."""

    builds: ClassVar[str] = "dltrain.losses:Focal"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    type: Literal["focal"]
    gamma: float = Field(2.0, ge=0, description="how strongly easy samples are weighed down; 0 is cross-entropy")
    class_weights: ClassWeights = Field(None, description=_CLASS_WEIGHTS)


class BinaryCrossEntropy(Component):
    """Cross-entropy of each label on its own under the sigmoid of its output."""

    builds: ClassVar[str] = "dltrain.losses:BinaryCrossEntropy"
    tasks: ClassVar[tuple[str, ...]] = ("multilabel",)
    type: Literal["bce"]
    pos_weight: ClassWeights = Field(
        None,
        description="weight of positives: one number per label, or 'balanced': its negatives / positives",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description=_SMOOTHING)


class Hinge(Component):
    """Multi-class hinge loss (Crammer & Singer 2001, https://jmlr.org/papers/v2/crammer01a.html)."""

    builds: ClassVar[str] = "dltrain.losses:Hinge"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    type: Literal["hinge"]
    margin: float = Field(1.0, gt=0, description="by how much the target's output must exceed all others")


class MeanSquaredError(Component):
    """Mean of the squared errors."""

    builds: ClassVar[str] = "dltrain.losses:MeanSquaredError"
    tasks: ClassVar[tuple[str, ...]] = ("regression",)
    type: Literal["mse"]


class MeanAbsoluteError(Component):
    """Mean of the absolute errors: learns the median, forgives outliers."""

    builds: ClassVar[str] = "dltrain.losses:MeanAbsoluteError"
    tasks: ClassVar[tuple[str, ...]] = ("regression",)
    type: Literal["mae"]


class Huber(Component):
    """Squared error near the target, absolute error beyond delta (Huber 1964,
    https://doi.org/10.1214/aoms/1177703732).
    """

    builds: ClassVar[str] = "dltrain.losses:Huber"
    tasks: ClassVar[tuple[str, ...]] = ("regression",)
    type: Literal["huber"]
    delta: float = Field(
        1.0,
        gt=0,
        description="error where it turns linear, in standard deviations if targets are standardised",
    )


class PoissonNLL(Component):
    """Negative log-likelihood of counts; the model gives the logarithm of the rate."""

    builds: ClassVar[str] = "dltrain.losses:PoissonNLL"
    tasks: ClassVar[tuple[str, ...]] = ("regression",)
    type: Literal["poisson_nll"]


class GaussianNLL(Component):
    """Negative log-likelihood of a normal distribution; the model gives mean and log-variance (Nix & Weigend
    1994).
    """

    builds: ClassVar[str] = "dltrain.losses:GaussianNLL"
    tasks: ClassVar[tuple[str, ...]] = ("regression",)
    type: Literal["gaussian_nll"]
    eps: float = Field(1e-6, gt=0, description="added to the variance, so that it cannot vanish")


ALL: tuple[type[Component], ...] = (
    CrossEntropy,
    Focal,
    BinaryCrossEntropy,
    Hinge,
    MeanSquaredError,
    MeanAbsoluteError,
    Huber,
    PoissonNLL,
    GaussianNLL,
)
