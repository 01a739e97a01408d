"""The same work by other tools, as their own manuals write it, with everything switched off that only informs.

Each is imported by its own function alone, in an environment of its own.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import tensors
from benchmarks.implementations import TENSORS, Trained, cross_entropy, finished, loader
from benchmarks.works import Work
from dltrain.data.columns import IGNORED


def lightning(work: Work, folder: Path, out: Path) -> Trained:
    """Train with Lightning's Trainer."""
    import logging

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    import lightning

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
            *inputs, target = batch
            loss = cross_entropy(self.model(*inputs), target)
            self.log("train/loss", loss, batch_size=len(target))
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=work.lr, weight_decay=work.weight_decay)

    data = tensors.load(folder / TENSORS)
    batches = loader(work, data)
    module = Module(work.initial_model(data.sizes))
    trainer = lightning.Trainer(
        max_steps=work.steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=out,
    )
    began = time.perf_counter()
    trainer.fit(module, batches)
    return finished(began, module.model, out)


def keras(work: Work, folder: Path, out: Path) -> Trained:
    """Train with Keras' fit on torch: a perceptron of Keras' own layers, any other model within its TorchModuleWrapper.

    Samples of one shape go in as arrays, sequences by a DataLoader that pads each batch alone.
    """
    import os

    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    class Wrapped(keras.Model):  # type: ignore[misc]
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.wrapper = keras.layers.TorchModuleWrapper(model)

        def call(self, inputs: tuple[Tensor, ...]) -> Any:
            return self.wrapper(*inputs)

    data = tensors.load(folder / TENSORS)

    def collate(samples: list[tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], Tensor]:
        *inputs, target = data.collate(samples)
        return tuple(inputs), target

    ours = work.initial_model(data.sizes)
    linear = perceptron(ours)
    dense = [keras.layers.Dense(layer.out_features, "relu") for layer in linear[:-1]]
    dense += [keras.layers.Dense(layer.out_features) for layer in linear[-1:]]
    *inputs, targets = (column.numpy() for column in data.columns)
    model = keras.Sequential([keras.layers.Input(inputs[0].shape[1:]), *dense]) if linear else Wrapped(ours)
    for own, layer in zip(dense, linear, strict=True):
        own.set_weights([layer.weight.detach().numpy().T, layer.bias.detach().numpy()])
    epsilon = 1e-8  # torch's
    ignored = None if data.lengths[-1] is None else IGNORED
    model.compile(
        optimizer=keras.optimizers.AdamW(work.lr, weight_decay=work.weight_decay, epsilon=epsilon),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=ignored),
    )
    samples: dict[str, Any]
    if data.longest is None:
        samples = {"x": inputs[0] if linear else tuple(inputs), "y": targets, "batch_size": work.batch_size}
    else:
        samples = {"x": DataLoader(TensorDataset(*data.columns), work.batch_size, shuffle=True, collate_fn=collate)}
    epochs, rest = divmod(work.steps, work.steps_per_epoch(len(data)))
    began = time.perf_counter()
    if epochs:
        model.fit(**samples, epochs=epochs, verbose=0)
    if rest:
        model.fit(**samples, steps_per_epoch=rest, verbose=0)
    loop_s = time.perf_counter() - began
    with torch.no_grad():
        for own, layer in zip(dense, linear, strict=True):
            kernel, bias = own.get_weights()
            layer.weight.copy_(torch.from_numpy(kernel.T))
            layer.bias.copy_(torch.from_numpy(bias))
    return Trained(loop_s, finished(began, ours, out).weights)


def hf(work: Work, folder: Path, out: Path) -> Trained:
    """Train with the Trainer of transformers; its optimizer is torch's fused AdamW by default."""
    from transformers import Trainer, TrainingArguments

    class Module(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, inputs: list[Tensor], labels: Tensor) -> dict[str, Tensor]:
            output = self.model(*inputs)
            return {"loss": cross_entropy(output, labels), "logits": output}

    data = tensors.load(folder / TENSORS)

    def collate(samples: list[tuple[Tensor, ...]]) -> dict[str, Any]:
        *inputs, labels = data.collate(samples)
        return {"inputs": inputs, "labels": labels}

    model = work.initial_model(data.sizes)
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=work.steps,
        per_device_train_batch_size=work.batch_size,
        learning_rate=work.lr,
        weight_decay=work.weight_decay,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = Trainer(Module(model), arguments, collate, TensorDataset(*data.columns))
    began = time.perf_counter()
    trainer.train()
    return finished(began, model, out)


def perceptron(model: nn.Module) -> list[nn.Linear]:
    """Return the layers of a plain perceptron; of any other model none."""
    layers = list(model.children())
    if any(type(layer) not in (nn.Linear, nn.ReLU) for layer in layers):
        return []
    return [layer for layer in layers if isinstance(layer, nn.Linear)]
