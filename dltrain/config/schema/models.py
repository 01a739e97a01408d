"""Settings of the built-in models.

What the data decide (in_features, in_channels, input_shape, out_features, cardinalities) is no setting. `takes` says
which inputs a model is for, in the words of `dltrain.network`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from dltrain.config.schema.base import Component
from dltrain.config.schema.layers import Layer

Activation = Literal[
    "relu",
    "leaky_relu",
    "elu",
    "selu",
    "gelu",
    "silu",
    "mish",
    "hardswish",
    "softplus",
    "tanh",
    "sigmoid",
    "identity",
]
FeatureNorm = Literal["none", "batch", "layer", "group", "rms"]
ImageNorm = Literal["none", "batch", "layer", "group", "instance"]
ResidualNorm = Literal["batch", "layer", "group", "instance"]
Init = Literal["default", "kaiming", "xavier", "orthogonal", "trunc_normal"]
Size = Annotated[int, Field(gt=0)]

_FIXED_SIZE = ("numbers", "images", "series")
_ACTIVATION = "activation function between the layers"
_INIT = "initial weights; default: torch's own"
_ZERO_INIT_HEAD = "start the last layer at zero, so that training starts from equal outputs"


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("possible: odd numbers, with which a convolution keeps the size")
    return value


class MLP(Component):
    """Multi-layer perceptron for numbers and categories (embedded); images are flattened."""

    builds: ClassVar[str] = "dltrain.models.mlp:MLP"
    takes: ClassVar[tuple[str, ...]] = _FIXED_SIZE
    type: Literal["mlp"]
    hidden: list[Size] = Field([128, 128], min_length=1, description="widths of the hidden layers")
    activation: Activation = Field("relu", description=_ACTIVATION)
    norm: FeatureNorm = Field("none", description="normalisation of each hidden layer, before its activation")
    dropout: float = Field(0.0, ge=0, lt=1, description="rate of dropout after each hidden layer")
    embedding_dim: Size | None = Field(
        None,
        description="width of the embedding of each categorical column; null: by its number of values",
    )
    residual: bool = Field(False, description="add its input to the output of each hidden layer that keeps the width")
    init: Init = Field("default", description=_INIT)
    zero_init_head: bool = Field(False, description=_ZERO_INIT_HEAD)


class Linear(Component):
    """Linear model: linear, logistic or softmax regression, as the loss has it."""

    builds: ClassVar[str] = "dltrain.models.linear:Linear"
    takes: ClassVar[tuple[str, ...]] = _FIXED_SIZE
    type: Literal["linear"]
    init: Literal["default", "zeros", "xavier"] = Field("default", description=_INIT)


class ConvNet(Component):
    """Plain convolutional network: blocks of convolution and pooling, mean over space, linear head."""

    builds: ClassVar[str] = "dltrain.models.convnet:ConvNet"
    takes: ClassVar[tuple[str, ...]] = ("images",)
    type: Literal["convnet"]
    channels: list[Size] = Field(
        [32, 64], min_length=1, description="channels of each block; each block halves the image"
    )
    kernel_size: Annotated[int, AfterValidator(_odd)] = Field(
        3, gt=0, description="size of the convolutions in pixels, odd"
    )
    activation: Activation = Field("relu", description=_ACTIVATION)
    norm: ImageNorm = Field("batch", description="normalisation after each convolution")
    dropout: float = Field(0.0, ge=0, lt=1, description="rate of dropout before the head")
    pool: Literal["max", "avg"] = Field("max", description="pooling at the end of each block: maximum or mean")
    init: Init = Field("default", description=_INIT)
    zero_init_head: bool = Field(False, description=_ZERO_INIT_HEAD)


class ConvNet1d(Component):
    """Plain convolutional network for waveforms and other series (after M5, Dai et al. 2016)."""

    builds: ClassVar[str] = "dltrain.models.convnet1d:ConvNet1d"
    takes: ClassVar[tuple[str, ...]] = ("series",)
    type: Literal["convnet1d"]
    channels: list[Size] = Field(
        [64, 64, 128, 256], min_length=1, description="channels of each block; each block shortens the series"
    )
    first_kernel_size: Size = Field(
        80, description="size of the first convolution in steps: 80 for waveforms, some 7 for short series"
    )
    first_stride: Size = Field(4, description="steps from one place of the first convolution to the next")
    kernel_size: Annotated[int, AfterValidator(_odd)] = Field(
        3, gt=0, description="size of the other convolutions in steps, odd"
    )
    pool_size: Size = Field(4, description="steps that the pooling at the end of each block makes one")
    activation: Activation = Field("relu", description=_ACTIVATION)
    norm: ImageNorm = Field("batch", description="normalisation after each convolution")
    dropout: float = Field(0.0, ge=0, lt=1, description="rate of dropout before the head")
    pool: Literal["max", "avg"] = Field("max", description="pooling at the end of each block: maximum or mean")
    init: Init = Field("default", description=_INIT)
    zero_init_head: bool = Field(False, description=_ZERO_INIT_HEAD)


class ResNet(Component):
    """Residual network, ImageNet or CIFAR form, wide or narrow (He et al. 2015,
    https://arxiv.org/abs/1512.03385).
    """

    builds: ClassVar[str] = "dltrain.models.resnet:ResNet"
    takes: ClassVar[tuple[str, ...]] = ("images",)
    type: Literal["resnet"]
    depth: Literal[18, 34, 50, 20, 32, 44, 56, 110] = Field(
        18,
        description="layers: 18, 34, 50 (ImageNet forms) or 20, 32, 44, 56, 110 (CIFAR forms, narrower)",
    )
    width: float = Field(1.0, gt=0, description="factor for the channels of the stages (wide ResNet: 2 to 10)")
    stem: Literal["auto", "imagenet", "cifar"] = Field(
        "auto",
        description="first layers: imagenet quarters the image, cifar does not; auto: cifar below 64 pixels",
    )
    activation: Activation = Field("relu", description=_ACTIVATION)
    norm: ResidualNorm = Field("batch", description="normalisation after each convolution")
    dropout: float = Field(0.0, ge=0, lt=1, description="rate of dropout before the head")
    stochastic_depth: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="rate at which the last block is skipped for a sample; rises linearly from the first",
    )
    zero_init_residual: bool = Field(False, description="start each block as the identity")
    init: Init = Field("kaiming", description=_INIT)
    zero_init_head: bool = Field(False, description=_ZERO_INIT_HEAD)


class Sequential(Component):
    """A list of torch.nn layers; sizes that follow from the layer before may be left out."""

    builds: ClassVar[str] = "dltrain.models.sequential:Sequential"
    takes: ClassVar[tuple[str, ...]] = ("numbers", "images", "series", "texts")
    type: Literal["sequential"]
    layers: list[Layer] = Field(
        min_length=1,
        description="layers in order, each {type: class in torch.nn, ...arguments}; "
        "out_features: auto is the number of outputs",
    )


ALL: tuple[type[Component], ...] = (MLP, Linear, ConvNet, ConvNet1d, ResNet, Sequential)
