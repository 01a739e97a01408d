"""What is trained: data, model and hyperparameters of each work. A new work is one entry in WORKS.

Child processes import this in the environments of peers, which have only torch and numpy beside the peer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import synthetic
from dltrain.models.causal_transformer import CausalTransformer
from dltrain.models.encoder_decoder import EncoderDecoder
from dltrain.models.mlp import MLP
from dltrain.models.resnet import ResNet
from dltrain.models.transformer import Transformer
from dltrain.seeds import WEIGHTS, seed_of

Sizes = dict[str, Any]
"""What the data decide of a model, by the names of dltrain's parameters: in_features, vocab_size, ..."""


@dataclass(frozen=True)
class Work:
    """A training with AdamW at a constant rate and a cross-entropy."""

    name: str
    about: str
    make: Callable[[Path], Path]
    """Write the data into a folder, the same in every call, and return the file."""
    data: dict[str, Any]
    """Section `data` of dltrain's config, without the path."""
    model: Callable[[Sizes], nn.Module]
    model_config: dict[str, Any]
    """The same model as dltrain's YAML has it."""
    batch_size: int
    steps: int
    lr: float = 1e-3
    weight_decay: float = 1e-2
    seed: int = 0
    num_judged: int = 2000
    """Training samples, at most, over which the final loss is taken."""

    def config(self, path: Path) -> dict[str, Any]:
        """Return the config by which dltrain does this work on the data in the file `path`."""
        return {
            "name": self.name,
            "seed": self.seed,
            "data": {**self.data, "path": str(path)},
            "split": {"val": 0, "test": 0},
            "model": self.model_config,
            "optimizer": {"type": "adamw", "lr": self.lr, "weight_decay": self.weight_decay, "decay_all": True},
            "train": {
                "duration": f"{self.steps} steps",
                "batch_size": self.batch_size,
                "evaluate_every": f"{self.steps} steps",
                "device": "cpu",
            },
        }

    @property
    def draws(self) -> bool:
        """Whether a step draws random numbers."""
        return self.model_config.get("dropout", 0.0) > 0

    def initial_model(self, sizes: Sizes) -> nn.Module:
        """Return the model with the weights that dltrain begins with."""
        torch.manual_seed(seed_of(self.seed, WEIGHTS))
        return self.model(sizes)

    def samples_trained(self, num_samples: int) -> int:
        """Return how many samples all steps see together; the last batch of an epoch may not be full."""
        epochs, steps = divmod(self.steps, self.steps_per_epoch(num_samples))
        return epochs * num_samples + steps * self.batch_size

    def steps_per_epoch(self, num_samples: int) -> int:
        """Return the number of batches of an epoch."""
        return -(-num_samples // self.batch_size)


_ARRAYS = {"type": "arrays", "scale": "none"}
_WORDS = {"kind": "word"}
_LANGUAGE = {"dim": 320, "depth": 6, "num_heads": 5, "dropout": 0.0}
_TRANSLATION = {"dim": 128, "encoder_depth": 2, "decoder_depth": 2, "num_heads": 4, "dropout": 0.1}
_CLASSIFIER = {"dim": 128, "depth": 4, "num_heads": 4, "dropout": 0.1}
_OF_TEXT = ("out_features", "vocab_size", "max_length")


def _mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _convnet(*channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 10))


def _from(sizes: Sizes, *names: str) -> Sizes:
    return {name: sizes[name] for name in names}


WORKS: dict[str, Work] = {
    work.name: work
    for work in (
        Work(
            name="digits",
            about="1,797 x 64, MLP 128-128",
            make=synthetic.digits,
            data=_ARRAYS,
            model=lambda sizes: _mlp(64, 128, 128, 10),
            model_config={"type": "mlp", "hidden": [128, 128]},
            batch_size=64,
            steps=20 * 29,
        ),
        Work(
            name="tabular",
            about="100,000 x 32, MLP 256-256",
            make=lambda folder: synthetic.numbers(folder, 100_000, 32),
            data=_ARRAYS,
            model=lambda sizes: _mlp(32, 256, 256, 10),
            model_config={"type": "mlp", "hidden": [256, 256]},
            batch_size=256,
            steps=2 * 391,
        ),
        Work(
            name="categorical",
            about="CSV of 50,000 x (20 categories + 8 numbers), embeddings, MLP 256-256",
            make=lambda folder: synthetic.table(folder, 50_000, 20, 8),
            data={"type": "table", "target": "label"},
            model=lambda sizes: MLP(**_from(sizes, "in_features", "out_features", "cardinalities"), hidden=(256, 256)),
            model_config={"type": "mlp", "hidden": [256, 256]},
            batch_size=256,
            steps=2 * 196,
        ),
        Work(
            name="convnet",
            about="6,400 images of 1 x 28 x 28, two convolutions of 16 and 32 channels",
            make=lambda folder: synthetic.images(folder, 6400, 1, 28, 28),
            data=_ARRAYS,
            model=lambda sizes: _convnet(1, 16, 32),
            model_config={"type": "convnet", "channels": [16, 32]},
            batch_size=128,
            steps=50,
        ),
        Work(
            name="resnet18",
            about="256 images of 3 x 32 x 32, ResNet-18",
            make=lambda folder: synthetic.images(folder, 256, 3, 32, 32),
            data=_ARRAYS,
            model=lambda sizes: ResNet(**_from(sizes, "in_channels", "out_features", "input_shape")),
            model_config={"type": "resnet", "depth": 18},
            batch_size=32,
            steps=8,
            num_judged=64,
        ),
        Work(
            name="transformer",
            about="texts of 64 tokens, 4 blocks of 128, dropout 0.1",
            make=lambda folder: synthetic.texts(folder, 1280, 64),
            data={"type": "text", "tokenizer": _WORDS, "max_length": 64},
            model=lambda sizes: Transformer(**_from(sizes, *_OF_TEXT, "input_shape"), **_CLASSIFIER),
            model_config={"type": "transformer", **_CLASSIFIER},
            batch_size=32,
            steps=40,
            num_judged=512,
        ),
        Work(
            name="translation",
            about="pairs of 3 to 16 tokens, padded; 2 + 2 blocks of 128, dropout 0.1",
            make=lambda folder: synthetic.sentences(folder, 3200),
            data={"type": "pairs", "tokenizer": _WORDS, "max_length": 32},
            model=lambda sizes: EncoderDecoder(**_from(sizes, *_OF_TEXT, "shared_vocabulary"), **_TRANSLATION),
            model_config={"type": "encoder_decoder", **_TRANSLATION},
            batch_size=64,
            steps=2 * 50,
            num_judged=512,
        ),
        Work(
            name="language_model",
            about="blocks of 128 tokens, 6 blocks of 320, vocabulary of 8,000: 10 million parameters",
            make=lambda folder: synthetic.corpus(folder, 200_000, 7996),
            data={"type": "corpus", "tokenizer": _WORDS, "block": 128},
            model=lambda sizes: CausalTransformer(**_from(sizes, "vocab_size", "max_length"), **_LANGUAGE),
            model_config={"type": "causal_transformer", **_LANGUAGE},
            batch_size=8,
            steps=8,
            num_judged=32,
        ),
    )
}
