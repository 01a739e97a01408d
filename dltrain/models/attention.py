"""What transformers are made of: attention, positions, feed-forward, blocks of them, and the cache to decode with.

Blocks are pre-norm: each branch normalises its input, and a last norm ends the stack (Xiong et al. 2020,
https://arxiv.org/abs/2002.04745). Dropout acts on the tokens and on each branch (Vaswani et al. 2017,
https://arxiv.org/abs/1706.03762), not on the attention weights, with which torch has no fused kernel on CPUs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.data.columns import PADDING
from dltrain.errors import ConfigError, DataError
from dltrain.models import layers

POSITIONS = ("rotary", "learned", "none")
NORMS = ("layer", "rms")
INITIAL_STD = 0.02
"""Of weights and embeddings. What ends one of n branches starts at 0.02 / sqrt(n), so that their sum does not grow
with depth (Radford et al. 2019, GPT-2, https://openai.com/index/better-language-models). Biases start at 0.
"""

_SMALLEST_CAPACITY = 32

KeysValues = tuple[Tensor, Tensor]
Rotation = tuple[Tensor, Tensor]
"""Cosines and sines (L, 1, 1, width of a head / 2) float32 of the angles of L positions."""


@dataclass(frozen=True)
class BlockSettings:
    """What all blocks of a model have alike. Raises ConfigError where they do not fit together."""

    dim: int
    num_heads: int
    feed_forward: float
    """Width of the feed-forward layer, as a multiple of `dim`."""
    gated: bool
    dropout: float
    norm: str

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise ConfigError(f"dim: {self.dim} is no multiple of num_heads, {self.num_heads}")
        if self.norm not in NORMS:
            raise ConfigError(f"norm: {self.norm!r} is unknown; possible: {', '.join(NORMS)}")


@dataclass
class Memory:
    """What a decoder looks up: the keys and values of each of its blocks, made of an encoder's output."""

    keys_values: list[KeysValues]
    mask: Tensor | None
    """(B, 1, 1, S) bool, True where there is a token."""

    def select(self, rows: Tensor) -> Memory:
        """Return the memory of the samples at `rows` (int64), in that order."""
        mask = None if self.mask is None else self.mask[rows]
        return Memory([(k.index_select(0, rows), v.index_select(0, rows)) for k, v in self.keys_values], mask)


class Past:
    """Keys and values that one block has seen, in a buffer that doubles when it is full."""

    def __init__(self) -> None:
        self.length = 0
        self._stored: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> KeysValues:
        """Add `keys` and `values` (B, H, t, width of a head); return all so far, (B, H, length, width of a head)."""
        before, self.length = self.length, self.length + keys.shape[2]
        if self._stored is None or self.length > self._stored.shape[3]:
            self._stored = _larger(self._stored, keys, before, max(_SMALLEST_CAPACITY, 2 * before, self.length))
        self._stored[:, 0, :, before : self.length] = keys
        self._stored[:, 1, :, before : self.length] = values
        return self._stored[:, 0, :, : self.length], self._stored[:, 1, :, : self.length]

    def select(self, rows: Tensor) -> None:
        """Keep the samples at `rows` (int64), in that order."""
        if self._stored is not None:
            self._stored = self._stored.index_select(0, rows)  # copies whole rows, twice as fast as [rows]


def _larger(stored: Tensor | None, like: Tensor, length: int, capacity: int) -> Tensor:
    """Return an empty buffer (B, 2, H, capacity, width of a head) with the first `length` places of `stored`."""
    B, H, _, width = like.shape
    buffer = like.new_empty(B, 2, H, capacity, width)
    if stored is not None:
        buffer[:, :, :, :length] = stored[:, :, :, :length]
    return buffer


class Cache:
    """What decoding token by token keeps, so that each step computes its own tokens only."""

    def __init__(self, depth: int, memory: Memory | None = None) -> None:
        self.pasts = [Past() for _ in range(depth)]
        self.memory = memory

    @property
    def length(self) -> int:
        """Number of tokens so far."""
        return self.pasts[0].length

    def select(self, rows: Tensor) -> None:
        """Keep the samples at `rows` (int64), in that order; some may be there more than once."""
        for past in self.pasts:
            past.select(rows)
        if self.memory is not None:
            self.memory = self.memory.select(rows)


def token_mask(ids: Tensor) -> Tensor:
    """Return (B, L) bool, True where `ids` (B, L) hold a token; the first place always does, even of an empty text."""
    mask = ids != PADDING
    mask[:, 0] = True
    return mask


def linear(in_features: int, out_features: int, std: float = INITIAL_STD, bias: bool = True) -> nn.Linear:
    """Return a linear layer with normal weights of deviation `std` and a bias of 0."""
    layer = nn.Linear(in_features, out_features, bias=bias)
    nn.init.normal_(layer.weight, std=std)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def embedding(num_embeddings: int, dim: int) -> nn.Embedding:
    """Return a table of vectors with normal entries of deviation `INITIAL_STD`."""
    table = nn.Embedding(num_embeddings, dim)
    nn.init.normal_(table.weight, std=INITIAL_STD)
    return table


class Positions(nn.Module):
    """What tells places apart: "learned" vectors added to the tokens, "rotary" angles for the attention, or "none".

    Rotary: Su et al. 2021, https://arxiv.org/abs/2104.09864. Raises ConfigError for another `kind`, for rotary with
    heads of odd width, and for learned without `max_length`.
    """

    def __init__(self, kind: str, dim: int, num_heads: int, max_length: int | None) -> None:
        super().__init__()
        if kind not in POSITIONS:
            raise ConfigError(f"positions: {kind!r} is unknown; possible: {', '.join(POSITIONS)}")
        width = dim // num_heads
        if kind == "rotary" and width % 2:
            raise ConfigError(f"positions: rotary needs heads of even width; {dim} / {num_heads} is {width}")
        if kind == "learned" and max_length is None:
            raise ConfigError(
                "positions: learned needs to know the longest length, and these data have none; use rotary"
            )
        self.max_length = max_length if kind == "learned" else None
        if self.max_length is not None:
            self.table = embedding(self.max_length, dim)
        self.is_rotary = kind == "rotary"
        frequencies = 10000.0 ** (-torch.arange(0, width, 2) / width)
        self.register_buffer("frequencies", frequencies if self.is_rotary else None, persistent=False)

    def forward(self, x: Tensor, start: int = 0) -> tuple[Tensor, Rotation | None]:
        """Return `x` (B, L, dim) with any vectors added, and any rotation, for L places from `start` on.

        Raises DataError beyond the learned places.
        """
        stop = start + x.shape[1]
        if self.max_length is not None:
            if stop > self.max_length:
                raise DataError(
                    f"a sequence of {stop:,} tokens is longer than the {self.max_length:,} learned positions of the "
                    "model; shorten it, or train with positions: rotary"
                )
            return x + self.table.weight[start:stop], None
        if not self.is_rotary:
            return x, None
        places = torch.arange(start, stop, device=x.device, dtype=torch.float32)
        angles = (places[:, None] * self.get_buffer("frequencies").float())[:, None, None]
        return x, (angles.cos(), angles.sin())


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Return `x` (B, L, N, H, width of a head) with each pair of features turned by the angle of its place.

    Queries and keys so turned meet in a product that depends on their distance alone. Differs from the paper in that
    feature i pairs with i + width / 2, not with its neighbour: the same up to the order of features, and faster.
    """
    cosines, sines = (table.to(x.dtype) for table in rotation)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)


class Attention(nn.Module):
    """Multi-head attention of a sequence to itself; `causal`: to its own and to earlier places only."""

    def __init__(self, dim: int, num_heads: int, output_std: float, causal: bool) -> None:
        super().__init__()
        self.num_heads, self.causal = num_heads, causal
        self.queries_keys_values = linear(dim, 3 * dim)
        self.output = linear(dim, dim, output_std)

    def forward(
        self, x: Tensor, rotation: Rotation | None = None, mask: Tensor | None = None, past: Past | None = None
    ) -> Tensor:
        """Return (B, L, dim) for `x` (B, L, dim).

        Args:
            x: the sequence, or with `past` what follows on it.
            rotation: of its places.
            mask: (B, 1, 1, L) bool, True where there is something to attend to. A causal sequence needs none: it is
                padded at its end, where no token looks.
            past: earlier keys and values, to which those of `x` are added.
        """
        projected = self.queries_keys_values(x).view(*x.shape[:2], 3, self.num_heads, -1)
        queries, keys, values = projected.unbind(2)
        if rotation is not None:
            queries, keys = rotate(projected[:, :, :2], rotation).unbind(2)
        queries, keys, values = queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
        if past is not None:
            keys, values = past.append(keys, values)
        # A single query is the last place, and sees everything.
        is_causal = self.causal and queries.shape[2] > 1
        if is_causal and keys.shape[2] > queries.shape[2]:
            seen = torch.ones(queries.shape[2], keys.shape[2], dtype=torch.bool, device=x.device)
            mask = seen.tril(keys.shape[2] - queries.shape[2])
        attended = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=is_causal and mask is None
        )
        output: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return output


class CrossAttention(nn.Module):
    """Multi-head attention of a sequence to a memory."""

    def __init__(self, dim: int, num_heads: int, output_std: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.queries = linear(dim, dim)
        self.keys_values = linear(dim, 2 * dim)
        self.output = linear(dim, dim, output_std)

    def look_up(self, encoded: Tensor) -> KeysValues:
        """Return the keys and values (B, H, S, width of a head) of `encoded` (B, S, dim), the same for all steps."""
        keys, values = self.keys_values(encoded).view(*encoded.shape[:2], 2, self.num_heads, -1).unbind(2)
        return keys.transpose(1, 2), values.transpose(1, 2)

    def forward(self, x: Tensor, keys_values: KeysValues, mask: Tensor | None) -> Tensor:
        """Return (B, L, dim) for `x` (B, L, dim) and a memory with `mask` (B, 1, 1, S) bool."""
        queries = self.queries(x).view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)
        attended = F.scaled_dot_product_attention(queries, *keys_values, attn_mask=mask)
        output: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return output


class FeedForward(nn.Module):
    """Two linear layers with GELU between, on each place alone.

    `gated`: GEGLU, of which each feature is multiplied by the GELU of another (Shazeer 2020,
    https://arxiv.org/abs/2002.05202), with two thirds of the width, so that it has as many parameters.
    """

    def __init__(self, dim: int, factor: float, gated: bool, output_std: float) -> None:
        super().__init__()
        # A multiple of 8 is what the tensor cores of GPUs take.
        hidden = max(8, round(dim * factor * 2 / 3 / 8) * 8) if gated else max(1, round(dim * factor))
        self.gated = gated
        self.input = linear(dim, 2 * hidden if gated else hidden)
        self.output = linear(hidden, dim, output_std)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, L, dim) for `x` (B, L, dim)."""
        hidden = self.input(x)
        if self.gated:
            features, gates = hidden.chunk(2, dim=-1)
            hidden = features * F.gelu(gates)
        else:
            hidden = F.gelu(hidden)
        output: Tensor = self.output(hidden)
        return output


class Block(nn.Module):
    """Attention to oneself, perhaps to a memory (`cross`), and feed-forward, each x + dropout(branch(norm(x)))."""

    def __init__(self, settings: BlockSettings, output_std: float, causal: bool, cross: bool) -> None:
        super().__init__()
        dim, num_heads = settings.dim, settings.num_heads
        self.attention_norm = layers.norm(settings.norm, dim)
        self.attention = Attention(dim, num_heads, output_std, causal)
        if cross:
            self.cross_norm = layers.norm(settings.norm, dim)
            self.cross = CrossAttention(dim, num_heads, output_std)
        self.feed_forward_norm = layers.norm(settings.norm, dim)
        self.feed_forward = FeedForward(dim, settings.feed_forward, settings.gated, output_std)
        self.dropout = layers.dropout(settings.dropout)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation | None,
        mask: Tensor | None,
        past: Past | None,
        looked_up: KeysValues | None,
        memory_mask: Tensor | None,
    ) -> Tensor:
        """Return (B, L, dim) for `x` (B, L, dim); see `Attention` and `CrossAttention` for the rest."""
        x = x + self.dropout(self.attention(self.attention_norm(x), rotation, mask, past))
        if looked_up is not None:
            x = x + self.dropout(self.cross(self.cross_norm(x), looked_up, memory_mask))
        output: Tensor = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return output


class Stack(nn.Module):
    """Positions, blocks one after the other, and a last norm: an encoder, or a decoder if it is `causal`.

    With `cross` each block looks up a memory.
    """

    def __init__(
        self,
        settings: BlockSettings,
        depth: int,
        positions: str,
        max_length: int | None,
        *,
        causal: bool = False,
        cross: bool = False,
    ) -> None:
        super().__init__()
        output_std = INITIAL_STD / math.sqrt(depth * (3 if cross else 2))
        self.positions = Positions(positions, settings.dim, settings.num_heads, max_length)
        self.dropout = layers.dropout(settings.dropout)
        self.blocks = nn.ModuleList(Block(settings, output_std, causal, cross) for _ in range(depth))
        self.norm = layers.norm(settings.norm, settings.dim)

    def remember(self, encoded: Tensor, mask: Tensor | None) -> Memory:
        """Return what the blocks look up in `encoded` (B, S, dim), of which `mask` (B, 1, 1, S) says what counts."""
        return Memory([cast(Block, block).cross.look_up(encoded) for block in self.blocks], mask)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, memory: Memory | None = None, cache: Cache | None = None
    ) -> Tensor:
        """Return (B, L, dim) for tokens `x` (B, L, dim).

        Args:
            x: vectors of the tokens; with `cache`, of those that follow on the ones before.
            mask: (B, 1, 1, L) bool, True where there is a token; for what is not causal.
            memory: for a stack with `cross`, unless it is in the cache.
            cache: the tokens before, to which these are added.
        """
        memory = cache.memory if cache is not None else memory
        x, rotation = self.positions(x, 0 if cache is None else cache.length)
        x = self.dropout(x)
        for index, block in enumerate(self.blocks):
            past = None if cache is None else cache.pasts[index]
            looked_up = None if memory is None else memory.keys_values[index]
            x = block(x, rotation, mask, past, looked_up, None if memory is None else memory.mask)
        output: Tensor = self.norm(x)
        return output
