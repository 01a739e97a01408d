"""How the work is done: by dltrain, by hand, by peers. A new implementation is one function and one entry.

Run as `python -m benchmarks.implementations NAME WORK STEPS FOLDER OUT`: trains on what `tensors.save` wrote into
FOLDER, and writes OUT/trained.json. Each function takes the work, FOLDER and OUT; it returns the seconds in the loop
and the file with the final weights.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import tensors
from benchmarks.tensors import Data
from benchmarks.works import WORKS, Work
from dltrain.data.order import epoch_order
from dltrain.seeds import STEP, seed_of

CONFIG, TENSORS, TRAINED = "config.yaml", "tensors.pt", "trained.json"


@dataclass(frozen=True)
class Trained:
    """What a training leaves behind."""

    loop_s: float
    weights: Path


def dltrain(work: Work, folder: Path, out: Path) -> Trained:
    """Train from a YAML file, as a user of the Python interface does; a checkpoint comes at the end alone."""
    from dltrain import fit, load_config

    overrides = [f"train.{key}={work.steps} steps" for key in ("duration", "evaluate_every", "checkpoint_every")]
    run = Path(fit(load_config(folder / CONFIG, overrides), root=out / "runs")["run"])
    last_row = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    return Trained(json.loads(last_row)["elapsed_s"], run / "checkpoints" / "last.safetensors")


def bare_mem(work: Work, folder: Path, out: Path) -> Trained:
    """Train with what an expert would write for this model: data in memory, one gather a batch, a fused optimizer, and
    channels last where there are convolutions.

    Initial weights, sample order and, with dropout, the seed of a step are dltrain's, so the final weights must be as
    well.
    """
    data = tensors.load(folder / TENSORS)
    model: nn.Module = work.initial_model(data.sizes).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=work.lr, weight_decay=work.weight_decay, fused=True)
    loss_sum = torch.zeros(())
    steps_per_epoch = work.steps_per_epoch(len(data))
    batches: Sequence[Tensor] = ()
    began = time.perf_counter()
    for step in range(work.steps):
        epoch, index = divmod(step, steps_per_epoch)
        if index == 0:
            batches = epoch_order(len(data), work.seed, epoch, "shuffle").split(work.batch_size)
        *inputs, target = data.batch(batches[index])
        if work.draws:
            torch.default_generator.manual_seed(seed_of(work.seed, STEP, step))
        loss = cross_entropy(model(*inputs), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss_sum += loss.detach()
    loss_sum.item()
    return finished(began, model, out)


def bare_dl(work: Work, folder: Path, out: Path) -> Trained:
    """Train as tutorials do: DataLoader, default optimizer, the loss read at every step."""
    data = tensors.load(folder / TENSORS)
    batches = loader(work, data)
    model = work.initial_model(data.sizes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=work.lr, weight_decay=work.weight_decay)
    loss_sum, step = 0.0, 0
    began = time.perf_counter()
    while step < work.steps:
        for *inputs, target in batches:
            optimizer.zero_grad()
            loss = cross_entropy(model(*inputs), target)
            loss.backward()
            optimizer.step()
            loss_sum += loss.item()
            step += 1
            if step == work.steps:
                break
    return finished(began, model, out)


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean over samples, or over tokens that are no padding."""
    return F.cross_entropy(output.flatten(0, -2), target.flatten())


def loader(work: Work, data: Data) -> DataLoader[tuple[Tensor, ...]]:
    """Return shuffled batches, as tutorials make them."""
    collate = None if data.longest is None else data.collate
    return DataLoader(TensorDataset(*data.columns), batch_size=work.batch_size, shuffle=True, collate_fn=collate)


def finished(began: float, model: nn.Module, out: Path) -> Trained:
    """Return what a training leaves that `began` at that time of `time.perf_counter`, its weights written down."""
    loop_s = time.perf_counter() - began
    path = out / "weights.pt"
    torch.save(model.state_dict(), path)
    return Trained(loop_s, path)


@dataclass(frozen=True)
class Implementation:
    """Who does the work, and what must be installed for it beside torch and numpy."""

    train: Callable[[Work, Path, Path], Trained]
    requires: tuple[str, ...] | None = None
    """Requirements of an environment of its own; None: it runs in this one."""
    exact: bool = False
    """Whether the arithmetic and its order are the reference's, so that the result must be as well."""


def _peer(name: str) -> Callable[[Work, Path, Path], Trained]:
    """Return the function `name` of benchmarks.peers, imported when it is called."""

    def train(work: Work, folder: Path, out: Path) -> Trained:
        from benchmarks import peers

        result: Trained = getattr(peers, name)(work, folder, out)
        return result

    return train


IMPLEMENTATIONS: dict[str, Implementation] = {
    "bare_mem": Implementation(bare_mem, exact=True),
    "dltrain": Implementation(dltrain, exact=True),
    "bare_dl": Implementation(bare_dl),
    "lightning": Implementation(_peer("lightning"), requires=("lightning",)),
    "keras": Implementation(_peer("keras"), requires=("keras",)),
    "hf": Implementation(_peer("hf"), requires=("transformers", "accelerate")),
}


def main(name: str, work_name: str, steps: str, folder: str, out: str) -> None:
    """Train and write down what came of it."""
    warnings.filterwarnings("ignore")
    work = dataclasses.replace(WORKS[work_name], steps=int(steps))
    trained = IMPLEMENTATIONS[name].train(work, Path(folder), Path(out))
    result = {"loop_s": trained.loop_s, "weights": str(trained.weights), "num_threads": torch.get_num_threads()}
    (Path(out) / TRAINED).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
