"""The perceptron of configs/sweep_digits.yaml as a script with Lightning, as its manual writes one: a trial a call.

Everything that only informs is switched off. It runs where only Lightning is installed, and so reads the digits from
a file, which is quicker than scikit-learn. It keeps the best and the last checkpoint, as `dltrain fit` does.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import warnings
from typing import Any

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

import lightning  # noqa: E402 (its warnings come while it is imported)
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset, random_split  # noqa: E402


class Perceptron(lightning.LightningModule):
    """Hidden layers with batch norm and dropout, AdamW, and a cosine after a warm-up of 5 % of the steps."""

    def __init__(self, hidden: list[int], dropout: float, lr: float) -> None:
        super().__init__()
        self.lr = lr
        layers: list[nn.Module] = []
        for before, after in zip([64, *hidden], hidden, strict=False):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden[-1], 10))

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        """Return the loss of a batch."""
        x, y = batch
        loss = F.cross_entropy(self.layers(x), y)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_index: int) -> None:
        """Log loss and accuracy."""
        x, y = batch
        output = self.layers(x)
        self.log("val/loss", F.cross_entropy(output, y))
        self.log("val/accuracy", (output.argmax(1) == y).float().mean())

    def configure_optimizers(self) -> dict[str, Any]:
        """Return optimizer and schedule."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.05)
        total = int(self.trainer.estimated_stepping_batches)
        warmup = max(1, total // 20)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def main() -> None:
    """Train once and print the result as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--hidden", type=json.loads, required=True)
    parser.add_argument("--dropout", type=float, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    arguments = parser.parse_args()
    lightning.seed_everything(0, verbose=False)
    with np.load(arguments.data) as arrays:
        data = TensorDataset(torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"]))
    train, val, _ = random_split(data, [0.7, 0.15, 0.15])
    checkpoints = ModelCheckpoint(arguments.out, monitor="val/accuracy", mode="max", save_last=True)
    trainer = lightning.Trainer(
        max_epochs=arguments.epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=[checkpoints],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        Perceptron(arguments.hidden, arguments.dropout, arguments.lr),
        DataLoader(train, batch_size=64, shuffle=True),
        DataLoader(val, batch_size=len(val)),
    )
    print(json.dumps({"val/accuracy": float(checkpoints.best_model_score)}))


if __name__ == "__main__":
    main()
