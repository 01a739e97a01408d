"""Losses against torch's, scikit-learn's and their definitions; and that means of micro-batches add up."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import hinge_loss
from torch import Tensor

from dltrain import losses
from dltrain.data.columns import IGNORED
from dltrain.errors import ConfigError

WEIGHTS = [0.5, 1.0, 2.0, 4.0]
COUNTS = [10, 20, 30, 40]


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def classified(rng: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(32, 4, generator=rng) * 2, torch.randint(4, (32,), generator=rng)


@pytest.fixture
def labelled(rng: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(32, 3, generator=rng), torch.randint(2, (32, 3), generator=rng).float()


def test_plain_cross_entropy_is_torchs_bit_for_bit(classified: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(losses.CrossEntropy()(*classified), F.cross_entropy(*classified))


def test_cross_entropy_with_weights_and_smoothing_is_torchs(classified: tuple[Tensor, Tensor]) -> None:
    ours = losses.CrossEntropy(label_smoothing=0.1, class_weights=WEIGHTS)(*classified)
    assert torch.equal(ours, F.cross_entropy(*classified, weight=torch.tensor(WEIGHTS), label_smoothing=0.1))


def test_balanced_classes_have_equal_weight_in_sum() -> None:
    loss = losses.CrossEntropy(class_weights="balanced", class_counts=COUNTS)
    assert loss.weights is not None
    torch.testing.assert_close(loss.weights * torch.tensor(COUNTS), torch.full((4,), 25.0))


def test_focal_follows_its_definition(classified: tuple[Tensor, Tensor]) -> None:
    output, target = classified
    p = output.softmax(1)[torch.arange(32), target]
    expected = (-((1 - p) ** 1.5) * p.log()).mean()
    torch.testing.assert_close(losses.Focal(gamma=1.5)(output, target), expected)


def test_focal_with_gamma_zero_is_cross_entropy(classified: tuple[Tensor, Tensor]) -> None:
    ours = losses.Focal(gamma=0.0, class_weights=WEIGHTS)(*classified)
    torch.testing.assert_close(ours, F.cross_entropy(*classified, weight=torch.tensor(WEIGHTS)))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_has_a_finite_gradient_for_certain_samples(gamma: float) -> None:
    output = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    losses.Focal(gamma)(output, torch.tensor([0, 0])).backward()
    assert output.grad is not None
    assert output.grad.isfinite().all()
    assert output.grad[0].abs().max() < 1e-6
    assert output.grad[1, 0] == pytest.approx(-0.5)


def test_bce_is_torchs(labelled: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(losses.BinaryCrossEntropy()(*labelled), F.binary_cross_entropy_with_logits(*labelled))
    ours = losses.BinaryCrossEntropy(pos_weight=[1.0, 2.0, 3.0])(*labelled)
    assert torch.equal(ours, F.binary_cross_entropy_with_logits(*labelled, pos_weight=torch.tensor([1.0, 2.0, 3.0])))


def test_bce_balances_positives_against_negatives() -> None:
    loss = losses.BinaryCrossEntropy(pos_weight="balanced", positive_counts=[20, 50], num_samples=100)
    assert loss.pos_weight is not None
    assert loss.pos_weight.tolist() == [4.0, 1.0]


def test_bce_smooths_labels(labelled: tuple[Tensor, Tensor]) -> None:
    output, target = labelled
    expected = F.binary_cross_entropy_with_logits(output, torch.where(target > 0, 0.9, 0.1))
    torch.testing.assert_close(losses.BinaryCrossEntropy(label_smoothing=0.2)(output, target), expected)


def test_hinge_is_scikit_learns(classified: tuple[Tensor, Tensor]) -> None:
    output, target = classified
    assert losses.Hinge()(output, target).item() == pytest.approx(hinge_loss(target, output, labels=range(4)))


def test_hinge_margin(rng: torch.Generator) -> None:
    output = torch.tensor([[3.0, 1.0, 0.0]])
    assert losses.Hinge(margin=2.5)(output, torch.tensor([0])).item() == pytest.approx(0.5)


def test_regression_losses_are_torchs(rng: torch.Generator) -> None:
    output, target = torch.randn(9, 2, generator=rng) * 3, torch.randn(9, 2, generator=rng)
    counts = torch.randint(5, (9, 2), generator=rng).float()
    assert torch.equal(losses.MeanSquaredError()(output, target), F.mse_loss(output, target))
    assert torch.equal(losses.MeanAbsoluteError()(output, target), F.l1_loss(output, target))
    assert torch.equal(losses.Huber(delta=0.7)(output, target), F.huber_loss(output, target, delta=0.7))
    assert torch.equal(losses.PoissonNLL()(output, counts), F.poisson_nll_loss(output, counts))


def test_gaussian_nll_is_torchs_for_the_variance_plus_eps(rng: torch.Generator) -> None:
    output, target = torch.randn(9, 4, generator=rng) * 2, torch.randn(9, 2, generator=rng)
    expected = F.gaussian_nll_loss(output[:, :2], target, output[:, 2:].exp() + 1e-3)
    torch.testing.assert_close(losses.GaussianNLL(eps=1e-3)(output, target), expected)


@pytest.mark.parametrize("log_variance", [-300.0, -50.0, 80.0])
def test_gaussian_nll_is_finite_for_extreme_variances(log_variance: float) -> None:
    output = torch.tensor([[0.0, log_variance]], requires_grad=True)
    loss = losses.GaussianNLL()(output, torch.tensor([[1.0]]))
    loss.backward()
    assert output.grad is not None
    assert loss.isfinite()
    assert output.grad.isfinite().all()


def test_predictions_minimise_the_likelihoods() -> None:
    rate = torch.tensor([[math.log(3.0)]], requires_grad=True)
    losses.PoissonNLL()(rate, torch.tensor([[3.0]])).backward()
    assert rate.grad is not None
    assert rate.grad.item() == pytest.approx(0.0, abs=1e-6)
    assert losses.PoissonNLL().prediction(rate).item() == pytest.approx(3.0)
    assert losses.GaussianNLL().prediction(torch.tensor([[1.0, 2.0, 3.0, 4.0]])).tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    "loss",
    [
        losses.CrossEntropy(),
        losses.CrossEntropy(class_weights=WEIGHTS),
        losses.CrossEntropy(label_smoothing=0.3, class_weights="balanced", class_counts=COUNTS),
        losses.Focal(class_weights=WEIGHTS),
        losses.Hinge(),
    ],
)
def test_micro_batches_add_up_to_the_batch(loss: Any, classified: tuple[Tensor, Tensor]) -> None:
    output, target = classified
    parts = list(zip(output.split(5), target.split(5), strict=True))
    counts = [losses.count(loss, part) for _, part in parts]
    total = sum(loss(*part) * count for part, count in zip(parts, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(total, loss(output, target))


def test_micro_batches_of_probabilities_add_up(rng: torch.Generator, classified: tuple[Tensor, Tensor]) -> None:
    output, target = classified[0], torch.rand(32, 4, generator=rng).softmax(1)
    loss = losses.CrossEntropy(class_weights=WEIGHTS)
    first, second = loss(output[:8], target[:8]), loss(output[8:], target[8:])
    assert losses.count(loss, target) == 32
    torch.testing.assert_close((first * 8 + second * 24) / 32, loss(output, target))


def test_any_callable_counts_samples() -> None:
    assert losses.count(torch.nn.MSELoss(), torch.zeros(7, 2)) == 7


def test_weights_follow_the_output() -> None:
    loss = losses.CrossEntropy(class_weights=WEIGHTS)
    loss(torch.randn(4, 4, dtype=torch.float64), torch.arange(4))
    moved = loss.weights
    loss(torch.randn(4, 4, dtype=torch.float64), torch.arange(4))
    assert moved is not None
    assert moved.dtype == torch.float64
    assert loss.weights is moved


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: losses.CrossEntropy(class_weights=[1.0, 2.0], num_classes=3),
            "class_weights: has 2 numbers, the data have 3 classes; give one for each",
        ),
        (
            lambda: losses.Focal(class_weights="balanced", class_counts=[3, 0]),
            "class_weights: 'balanced' is not defined, class 1 has no training sample; give a list of numbers",
        ),
        (
            lambda: losses.BinaryCrossEntropy("balanced", positive_counts=[5, 9], num_samples=9),
            "pos_weight: 'balanced' is not defined, label 1 has no negative training sample; give a list of numbers",
        ),
    ],
)
def test_weights_that_do_not_fit_the_data(build: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build()
    assert str(error.value) == message


@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.1}, {"class_weights": [1.0, 2.0, 0.5, 3.0, 1.0]}])
def test_the_loss_of_tokens_is_a_mean_over_those_that_are_not_ignored(settings):
    rng = torch.Generator().manual_seed(0)
    output, target = torch.randn(6, 4, 5, generator=rng), torch.randint(5, (6, 4), generator=rng)
    target[torch.rand(6, 4, generator=rng) < 0.4] = IGNORED
    loss = losses.CrossEntropy(**settings, num_classes=5)
    counted = target != IGNORED
    expected = F.cross_entropy(
        output[counted], target[counted], weight=loss.weights, label_smoothing=settings.get("label_smoothing", 0.0)
    )
    assert loss(output, target).item() == pytest.approx(expected.item(), rel=1e-6)
    parts = [slice(0, 1), slice(1, 4), slice(4, 6)]
    total = sum(loss(output[p], target[p]) * losses.count(loss, target[p]) for p in parts) / losses.count(loss, target)
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
