"""What is trained: data, model and hyperparameters of each work. A new work is one entry in WORKS.

Child processes import this in the environments of peers, which have only torch and numpy beside the peer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Work:
    """A classification of rows of numbers, trained with AdamW at a constant rate."""

    name: str
    arrays: Callable[[], tuple[np.ndarray, np.ndarray]]
    """Inputs (N, F) float32 and class ids (N,) int64, the same in every call."""
    model: Callable[[], nn.Module]
    model_config: dict[str, Any]
    """The same model as dltrain's YAML has it."""
    num_samples: int
    batch_size: int
    epochs: int
    lr: float = 1e-3
    weight_decay: float = 1e-2
    seed: int = 0

    def config(self, data: Path) -> dict[str, Any]:
        """Return the config by which dltrain does this work on the arrays in the file `data`."""
        return {
            "name": self.name,
            "seed": self.seed,
            "data": {"type": "arrays", "path": str(data), "scale": "none"},
            "split": {"val": 0, "test": 0},
            "model": self.model_config,
            "optimizer": {"type": "adamw", "lr": self.lr, "weight_decay": self.weight_decay, "decay_all": True},
            "train": {
                "duration": f"{self.epochs} epochs",
                "batch_size": self.batch_size,
                "evaluate_every": f"{self.epochs} epochs",
                "device": "cpu",
            },
        }


def load(data: Path) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of the file that `save` wrote."""
    with np.load(data) as arrays:
        return torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])


def save(work: Work, folder: Path) -> Path:
    """Write the arrays of a work into `folder` and return the file."""
    inputs, targets = work.arrays()
    assert len(inputs) == work.num_samples
    path = folder / f"{work.name}.npz"
    np.savez(path, x=inputs, y=targets)
    return path


def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    inputs, targets = load_digits(return_X_y=True)
    return (inputs / 16).astype(np.float32), targets.astype(np.int64)


def _tabular() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((100_000, 32), dtype=np.float32)
    return inputs, (inputs @ rng.standard_normal((32, 10))).argmax(axis=1)


def _mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


WORKS: dict[str, Work] = {
    work.name: work
    for work in (
        Work(
            name="digits",
            arrays=_digits,
            model=lambda: _mlp(64, 128, 128, 10),
            model_config={"type": "mlp", "hidden": [128, 128]},
            num_samples=1797,
            batch_size=64,
            epochs=20,
        ),
        Work(
            name="tabular",
            arrays=_tabular,
            model=lambda: _mlp(32, 256, 256, 10),
            model_config={"type": "mlp", "hidden": [256, 256]},
            num_samples=100_000,
            batch_size=256,
            epochs=2,
        ),
    )
}
