"""The torch.nn layers that a `sequential` model may list: their arguments, and what the values may be.

Written down here so that a wrong name or value is found without torch; a test holds it against torch's
signatures. Left out: layers of several inputs or outputs, softmax (outputs are logits), and arguments that
would break the loop.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

from dltrain.config.schema.base import InWords
from dltrain.names import did_you_mean

_CONV = "in_channels? out_channels! kernel_size! stride padding dilation groups bias padding_mode"
_CONV_TRANSPOSE = (
    "in_channels? out_channels! kernel_size! stride padding output_padding groups bias dilation padding_mode"
)
_STATISTICS_NORM = "num_features? eps momentum affine track_running_stats"
_MAX_POOL = "kernel_size! stride padding dilation ceil_mode"
_AVG_POOL = "kernel_size! stride padding ceil_mode count_include_pad divisor_override"

LAYERS: dict[str, str] = {
    "Linear": "in_features? out_features! bias",
    "Embedding": "num_embeddings! embedding_dim! padding_idx max_norm norm_type scale_grad_by_freq",
    **dict.fromkeys(("Conv1d", "Conv2d", "Conv3d"), _CONV),
    **dict.fromkeys(("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"), _CONV_TRANSPOSE),
    # normalisation
    **dict.fromkeys(("BatchNorm1d", "BatchNorm2d", "BatchNorm3d"), _STATISTICS_NORM),
    **dict.fromkeys(("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"), _STATISTICS_NORM),
    "GroupNorm": "num_groups! num_channels? eps affine",
    "LayerNorm": "normalized_shape? eps elementwise_affine bias",
    "RMSNorm": "normalized_shape? eps elementwise_affine",
    "LocalResponseNorm": "size! alpha beta k",
    # regularization
    **dict.fromkeys(("Dropout", "Dropout1d", "Dropout2d", "Dropout3d"), "p inplace"),
    **dict.fromkeys(("AlphaDropout", "FeatureAlphaDropout"), "p inplace"),
    # activations
    **dict.fromkeys(("ReLU", "ReLU6", "SELU", "SiLU", "Mish", "Hardswish", "Hardsigmoid"), "inplace"),
    **dict.fromkeys(("Sigmoid", "LogSigmoid", "Tanh", "Tanhshrink", "Softsign"), ""),
    **dict.fromkeys(("ELU", "CELU"), "alpha inplace"),
    **dict.fromkeys(("Hardshrink", "Softshrink"), "lambd"),
    "GELU": "approximate",
    "GLU": "dim",
    "Hardtanh": "min_val max_val inplace",
    "LeakyReLU": "negative_slope inplace",
    "PReLU": "num_parameters init",
    "RReLU": "lower upper inplace",
    "Softplus": "beta threshold",
    "Threshold": "threshold! value! inplace",
    # pooling
    **dict.fromkeys(("MaxPool1d", "MaxPool2d", "MaxPool3d"), _MAX_POOL),
    "AvgPool1d": _AVG_POOL.removesuffix(" divisor_override"),
    **dict.fromkeys(("AvgPool2d", "AvgPool3d"), _AVG_POOL),
    **dict.fromkeys(("LPPool1d", "LPPool2d"), "norm_type! kernel_size! stride ceil_mode"),
    **dict.fromkeys(("AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveAvgPool3d"), "output_size!"),
    **dict.fromkeys(("AdaptiveMaxPool1d", "AdaptiveMaxPool2d", "AdaptiveMaxPool3d"), "output_size!"),
    # shape
    "Identity": "",
    "Flatten": "start_dim end_dim",
    "Unflatten": "dim! unflattened_size!",
    "Upsample": "size scale_factor mode align_corners recompute_scale_factor",
    "PixelShuffle": "upscale_factor!",
    "PixelUnshuffle": "downscale_factor!",
    "ChannelShuffle": "groups!",
    **dict.fromkeys(("ZeroPad1d", "ZeroPad2d", "ZeroPad3d"), "padding!"),
    **dict.fromkeys(("ReflectionPad1d", "ReflectionPad2d", "ReflectionPad3d"), "padding!"),
    **dict.fromkeys(("ReplicationPad1d", "ReplicationPad2d", "ReplicationPad3d"), "padding!"),
    **dict.fromkeys(("ConstantPad1d", "ConstantPad2d", "ConstantPad3d"), "padding! value!"),
}
"""Arguments of each layer. "!": must be given. "?": found from what comes before, when left out."""


class Kind(NamedTuple):
    """What the value of an argument may be: in words, and as a type that pydantic checks."""

    words: str
    type: Any


_Count = Annotated[int, Field(ge=1)]
_COUNT = Kind("a whole number of at least 1", _Count)
_COUNTS = Kind("a whole number of at least 1, or a list of them", _Count | list[_Count])
_OUTPUTS = Kind(
    "a whole number of at least 1, or 'auto' for the number of outputs that the data ask for",
    _Count | Literal["auto"],
)
_OUTPUT_SIZE = Kind(
    "a whole number of at least 1, or a list of them (null keeps the size)", _Count | list[_Count | None]
)
_PADDING = Kind(
    "a whole number, a list of them, or for a convolution 'same' or 'valid'",
    int | list[int] | Literal["same", "valid"],
)
_INTEGER = Kind("a whole number", int)
_INTEGERS = Kind("a whole number, or a list of them", int | list[int])
_NUMBER = Kind("a number", float)
_NUMBERS = Kind("a number, or a list of them", float | list[float])
_SHARE = Kind("a number from 0 to 1", Annotated[float, Field(ge=0, le=1)])
_SWITCH = Kind("true or false", bool)

ARGUMENTS: dict[str, Kind] = {
    **dict.fromkeys(("in_features", "in_channels", "num_features", "num_channels", "num_groups", "groups"), _COUNT),
    **dict.fromkeys(("num_embeddings", "embedding_dim", "num_parameters"), _COUNT),
    **dict.fromkeys(("upscale_factor", "downscale_factor", "divisor_override"), _COUNT),
    **dict.fromkeys(("out_features", "out_channels"), _OUTPUTS),
    **dict.fromkeys(("kernel_size", "stride", "dilation", "normalized_shape", "size"), _COUNTS),
    "output_size": _OUTPUT_SIZE,
    "padding": _PADDING,
    "output_padding": _INTEGERS,
    "unflattened_size": Kind("a list of whole numbers", list[int]),
    **dict.fromkeys(("dim", "start_dim", "end_dim", "padding_idx"), _INTEGER),
    **dict.fromkeys(("eps", "alpha", "beta", "k", "lambd", "init", "lower", "upper", "threshold", "value"), _NUMBER),
    **dict.fromkeys(("min_val", "max_val", "negative_slope", "norm_type", "max_norm"), _NUMBER),
    "momentum": Kind("a number from 0 to 1, or null for the plain mean over all batches", _SHARE.type | None),
    "scale_factor": _NUMBERS,
    "p": _SHARE,
    **dict.fromkeys(("bias", "affine", "elementwise_affine", "track_running_stats", "inplace"), _SWITCH),
    **dict.fromkeys(("ceil_mode", "count_include_pad", "align_corners", "recompute_scale_factor"), _SWITCH),
    "scale_grad_by_freq": _SWITCH,
    "approximate": Kind("'none' or 'tanh'", Literal["none", "tanh"]),
    "padding_mode": Kind(
        "'zeros', 'reflect', 'replicate' or 'circular'", Literal["zeros", "reflect", "replicate", "circular"]
    ),
    "mode": Kind(
        "'nearest', 'linear', 'bilinear', 'bicubic' or 'trilinear'",
        Literal["nearest", "linear", "bilinear", "bicubic", "trilinear"],
    ),
}
"""What the argument of this name may be, in whatever layer."""


def check_layer(settings: object) -> object:
    """Return `settings` as they are if they are one layer, `{type: Linear, out_features: 64}`.

    Raises pydantic's ValidationError with all that is wrong, each at its key.
    """
    if not isinstance(settings, dict):
        hint = f"; write {{type: {settings}}}" if isinstance(settings, str) and settings in LAYERS else ""
        raise _error(f"is not a layer {{type: name, ...arguments}}{hint}")
    if problems := _problems(settings):
        raise ValidationError.from_exception_data("layer", problems)
    return settings


def _problems(settings: dict[Any, Any]) -> list[InitErrorDetails]:
    """Return what is wrong with one layer."""
    if "type" not in settings:
        return [InitErrorDetails(type="missing", loc=("type",), input=settings)]
    layer = settings["type"]
    if not isinstance(layer, str) or layer not in LAYERS:
        return [_problem("type", layer, f"unknown layer {layer!r}{_advice(layer)}")]
    arguments = parse_arguments(layer)
    problems = [
        InitErrorDetails(type="missing", loc=(name,), input=settings)
        for name, mark in arguments.items()
        if mark == "!" and name not in settings
    ]
    for name, value in settings.items():
        if name == "type":
            continue
        if name not in arguments:
            possible = ", ".join(arguments) or "none, it has no arguments"
            near = did_you_mean(str(name), arguments)
            problems.append(_problem(name, value, f"unknown argument {name!r} of {layer}; possible: {possible}{near}"))
        elif not accepts(name, value):
            problems.append(_problem(name, value, f"{value!r} is not possible; possible: {ARGUMENTS[name].words}"))
    return problems


def parse_arguments(layer: str) -> dict[str, str]:
    """Return the arguments of a layer and their marks: "!" required, "?" found when left out, "" optional."""
    return {text.rstrip("!?"): text[-1] if text[-1] in "!?" else "" for text in LAYERS[layer].split()}


def accepts(argument: str, value: object) -> bool:
    """Return whether `value` is possible for an argument of this name."""
    try:
        _adapter(argument).validate_python(value)
    except ValidationError:
        return False
    return True


@cache
def _adapter(argument: str) -> TypeAdapter[Any]:
    return TypeAdapter(ARGUMENTS[argument].type, config=ConfigDict(strict=True, allow_inf_nan=False))


def _problem(key: str, value: object, message: str) -> InitErrorDetails:
    return InitErrorDetails(type=_error(message), loc=(key,), input=value)


def _error(message: str) -> PydanticCustomError:
    """Return pydantic's error with `message` as it is: braces in it are no placeholders."""
    return PydanticCustomError("layer", "{message}", {"message": message})


def _advice(layer: object) -> str:
    """Return what to do about a layer that is not in the table."""
    if layer in ("Softmax", "LogSoftmax"):
        return "; leave it out, the loss applies it to the outputs"
    return did_you_mean(str(layer), LAYERS) or "; possible: layers of torch.nn with one input and one output"


class _LayerJsonSchema:
    """Makes the JSON schema when it is asked for: one object per layer, so editors complete arguments."""

    @staticmethod
    def __get_pydantic_json_schema__(_: CoreSchema, __: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"oneOf": [_layer_json_schema(layer) for layer in LAYERS]}


def _layer_json_schema(layer: str) -> dict[str, Any]:
    """Return the JSON schema of one layer."""
    arguments = parse_arguments(layer)
    return {
        "title": layer,
        "type": "object",
        "properties": {"type": {"const": layer}}
        | {name: {"description": ARGUMENTS[name].words} | _adapter(name).json_schema() for name in arguments},
        "required": ["type", *(name for name, mark in arguments.items() if mark == "!")],
        "additionalProperties": False,
    }


Layer = Annotated[
    dict[str, Any], BeforeValidator(check_layer), _LayerJsonSchema(), InWords("{type: class in torch.nn, ...}")
]
"""One item of a `sequential` model: a checked plain mapping."""
