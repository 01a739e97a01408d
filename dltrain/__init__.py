"""dltrain: train a neural network from one YAML file.

`dltrain.load_config`, `fit`, `evaluate` and `predict` are what the command line calls; torch is imported on first use.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["evaluate", "fit", "load_config", "predict"]

_HOMES = {
    "load_config": "dltrain.config.validate",
    "fit": "dltrain.train",
    "evaluate": "dltrain.evaluation",
    "predict": "dltrain.prediction",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dltrain' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
