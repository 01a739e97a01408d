import torch
from hypothesis import given
from hypothesis import strategies as st

from dltrain.data.order import epoch_order
from dltrain.seeds import STEP, seed_everything, seed_of

CPU = torch.device("cpu")


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3))
def test_mixed_seeds_are_seeds_of_torch(numbers):
    assert 0 <= seed_of(*numbers) < 2**63
    torch.Generator().manual_seed(seed_of(*numbers))


def test_neighbouring_seeds_and_steps_give_unrelated_streams():
    seeds = {seed_of(seed, step) for seed in range(100) for step in range(100)}
    assert len(seeds) == 10_000
    ones = [bin(seed_of(0, step) ^ seed_of(0, step + 1)).count("1") for step in range(1000)]
    assert 30 < sum(ones) / len(ones) < 33  # half of the 63 bits change
    assert seed_of(1, 2) != seed_of(2, 1)


def test_a_seed_decides_what_is_drawn_whatever_came_before() -> None:
    def drawn(*numbers: int) -> list[float]:
        seed_everything(CPU, *numbers)
        return torch.rand(3).tolist()

    first = drawn(1, 2)
    torch.rand(5)
    assert drawn(1, 2) == first
    assert len({tuple(drawn(*numbers)) for numbers in ((1, 2), (1, 3), (2, 2), (2, 1), (12,), (1,))}) == 6


def test_the_order_of_an_epoch_and_the_dropout_of_a_step_are_unrelated() -> None:
    seed_everything(CPU, 0, STEP, 3)
    assert not torch.equal(torch.randperm(100), epoch_order(100, 0, 3, "shuffle"))
