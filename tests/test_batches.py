"""What each step gets, and how what is larger than the memory is read."""

import mmap
from itertools import pairwise, product

import pytest
import torch

from dltrain.data import batches, order
from dltrain.data.batches import Batches
from dltrain.data.columns import Columns, Ragged

CPU = torch.device("cpu")
NUM_SAMPLES, BATCH_SIZE, EPOCH_STEPS = 1000, 32, 32


@pytest.fixture
def little_memory(monkeypatch):
    """Make blocks of 512 bytes, of which 8 are shuffled together, and take all tensors for files."""
    monkeypatch.setattr(order, "BLOCK_BYTES", 512)
    monkeypatch.setattr(order, "BLOCKS_AT_ONCE", 8)
    monkeypatch.setattr(batches, "_MAPPED_BYTES", 0)


def columns_of(kind: str) -> Columns:
    """Return samples that are told apart by their values."""
    numbers = torch.arange(NUM_SAMPLES)
    if kind == "tensors":
        return Columns((numbers.float().unsqueeze(1) * torch.ones(5), numbers.int().view(-1, 1, 1)), numbers)
    lengths = 1 + numbers % 7
    values = torch.arange(int(lengths.sum()) + 1, dtype=torch.int32)
    inputs = Ragged.from_lengths(values[:-1], lengths)
    if kind == "sequences":
        return Columns((inputs,), numbers)
    inputs = Ragged(values, inputs.starts, lengths)
    return Columns((inputs,), Ragged(values, inputs.starts + 1, lengths, -100))  # the same text one token later


KINDS = ["tensors", "sequences", "a text and its next tokens"]


@pytest.mark.parametrize(
    ("kind", "sampler"),
    [*product(KINDS, ["shuffle", "sequential", "blocks"]), *product(KINDS[1:], ["by_length"])],
)
def test_a_step_has_the_tensors_of_its_samples(kind: str, sampler: str, little_memory: None) -> None:
    columns = columns_of(kind)
    given = Batches(columns, None, 0, sampler, BATCH_SIZE, EPOCH_STEPS)
    for step in [*range(2 * EPOCH_STEPS), 3, 200, 201]:  # two epochs, back after a roll-back, and far ahead
        samples = given.samples(step)
        inputs, target = given.tensors(step, CPU)
        expected_inputs, expected_target = columns.batch(samples, CPU)
        assert torch.equal(target, expected_target)
        assert all(torch.equal(x, y) for x, y in zip(inputs, expected_inputs, strict=True))
        part_inputs, whole_target = given.tensors(step, CPU, slice(1, 3))
        assert torch.equal(whole_target, expected_target)
        assert all(torch.equal(x, y) for x, y in zip(part_inputs, columns.batch(samples[1:3], CPU)[0], strict=True))
    epoch = torch.cat([given.samples(step) for step in range(EPOCH_STEPS)])
    assert torch.equal(epoch.sort().values, torch.arange(NUM_SAMPLES))


def test_the_order_in_blocks_does_not_depend_on_where_the_data_are(
    little_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_files = Batches(columns_of("tensors"), None, 0, "blocks", BATCH_SIZE, EPOCH_STEPS)
    monkeypatch.setattr(batches, "_MAPPED_BYTES", 2**30)
    in_memory = Batches(columns_of("tensors"), None, 0, "blocks", BATCH_SIZE, EPOCH_STEPS)
    assert all(torch.equal(from_files.samples(step), in_memory.samples(step)) for step in range(2 * EPOCH_STEPS))


@pytest.mark.parametrize("kind", ["tensors", "a text and its next tokens"])
def test_an_epoch_in_blocks_reads_each_stretch_once_and_ahead_of_its_steps(
    kind: str, little_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = columns_of(kind)
    first = columns.inputs[0]
    values = first if isinstance(first, torch.Tensor) else first.values
    told: dict[int, list[tuple[int, int]]] = {mmap.MADV_RANDOM: [], mmap.MADV_WILLNEED: [], batches._MADV_COLD: []}

    def advise(address: int, size_bytes: int, advice: int) -> None:
        if values.data_ptr() <= address < values.data_ptr() + values.nbytes:
            told[advice].append((address - values.data_ptr(), size_bytes))

    monkeypatch.setattr(batches, "advise", advise)
    given = Batches(columns, None, 0, "blocks", BATCH_SIZE, EPOCH_STEPS)
    assert told[mmap.MADV_RANDOM] == [(0, values.nbytes)]
    window_steps = given._window_steps
    assert 1 < window_steps < EPOCH_STEPS / 3
    num_asked = [0]
    for step in range(EPOCH_STEPS):
        given.tensors(step, CPU)
        if step % window_steps == 0:
            (coming,) = given._coming.values()
            coming.result()  # the next window, which is read while this one is trained on
            num_asked.append(sum(size for _, size in told[mmap.MADV_WILLNEED]))
    assert num_asked[-2] >= values.nbytes  # all but the first window of the next epoch
    assert all(later > sooner for sooner, later in pairwise(num_asked))
    assert sorted(told[mmap.MADV_WILLNEED]) == sorted(told[batches._MADV_COLD])


def test_an_error_while_reading_reaches_the_loop(little_memory: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Columns:
        raise MemoryError

    given = Batches(columns_of("tensors"), None, 0, "blocks", BATCH_SIZE, EPOCH_STEPS)
    given._at(0)
    (coming,) = given._coming.values()
    coming.result()
    monkeypatch.setattr(batches, "_copied", fail)
    given.samples(given._window_steps)  # was read before, and has the next one read
    with pytest.raises(MemoryError):
        given.samples(2 * given._window_steps)


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
    Batches(Columns((large,), None), None, 0, sampler, BATCH_SIZE, EPOCH_STEPS)
    assert told == [mmap.MADV_RANDOM] * expected
    Batches(Columns((large[:9],), None), None, 0, "blocks", BATCH_SIZE, EPOCH_STEPS)
    assert len(told) == expected
