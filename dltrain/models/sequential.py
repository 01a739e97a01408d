"""A model written in the config as a list of torch.nn layers; sizes that the data decide may be left out.

Each layer is built and run on one empty sample before the next: its output says what the next one gets.
torch's Lazy layers would leave their parameters unknown until the first batch, when optimizer and checkpoint
need them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dltrain.errors import ConfigError, DltrainError
from dltrain.names import first_line

INFERRED = {"in_features": -1, "in_channels": 1, "num_features": 1, "num_channels": 1, "normalized_shape": -1}
"""Arguments that are found when left out: which dimension of the layer's input (B, ...) they are."""


class Sequential(nn.Module):
    """The layers one after the other.

    * `layers`: each `{"type": name of a torch.nn class, ...its arguments}`; lists stand for tuples, and
      "auto" as `out_features` or `out_channels` stands for the number of outputs
    * `out_features`: number of outputs
    * `input_shape`: of one sample, without the batch

    Raises ConfigError with the position of the layer (the first is 1) that torch cannot build or run, and
    where the last does not give (B, out_features).
    """

    def __init__(self, layers: Sequence[Mapping[str, Any]], out_features: int, input_shape: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        takes_indices = bool(layers) and layers[0]["type"] == "Embedding"
        x = torch.zeros(1, *input_shape, dtype=torch.int64 if takes_indices else torch.float32)
        for position, settings in enumerate(layers, start=1):
            place = f"layer {position} ({settings['type']})"
            layer = _build(settings, x, out_features, place)
            x = _run(layer, x, place)
            self.layers.append(layer)
        if x.shape != (1, out_features):
            raise ConfigError(
                f"layers: the last gives shape {_shape(x)} per sample, the data ask for ({out_features},); "
                "end with {type: Linear, out_features: auto}"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_features) for `x` (B, *input_shape) float; int64 if the first layer is an
        Embedding.
        """
        output: Tensor = self.layers(x)
        return output


def _build(settings: Mapping[str, Any], x: Tensor, out_features: int, place: str) -> nn.Module:
    """Return the layer of `settings` for an input like `x`, the sizes filled in."""
    layer_class = getattr(nn, settings["type"], None)
    if not (isinstance(layer_class, type) and issubclass(layer_class, nn.Module)):
        raise ConfigError(f"{place}: torch.nn has no such layer")
    arguments = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items() if name != "type"
    }
    for name in ("out_features", "out_channels"):
        if arguments.get(name) == "auto":
            arguments[name] = out_features
    try:
        for name in INFERRED.keys() & inspect.signature(layer_class).parameters.keys() - arguments.keys():
            arguments[name] = x.shape[INFERRED[name]]
        return layer_class(**arguments)
    except DltrainError:
        raise
    except Exception as error:
        raise ConfigError(f"{place}: {first_line(error)}") from error


def _run(layer: nn.Module, x: Tensor, place: str) -> Tensor:
    """Return what `layer` makes of `x`, without chance (dropout is off) and without changing the layer."""
    try:
        with torch.no_grad():
            output = layer.eval()(x)
    except Exception as error:
        raise ConfigError(f"{place} with an input of shape {_shape(x)} per sample: {first_line(error)}") from error
    if not isinstance(output, Tensor):
        raise ConfigError(f"{place}: gives a {type(output).__name__}, not a tensor that the next layer could take")
    layer.train()
    return output


def _shape(x: Tensor) -> tuple[int, ...]:
    """Return the shape of one sample of `x`."""
    return tuple(x.shape[1:])
