"""Linear, logistic and softmax regression: which of them is a matter of the loss."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from dltrain.models import layers


class Linear(nn.Module):
    """One linear layer; a category adds a learned vector to the outputs, as one-hot columns would.

    `cardinalities` are the numbers of indices of the categorical columns, index 0 (unknown) included. The
    vectors of the categories start at zero, so that a category that training never sees adds nothing. `init`
    is of the numbers' weights.
    """

    categories: nn.Embedding  # these two only where there are categorical columns
    offsets: Tensor

    def __init__(
        self, in_features: int, out_features: int, cardinalities: Sequence[int] = (), init: str = "default"
    ) -> None:
        super().__init__()
        with warnings.catch_warnings():
            # A table of categories alone has no numbers: an empty weight is right, and torch warns of it.
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
            self.linear = nn.Linear(in_features, out_features)
        layers.initialize(self.linear, init)
        if cardinalities:
            self.categories = nn.Embedding(sum(cardinalities), out_features)
            nn.init.zeros_(self.categories.weight)
            offsets = torch.tensor([0, *accumulate(cardinalities[:-1])])
            self.register_buffer("offsets", offsets, persistent=False)

    def forward(self, x: Tensor, categories: Tensor | None = None) -> Tensor:
        """Return (B, out_features) for numbers `x` (B, ...) float and any `categories` (B, C) int64."""
        output: Tensor = self.linear(x.flatten(1))
        if categories is not None:
            output = output + self.categories(categories + self.offsets).sum(dim=1)
        return output
