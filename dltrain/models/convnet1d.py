"""Plain convolutional network for waveforms and other series of any length."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dltrain.errors import ConfigError
from dltrain.models import layers


class ConvNet1d(nn.Module):
    """Blocks of convolution, normalisation, activation and pooling along time, mean over time, linear head.

    The first convolution is long and strided, a bank of filters in the place of a spectrogram. Dai et al. (2016),
    https://arxiv.org/abs/1610.00087, whose M5 has channels [128, 128, 256, 512] and hears 8 kHz; differs in that
    both ends are padded and pooling rounds up, so that any length works with any number of blocks. Dropout acts on
    the means before the head. Raises ConfigError for an even `kernel_size`, with which a convolution cannot keep the
    length.
    """

    def __init__(
        self,
        in_channels: int,
        out_features: int,
        channels: Sequence[int] = (64, 64, 128, 256),
        first_kernel_size: int = 80,
        first_stride: int = 4,
        kernel_size: int = 3,
        pool_size: int = 4,
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
        for index, (before, after) in enumerate(zip([in_channels, *channels], channels, strict=False)):
            size, stride = (first_kernel_size, first_stride) if index == 0 else (kernel_size, 1)
            modules += layers.without_identities(
                # A normalisation has a shift of its own: the bias would be lost in it.
                nn.Conv1d(before, after, size, stride, padding=size // 2, bias=norm == "none"),
                layers.norm(norm, after, dims=1),
                layers.activation(activation),
                layers.pool(pool, pool_size, dims=1),
            )
        head = nn.Linear(channels[-1], out_features)
        mean = [nn.AdaptiveAvgPool1d(1), nn.Flatten()]
        self.layers = nn.Sequential(*modules, *mean, *layers.without_identities(layers.dropout(dropout)), head)
        layers.initialize(self.layers, init)
        layers.initialize(head, "zeros" if zero_init_head else "default")

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_features) for series `x` (B, in_channels, T) float."""
        output: Tensor = self.layers(x)
        return output
