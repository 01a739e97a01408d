"""Transformer encoder for classes and quantities: of text, spectrograms, and series."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.errors import ConfigError
from dltrain.models import attention


class Transformer(nn.Module):
    """Tokens, blocks in which each attends to all others, their mean (or maximum, or first), linear head.

    What a token is follows from the data: with `vocab_size` a token id; of images (C, H, W), such as
    log-mel spectrograms (1, mels, frames), a column; of series (C, T), a step. `patch` columns or steps that follow
    on each other make one token, as a convolution of that size and stride would; the last is filled up with zeros.
    Raises ConfigError for data of another shape and where a setting can have no effect.
    """

    def __init__(
        self,
        out_features: int,
        input_shape: Sequence[int],
        vocab_size: int | None = None,
        max_length: int | None = None,
        dim: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        feed_forward: float = 4.0,
        gated: bool = False,
        dropout: float = 0.1,
        positions: str = "rotary",
        norm: str = "layer",
        pool: str = "mean",
        patch: int = 1,
    ) -> None:
        super().__init__()
        settings = attention.BlockSettings(dim, num_heads, feed_forward, gated, dropout, norm)
        if pool not in ("mean", "max", "first"):
            raise ConfigError(f"pool: {pool!r} is unknown; possible: mean, max, first")
        self.tokens: nn.Module
        if vocab_size is not None:
            if patch != 1:
                raise ConfigError(f"patch: {patch} cannot take effect: each token of a text stands for itself")
            self.tokens = attention.embedding(vocab_size, dim)
        else:
            num_features, num_steps = _series_shape(input_shape)
            if patch > num_steps:
                raise ConfigError(f"patch: {patch} is more than the {num_steps} steps of a sample")
            self.tokens = Patches(num_features, patch, dim)
            max_length = math.ceil(num_steps / patch)
        self.reads_ids = vocab_size is not None
        self.pool = pool
        self.encoder = attention.Stack(settings, depth, positions, max_length)
        self.head = attention.linear(dim, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_features) for token ids `x` (B, L) int64, images (B, C, H, W) or series (B, C, T) float."""
        mask = attention.token_mask(x) if self.reads_ids else None
        encoded = self.encoder(self.tokens(x), None if mask is None else mask[:, None, None])
        output: Tensor = self.head(_pooled(encoded, mask, self.pool))
        return output


class Patches(nn.Module):
    """Images or series to tokens: every `patch` steps together, all features of each, through one linear layer.

    It starts as torch has it, with a bias: the norm of the first block takes the size from what is a multiple of one
    vector, which would be all that a single feature has.
    """

    def __init__(self, num_features: int, patch: int, dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.linear = nn.Linear(num_features * patch, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, ceil(T / patch), dim) for `x` (B, ..., T) float."""
        series = x.flatten(1, -2)
        padded = F.pad(series, (0, -series.shape[2] % self.patch))
        patches = padded.view(*series.shape[:2], -1, self.patch).transpose(1, 2).flatten(2)
        output: Tensor = self.linear(patches)
        return output


def _series_shape(input_shape: Sequence[int]) -> tuple[int, int]:
    """Return the number of features of a step, and the number of steps, of samples of `input_shape`."""
    if len(input_shape) < 2:
        raise ConfigError(
            f"transformer is for text, series (C, T) and images (C, H, W); the samples are of shape "
            f"{tuple(input_shape)}; possible: mlp, linear"
        )
    return math.prod(input_shape[:-1]), input_shape[-1]


def _pooled(x: Tensor, mask: Tensor | None, pool: str) -> Tensor:
    """Return (B, dim): the first of `x` (B, L, dim), or the mean or maximum over the places that `mask` (B, L) has."""
    if pool == "first":
        return x[:, 0]
    if mask is None:
        return x.mean(1) if pool == "mean" else x.amax(1)
    if pool == "max":
        return x.masked_fill(~mask[:, :, None], -math.inf).amax(1)
    return x.masked_fill(~mask[:, :, None], 0.0).sum(1) / mask.sum(1, keepdim=True)
