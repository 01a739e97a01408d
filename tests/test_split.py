import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dltrain.data.split import split_by_ratio
from dltrain.errors import ConfigError, DataError


@given(
    num_samples=st.integers(20, 300),
    val=st.sampled_from([0.0, 0.1, 0.25, 0.3]),
    test=st.sampled_from([0.0, 0.1, 0.4]),
    seed=st.integers(0, 5),
    num_classes=st.integers(0, 40),
)
def test_every_sample_is_in_exactly_one_split(num_samples, val, test, seed, num_classes):
    strata = np.random.default_rng(seed).integers(0, num_classes, num_samples) if num_classes else None
    parts = split_by_ratio(num_samples, val, test, seed, strata)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(num_samples))
    assert len(parts["val"]) == round(val * num_samples)
    assert len(parts["test"]) == round(test * num_samples)


def test_a_split_is_a_function_of_its_seed():
    first, again, other = (split_by_ratio(100, 0.2, 0.2, seed)["val"].tolist() for seed in (3, 3, 4))
    assert first == again != other


@pytest.mark.parametrize("seed", range(5))
def test_every_split_holds_the_classes_in_their_shares(seed):
    strata = np.array(["rare"] * 20 + ["common"] * 180)
    strata = strata[np.random.default_rng(seed).permutation(200)]
    parts = split_by_ratio(200, 0.1, 0.2, seed, strata)
    assert {name: int((strata[rows] == "rare").sum()) for name, rows in parts.items()} == {
        "train": 14,
        "val": 2,
        "test": 4,
    }


@pytest.mark.parametrize("count", [1, 2, 3])
def test_classes_of_few_samples_are_always_there_to_be_learnt(count):
    strata = np.concatenate([np.repeat(np.arange(20), count), np.full(300, 20)])
    for seed in range(10):
        train = split_by_ratio(len(strata), 0.2, 0.2, seed, strata)["train"]
        assert set(strata[train]) == set(range(21))


def test_within_a_class_chance_decides():
    strata = np.zeros(100, np.int64)
    splits = [set(split_by_ratio(100, 0.1, 0, seed, strata)["val"].tolist()) for seed in range(20)]
    assert len(set.union(*splits)) > 60


def test_fractions_that_leave_nothing_to_train_on_are_an_error():
    with pytest.raises(
        ConfigError, match=r"^val 0.6 and test 0.4 leave nothing to train on; their sum must be below 1"
    ):
        split_by_ratio(100, 0.6, 0.4, 0)


def test_too_few_samples_for_a_split_are_an_error():
    message = r"^4 samples are too few for a val split of 0.1; set larger fractions, or 0$"
    with pytest.raises(DataError, match=message):
        split_by_ratio(4, 0.1, 0.0, 0)
    with pytest.raises(DataError, match=r"^val 0.9 and test 0 of 1 samples leave none to train on$"):
        split_by_ratio(1, 0.9, 0.0, 0)


def test_where_nothing_is_set_aside_nothing_is_drawn() -> None:
    num_samples = 100_000
    strata = np.zeros(num_samples, np.int64)
    tracemalloc.start()
    try:
        parts = split_by_ratio(num_samples, 0.0, 0.0, seed=0, strata=strata)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert {name: len(part) for name, part in parts.items()} == {"train": num_samples, "val": 0, "test": 0}
    assert (parts["train"] == np.arange(num_samples)).all()
    assert peak_bytes < 2 * parts["train"].nbytes
