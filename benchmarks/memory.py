"""Memory: bytes of each parameter by the optimizer, and the peak of a whole training against the hand-tuned loop."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.table import Table
from torch import Tensor

from benchmarks import comparison
from benchmarks.options import Options
from benchmarks.tables import new_table
from benchmarks.works import WORKS

_WORKS = ("tabular", "resnet18", "language_model")
_NUM_FEATURES, _WIDTH = 64, 1024
GOAL = 1.05


def run(options: Options) -> dict[str, Any]:
    """Print both tables and return all figures."""
    per_parameter = bytes_per_parameter()
    options.show(_table(per_parameter), "")
    compared = [
        comparison.compare(WORKS[name], ["dltrain"], options.repeat, options.env, options.say) for name in _WORKS
    ]
    title = f"memory: peak of the whole process, median; goal: {GOAL} times {comparison.REFERENCE}"
    peaks = new_table(title, ["work"], [f"{comparison.REFERENCE} MiB", "dltrain MiB", "x"])
    for one in compared:
        medians = [f"{one.median(name, 'peak_mib'):.0f}" for name in (comparison.REFERENCE, "dltrain")]
        peaks.add_row(one.work.name, *medians, f"{one.ratio('dltrain', 'peak_mib')[0]:.2f}")
    options.show(peaks, "")
    return {"bytes_per_parameter": per_parameter, "peaks": [one.to_json() for one in compared]}


def bytes_per_parameter() -> dict[str, dict[str, float]]:
    """Return for each optimizer of dltrain the bytes of weights, gradients and its state after a step, by parameter."""
    from dltrain.build import Builder
    from dltrain.config.schema import optimizers
    from dltrain.config.schema.base import type_name
    from dltrain.config.validate import load_config
    from dltrain.models.mlp import MLP
    from dltrain.optimization import build_optimizer

    result = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in map(type_name, optimizers.ALL):
            path = Path(temporary, f"{name}.yaml")
            content = {
                "data": {"type": "sklearn", "name": "digits"},
                "model": {"type": "mlp"},
                "optimizer": {"type": name, "lr": 1e-3},
            }
            path.write_text(yaml.safe_dump(content), encoding="utf-8")
            model = MLP(_NUM_FEATURES, _NUM_FEATURES, hidden=(_WIDTH, _WIDTH))
            optimizer, _ = build_optimizer(Builder(load_config(path)), model, torch.device("cpu"))
            model(torch.zeros(2, _NUM_FEATURES)).sum().backward()
            optimizer.step()
            parameters = list(model.parameters())
            num_parameters = sum(parameter.numel() for parameter in parameters)
            parts = {
                "weights": parameters,
                "gradients": [parameter.grad for parameter in parameters if parameter.grad is not None],
                "state": list(_tensors(dict(optimizer.state))),
            }
            result[name] = {part: _size_bytes(tensors) / num_parameters for part, tensors in parts.items()}
    return result


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield all tensors among the values of dictionaries within each other."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)


def _size_bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _table(per_parameter: dict[str, dict[str, float]]) -> Table:
    title = f"memory: bytes a parameter after a step, MLP {_NUM_FEATURES}-{_WIDTH}-{_WIDTH}-{_NUM_FEATURES}, float32"
    result = new_table(title, ["optimizer"], ["weights", "gradients", "state", "together"])
    for name, parts in per_parameter.items():
        result.add_row(name, *(f"{size:.2f}" for size in parts.values()), f"{sum(parts.values()):.2f}")
    return result
