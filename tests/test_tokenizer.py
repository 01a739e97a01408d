"""Tokenizers: what is encoded can be read again, nothing in a text is special, and equal texts teach the same."""

from __future__ import annotations

import os
import subprocess
import sys
import unicodedata
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dltrain.data import tokenizer as module
from dltrain.data.columns import PADDING
from dltrain.data.tokenizer import BEGIN, END, KINDS, NUM_SPECIAL, UNKNOWN, Tokenizer
from dltrain.errors import ConfigError, DataError

TEXTS = [
    "It was the best of times, it was the worst of times,",
    "it was the age of wisdom, it was the age of foolishness.",
    "Was für ein schöner Tag! Καλημέρα κόσμε. 你好,世界 🙂",
    "the times, the age; the best, the worst",
]
LOSSLESS = {kind: Tokenizer.train(TEXTS, kind, None, False) for kind in ("byte", "bpe")}


def train(kind: str, vocab_size: int | None = None, lowercase: bool = False) -> Tokenizer:
    return Tokenizer.train(TEXTS, kind, vocab_size, lowercase)


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    ids, lengths = tokenizer.encode([text])
    assert lengths.tolist() == [len(ids)]
    return ids.tolist()


# There and back


@pytest.mark.parametrize("kind", LOSSLESS)
@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_from_bytes_and_bpe(kind: str, text: str) -> None:
    tokenizer = LOSSLESS[kind]
    ids = ids_of(tokenizer, text)
    assert tokenizer.decode(ids) == text
    assert all(NUM_SPECIAL <= i < tokenizer.vocab_size for i in ids)


@settings(max_examples=100, deadline=None)
@given(text=st.text(sorted(set("".join(TEXTS)))))
def test_a_text_of_known_characters_comes_back(text: str) -> None:
    tokenizer = train("character")
    assert tokenizer.decode(ids_of(tokenizer, text)) == text


@pytest.mark.parametrize("kind", KINDS)
def test_json_holds_all_of_a_tokenizer(kind: str) -> None:
    tokenizer = train(kind, 300 if kind == "bpe" else None, lowercase=True)
    restored = Tokenizer.from_json(tokenizer.to_json())
    assert restored.to_json() == tokenizer.to_json()
    assert (restored.kind, restored.lowercase, restored.vocab_size) == (kind, True, tokenizer.vocab_size)
    assert torch.equal(restored.encode(TEXTS)[0], tokenizer.encode(TEXTS)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_texts_stand_end_to_end_with_their_lengths(kind: str) -> None:
    tokenizer = train(kind)
    ids, lengths = tokenizer.encode(["the best", "", "the worst"])
    assert (ids.dtype, lengths.dtype) == (torch.int32, torch.int64)
    parts = [part.tolist() for part in ids.split(lengths.tolist())]
    assert parts == [ids_of(tokenizer, "the best"), [], ids_of(tokenizer, "the worst")]
    none = tokenizer.encode([])
    assert [(len(x), x.dtype) for x in none] == [(0, torch.int32), (0, torch.int64)]


def test_a_byte_is_its_value_after_the_special_tokens() -> None:
    assert ids_of(train("byte"), "aé") == [4 + 0x61, 4 + 0xC3, 4 + 0xA9]
    assert train("byte").vocab_size == 260


def test_characters_are_ordered_by_frequency() -> None:
    tokenizer = Tokenizer.train(["aab", "bca"], "character", 6, False)
    assert tokenizer.vocab_size == 6
    assert ids_of(tokenizer, "abc") == [4, 5, UNKNOWN]


def test_words_and_punctuation_are_tokens() -> None:
    tokenizer = train("word")
    assert tokenizer.decode(ids_of(tokenizer, "the best,the worst.")) == "the best , the worst ."
    assert ids_of(tokenizer, "the dodo the") == [(the := ids_of(tokenizer, "the")[0]), UNKNOWN, the]
    assert the == 4  # the most frequent word comes first


def test_bpe_makes_pieces_of_words_seen_more_than_once() -> None:
    tokenizer = train("bpe")
    assert len(ids_of(tokenizer, " times")) == 1
    assert len(ids_of(tokenizer, " emits")) > 1
    assert train("bpe", 270).vocab_size == 270


def test_decoding_skips_special_tokens_and_ids_that_are_none() -> None:
    for kind in KINDS:
        tokenizer = train(kind)
        ids = [BEGIN, *ids_of(tokenizer, "times"), UNKNOWN, END, PADDING, PADDING, tokenizer.vocab_size]
        assert tokenizer.decode(ids) == "times"


def test_bytes_that_are_no_text_become_replacement_characters() -> None:
    for kind, tokenizer in LOSSLESS.items():
        ids = ids_of(tokenizer, "é")
        assert tokenizer.decode(ids[:1]) == "\N{REPLACEMENT CHARACTER}", kind


# What a text may hold


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_is_a_special_token(kind: str) -> None:
    names = ["[PAD]", "<s>", "<unk>", "<pad>", "[UNK]", *module._SPECIAL_NAMES]
    tokenizer = Tokenizer.train(names * 3, kind, None, False)
    ids, _ = tokenizer.encode(names)
    assert ids.min() >= NUM_SPECIAL
    again = Tokenizer.from_json(tokenizer.to_json())
    assert again.encode(names)[0].min() >= NUM_SPECIAL


@pytest.mark.parametrize("kind", KINDS)
def test_surrogates_do_no_harm(kind: str) -> None:
    tokenizer = Tokenizer.train(["a \ud83d b", "a \ufffd b", "🙂"], kind, None, False)
    assert ids_of(tokenizer, "a \udfff b") == ids_of(tokenizer, "a \ufffd b")
    assert ids_of(tokenizer, "\ud83d\ude42") == ids_of(tokenizer, "🙂")  # both halves of the pair


def test_only_words_are_found_in_either_form_of_unicode() -> None:
    composed, decomposed = (unicodedata.normalize(form, "schöner") for form in ("NFC", "NFD"))
    word, bpe = train("word"), train("bpe")
    assert ids_of(word, composed) == ids_of(word, decomposed) != [UNKNOWN]
    assert bpe.decode(ids_of(bpe, decomposed)) == decomposed


@pytest.mark.parametrize("kind", KINDS)
def test_lowercase_takes_effect_in_training_and_encoding(kind: str) -> None:
    tokenizer = train(kind, lowercase=True)
    assert ids_of(tokenizer, "THE BEST") == ids_of(tokenizer, "the best")
    assert tokenizer.decode(ids_of(tokenizer, "THE BEST")) == "the best"
    assert ids_of(train(kind), "THE") != ids_of(train(kind), "the")


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_and_pieces_change_no_id(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" \n ".join(TEXTS), "don't  stop\n\n\tnow ,  \n", "", "x" * 100, "a\x1c b 1  2\n"]
    tokenizer = Tokenizer.train(texts, kind, None, False)
    whole, lengths = tokenizer.encode(texts)
    for piece in (1, 2, 7):
        monkeypatch.setattr(module, "_PIECE_CHARACTERS", piece)
        monkeypatch.setattr(module, "_BLOCK_CHARACTERS", 10)
        ids, pieces_lengths = tokenizer.encode(texts)
        assert torch.equal(ids, whole)
        assert torch.equal(pieces_lengths, lengths)
        assert Tokenizer.train(texts, kind, None, False).to_json() == tokenizer.to_json()


# Training

SCRIPT = """
import sys, hashlib
from dltrain.data.tokenizer import KINDS, Tokenizer
words = {"alpha", "beta", "gamma", "delta", "alphabet", "betas", "gammas", "deltas", "omega", "omegas"}
texts = [f"{a} {b} {i % 7}" for i, a in enumerate(words) for b in words]
if sys.argv[1] == "0":
    texts.sort()
texts = [" ".join(text.split()[:2]) for text in texts]
for kind in KINDS:
    print(hashlib.sha256(Tokenizer.train(texts, kind, None, False).to_json().encode()).hexdigest())
"""


def test_training_does_not_depend_on_order_hashes_and_threads() -> None:
    def digests() -> Iterator[str]:
        for seed, parallel, threads in (("0", "true", "2"), ("1", "false", "1"), ("2", "true", "1")):
            changes = {"PYTHONHASHSEED": seed, "TOKENIZERS_PARALLELISM": parallel, "RAYON_NUM_THREADS": threads}
            command = [sys.executable, "-c", SCRIPT, seed]
            yield subprocess.run(command, env=os.environ | changes, check=True, capture_output=True, text=True).stdout

    assert len(set(digests())) == 1


def test_texts_are_gone_through_once() -> None:
    for kind in KINDS:
        assert Tokenizer.train(iter(TEXTS), kind, None, False).to_json() == train(kind).to_json()


@pytest.mark.parametrize("kind", ["character", "word"])
@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_nothing_to_learn_is_an_error(kind: str, texts: list[str]) -> None:
    with pytest.raises(DataError, match=r"^the training texts are empty; there is nothing to learn a vocabulary from$"):
        Tokenizer.train(texts, kind, None, False)


@pytest.mark.parametrize(
    ("kind", "vocab_size", "message"),
    [
        (
            "bpe",
            259,
            "vocab_size 259 is too small; the kind bpe needs at least 260: 4 special tokens and all 256 bytes",
        ),
        ("word", 4, "vocab_size 4 is too small; the kind word needs at least 5: 4 special tokens and one word"),
        ("character", 3, "vocab_size 3 is too small; the kind character needs at least 5: 4 special tokens and one"),
        ("byte", 1000, "vocab_size cannot take effect: with the kind byte it is always 260"),
    ],
)
def test_a_vocabulary_of_impossible_size_is_an_error(kind: str, vocab_size: int, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        train(kind, vocab_size)
    assert str(raised.value).startswith(message)


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert train("byte").vocab_size == 260  # needs none
    with pytest.raises(ConfigError, match=r"tokenizers to read text; install it: pip install 'dltrain\[text\]'$"):
        train("bpe")
