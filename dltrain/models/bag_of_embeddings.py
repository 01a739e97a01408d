"""Mean of the embeddings of a text's tokens: the order of the words does not count."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from dltrain.data.columns import PADDING
from dltrain.models import layers


class BagOfEmbeddings(nn.Module):
    """Embeddings, their mean over the tokens, linear layers with ReLU and dropout, and a linear head.

    Joulin et al. 2016, https://arxiv.org/abs/1607.01759 (fastText), with its initial embeddings, uniform within
    1 / embedding_dim; the paper has no hidden layers and adds pairs of words to the bag. A text without tokens has a
    mean of zero.
    """

    def __init__(
        self,
        vocab_size: int,
        out_features: int,
        embedding_dim: int = 128,
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(vocab_size, embedding_dim, mode="mean", padding_idx=PADDING)
        nn.init.uniform_(self.embedding.weight, -1 / embedding_dim, 1 / embedding_dim)
        widths = [embedding_dim, *hidden]
        modules = layers.without_identities(layers.dropout(dropout))
        for before, after in pairwise(widths):
            modules += layers.without_identities(nn.Linear(before, after), nn.ReLU(), layers.dropout(dropout))
        self.layers = nn.Sequential(*modules, nn.Linear(widths[-1], out_features))

    def forward(self, ids: Tensor) -> Tensor:
        """Return (B, out_features) for token ids (B, L) int64, of which 0 is padding."""
        output: Tensor = self.layers(self.embedding(ids))
        return output
