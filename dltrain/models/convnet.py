"""Plain convolutional network for images of any size."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dltrain.errors import ConfigError
from dltrain.models import layers


class ConvNet(nn.Module):
    """Blocks of convolution, normalisation, activation and 2x2 pooling, mean over space, linear head.

    Pooling rounds up, so that the border counts and a single pixel stays a pixel: any image size works with
    any number of blocks. Dropout acts on the means before the head. Raises ConfigError for an even
    `kernel_size`, with which a convolution cannot keep the size.
    """

    def __init__(
        self,
        in_channels: int,
        out_features: int,
        channels: Sequence[int] = (32, 64),
        kernel_size: int = 3,
        activation: str = "relu",
        norm: str = "batch",
        dropout: float = 0.0,
        pool: str = "max",
        init: str = "default",
        zero_init_head: bool = False,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ConfigError(f"kernel_size: {kernel_size} is even; use an odd number, such as {kernel_size + 1}")
        modules: list[nn.Module] = []
        for before, after in zip([in_channels, *channels], channels, strict=False):
            modules += layers.without_identities(
                # A normalisation has a shift of its own: the bias would be lost in it.
                nn.Conv2d(before, after, kernel_size, padding=kernel_size // 2, bias=norm == "none"),
                layers.norm(norm, after, dims=2),
                layers.activation(activation),
                layers.pool(pool, 2, dims=2),
            )
        head = nn.Linear(channels[-1], out_features)
        mean = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.layers = nn.Sequential(*modules, *mean, *layers.without_identities(layers.dropout(dropout)), head)
        layers.initialize(self.layers, init)
        layers.initialize(head, "zeros" if zero_init_head else "default")

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_features) for images `x` (B, in_channels, H, W) float."""
        output: Tensor = self.layers(x)
        return output
