"""Metrics against scikit-learn's, for any batch size and any number of processes."""

import json
import math
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as reference
import torch
from torch import Tensor

from dltrain import metrics
from dltrain.data.columns import IGNORED
from dltrain.metrics import ConfusionMatrix, ErrorSums, LabelCounts, Metrics, TokenSums

BATCH_SIZES = [1, 7, 64, 5000, 10000]


def fill(kept: Any, output: Tensor, target: Tensor, batch_size: int) -> Any:
    for part in zip(output.split(batch_size), target.split(batch_size), strict=True):
        kept.update(*part)
    return kept


@pytest.fixture(scope="module")
def classified() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    target = torch.randint(5, (10000,), generator=rng)
    return torch.randn(10000, 5, generator=rng) + 1.5 * torch.eye(5)[target], target


@pytest.fixture(scope="module")
def labelled() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    target = (torch.rand(10000, 3, generator=rng) < torch.tensor([0.1, 0.5, 0.8])).float()
    return torch.randn(10000, 3, generator=rng) + target - 0.5, target


@pytest.fixture(scope="module")
def measured() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    target = torch.randn(10000, 2, generator=rng)
    return target + 0.3 * torch.randn(10000, 2, generator=rng), target


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_classification_is_scikit_learns(classified: tuple[Tensor, Tensor], batch_size: int) -> None:
    output, target = classified
    predicted = output.argmax(1)
    kept = fill(Metrics(ConfusionMatrix(5)), output, target, batch_size)
    assert kept.compute() == pytest.approx(
        {
            "accuracy": reference.accuracy_score(target, predicted),
            "macro_f1": reference.f1_score(target, predicted, average="macro"),
        },
        rel=1e-12,
    )
    report = kept.report()
    assert report["confusion_matrix"] == reference.confusion_matrix(target, predicted).tolist()
    columns = reference.precision_recall_fscore_support(target, predicted)
    for row, expected in zip(report["per_class"], zip(*columns, strict=True), strict=True):
        assert tuple(row.values()) == pytest.approx(expected)


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_multilabel_is_scikit_learns(labelled: tuple[Tensor, Tensor], batch_size: int) -> None:
    output, target = labelled
    predicted = (output > 0).int()
    kept = fill(Metrics(LabelCounts(3)), output, target, batch_size)
    assert kept.compute() == pytest.approx(
        {
            "exact_match": reference.accuracy_score(target, predicted),
            "micro_f1": reference.f1_score(target, predicted, average="micro"),
            "macro_f1": reference.f1_score(target, predicted, average="macro"),
        },
        rel=1e-12,
    )
    columns = reference.precision_recall_fscore_support(target, predicted)
    for row, expected in zip(kept.report()["per_label"], zip(*columns, strict=True), strict=True):
        assert tuple(row.values()) == pytest.approx(expected)


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_regression_is_scikit_learns(measured: tuple[Tensor, Tensor], batch_size: int) -> None:
    output, target = measured
    kept = fill(Metrics(ErrorSums(2)), output, target, batch_size)
    predicted, actual = output.double().numpy(), target.double().numpy()
    assert kept.compute() == pytest.approx(
        {
            "mae": reference.mean_absolute_error(actual, predicted),
            "rmse": reference.root_mean_squared_error(actual, predicted),
            "r2": reference.r2_score(actual, predicted),
        },
        rel=1e-9,
    )
    r2 = reference.r2_score(actual, predicted, multioutput="raw_values")
    assert [row["r2"] for row in kept.report()["per_target"]] == pytest.approx(r2, rel=1e-9)


def test_standardised_values_are_measured_in_the_units_of_the_data(measured: tuple[Tensor, Tensor]) -> None:
    mean, std = torch.tensor([1e7, -5.0], dtype=torch.float64), torch.tensor([3.0, 0.01], dtype=torch.float64)
    kept = fill(Metrics(ErrorSums(2, std=std)), *measured, 100)
    predicted, actual = ((values.double() * std + mean).numpy() for values in measured)
    computed = kept.compute()
    assert computed["mae"] == pytest.approx(reference.mean_absolute_error(actual, predicted))
    assert computed["rmse"] == pytest.approx(reference.root_mean_squared_error(actual, predicted))
    assert computed["r2"] == pytest.approx(reference.r2_score(actual, predicted))


@pytest.mark.parametrize("mean", [1e3, 1e5])
def test_r2_is_sound_where_targets_are_far_from_zero(mean: float, measured: tuple[Tensor, Tensor]) -> None:
    output, target = (values + mean for values in measured)
    expected = reference.r2_score(target.double().numpy(), output.double().numpy())
    assert fill(Metrics(ErrorSums(2)), output, target, 64).compute()["r2"] == pytest.approx(expected, rel=1e-5)


def test_prediction_is_applied_to_outputs_first() -> None:
    kept = Metrics(ErrorSums(1, prediction=torch.exp))
    kept.update(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [math.e]]))
    assert kept.compute()["mae"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("kind", ["classified", "labelled", "measured"])
def test_processes_add_up(kind: str, request: pytest.FixtureRequest) -> None:
    output, target = request.getfixturevalue(kind)

    def fresh() -> Any:
        return {
            "classified": lambda: Metrics(ConfusionMatrix(5)),
            "labelled": lambda: Metrics(LabelCounts(3)),
            "measured": lambda: Metrics(ErrorSums(2)),
        }[kind]()

    shards = [fill(fresh(), output[i::3], target[i::3], 50) for i in range(3)]
    total = fresh()
    total.update(output, target)
    total.load(sum(shard.state for shard in shards))
    assert total.compute() == pytest.approx(fill(fresh(), output, target, 10000).compute(), rel=1e-12)


def test_reset_forgets_what_is_counted_and_what_pends(classified: tuple[Tensor, Tensor]) -> None:
    kept = fill(Metrics(ConfusionMatrix(5)), *classified, 64)
    kept.reset()
    assert math.isnan(kept.compute()["accuracy"])
    kept.update(torch.eye(5), torch.arange(5))
    assert kept.compute()["accuracy"] == 1.0


def test_state_is_a_copy(classified: tuple[Tensor, Tensor]) -> None:
    kept = fill(Metrics(ConfusionMatrix(5)), *classified, 64)
    before = kept.compute()
    kept.state.zero_()
    assert kept.compute() == before


def test_gradients_are_not_kept() -> None:
    kept = Metrics(ConfusionMatrix(2))
    output = torch.zeros(3, 2, requires_grad=True) * 1
    kept.update(output, torch.zeros(3, dtype=torch.int64))
    assert not kept._pending[0].requires_grad


def test_a_class_that_never_occurs_has_no_scores_and_is_left_out() -> None:
    kept = Metrics(ConfusionMatrix(3))
    kept.update(torch.eye(3)[[0, 1, 1, 0]], torch.tensor([0, 1, 0, 0]))
    absent = {"precision": None, "recall": None, "f1": None, "support": 0}
    assert kept.report()["per_class"][2] == absent
    expected = reference.f1_score([0, 1, 0, 0], [0, 1, 1, 0], average="macro")
    assert kept.compute()["macro_f1"] == pytest.approx(expected)


@pytest.mark.parametrize("constant", [0.0, 0.1, 12345.678])
def test_r2_of_a_constant_target_is_undefined(constant: float) -> None:
    kept = fill(Metrics(ErrorSums(1)), torch.randn(10000, 1), torch.full((10000, 1), constant), 64)
    assert math.isnan(kept.compute()["r2"])
    assert kept.compute()["rmse"] > 0
    assert kept.report()["per_target"][0]["r2"] is None


def test_nothing_is_defined_without_samples() -> None:
    for kept in (Metrics(ConfusionMatrix(2)), Metrics(LabelCounts(2)), Metrics(ErrorSums(2))):
        assert all(math.isnan(value) for value in kept.compute().values())


def test_reports_are_json(classified: tuple[Tensor, Tensor], labelled: tuple[Tensor, Tensor]) -> None:
    for kept in (Metrics(ConfusionMatrix(5)), Metrics(LabelCounts(3)), Metrics(ErrorSums(2))):
        json.dumps(kept.report(), allow_nan=False)
    json.dumps(fill(Metrics(ConfusionMatrix(5)), *classified, 64).report(), allow_nan=False)


def test_every_metric_has_a_direction() -> None:
    computed = {
        *Metrics(ConfusionMatrix(2)).compute(),
        *Metrics(LabelCounts(2)).compute(),
        *Metrics(ErrorSums(1)).compute(),
        *Metrics(TokenSums(whole_sequences=True)).compute(),
    }
    assert set(metrics.HIGHER_IS_BETTER) == computed | {"loss", "bleu", "chrf"}
    assert set(metrics.PRIMARY.values()) <= computed


def test_half_precision_outputs(classified: tuple[Tensor, Tensor]) -> None:
    output, target = classified[0].bfloat16(), classified[1]
    expected = float(np.mean(output.argmax(1).numpy() == target.numpy()))
    assert fill(Metrics(ConfusionMatrix(5)), output, target, 64).compute()["accuracy"] == pytest.approx(expected)


def token_batch() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    output = torch.randn(30, 7, 11, generator=rng)
    target = torch.randint(11, (30, 7), generator=rng)
    right = torch.rand(30, 7, generator=rng) < 0.8
    output.scatter_(2, target.unsqueeze(2), right.float().unsqueeze(2) * 9)
    target[torch.arange(7) >= torch.randint(1, 8, (30, 1), generator=rng)] = IGNORED
    return output, target


@pytest.mark.parametrize("batch_size", [1, 4, 30])
def test_tokens_are_counted_one_by_one_and_padding_never(batch_size: int) -> None:
    output, target = token_batch()
    computed = fill(Metrics(TokenSums(whole_sequences=True)), output, target, batch_size).compute()
    counted = target != IGNORED
    nll = -output[counted].double().log_softmax(1).gather(1, target[counted].unsqueeze(1))
    predicted = output.argmax(2)
    exact = [(predicted[i][counted[i]] == target[i][counted[i]]).all().item() for i in range(30)]
    assert 0 < sum(exact) < 30
    assert computed["perplexity"] == pytest.approx(nll.mean().exp().item(), rel=1e-6)
    assert computed["token_accuracy"] == pytest.approx(
        reference.accuracy_score(target[counted], predicted[counted]), abs=1e-12
    )
    assert computed["exact_match"] == pytest.approx(sum(exact) / 30)


def test_more_padding_changes_no_metric_of_tokens() -> None:
    output, target = token_batch()
    padded = (
        torch.cat([output, torch.full((30, 3, 11), 5.0)], 1),
        torch.nn.functional.pad(target, (0, 3), value=IGNORED),
    )
    kind = TokenSums(whole_sequences=True)
    assert fill(Metrics(kind), *padded, 7).compute() == pytest.approx(fill(Metrics(kind), output, target, 30).compute())


def test_a_text_without_tokens_has_no_perplexity() -> None:
    assert math.isnan(Metrics(TokenSums(whole_sequences=False)).compute()["perplexity"])
