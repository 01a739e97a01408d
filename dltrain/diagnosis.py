"""Where in a network numbers first stop being finite: for the message of a training that ends."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def first_not_finite(model: nn.Module, inputs: tuple[Tensor, ...], *, runs: bool = True) -> str:
    """Return what first holds an infinity or NaN in a forward pass, or else the first gradient that does, in words.

    The model is left as it is, its batch statistics too. The result is "" where all is finite. Unless the model `runs`
    (one in slices does not by itself), no forward pass is made.
    """
    if not all(_is_finite(x) for x in inputs):
        return "in the augmented inputs"
    for name, parameter in model.named_parameters():
        if not _is_finite(parameter):
            return f"in the weights {name}"
    found = _outputs_not_finite(model, inputs) if runs else []
    if found:
        return found[0]
    gradients = ((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
    return next((f"in the gradient of {name}" for name, gradient in gradients if not _is_finite(gradient)), "")


def _outputs_not_finite(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[str]:
    """Return the first output of a layer that is not finite, in words, if one is."""
    twin = copy.deepcopy(model)
    found: list[str] = []

    def hook(name: str) -> Any:
        def look(module: nn.Module, _inputs: Any, output: Any) -> None:
            if not found and not _is_finite(output):
                found.append(f"in the output of {name or 'the model'} ({type(module).__name__})")

        return look

    for name, module in twin.named_modules():
        if not list(module.children()) or not name:
            module.register_forward_hook(hook(name))
    twin(*inputs)
    return found


def _is_finite(value: Any) -> bool:
    """Return whether a tensor, or the tensors of a tuple, are finite; what is no tensor counts as finite."""
    if isinstance(value, tuple | list):
        return all(_is_finite(item) for item in value)
    return not isinstance(value, Tensor) or bool(value.isfinite().all())
