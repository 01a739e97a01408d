"""Causal transformer: a language model, which scores each next token of a text by those before it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.errors import ConfigError
from dltrain.models import attention


class CausalTransformer(nn.Module):
    """Token embeddings, blocks in which each token attends to itself and to earlier ones, scores of the next token.

    The form of GPT-2 (Radford et al. 2019, https://openai.com/index/better-language-models). `tied`: the scores are
    products with the embeddings (Press & Wolf 2017, https://arxiv.org/abs/1608.05859). Raises ConfigError for data
    without a vocabulary.
    """

    head: nn.Linear  # only where it is not tied

    def __init__(
        self,
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
        tied: bool = True,
    ) -> None:
        super().__init__()
        settings = attention.BlockSettings(dim, num_heads, feed_forward, gated, dropout, norm)
        if vocab_size is None:
            raise ConfigError("causal_transformer is for text; these data have no vocabulary")
        self.tied = tied
        self.embedding = attention.embedding(vocab_size, dim)
        self.decoder = attention.Stack(settings, depth, positions, max_length, causal=True)
        if not tied:
            self.head = attention.linear(dim, vocab_size, bias=False)

    @property
    def max_length(self) -> int | None:
        """Number of tokens that it can take at most; None: any."""
        return self.decoder.positions.max_length

    def forward(self, ids: Tensor) -> Tensor:
        """Return scores (B, L, vocab_size) of the token after each of `ids` (B, L) int64."""
        return self._scores(self.decoder(self.embedding(ids)))

    def start(self) -> attention.Cache:
        """Return a cache that holds no token yet."""
        return attention.Cache(len(self.decoder.blocks))

    def step(self, ids: Tensor, cache: attention.Cache) -> Tensor:
        """Return scores (B, vocab_size) of the token after the last of `ids` (B, t) int64, and add `ids` to `cache`."""
        return self._scores(self.decoder(self.embedding(ids), cache=cache)[:, -1])

    def _scores(self, x: Tensor) -> Tensor:
        output: Tensor = F.linear(x, self.embedding.weight) if self.tied else self.head(x)
        return output
