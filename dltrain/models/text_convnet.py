"""Convolutions of several widths over the embeddings of a text, each reduced to its maximum over the text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.data.columns import PADDING
from dltrain.models import layers

_EMBEDDING_RANGE = 0.25
"""Kim's: uniform within it, the variance of pretrained word vectors of the time."""


class TextConvNet(nn.Module):
    """For each kernel size a convolution over time, ReLU, and the maximum over the text; dropout, linear head.

    Kim 2014, https://arxiv.org/abs/1408.5882, without pretrained vectors. Differs in that a convolution looks at zeros
    beyond both ends and gives an output for each token, so that texts may be shorter than a kernel. A text without
    tokens has features of zero.
    """

    def __init__(
        self,
        vocab_size: int,
        out_features: int,
        embedding_dim: int = 128,
        channels: int = 100,
        kernel_sizes: Sequence[int] = (3, 4, 5),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        nn.init.uniform_(self.embedding.weight, -_EMBEDDING_RANGE, _EMBEDDING_RANGE)
        self.kernel_sizes = tuple(kernel_sizes)
        self.convolutions = nn.ModuleList(nn.Conv1d(embedding_dim, channels, size) for size in self.kernel_sizes)
        num_features = channels * len(kernel_sizes)
        self.head = nn.Sequential(
            *layers.without_identities(layers.dropout(dropout)), nn.Linear(num_features, out_features)
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Return (B, out_features) for token ids (B, L) int64, of which 0 is padding."""
        is_token = (ids != PADDING).unsqueeze(1)
        x = self.embedding(ids).transpose(1, 2) * is_token
        features = []
        for size, convolution in zip(self.kernel_sizes, self.convolutions, strict=True):
            over_time = F.relu(convolution(F.pad(x, ((size - 1) // 2, size // 2)))) * is_token
            features.append(over_time.max(dim=2).values)
        output: Tensor = self.head(torch.cat(features, dim=1))
        return output
