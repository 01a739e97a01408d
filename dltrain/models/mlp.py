"""Multi-layer perceptron for numbers and categories; images are flattened."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from dltrain.errors import ConfigError
from dltrain.models import layers


class MLP(nn.Module):
    """Linear layers, each but the last followed by normalisation, activation and dropout.

    Categorical columns are embedded and stand beside the numbers. With `residual`, a hidden layer of the
    width of the one before it adds its input to its output. Plain settings give exactly nn.Sequential(Linear,
    ReLU, ..., Linear). Raises ConfigError where a setting could have no effect.
    """

    embeddings: layers.Embeddings  # only where there are categorical columns

    def __init__(
        self,
        in_features: int,
        out_features: int,
        cardinalities: Sequence[int] = (),
        hidden: Sequence[int] = (128, 128),
        activation: str = "relu",
        norm: str = "none",
        dropout: float = 0.0,
        embedding_dim: int | None = None,
        residual: bool = False,
        init: str = "default",
        zero_init_head: bool = False,
    ) -> None:
        super().__init__()
        if embedding_dim is not None and not cardinalities:
            raise ConfigError("embedding_dim: the data have no categorical columns to embed; leave it out")
        if cardinalities:
            self.embeddings = layers.Embeddings(cardinalities, embedding_dim)
            in_features += self.embeddings.width
        widths = [in_features, *hidden]
        if residual and not any(before == after for before, after in pairwise(widths)):
            raise ConfigError(f"residual: no two layers of {widths} that follow each other are equally wide")
        modules: list[nn.Module] = []
        for before, after in pairwise(widths):
            block = layers.without_identities(
                nn.Linear(before, after),
                layers.norm(norm, after),
                layers.activation(activation),
                layers.dropout(dropout),
            )
            modules += [layers.Residual(*block)] if residual and before == after else block
        head = nn.Linear(widths[-1], out_features)
        self.layers = nn.Sequential(*modules, head)
        layers.initialize(self.layers, init)
        layers.initialize(head, "zeros" if zero_init_head else "default")

    def forward(self, x: Tensor, categories: Tensor | None = None) -> Tensor:
        """Return (B, out_features) for numbers `x` (B, ...) float and any `categories` (B, C) int64."""
        x = x.flatten(1)
        if categories is not None:
            x = torch.cat([x, self.embeddings(categories)], dim=1)
        output: Tensor = self.layers(x)
        return output
