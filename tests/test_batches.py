import mmap

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dltrain.data import batches
from dltrain.data.batches import BLOCK_BYTES, BLOCKS_AT_ONCE, ReadAhead, epoch_order, reading, steps_per_epoch
from dltrain.data.columns import Columns, Ragged


@given(st.integers(1, 300), st.integers(1, 64))
def test_the_batches_of_an_epoch_hold_every_sample(num_samples, batch_size):
    steps = steps_per_epoch(num_samples, batch_size, drop_last=False)
    assert (steps - 1) * batch_size < num_samples <= steps * batch_size


@given(st.integers(1, 300), st.integers(1, 64))
def test_drop_last_leaves_out_only_what_fills_no_batch(num_samples, batch_size):
    steps = steps_per_epoch(num_samples, batch_size, drop_last=True)
    assert steps == max(1, num_samples // batch_size)


@pytest.mark.parametrize("sampler", ["shuffle", "sequential", "blocks"])
def test_an_epoch_shows_every_sample_once(sampler):
    order = epoch_order(100, seed=0, epoch=3, sampler=sampler)
    assert order.sort().values.tolist() == list(range(100))
    assert (order.tolist() == list(range(100))) == (sampler == "sequential")


@pytest.mark.parametrize("sampler", ["shuffle", "balanced", "blocks"])
def test_order_is_a_function_of_seed_and_epoch(sampler):
    classes = torch.arange(100) % 3
    first, again, later, other = (
        epoch_order(100, seed, epoch, sampler, classes).tolist() for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert first == again
    assert first != later != other != first


def test_order_leaves_the_random_numbers_of_the_model_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    epoch_order(100, 0, 0, "balanced", torch.arange(100) % 3)
    assert torch.equal(torch.rand(3), expected)


def test_balanced_draws_all_classes_and_all_samples_of_a_class_equally_often():
    classes = torch.tensor([0] * 900 + [2] * 90 + [3] * 10)  # class 1 has no sample
    drawn = torch.cat([epoch_order(1000, 0, epoch, "balanced", classes) for epoch in range(60)])
    shares = torch.bincount(classes[drawn]) / len(drawn)
    torch.testing.assert_close(shares, torch.tensor([1 / 3, 0, 1 / 3, 1 / 3]), atol=0.01, rtol=0)
    of_the_rarest = torch.bincount(drawn, minlength=1000)[-10:] / len(drawn)
    torch.testing.assert_close(of_the_rarest, torch.full((10,), 1 / 30), atol=0.005, rtol=0)


def test_balanced_takes_classes_in_any_order():
    classes = torch.tensor([5, 0, 5, 5, 0, 5])
    assert set(epoch_order(6, 0, 0, "balanced", classes).tolist()) <= set(range(6))
    drawn = torch.cat([epoch_order(6, 0, epoch, "balanced", classes) for epoch in range(50)])
    assert set(drawn.tolist()) == set(range(6))


def test_sequences_are_drawn_with_others_of_like_length():
    lengths = torch.randint(1, 100, (1000,), generator=torch.Generator().manual_seed(0))
    order = epoch_order(1000, 0, 0, "shuffle", lengths=lengths, batch_size=32)
    assert sorted(order.tolist()) == list(range(1000))
    batches = lengths[order[: 1000 // 32 * 32]].view(-1, 32)
    assert (1 - batches.sum() / (batches.amax(1).sum() * 32)) < 0.04  # is padding
    means = batches.float().mean(1)
    assert not torch.equal(means, means.sort().values)  # short and long batches alternate


def test_batches_of_sequences_are_a_function_of_seed_and_epoch():
    lengths = torch.arange(100) % 7
    draw = [
        epoch_order(100, seed, epoch, "shuffle", None, lengths, 8).tolist() for seed, epoch in ((0, 1), (0, 1), (0, 2))
    ]
    assert draw[0] == draw[1] != draw[2]


def test_the_last_batch_of_sequences_is_the_one_that_is_not_full():
    lengths = torch.arange(70)
    order = epoch_order(70, 0, 0, "shuffle", lengths=lengths, batch_size=32)
    first, second, rest = order[:32], order[32:64], order[64:]
    assert len(rest) == 6
    spans = [lengths[part].max() - lengths[part].min() for part in (first, second, rest)]
    assert max(spans) < 70 // 2


# ---- blocks


NUM_BLOCKS, BLOCK_SIZE = 4 * BLOCKS_AT_ONCE, 50
SAMPLE_BYTES = BLOCK_BYTES // BLOCK_SIZE


@pytest.mark.parametrize("batch_size", [64, 256])
def test_batches_of_blocks_are_mixed_as_stated_in_a_file_sorted_by_class(batch_size):
    num_samples, share, size = NUM_BLOCKS * BLOCK_SIZE, 0.1, batch_size
    classes = torch.arange(num_samples) < share * num_samples
    deviations, neighbours = {}, {}
    for sampler in ("shuffle", "blocks"):
        orders = [epoch_order(num_samples, 0, epoch, sampler, sample_bytes=SAMPLE_BYTES) for epoch in range(8)]
        drawn = torch.cat([order[: num_samples // size * size].view(-1, size) for order in orders])
        deviations[sampler] = classes[drawn].float().mean(1).std()
        blocks = drawn[::10] // BLOCK_SIZE
        same = (blocks.unsqueeze(1) == blocks.unsqueeze(2)).float().mean()
        neighbours[sampler] = (same * size - 1) / (size - 1)  # of the pairs of two samples
    of_shuffle, of_blocks = 1 / size, 1 / size + (1 - 1 / size) / BLOCKS_AT_ONCE
    for sampler, expected in (("shuffle", of_shuffle), ("blocks", of_blocks)):
        assert deviations[sampler] == pytest.approx((share * (1 - share) * expected) ** 0.5, rel=0.15)
    assert neighbours["shuffle"] == pytest.approx(1 / NUM_BLOCKS, rel=0.25)
    assert neighbours["blocks"] == pytest.approx(1 / BLOCKS_AT_ONCE, rel=0.25)


def test_blocks_are_read_once_and_in_stretches():
    order = epoch_order(NUM_BLOCKS * BLOCK_SIZE - 7, 0, 0, "blocks", sample_bytes=SAMPLE_BYTES)
    windows = torch.split(order // BLOCK_SIZE, BLOCKS_AT_ONCE * BLOCK_SIZE)
    num_read = sum(len(window.unique()) for window in windows)
    assert num_read <= NUM_BLOCKS + 7 * len(windows)  # after the short block 7 samples of the next ones come earlier


def test_small_data_are_shuffled_as_a_whole():
    drawn = torch.stack([epoch_order(100, 0, epoch, "blocks", sample_bytes=1000) for epoch in range(2000)])
    assert drawn[:, 0].float().mean() == pytest.approx(49.5, abs=3)
    neighbours = (drawn[:, 1] - drawn[:, 0]).abs() == 1
    assert neighbours.float().mean() == pytest.approx(2 / 100, abs=0.01)


def test_sequences_in_blocks_are_drawn_with_others_of_like_length():
    lengths = torch.randint(1, 100, (NUM_BLOCKS * BLOCK_SIZE,), generator=torch.Generator().manual_seed(0))
    order = epoch_order(len(lengths), 0, 0, "blocks", None, lengths, 32, SAMPLE_BYTES)
    assert torch.equal(order.sort().values, torch.arange(len(lengths)))
    drawn = lengths[order[: len(order) // 32 * 32]].view(-1, 32)
    assert (1 - drawn.sum() / (drawn.amax(1).sum() * 32)) < 0.04  # is padding
    first = order[: BLOCKS_AT_ONCE * BLOCK_SIZE // 32 * 32]
    assert len((first // BLOCK_SIZE).unique()) <= BLOCKS_AT_ONCE


@pytest.mark.parametrize("is_ragged", [False, True])
def test_what_comes_soon_is_asked_for_once(is_ragged, monkeypatch):
    num_samples = 40 * BLOCK_SIZE
    monkeypatch.setattr(batches, "BLOCKS_AT_ONCE", 4)
    values = torch.zeros(num_samples * SAMPLE_BYTES, dtype=torch.uint8)
    column = values.view(num_samples, -1)
    if is_ragged:
        column = Ragged.from_lengths(values, torch.full((num_samples,), SAMPLE_BYTES))
    told = {mmap.MADV_RANDOM: [], mmap.MADV_WILLNEED: [], batches._MADV_COLD: []}
    asked, done = told[mmap.MADV_WILLNEED], told[batches._MADV_COLD]

    def advise(address, size, advice):
        told[advice].append((address - values.data_ptr(), size))

    monkeypatch.setattr(batches, "advise", advise)
    columns = Columns((column,), None)
    order = epoch_order(num_samples, 0, 0, "blocks", sample_bytes=columns.sample_bytes)
    read_ahead = reading(columns, "blocks")
    assert isinstance(read_ahead, ReadAhead)
    assert told[mmap.MADV_RANDOM] == [(0, values.nbytes)]
    for position in range(0, num_samples, 10):
        read_ahead(order, position)
        have = {start // (SAMPLE_BYTES * BLOCK_SIZE) for start, _ in asked}
        assert set((order[position : position + 4 * BLOCK_SIZE] // BLOCK_SIZE).tolist()) <= have
        assert len(asked) <= position // BLOCK_SIZE + 8
        to_come = set((order[position:] // BLOCK_SIZE).tolist())
        assert not to_come & {start // (SAMPLE_BYTES * BLOCK_SIZE) for start, _ in done}
    assert sorted(start for start, _ in asked) == [block * SAMPLE_BYTES * BLOCK_SIZE for block in range(40)]
    assert len(done) == 40 - 8  # all but those that were in memory when the last ones had been asked for


@pytest.mark.parametrize(
    ("sampler", "free", "expected"),
    [("shuffle", 0, 1), ("balanced", 0, 1), ("shuffle", 2**40, 0), ("sequential", 0, 0)],
)
def test_data_larger_than_the_memory_are_read_without_their_neighbours(
    monkeypatch: pytest.MonkeyPatch, sampler: str, free: int, expected: int
) -> None:
    told: list[int] = []
    monkeypatch.setattr(batches, "page_cache_bytes", lambda: free)
    monkeypatch.setattr(batches, "advise", lambda address, size, advice: told.append(advice))
    large = torch.zeros(batches._MAPPED_BYTES + 1, dtype=torch.uint8)
    assert reading(Columns((large,), None), sampler) is None
    assert told == [mmap.MADV_RANDOM] * expected
    assert reading(Columns((large[:9],), None), "blocks") is None
    assert len(told) == expected
