"""Losses: callables (output, target) -> mean over the batch, a scalar.

Besides, a loss may say
  outputs_per_target   2 where the model gives two numbers for each target; 1 if absent
  prediction(output)   (B, K) in the space of the targets, where the output is not that already
  raw_targets          True where standardised targets make no sense (counts)
  count(target)        the denominator of its mean, where that is not the number of samples
No loss waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from dltrain.data.columns import IGNORED
from dltrain.errors import ConfigError

Weights = Sequence[float] | Literal["balanced"] | None


def count(loss: object, target: Tensor) -> Tensor | int:
    """Return the denominator of the mean that `loss` takes over `target`.

    With it the means of micro-batches add up: sum(loss_i * count_i) / sum(count_i) is the loss of the whole
    batch.
    """
    own = getattr(loss, "count", None)
    return len(target) if own is None else cast("Tensor | int", own(target))


class CrossEntropy:
    """Cross-entropy of class ids, or of (B, K) probabilities, under the softmax of the outputs (B, K).

    Of sequences, outputs (B, L, K) and token ids (B, L), it is the mean over all tokens but those that are IGNORED.

    `label_smoothing` moves that part of each target to the uniform distribution (Szegedy et al. 2016,
    https://arxiv.org/abs/1512.00567). `class_weights`: one per class, or "balanced": n / (K * samples of the
    class).
    """

    outputs_per_target: ClassVar[int] = 1

    def __init__(
        self,
        label_smoothing: float = 0.0,
        class_weights: Weights = None,
        *,
        class_counts: Sequence[int] | None = None,
        num_classes: int | None = None,
    ) -> None:
        self.label_smoothing = label_smoothing
        self.weights = _class_weights(class_weights, class_counts, num_classes)

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean over samples or tokens, weighted by the class weights of the targets."""
        self.weights = _like(output, self.weights)
        if output.ndim == 3:
            output, target = output.flatten(0, 1), target.flatten()
        return F.cross_entropy(output, target, weight=self.weights, label_smoothing=self.label_smoothing)

    def count(self, target: Tensor) -> Tensor | int:
        """Return the sum of the weights of the targets or tokens; B where they are probabilities, as torch does."""
        if target.ndim == 2 and not target.is_floating_point():
            counted = target != IGNORED
            if self.weights is None:
                return counted.sum()
            return (self.weights.to(target.device)[target.clamp(min=0)] * counted).sum()
        return _summed_weights(self.weights, target)


class Focal:
    """Cross-entropy with easy samples weighed down: -(1 - p)^gamma log p, p the softmax probability of the
    target (Lin et al. 2017, https://arxiv.org/abs/1708.02002; there for single sigmoids). gamma 0 is
    cross-entropy.

    `class_weights` as for CrossEntropy; they take the place of the paper's alpha.
    """

    outputs_per_target: ClassVar[int] = 1

    def __init__(
        self,
        gamma: float = 2.0,
        class_weights: Weights = None,
        *,
        class_counts: Sequence[int] | None = None,
        num_classes: int | None = None,
    ) -> None:
        self.gamma = gamma
        self.weights = _class_weights(class_weights, class_counts, num_classes)

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean over samples, weighted by the class weights of the targets (B,)."""
        self.weights = _like(output, self.weights)
        log_p = F.log_softmax(output, 1).gather(1, target.unsqueeze(1)).squeeze(1)
        # For gamma < 1 the power has no slope at p = 1: the clamp makes the gradient 0 there, not NaN.
        missing = -torch.expm1(log_p).clamp(max=-torch.finfo(log_p.dtype).tiny)
        losses = -(missing**self.gamma) * log_p
        if self.weights is None:
            return losses.mean()
        weights = self.weights[target]
        return (losses * weights).sum() / weights.sum()

    def count(self, target: Tensor) -> Tensor | int:
        """Return the sum of the weights of the targets."""
        return _summed_weights(self.weights, target)


class BinaryCrossEntropy:
    """Cross-entropy of each of K labels under the sigmoid of its output; targets (B, K) in 0..1.

    `pos_weight` multiplies the loss of positives: one number per label, or "balanced": negatives / positives
    of the label in training (from `positive_counts` (K,) and `num_samples`).
    """

    outputs_per_target: ClassVar[int] = 1

    def __init__(
        self,
        pos_weight: Weights = None,
        label_smoothing: float = 0.0,
        *,
        positive_counts: Sequence[int] | None = None,
        num_samples: int | None = None,
        num_classes: int | None = None,
    ) -> None:
        self.label_smoothing = label_smoothing
        self.pos_weight = _positive_weights(pos_weight, positive_counts, num_samples, num_classes)

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean over samples and labels."""
        self.pos_weight = _like(output, self.pos_weight)
        if self.label_smoothing:
            target = target * (1 - self.label_smoothing) + self.label_smoothing / 2
        return F.binary_cross_entropy_with_logits(output, target, pos_weight=self.pos_weight)


class Hinge:
    """Multi-class hinge loss of Crammer & Singer 2001 (https://jmlr.org/papers/v2/crammer01a.html):
    max(0, margin + largest output of another class - output of the target).

    torch's `multi_margin_loss` sums over all other classes instead (Weston & Watkins).
    """

    outputs_per_target: ClassVar[int] = 1

    def __init__(self, margin: float = 1.0) -> None:
        self.margin = margin

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean over samples; output (B, K), target (B,) int64."""
        index = target.unsqueeze(1)
        others = output.scatter(1, index, -math.inf).amax(1)
        return (self.margin + others - output.gather(1, index).squeeze(1)).clamp(min=0).mean()


class MeanSquaredError:
    """Mean of squared errors over samples and targets; output and target (B, K)."""

    outputs_per_target: ClassVar[int] = 1

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean."""
        return F.mse_loss(output, target)


class MeanAbsoluteError:
    """Mean of absolute errors over samples and targets; output and target (B, K)."""

    outputs_per_target: ClassVar[int] = 1

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean."""
        return F.l1_loss(output, target)


class Huber:
    """Half the squared error up to `delta`, linear beyond (Huber 1964,
    https://doi.org/10.1214/aoms/1177703732).

    `delta` is in units of the targets as the loss sees them: standard deviations where targets are
    standardised.
    """

    outputs_per_target: ClassVar[int] = 1

    def __init__(self, delta: float = 1.0) -> None:
        self.delta = delta

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean over samples and targets (B, K)."""
        return F.huber_loss(output, target, delta=self.delta)


class PoissonNLL:
    """Negative log-likelihood of counts, without its constant; the outputs (B, K) are logarithms of the
    rates.
    """

    outputs_per_target: ClassVar[int] = 1
    raw_targets: ClassVar[bool] = True

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean over samples and targets."""
        return F.poisson_nll_loss(output, target, log_input=True)

    def prediction(self, output: Tensor) -> Tensor:
        """Return the rates."""
        return output.exp()


class GaussianNLL:
    """Negative log-likelihood of a normal distribution whose variance is learnt too, without its constant
    (Nix & Weigend 1994, https://doi.org/10.1109/ICNN.1994.374138).

    The outputs (B, 2K) are K means, then K logarithms of variances; `eps` is added to the variances.
    """

    outputs_per_target: ClassVar[int] = 2

    def __init__(self, eps: float = 1e-6) -> None:
        self.eps = eps

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean over samples and targets (B, K)."""
        mean, log_variance = output.chunk(2, dim=1)
        log_variance = torch.logaddexp(log_variance, torch.full_like(log_variance, math.log(self.eps)))
        return 0.5 * (log_variance + (target - mean) ** 2 * torch.exp(-log_variance)).mean()

    def prediction(self, output: Tensor) -> Tensor:
        """Return the means (B, K)."""
        return output.chunk(2, dim=1)[0]


def _like(output: Tensor, weights: Tensor | None) -> Tensor | None:
    """Return `weights` on the device and of the type of `output`: moved once, then as they are."""
    if weights is None or (weights.device == output.device and weights.dtype == output.dtype):
        return weights
    return weights.to(output)


def _summed_weights(weights: Tensor | None, target: Tensor) -> Tensor | int:
    if weights is None or target.is_floating_point():
        return len(target)
    return weights.to(target.device)[target].sum()


def _class_weights(weights: Weights, counts: Sequence[int] | None, num_classes: int | None) -> Tensor | None:
    """Return (K,) float32, or None. Raises ConfigError where they do not fit the data."""
    if weights is None:
        return None
    if weights != "balanced":
        return _given_weights("class_weights", weights, num_classes, "classes")
    if counts is None:
        raise ConfigError("class_weights: 'balanced' needs counts of classes; give one number per class")
    _require_all_present("class_weights", counts, "class", "no training sample")
    return torch.tensor([sum(counts) / (len(counts) * number) for number in counts])


def _positive_weights(
    weights: Weights, counts: Sequence[int] | None, num_samples: int | None, num_labels: int | None
) -> Tensor | None:
    """Return (K,) float32, or None. Raises ConfigError where they do not fit the data."""
    if weights is None:
        return None
    if weights != "balanced":
        return _given_weights("pos_weight", weights, num_labels, "labels")
    if counts is None or num_samples is None:
        raise ConfigError("pos_weight: 'balanced' needs counts of labels; give one number per label")
    _require_all_present("pos_weight", counts, "label", "no positive training sample")
    _require_all_present("pos_weight", [num_samples - n for n in counts], "label", "no negative training sample")
    return torch.tensor([(num_samples - number) / number for number in counts])


def _given_weights(setting: str, weights: Sequence[float], expected: int | None, things: str) -> Tensor:
    if expected is not None and len(weights) != expected:
        raise ConfigError(
            f"{setting}: has {len(weights)} numbers, the data have {expected} {things}; give one for each"
        )
    return torch.tensor(weights, dtype=torch.float32)


def _require_all_present(setting: str, counts: Sequence[int], thing: str, what: str) -> None:
    if 0 in counts:
        index = list(counts).index(0)
        raise ConfigError(f"{setting}: 'balanced' is not defined, {thing} {index} has {what}; give a list of numbers")
