"""A model as you would write it anyway; dltrain needs nothing from it but its signature."""

from torch import Tensor, nn


class PatchMixer(nn.Module):
    """Cuts an image into patches and mixes them with two linear layers (after Tolstikhin et al. 2021).

    Args:
        in_channels: of the images (decided by the data).
        input_shape: (C, H, W) of the images (decided by the data).
        num_classes: decided by the data.
        width: features of a patch.
        patch: side of a patch in pixels.

    """

    def __init__(
        self,
        in_channels: int,
        input_shape: tuple[int, int, int],
        num_classes: int,
        width: int = 32,
        patch: int = 2,
    ) -> None:
        super().__init__()
        num_patches = (input_shape[1] // patch) * (input_shape[2] // patch)
        self.embed = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.over_patches = nn.Sequential(nn.LayerNorm(num_patches), nn.Linear(num_patches, num_patches), nn.GELU())
        self.over_features = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B, num_classes) for images (B, C, H, W)."""
        x = self.embed(x).flatten(2)
        x = x + self.over_patches(x)
        x = x.transpose(1, 2)
        x = x + self.over_features(x)
        scores: Tensor = self.head(x.mean(dim=1))
        return scores
