"""Whatever the size of the batches, a metric is that of all samples together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from dltrain.evaluation import evaluate
from dltrain.prediction import predict
from tests.small_runs import train

pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.mark.fault(57, 58)
def test_a_small_last_batch_counts_by_its_samples_and_f1_is_of_the_whole(tmp_path: Path) -> None:
    results = [
        evaluate(train(tmp_path / str(size), {"train": {"eval_batch_size": size}}))["metrics"]
        for size in (1, 2, 4, 7, 14, 15, 16)
    ]
    for metrics in results[1:]:
        assert metrics == pytest.approx(results[0], abs=1e-6)
    run = tmp_path / "4" / "runs" / "small" / "1"
    with np.load(tmp_path / "4" / "data.npz") as data:
        np.save(tmp_path / "new.npy", data["x_test"])
        predicted = [row["prediction"] for row in predict(run, [str(tmp_path / "new.npy")])]
        assert results[2]["macro_f1"] == pytest.approx(f1_score(data["y_test"], predicted, average="macro"))
