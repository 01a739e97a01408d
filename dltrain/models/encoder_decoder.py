"""Transformer encoder and decoder: a text for each text, such as its translation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.errors import ConfigError
from dltrain.models import attention


class EncoderDecoder(nn.Module):
    """An encoder reads the source; a decoder scores each next token by the source and the tokens before.

    Vaswani et al. 2017, https://arxiv.org/abs/1706.03762; differs in its pre-norm blocks, GELU and, by default, rotary
    positions. `tied`: the scores are products with the target embeddings. With `shared_vocabulary` source and target
    have the same tokens, and one table of embeddings. Raises ConfigError for data without a vocabulary.
    """

    source_embedding: nn.Embedding  # only where it is not the target's
    head: nn.Linear  # only where it is not tied

    def __init__(
        self,
        out_features: int,
        vocab_size: int | None = None,
        max_length: int | None = None,
        shared_vocabulary: bool = False,
        dim: int = 128,
        encoder_depth: int = 3,
        decoder_depth: int = 3,
        num_heads: int = 4,
        feed_forward: float = 4.0,
        gated: bool = False,
        dropout: float = 0.1,
        positions: str = "rotary",
        norm: str = "layer",
        tied: bool = True,
    ) -> None:
        super().__init__()
        settings = attention.BlockSettings(dim, num_heads, feed_forward, gated, dropout, norm)
        if vocab_size is None:
            raise ConfigError("encoder_decoder is for pairs of texts; these data have no vocabulary")
        self.tied, self.shared_vocabulary = tied, shared_vocabulary
        if not shared_vocabulary:
            self.source_embedding = attention.embedding(vocab_size, dim)
        self.target_embedding = attention.embedding(out_features, dim)
        self.encoder = attention.Stack(settings, encoder_depth, positions, max_length)
        self.decoder = attention.Stack(settings, decoder_depth, positions, max_length, causal=True, cross=True)
        if not tied:
            self.head = attention.linear(dim, out_features, bias=False)

    @property
    def max_length(self) -> int | None:
        """Number of tokens that it can take at most, of either text; None: any."""
        return self.decoder.positions.max_length

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return scores (B, T, out_features) of the token after each of `target` (B, T), for `source` (B, S), int64."""
        return self._scores(self.decoder(self.target_embedding(target), memory=self._encode(source)))

    def start(self, source: Tensor) -> attention.Cache:
        """Return a cache that holds `source` (B, S) int64 and no token of a target yet."""
        return attention.Cache(len(self.decoder.blocks), self._encode(source))

    def step(self, ids: Tensor, cache: attention.Cache) -> Tensor:
        """Return scores (B, out_features) of the token after the last of `ids` (B, t) int64; add `ids` to `cache`."""
        return self._scores(self.decoder(self.target_embedding(ids), cache=cache)[:, -1])

    def _encode(self, source: Tensor) -> attention.Memory:
        table = self.target_embedding if self.shared_vocabulary else self.source_embedding
        mask = attention.token_mask(source)[:, None, None]
        return self.decoder.remember(self.encoder(table(source), mask), mask)

    def _scores(self, x: Tensor) -> Tensor:
        output: Tensor = F.linear(x, self.target_embedding.weight) if self.tied else self.head(x)
        return output
