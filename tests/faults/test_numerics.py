"""Uneven batches and micro-batches: no sample is lost, and each counts the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dltrain.train import fit
from tests.small_runs import STEPS_PER_EPOCH, result_of, rows_of, small_config, train, weights_of

pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.mark.fault(21, 22)
@pytest.mark.parametrize("size", [1, 3, 5, 7, 15])
def test_micro_batches_that_do_not_divide_the_batch_change_no_weight(size: int, tmp_path: Path) -> None:
    """50 samples are batches of 16, 16, 16 and 2: neither they nor the last batch can be divided evenly."""
    whole = weights_of(train(tmp_path / "whole", {"optimizer": {"type": "sgd", "lr": 0.1}}))
    parts = weights_of(
        train(tmp_path / "parts", {"optimizer": {"type": "sgd", "lr": 0.1}, "train": {"micro_batch_size": size}})
    )
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, rtol=0, atol=1e-6)


@pytest.mark.fault(22)
def test_the_small_last_batch_of_an_epoch_is_a_step_like_the_others(tmp_path: Path) -> None:
    run = train(tmp_path, {"train": {"micro_batch_size": 5, "evaluate_every": "1 epochs"}})
    assert [row["step"] for row in rows_of(run)] == [STEPS_PER_EPOCH * epoch for epoch in (1, 2, 3)]


@pytest.mark.fault(28)
def test_the_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    file = small_config(tmp_path, {"model": {"dropout": 0.3}})
    first, second = (Path(fit(file, root=tmp_path / name)["run"]) for name in ("a", "b"))
    assert result_of(first) == result_of(second)
