"""Some cases of `make soak`: a run that was killed at any moment ends, resumed, with the bytes of a whole one."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.soak import SHIPPED, TWO, VARIANTS, Soak, cases

pytestmark = pytest.mark.slow

TEN = [
    "config digits_convnet",
    "config people",
    "config languages",
    "config own_model",
    "everything at once",
    "sam",
    "micro-batches",
    "early stopping",
    "schedule-free with batch normalisation",
    "swa that has begun",
]


@pytest.fixture(scope="module")
def soak(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Soak]:
    return Soak(tmp_path_factory.mktemp("soak"))


@pytest.mark.parametrize("name", TEN)
def test_a_killed_run_ends_with_the_bytes_of_the_uninterrupted_one(name: str, soak: Soak) -> None:
    number = TEN.index(name)
    same, told = soak.case(name, number, random.Random(name), by_command=number == 0)
    assert same, told


def test_a_run_on_two_processes_of_which_one_is_killed_ends_with_the_same_bytes(soak: Soak) -> None:
    same, told = soak.case("everything at once", len(TEN), random.Random(1), by_command=False, devices=2)
    assert same, told


def test_the_cases_are_every_shipped_config_and_every_variant_in_turn_and_some_on_two_processes() -> None:
    drawn = list(cases(200, random.Random(0)))
    assert {name for name, devices in drawn if devices == 1} == {f"config {name}" for name in SHIPPED} | {*VARIANTS}
    assert [name for name, devices in drawn if devices == 2] == list(TWO)
