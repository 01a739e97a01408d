"""A model as you would write it anyway; dltrain needs nothing from it but its signature."""

from torch import Tensor, nn


class ConvMixer(nn.Module):
    """Mixes an image over space, then over channels, again and again (Trockman & Kolter 2022,
    https://arxiv.org/abs/2201.09792).

    Args:
        in_channels: of the images; the data decide it.
        num_classes: the data decide it.
        width: channels inside the model.
        depth: how many times it mixes.
        kernel_size: how far it mixes over space.

    """

    def __init__(
        self, in_channels: int, num_classes: int, width: int = 64, depth: int = 4, kernel_size: int = 3
    ) -> None:
        super().__init__()
        self.stem = _block(nn.Conv2d(in_channels, width, 1))
        self.over_space = nn.ModuleList(
            _block(nn.Conv2d(width, width, kernel_size, groups=width, padding="same")) for _ in range(depth)
        )
        self.over_channels = nn.ModuleList(_block(nn.Conv2d(width, width, 1)) for _ in range(depth))
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B, num_classes) for images (B, C, H, W)."""
        x = self.stem(x)
        for over_space, over_channels in zip(self.over_space, self.over_channels, strict=True):
            x = over_channels(x + over_space(x))
        scores: Tensor = self.head(x.mean(dim=(2, 3)))
        return scores


def _block(convolution: nn.Conv2d) -> nn.Module:
    return nn.Sequential(convolution, nn.GELU(), nn.BatchNorm2d(convolution.out_channels))
