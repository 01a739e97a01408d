import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dltrain.data.order import BLOCK_BYTES, BLOCKS_AT_ONCE, Blocks, epoch_order, steps_per_epoch


@given(st.integers(1, 300), st.integers(1, 64))
def test_the_batches_of_an_epoch_hold_every_sample(num_samples, batch_size):
    steps = steps_per_epoch(num_samples, batch_size, drop_last=False)
    assert (steps - 1) * batch_size < num_samples <= steps * batch_size


@given(st.integers(1, 300), st.integers(1, 64))
def test_drop_last_leaves_out_only_what_fills_no_batch(num_samples, batch_size):
    steps = steps_per_epoch(num_samples, batch_size, drop_last=True)
    assert steps == max(1, num_samples // batch_size)


@pytest.mark.parametrize("sampler", ["shuffle", "sequential"])
def test_an_epoch_shows_every_sample_once(sampler):
    order = epoch_order(100, seed=0, epoch=3, sampler=sampler)
    assert order.sort().values.tolist() == list(range(100))
    assert (order.tolist() == list(range(100))) == (sampler == "sequential")


@pytest.mark.parametrize("sampler", ["shuffle", "balanced"])
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
    order = epoch_order(1000, 0, 0, "by_length", lengths=lengths, batch_size=32)
    assert sorted(order.tolist()) == list(range(1000))
    batches = lengths[order[: 1000 // 32 * 32]].view(-1, 32)
    assert (1 - batches.sum() / (batches.amax(1).sum() * 32)) < 0.04  # is padding
    means = batches.float().mean(1)
    assert not torch.equal(means, means.sort().values)  # short and long batches alternate


def test_batches_of_sequences_are_a_function_of_seed_and_epoch():
    lengths = torch.arange(100) % 7
    draw = [
        epoch_order(100, seed, epoch, "by_length", None, lengths, 8).tolist()
        for seed, epoch in ((0, 1), (0, 1), (0, 2))
    ]
    assert draw[0] == draw[1] != draw[2]


def test_the_last_batch_of_sequences_is_the_one_that_is_not_full():
    lengths = torch.arange(70)
    order = epoch_order(70, 0, 0, "by_length", lengths=lengths, batch_size=32)
    first, second, rest = order[:32], order[32:64], order[64:]
    assert len(rest) == 6
    spans = [lengths[part].max() - lengths[part].min() for part in (first, second, rest)]
    assert max(spans) < 70 // 2


# ---- blocks


NUM_BLOCKS, BLOCK_SIZE = 4 * BLOCKS_AT_ONCE, 50
SAMPLE_BYTES = BLOCK_BYTES // BLOCK_SIZE


def windows_of(blocks: Blocks, epoch: int = 0) -> list[torch.Tensor]:
    """Return the samples of each window of an epoch."""
    windows = []
    for index in range(-(-blocks.num_samples // (blocks.window_steps * blocks.batch_size))):
        stretches, rows = blocks.window(epoch, index)
        windows.append(torch.cat([torch.arange(s.start, s.stop) for s in stretches])[rows])
    return windows


@given(st.integers(1, 5000), st.integers(1, 700), st.sampled_from([1, 1000, BLOCK_BYTES // 3, BLOCK_BYTES]))
def test_an_epoch_in_blocks_shows_every_sample_once(num_samples, batch_size, sample_bytes):
    windows = windows_of(Blocks(num_samples, batch_size, sample_bytes, seed=0), epoch=3)
    assert torch.equal(torch.cat(windows).sort().values, torch.arange(num_samples))
    assert all(len(window) % batch_size == 0 for window in windows[:-1])


def test_order_in_blocks_is_a_function_of_seed_and_epoch():
    first, again, later, other = (
        torch.cat(windows_of(Blocks(100, 8, 1, seed), epoch)).tolist()
        for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert first == again
    assert first != later != other != first


@pytest.mark.parametrize("batch_size", [64, 256])
def test_batches_of_blocks_are_mixed_as_stated_in_a_file_sorted_by_class(batch_size):
    num_samples, share, size = NUM_BLOCKS * BLOCK_SIZE, 0.1, batch_size
    classes = torch.arange(num_samples) < share * num_samples
    blocks = Blocks(num_samples, size, SAMPLE_BYTES, seed=0)
    orders = {
        "shuffle": [epoch_order(num_samples, 0, epoch, "shuffle") for epoch in range(8)],
        "blocks": [torch.cat(windows_of(blocks, epoch)) for epoch in range(8)],
    }
    deviations, neighbours = {}, {}
    for sampler in orders:
        drawn = torch.cat([order[: num_samples // size * size].view(-1, size) for order in orders[sampler]])
        deviations[sampler] = classes[drawn].float().mean(1).std()
        of_blocks = drawn[::10] // BLOCK_SIZE
        same = (of_blocks.unsqueeze(1) == of_blocks.unsqueeze(2)).float().mean()
        neighbours[sampler] = (same * size - 1) / (size - 1)  # of the pairs of two samples
    of_shuffle, of_blocks = 1 / size, 1 / size + (1 - 1 / size) / BLOCKS_AT_ONCE
    for sampler, expected in (("shuffle", of_shuffle), ("blocks", of_blocks)):
        assert deviations[sampler] == pytest.approx((share * (1 - share) * expected) ** 0.5, rel=0.15)
    assert neighbours["shuffle"] == pytest.approx(1 / NUM_BLOCKS, rel=0.25)
    assert neighbours["blocks"] == pytest.approx(1 / BLOCKS_AT_ONCE, rel=0.25)


def test_an_epoch_in_blocks_reads_every_byte_once_and_in_stretches():
    blocks = Blocks(NUM_BLOCKS * BLOCK_SIZE - 7, 64, SAMPLE_BYTES, seed=0)
    read = []
    for index in range(4):
        stretches, rows = blocks.window(0, index)
        assert len(stretches) <= BLOCKS_AT_ONCE + 2  # a block may be cut in two at either end
        assert stretches == sorted(stretches, key=lambda stretch: stretch.start)
        assert len(rows) == sum(stretch.stop - stretch.start for stretch in stretches)
        read += stretches
    bounds = sorted((stretch.start, stretch.stop) for stretch in read)
    assert [start for start, _ in bounds] == [0, *(stop for _, stop in bounds[:-1])]
    assert bounds[-1][1] == blocks.num_samples


def test_small_data_are_shuffled_as_a_whole():
    blocks = Blocks(100, 10, 1000, seed=0)
    drawn = torch.stack([windows_of(blocks, epoch)[0] for epoch in range(2000)])
    assert drawn[:, 0].float().mean() == pytest.approx(49.5, abs=3)
    neighbours = (drawn[:, 1] - drawn[:, 0]).abs() == 1
    assert neighbours.float().mean() == pytest.approx(2 / 100, abs=0.01)
