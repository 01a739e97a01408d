"""How the work is done: by dltrain, by hand, by peers. A new implementation is one function and one entry.

Run as `python -m benchmarks.implementations NAME WORK EPOCHS DATA FOLDER`: trains, and writes FOLDER/trained.json.
Each function takes the work, the file with its arrays and a folder to write in; it returns the seconds in the loop and
the file with the final weights. Peers are written as their own manuals write them.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.works import WORKS, Work, load
from dltrain.data.batches import epoch_order
from dltrain.seeds import WEIGHTS, seed_of


@dataclass(frozen=True)
class Trained:
    """What a training leaves behind."""

    loop_s: float
    weights: Path


def dltrain(work: Work, data: Path, folder: Path) -> Trained:
    """Train from a YAML file, as a user of the Python interface does."""
    import yaml

    from dltrain import fit, load_config

    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(work.config(data)), encoding="utf-8")
    run = Path(fit(load_config(config), root=folder / "runs")["run"])
    last_row = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    return Trained(json.loads(last_row)["elapsed_s"], run / "checkpoints" / "last.safetensors")


def bare_mem(work: Work, data: Path, folder: Path) -> Trained:
    """Train with what an expert would write for this model: data in memory, one gather a batch, a fused optimizer.

    Initial weights and sample order are dltrain's, so the final weights must be as well.
    """
    inputs, targets = load(data)
    model = _initial_model(work)
    optimizer = torch.optim.AdamW(model.parameters(), lr=work.lr, weight_decay=work.weight_decay, fused=True)
    loss_sum = torch.zeros(())
    began = time.perf_counter()
    for epoch in range(work.epochs):
        order = epoch_order(len(inputs), work.seed, epoch, "shuffle")
        for batch in order.split(work.batch_size):
            loss = F.cross_entropy(model(inputs[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.detach()
    loss_sum.item()
    return _trained(began, model, folder)


def bare_dl(work: Work, data: Path, folder: Path) -> Trained:
    """Train as tutorials do: DataLoader, default optimizer, the loss read at every step."""
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(*load(data)), batch_size=work.batch_size, shuffle=True)
    model = _initial_model(work)
    optimizer = torch.optim.AdamW(model.parameters(), lr=work.lr, weight_decay=work.weight_decay)
    loss_function = nn.CrossEntropyLoss()
    loss_sum = 0.0
    began = time.perf_counter()
    for _ in range(work.epochs):
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = loss_function(model(inputs), targets)
            loss.backward()
            optimizer.step()
            loss_sum += loss.item()
    return _trained(began, model, folder)


def lightning(work: Work, data: Path, folder: Path) -> Trained:
    """Train with Lightning's Trainer, everything switched off that only informs."""
    import logging

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    import lightning
    from torch.utils.data import DataLoader, TensorDataset

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, batch_index: int) -> torch.Tensor:
            loss = F.cross_entropy(self.model(batch[0]), batch[1])
            self.log("train/loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=work.lr, weight_decay=work.weight_decay)

    loader = DataLoader(TensorDataset(*load(data)), batch_size=work.batch_size, shuffle=True)
    module = Module(_initial_model(work))
    trainer = lightning.Trainer(
        max_epochs=work.epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    began = time.perf_counter()
    trainer.fit(module, loader)
    return _trained(began, module.model, folder)


@dataclass(frozen=True)
class Implementation:
    """Who does the work, and what must be installed for it beside torch and numpy."""

    train: Callable[[Work, Path, Path], Trained]
    requires: tuple[str, ...] | None = None
    """Requirements of an environment of its own; None: it runs in this one."""


IMPLEMENTATIONS: dict[str, Implementation] = {
    "bare_mem": Implementation(bare_mem),
    "dltrain": Implementation(dltrain),
    "bare_dl": Implementation(bare_dl),
    "lightning": Implementation(lightning, requires=("lightning",)),
}


def _initial_model(work: Work) -> nn.Module:
    torch.manual_seed(seed_of(work.seed, WEIGHTS))  # as dltrain seeds its models
    return work.model()


def _trained(began: float, model: nn.Module, folder: Path) -> Trained:
    loop_s = time.perf_counter() - began
    path = folder / "weights.pt"
    torch.save(model.state_dict(), path)
    return Trained(loop_s, path)


def main(name: str, work_name: str, epochs: str, data: str, folder: str) -> None:
    """Train and write down what came of it."""
    warnings.filterwarnings("ignore")
    work = dataclasses.replace(WORKS[work_name], epochs=int(epochs))
    trained = IMPLEMENTATIONS[name].train(work, Path(data), Path(folder))
    result = {"loop_s": trained.loop_s, "weights": str(trained.weights), "num_threads": torch.get_num_threads()}
    (Path(folder) / "trained.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
