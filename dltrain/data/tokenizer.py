"""Text to token ids and back: by byte, character, word, or byte-level BPE; the last two by Hugging Face's `tokenizers`.

What one reads is what is encoded: `byte` and `bpe` give back every text exactly, `character` where it knows all of it,
so no Unicode normalisation takes place but for `word`, which composes characters (NFC) to find a word in either form.
Nothing in a text can become a special token. Equal texts in any order give equal tokenizers.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dltrain.data.columns import PADDING
from dltrain.errors import ConfigError, DataError
from dltrain.extras import require

UNKNOWN = 1
"""Stands for what the training texts do not hold."""
BEGIN = 2
END = 3
NUM_SPECIAL = 4
assert PADDING == 0

KINDS = ("byte", "character", "word", "bpe")
DEFAULT_VOCAB_SIZE = 8000

# In the vocabularies of the library. With a space inside, which no word and no piece of bytes can have, none of them
# can be read from a text, nor learned a second time.
_SPECIAL_NAMES = ["< padding >", "< unknown >", "< begin >", "< end >"]
# A text is cut into pieces where a space follows something else: no word goes across, so the ids are the same.
_PIECE_CHARACTERS = 20_000
_PIECE_END = re.compile(r"\S(?=[ \n])")
# The library's results take some 100 bytes a token until they are ids in an array: 4 million characters at once.
_BLOCK_CHARACTERS = 4_000_000


class Tokenizer:
    """What turns texts into token ids: special ones first (0 to 3), then those of the vocabulary."""

    def __init__(self, kind: str, lowercase: bool, vocabulary: _Bytes | _Characters | _Learned) -> None:
        self.kind = kind
        self.lowercase = lowercase
        self._vocabulary = vocabulary
        self.vocab_size: int = NUM_SPECIAL + vocabulary.size

    @classmethod
    def train(cls, texts: Iterable[str], kind: str, vocab_size: int | None, lowercase: bool) -> Tokenizer:
        """Learn the vocabulary of `texts`: at most `vocab_size` tokens with the special ones, the most frequent.

        Args:
            texts: those of the training split; gone through once.
            kind: byte, character, word or bpe (byte-level byte-pair encoding, Sennrich et al. 2016,
                https://arxiv.org/abs/1508.07909).
            vocab_size: None is 8000 and, for bytes, 260.
            lowercase: whether texts are lowercased before all else; then decoding gives the lowercase text.

        Raises:
            ConfigError: if `vocab_size` is too small for the kind.
            DataError: if the texts hold nothing to learn from.
        """
        check_vocab_size(kind, vocab_size)
        size = (DEFAULT_VOCAB_SIZE if vocab_size is None else vocab_size) - NUM_SPECIAL
        normal = (_normalize(text, kind, lowercase) for text in texts)
        if kind == "byte":
            return cls(kind, lowercase, _Bytes())
        vocabulary = _learn_characters(normal, size) if kind == "character" else _learn(normal, kind, size)
        if vocabulary.size == 0:
            raise DataError("the training texts are empty; there is nothing to learn a vocabulary from")
        return cls(kind, lowercase, vocabulary)

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Return the tokenizer that `to_json` wrote. Raises ValueError for a text that it has not written."""
        return _parsed(text)

    def to_json(self) -> str:
        """Return all that the tokenizer is, as JSON."""
        values = {"kind": self.kind, "lowercase": self.lowercase, "vocabulary": self._vocabulary.to_json_value()}
        return json.dumps(values, ensure_ascii=False)

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the ids of all texts end to end (T,) int32, without special tokens, and their lengths (N,) int64.

        Words and BPE are looked up on all cores. Half of a surrogate pair becomes the replacement character.
        """
        lengths = np.zeros(len(texts), np.int64)
        ids = [np.empty(0, np.int32)]
        for pieces, owners in _blocks(_normalize(text, self.kind, self.lowercase) for text in texts):
            block_ids, counts = self._vocabulary.encode(pieces)
            ids.append(block_ids)
            np.add.at(lengths, owners, counts)
        return torch.from_numpy(np.concatenate(ids)), torch.from_numpy(lengths)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`, without the special tokens; bytes that are not UTF-8 become U+FFFD.

        Words are joined by spaces.
        """
        return self._vocabulary.decode([int(i) for i in ids if NUM_SPECIAL <= i < self.vocab_size])


@functools.lru_cache(maxsize=4)
def _parsed(text: str) -> Tokenizer:
    """Parse a text once, not for each text that is decoded."""
    values = json.loads(text)
    if not isinstance(values, dict) or not isinstance(values.get("lowercase"), bool):
        raise ValueError("is no tokenizer of dltrain")
    kind, learned = values.get("kind"), values.get("vocabulary")
    vocabulary: _Bytes | _Characters | _Learned
    if kind == "byte":
        vocabulary = _Bytes()
    elif kind == "character" and isinstance(learned, str) and learned:
        vocabulary = _Characters.of(learned)
    elif kind in ("word", "bpe") and _is_own(learned, kind):
        try:
            vocabulary = _Learned(_library().Tokenizer.from_str(json.dumps(learned)))
        except ConfigError:
            raise
        except Exception as error:  # the library raises nothing more special
            raise ValueError(f"is damaged: {error}") from None
    else:
        raise ValueError(f"has a vocabulary that no tokenizer of the kind {kind!r} has")
    return Tokenizer(kind, values["lowercase"], vocabulary)


def check_vocab_size(kind: str, vocab_size: int | None) -> None:
    """Raise ConfigError if a tokenizer of this kind cannot have this size."""
    assert kind in KINDS
    if vocab_size is None:
        return
    if kind == "byte":
        raise ConfigError(f"vocab_size cannot take effect: with the kind byte it is always {NUM_SPECIAL + 256}")
    least = NUM_SPECIAL + (256 if kind == "bpe" else 1)
    what = "all 256 bytes" if kind == "bpe" else f"one {kind}"
    if vocab_size < least:
        raise ConfigError(
            f"vocab_size {vocab_size} is too small; the kind {kind} needs at least {least}: "
            f"{NUM_SPECIAL} special tokens and {what}"
        )


@dataclass(frozen=True)
class _Bytes:
    """UTF-8: byte b is the token 4 + b."""

    size: int = 256

    def encode(self, texts: list[str]) -> tuple[np.ndarray, list[int]]:
        encoded = [text.encode() for text in texts]
        return np.frombuffer(b"".join(encoded), np.uint8).astype(np.int32) + NUM_SPECIAL, [*map(len, encoded)]

    def decode(self, ids: list[int]) -> str:
        return bytes(i - NUM_SPECIAL for i in ids).decode(errors="replace")

    def to_json_value(self) -> None:
        return None


@dataclass(frozen=True)
class _Characters:
    """Code points, the most frequent first."""

    characters: str
    sorted_codes: np.ndarray
    """(size,) uint32."""
    ids: np.ndarray
    """(size,) int32: of `sorted_codes`."""

    @classmethod
    def of(cls, characters: str) -> _Characters:
        codes = _code_points(characters)
        order = np.argsort(codes)
        return cls(characters, codes[order], order.astype(np.int32) + NUM_SPECIAL)

    @property
    def size(self) -> int:
        return len(self.characters)

    def encode(self, texts: list[str]) -> tuple[np.ndarray, list[int]]:
        codes = _code_points("".join(texts))
        indices = np.searchsorted(self.sorted_codes, codes).clip(max=self.size - 1)
        known = self.sorted_codes[indices] == codes
        return np.where(known, self.ids[indices], np.int32(UNKNOWN)), [*map(len, texts)]

    def decode(self, ids: list[int]) -> str:
        return "".join(self.characters[i - NUM_SPECIAL] for i in ids)

    def to_json_value(self) -> str:
        return self.characters


@dataclass(frozen=True)
class _Learned:
    """Words or BPE, in a tokenizer of the library without added tokens, which it would look for in texts."""

    tokenizer: Any

    @property
    def size(self) -> int:
        return int(self.tokenizer.get_vocab_size()) - NUM_SPECIAL

    def encode(self, texts: list[str]) -> tuple[np.ndarray, list[int]]:
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        counts = [len(encoding) for encoding in encodings]
        ids = chain.from_iterable(encoding.ids for encoding in encodings)
        return np.fromiter(ids, np.int32, count=sum(counts)), counts

    def decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids)
        return text

    def to_json_value(self) -> Any:
        return json.loads(self.tokenizer.to_str())


def _learn_characters(texts: Iterable[str], size: int) -> _Characters:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return _Characters.of("".join(character for character, _ in ordered[:size]))


def _learn(texts: Iterable[str], kind: str, size: int) -> _Learned:
    library = _library()
    trainers, pre_tokenizers = library.trainers, library.pre_tokenizers
    if kind == "word":
        tokenizer = library.Tokenizer(library.models.WordLevel(unk_token=_SPECIAL_NAMES[UNKNOWN]))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(
            vocab_size=NUM_SPECIAL + size, special_tokens=_SPECIAL_NAMES, show_progress=False
        )
    else:
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = library.decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=NUM_SPECIAL + size,
            min_frequency=2,  # what occurs once is one text's, not the language's
            special_tokens=_SPECIAL_NAMES,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    tokenizer.train_from_iterator(chain.from_iterable(map(_pieces, texts)), trainer=trainer)
    values = json.loads(tokenizer.to_str())
    return _Learned(library.Tokenizer.from_str(json.dumps(values | {"added_tokens": []})))


def _is_own(learned: Any, kind: str) -> bool:
    """Return whether `learned` is made of the parts that `_learn` takes, and its tokens are numbered without a gap."""
    parts = {"word": ("WordLevel", "Whitespace", None), "bpe": ("BPE", "ByteLevel", "ByteLevel")}[kind]
    if not isinstance(learned, dict):
        return False
    types = tuple(_type_of(learned.get(name)) for name in ("model", "pre_tokenizer", "decoder"))
    others = ("truncation", "padding", "added_tokens", "normalizer", "post_processor")
    if types != parts or any(learned.get(name) for name in others):
        return False
    vocab = learned["model"].get("vocab")
    if not isinstance(vocab, dict) or len(vocab) <= NUM_SPECIAL:
        return False
    ids = vocab.values()
    return all(type(i) is int for i in ids) and sorted(ids) == list(range(len(vocab)))


def _type_of(part: Any) -> Any:
    return part.get("type") if isinstance(part, dict) else None


def _normalize(text: str, kind: str, lowercase: bool) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # surrogates: pairs are joined, halves replaced
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        if kind == "word":
            text = unicodedata.normalize("NFC", text)
    return text.lower() if lowercase else text


def _blocks(texts: Iterable[str]) -> Iterator[tuple[list[str], list[int]]]:
    """Yield pieces of texts and which text each is of, some millions of characters at once."""
    pieces: list[str] = []
    owners: list[int] = []
    num_characters = 0
    for index, text in enumerate(texts):
        for piece in _pieces(text):
            pieces.append(piece)
            owners.append(index)
            num_characters += len(piece)
            if num_characters >= _BLOCK_CHARACTERS:
                yield pieces, owners
                pieces, owners, num_characters = [], [], 0
    if pieces:
        yield pieces, owners


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _PIECE_CHARACTERS:
        found = _PIECE_END.search(text, start + _PIECE_CHARACTERS)
        if found is None:
            break
        yield text[start : found.end()]
        start = found.end()
    yield text[start:] if start else text


def _code_points(text: str) -> np.ndarray:
    """Return (len(text),) uint32."""
    return np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.uint32, copy=False)


def _library() -> Any:
    return require("tokenizers", "text", "to read text")
