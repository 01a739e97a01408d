"""Batches of columns: tensors, and sequences of different lengths that are padded to the longest."""

import pytest
import torch
from torch import Tensor

from dltrain.data.columns import IGNORED, Columns, Ragged, shape_of, type_of

CPU = torch.device("cpu")
TEXTS = [[5, 6, 7], [], [8], [9, 10]]


def ragged(texts: list[list[int]], padding: int = 0, dtype: torch.dtype = torch.int32) -> Ragged:
    values = torch.tensor([token for text in texts for token in text], dtype=dtype)
    return Ragged.from_lengths(values, torch.tensor([len(text) for text in texts]), padding)


def test_a_batch_is_padded_to_its_longest_sequence():
    column = ragged(TEXTS)
    assert column[torch.tensor([3, 0])].tolist() == [[9, 10, 0], [5, 6, 7]]
    assert column[torch.tensor([2, 3])].tolist() == [[8, 0], [9, 10]]
    assert column[1:3].tolist() == [[0], [8]]


def test_tokens_come_as_int64_and_numbers_as_they_are():
    assert ragged(TEXTS, dtype=torch.uint8)[0:2].dtype == torch.int64
    frames = Ragged.from_lengths(torch.arange(10.0).view(5, 2), torch.tensor([2, 3]))
    batch = frames[0:2]
    assert batch.dtype == torch.float32
    assert batch.shape == (2, 3, 2)
    assert batch[0].tolist() == [[0, 1], [2, 3], [0, 0]]
    assert (shape_of(frames), type_of(frames)) == ((3, 2), torch.float32)


def test_sequences_without_any_token_are_one_padding():
    column = ragged([[], []], padding=IGNORED)
    assert column[0:2].tolist() == [[IGNORED], [IGNORED]]
    assert shape_of(column) == (1,)


def test_a_text_and_its_next_tokens_share_one_tensor():
    text = torch.arange(1, 8)
    starts, lengths = torch.tensor([0, 3]), torch.tensor([3, 3])
    columns = Columns((Ragged(text, starts, lengths),), Ragged(text, starts + 1, lengths, IGNORED))
    inputs, target = columns.batch(torch.tensor([1, 0]), CPU)
    assert inputs[0].tolist() == [[4, 5, 6], [1, 2, 3]]
    assert target.tolist() == [[5, 6, 7], [2, 3, 4]]
    assert columns.size_bytes == text.numel() * text.element_size()


@pytest.mark.parametrize("padding", [0, IGNORED])
def test_whatever_else_is_in_the_batch_a_sequence_is_the_same(padding):
    column = ragged(TEXTS, padding)
    together: Tensor = column[torch.arange(4)]
    for index, text in enumerate(TEXTS):
        assert together[index, : len(text)].tolist() == text
        assert (together[index, len(text) :] == padding).all()


def test_the_length_of_a_sample_is_that_of_its_longest_sequence():
    longer = ragged([[1], [1, 2, 3, 4], [1], [1]])
    assert Columns((ragged(TEXTS), longer), None).lengths.tolist() == [3, 4, 1, 2]
    assert Columns((torch.zeros(4, 2),), torch.zeros(4)).lengths is None
