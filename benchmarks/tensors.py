"""The data of a work as tensors in memory, for the loops that are written by hand and for the peers.

They are what dltrain's own sources make of the file, so that all train on the same numbers; sequences are padded to the
longest of all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.works import Sizes, Work


@dataclass(frozen=True)
class Data:
    """Columns of N samples; the last is the target."""

    columns: list[Tensor]
    """(N, ...) each; sequences (N, L) int64."""
    lengths: list[Tensor | None]
    """(N,) int64 of each column of sequences."""
    paddings: list[int]
    """What fills sequences up."""
    sizes: Sizes

    def __len__(self) -> int:
        return len(self.columns[0])

    @property
    def longest(self) -> Tensor | None:
        """(N,) int64: the longest sequence of each sample; None without sequences."""
        lengths = [x for x in self.lengths if x is not None]
        return torch.stack(lengths).amax(0) if lengths else None

    def batch(self, indices: Tensor) -> list[Tensor]:
        """Return the columns of the samples at `indices`, sequences as long as the longest of them."""
        return [
            column[indices] if lengths is None else column[:, : int(lengths[indices].max())][indices]
            for column, lengths in zip(self.columns, self.lengths, strict=True)
        ]

    def collate(self, samples: list[tuple[Tensor, ...]]) -> list[Tensor]:
        """Return the batch of `samples`, as a DataLoader's collate_fn does, sequences as long as the longest."""
        batch = []
        for index, values in enumerate(zip(*samples, strict=True)):
            column = torch.stack(values)
            if self.lengths[index] is not None:
                column = column[:, : int((column != self.paddings[index]).sum(1).max())]
            batch.append(column)
        return batch


def load(path: Path) -> Data:
    """Return what `save` wrote."""
    return Data(**torch.load(path, weights_only=True))


def save(work: Work, folder: Path) -> tuple[Path, Path]:
    """Write the data of a work and its tensors into `folder`; return the config's file and the tensors'."""
    import yaml

    from dltrain.build import Builder
    from dltrain.config.validate import load_config
    from dltrain.data.columns import Ragged
    from dltrain.data.prepare import offered, prepare

    config, tensors = folder / "config.yaml", folder / "tensors.pt"
    config.write_text(yaml.safe_dump(work.config(work.make(folder))), encoding="utf-8")
    prepared = prepare(Builder(load_config(config)))
    train = prepared.splits["train"]
    content: dict[str, Any] = {"columns": [], "lengths": [], "paddings": [], "sizes": offered(prepared.facts)}
    assert "normalize" not in prepared.facts["source"], "stored inputs must be what the model is called with"
    for column in (*train.inputs, train.target):
        assert column is not None
        content["columns"].append(column[torch.arange(len(column))])
        content["lengths"].append(column.lengths if isinstance(column, Ragged) else None)
        content["paddings"].append(column.padding if isinstance(column, Ragged) else 0)
    torch.save(content, tensors)
    return config, tensors
