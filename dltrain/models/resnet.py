"""Residual networks for images of any size: ImageNet and CIFAR forms, wide or narrow, stochastic depth."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from dltrain.errors import ConfigError
from dltrain.models import layers

# Number of blocks in each stage, by the depth: the number of layers with weights on the longest way
IMAGENET_FORMS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
CIFAR_FORMS = {20: (3, 3, 3), 32: (5, 5, 5), 44: (7, 7, 7), 56: (9, 9, 9), 110: (18, 18, 18)}


class ResNet(nn.Module):
    """Residual network, wide or narrow, for images of any size.

    He et al. 2015, https://arxiv.org/abs/1512.03385; every stage but the first halves the image.

    * `depth`: 18, 34, 50 (ImageNet forms; 50 has bottleneck blocks) or 20, 32, 44, 56, 110 (CIFAR forms)
    * `width` multiplies the channels of the stages (Zagoruyko & Komodakis 2016,
      https://arxiv.org/abs/1605.07146); in bottleneck blocks those of the 3x3 convolution alone, as in the
      paper's WRN-50-2
    * `stem`: "imagenet" quarters the image, "cifar" keeps its size; "auto" is "cifar" for the CIFAR forms and
      where the shorter side of `input_shape` (C, H, W) is below 64 pixels: "imagenet" would leave the last
      stage a single one
    * `dropout` acts before the head
    * `stochastic_depth` is the rate of the last block; that of the others rises to it linearly
    * `zero_init_residual` starts every branch at zero (Goyal et al. 2017, https://arxiv.org/abs/1706.02677)

    Differs from the paper as most implementations do: a bottleneck strides in its 3x3 convolution, and the
    shortcut is a 1x1 projection wherever the shape changes (the paper's option B). Raises ConfigError for an
    unknown depth or name.
    """

    def __init__(
        self,
        in_channels: int,
        out_features: int,
        input_shape: Sequence[int] | None = None,
        depth: int = 18,
        width: float = 1.0,
        stem: str = "auto",
        activation: str = "relu",
        norm: str = "batch",
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        zero_init_residual: bool = False,
        init: str = "kaiming",
        zero_init_head: bool = False,
    ) -> None:
        super().__init__()
        forms = IMAGENET_FORMS | CIFAR_FORMS
        if depth not in forms:
            raise ConfigError(f"depth: {depth} is not a ResNet; possible: {', '.join(map(str, forms))}")
        if norm == "none":
            raise ConfigError("norm: a ResNet needs one; possible: batch, layer, group, instance")
        bottleneck = depth == 50
        channels = 16 if depth in CIFAR_FORMS else 64
        if stem == "auto":
            small = input_shape is not None and min(input_shape[1:]) < 64
            stem = "cifar" if small or depth in CIFAR_FORMS else "imagenet"
        self.stem = _stem(stem, in_channels, channels, norm, activation)

        make_block = partial(
            Block, bottleneck=bottleneck, norm=norm, activation=activation, zero_init=zero_init_residual
        )
        self.stages = nn.Sequential()
        before, num_blocks = channels, 0
        for stage_index, stage_size in enumerate(forms[depth]):
            inner = max(1, round(channels * width))
            after = 4 * channels if bottleneck else inner
            stage = nn.Sequential()
            for block_index in range(stage_size):
                stride = 2 if stage_index > 0 and block_index == 0 else 1
                num_blocks += 1
                drop_rate = stochastic_depth * num_blocks / sum(forms[depth])
                stage.append(make_block(before, inner, after, stride, drop_rate))
                before = after
            self.stages.append(stage)
            channels *= 2

        linear = nn.Linear(before, out_features)
        drop = layers.without_identities(layers.dropout(dropout))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *drop, linear)
        layers.initialize(self, init)
        layers.initialize(linear, "zeros" if zero_init_head else "default")

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_features) for images `x` (B, in_channels, H, W) float."""
        output: Tensor = self.head(self.stages(self.stem(x)))
        return output


class Block(nn.Module):
    """activation(branch(x) + shortcut(x)), from `before` over `inner` to `after` channels.

    The branch is 3x3, 3x3, with `bottleneck` 1x1, 3x3, 1x1; the shortcut is `x` itself where the shape stays.
    """

    def __init__(
        self,
        before: int,
        inner: int,
        after: int,
        stride: int,
        drop_rate: float,
        bottleneck: bool,
        norm: str,
        activation: str,
        zero_init: bool,
    ) -> None:
        super().__init__()
        # (kernel size, channels before, channels after, stride) of each convolution
        if bottleneck:
            plan = [(1, before, inner, 1), (3, inner, inner, stride), (1, inner, after, 1)]
        else:
            plan = [(3, before, inner, stride), (3, inner, after, 1)]
        modules: list[nn.Module] = []
        for size, num_in, num_out, step in plan:
            modules += [*_convolution(size, num_in, num_out, step, norm), layers.activation(activation)]
        modules.pop()  # the last activation comes after the sum
        if zero_init:
            nn.init.zeros_(modules[-1].get_parameter("weight"))
        if drop_rate > 0:
            modules.append(layers.StochasticDepth(drop_rate))
        self.branch = nn.Sequential(*layers.without_identities(*modules))
        keeps_shape = stride == 1 and before == after
        self.shortcut = None if keeps_shape else nn.Sequential(*_convolution(1, before, after, stride, norm))
        self.activation = layers.activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, after, H / stride, W / stride), rounded up, for `x` (B, before, H, W)."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        output: Tensor = self.activation(self.branch(x) + shortcut)
        return output


def _convolution(kernel_size: int, before: int, after: int, stride: int, norm: str) -> list[nn.Module]:
    """Return a convolution that keeps the size but for its stride, and the normalisation that is its bias."""
    convolution = nn.Conv2d(before, after, kernel_size, stride, padding=kernel_size // 2, bias=False)
    return [convolution, layers.norm(norm, after, dims=2)]


def _stem(name: str, in_channels: int, channels: int, norm: str, activation: str) -> nn.Sequential:
    """Return the layers before the stages: "imagenet" (7x7, strided, and pooling) or "cifar" (3x3)."""
    if name not in ("imagenet", "cifar"):
        raise ConfigError(f"stem: {name!r} is unknown; possible: auto, imagenet, cifar")
    size, stride = (7, 2) if name == "imagenet" else (3, 1)
    modules = [*_convolution(size, in_channels, channels, stride, norm), layers.activation(activation)]
    if name == "imagenet":
        modules.append(nn.MaxPool2d(3, stride=2, padding=1))
    return nn.Sequential(*layers.without_identities(*modules))
