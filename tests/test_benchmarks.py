"""The claim that dltrain computes what the hand-tuned loop computes, and the arithmetic of the benchmark's table."""

import dataclasses
from pathlib import Path

import pytest
import torch

from benchmarks import comparison, implementations
from benchmarks.comparison import Comparison, Figures
from benchmarks.works import WORKS, Work, save
from dltrain.seeds import WEIGHTS, seed_of


@pytest.fixture(params=["digits", "tabular"])
def work(request: pytest.FixtureRequest) -> Work:
    """Return a shortened work."""
    full = WORKS[request.param]
    num_samples = min(full.num_samples, 1000)

    def first_samples() -> tuple:
        inputs, targets = full.arrays()
        return inputs[:num_samples], targets[:num_samples]

    return dataclasses.replace(full, arrays=first_samples, num_samples=num_samples, epochs=2)


@pytest.mark.usefixtures("no_curves")
def test_dltrain_ends_with_the_very_weights_of_the_hand_tuned_loop(work: Work, tmp_path: Path) -> None:
    data = save(work, tmp_path)
    weights = {}
    for name in ("bare_mem", "dltrain"):
        folder = tmp_path / name
        folder.mkdir()
        trained = implementations.IMPLEMENTATIONS[name].train(work, data, folder)
        weights[name] = comparison.read_weights(trained.weights)
    torch.manual_seed(seed_of(work.seed, WEIGHTS))
    assert comparison.distance(weights["bare_mem"], work.model().state_dict()) > 1e-3  # something was learnt
    assert comparison.distance(weights["dltrain"], weights["bare_mem"]) == 0.0


def test_a_round_on_a_slow_moment_does_not_change_the_ratio() -> None:
    def figures(loop_s: float) -> Figures:
        return Figures(loop_s, samples_per_s=1 / loop_s, process_s=1.0, cpu_s=1.0, peak_mib=100.0)

    rounds = [{"bare_mem": figures(s), "dltrain": figures(1.5 * s)} for s in (1.0, 7.0, 1.0)]
    compared = Comparison(WORKS["digits"], 1, rounds, losses={}, distances={})
    assert compared.ratio("dltrain", "loop_s") == pytest.approx((1.5, 1.5, 1.5))


def test_weights_that_differ_in_one_bit_are_not_called_equal() -> None:
    one = {"weight": torch.ones(3)}
    other = {"weight": torch.tensor([1.0, 1.0, 1.0 + 2**-23])}
    assert comparison.distance(one, one) == 0.0
    assert comparison.distance(one, other) == 2**-23
