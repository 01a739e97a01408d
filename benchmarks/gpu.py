"""ResNets and language models on one GPU: samples a second, share of its peak (MFU) and memory, by dltrain and by hand.

By hand is what an expert would write for the model: data on the device, bfloat16, channels last, fused AdamW, the
fastest convolutions, no wait in the loop. On a CPU (`--device cpu`) tiny sizes show no more than that it runs.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.options import Options
from benchmarks.tables import new_table
from dltrain import plan, tasks
from dltrain.build import Builder
from dltrain.config.validate import load_config
from dltrain.console import Function
from dltrain.data.columns import IGNORED, Columns, Ragged
from dltrain.data.prepare import Prepared, input_transform
from dltrain.models.causal_transformer import CausalTransformer
from dltrain.models.resnet import ResNet
from dltrain.plan import Plan
from dltrain.state import State
from dltrain.train import fit

PEAKS_TFLOPS = {"H200": 989.4, "H100 PCIe": 756.0, "H100 80GB HBM3": 989.4, "A100": 312.0}
"""Of dense bfloat16, by what the name of a device holds. NVIDIA's data sheets of H200, H100 and A100, of which the
first two give twice that, with sparsity."""

_MEAN, _STD = [0.48, 0.46, 0.41], [0.23, 0.22, 0.23]
_LR, _WEIGHT_DECAY = 1e-3, 1e-2
_VARIANTS: dict[str, dict[str, Any]] = {
    "by hand": {},
    "dltrain": {},
    "dltrain, data on the host": {},
    "dltrain, cuda_graphs": {"cuda_graphs": True},
}


@dataclass(frozen=True)
class Training:
    """What is trained."""

    about: str
    unit: str
    units: int
    """In a sample: 1 image, or the tokens of a block."""
    make: Callable[[], nn.Module]
    model_config: dict[str, Any]
    """The same model as dltrain's YAML has it."""
    data: Callable[[], Prepared]
    batch_size: int


@dataclass(frozen=True)
class Measured:
    """Of a number of steps."""

    units_per_s: float
    peak_mib: float
    """Of the device, from the beginning of the training."""


def run(options: Options) -> dict[str, Any]:
    """Print a table and return all figures; ends the process in one line where the device is missing."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("gpu: torch sees no CUDA device; --device cpu runs tiny sizes, to see that all of it works")
    on_gpu = options.device == "cuda"
    figures: dict[str, Any] = {"device": _describe(options.device), "trainings": []}
    for training in trainings(tiny=not on_gpu):
        data, rounds = training.data(), []
        has_sequences = data.splits["train"].lengths is not None  # which stay on the host
        variants = [name for name in _VARIANTS if _is_possible(name, on_gpu=on_gpu, has_sequences=has_sequences)]
        for index in range(options.repeat):
            options.say(f"gpu: {training.about}: round {index + 1} of {options.repeat}")
            rounds.append({name: _measure(name, training, data, options.device, tiny=not on_gpu) for name in variants})
        figures["trainings"].append(
            {
                "about": training.about,
                "unit": training.unit,
                "flops_per_unit": flops_per_unit(training, data),
                "units_per_s": {name: [one[name].units_per_s for one in rounds] for name in variants},
                "peak_mib": {name: max(one[name].peak_mib for one in rounds) for name in variants},
            }
        )
    options.show(table(figures), "")
    return figures


def table(figures: dict[str, Any]) -> Table:
    """Return a line for each training and variant."""
    device = figures["device"]
    peak = f"{device['peak_tflops']:g} TFLOPS" if device["peak_tflops"] else "unknown"
    title = (
        f"gpu: {device['name']}, torch {device['torch']}, CUDA {device['cuda']}, cuDNN {device['cudnn']}; bfloat16, "
        f"AdamW; medians; MFU: three times the FLOPs of a forward pass, of a peak that is {peak}"
    )
    result = new_table(title, ["training", ""], ["a second", "x by hand", "MFU", "peak MiB"])
    for training in figures["trainings"]:
        by_hand = training["units_per_s"]["by hand"]
        for name, rates in training["units_per_s"].items():
            rate = statistics.median(rates)
            ratio = statistics.median(own / other for own, other in zip(rates, by_hand, strict=True))
            share = mfu(rate, training["flops_per_unit"], device["peak_tflops"])
            cells = [f"{rate:,.0f} {training['unit']}", f"{ratio:.3f}", f"{share:.1%}" if share else "-"]
            result.add_row(training["about"], name, *cells, f"{training['peak_mib'][name]:,.0f}")
    return result


def mfu(units_per_s: float, flops_per_unit: float, peak_tflops: float | None) -> float | None:
    """Return the share of the peak (0..1) that forward and backward passes make up: model FLOPs utilization.

    The backward pass counts twice the forward one; attention counts whole, though a causal one needs half.
    Chowdhery et al. (2022), https://arxiv.org/abs/2204.02311, appendix B.
    """
    return None if peak_tflops is None else 3 * flops_per_unit * units_per_s / (peak_tflops * 1e12)


def flops_per_unit(training: Training, data: Prepared) -> float:
    """Return the FLOPs of a forward pass for each image or token, as torch counts them, of a model without data."""
    with torch.device("meta"):
        model = training.make()
    inputs, _ = data.splits["train"].batch(torch.arange(2), torch.device("cpu"))
    x = input_transform(data.facts, torch.device("cpu"))(inputs)[0].to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return counter.get_total_flops() / (2 * training.units)


def trainings(*, tiny: bool) -> list[Training]:
    """Return what is trained, of sizes for a GPU, or `tiny` ones."""
    if tiny:
        return [images(20, 8, 10, 16, 4), language(32, 2, 2, 100, 16, 32, 4)]
    return [
        images(18, 32, 10, 20_000, 512),
        images(50, 224, 1000, 4096, 256),
        language(320, 6, 5, 8000, 512, 2048, 64),
        language(768, 12, 12, 32_000, 1024, 1024, 16),
    ]


def images(depth: int, side: int, num_classes: int, num_samples: int, batch_size: int) -> Training:
    """Return a ResNet on images of random bytes."""
    shape = [3, side, side]

    def data() -> Prepared:
        rng = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (num_samples, *shape), generator=rng, dtype=torch.uint8)
        columns = Columns((pixels,), torch.arange(num_samples) % num_classes)
        counts = torch.bincount(torch.arange(num_samples) % num_classes, minlength=num_classes).tolist()
        task = tasks.Classification(list(range(num_classes)))
        return _prepared(columns, task, {"normalize": {"mean": _MEAN, "std": _STD}}, shape, "uint8", counts)

    return Training(
        f"ResNet-{depth}, {num_classes} classes, batches of {batch_size} x 3 x {side} x {side}",
        "images",
        1,
        lambda: ResNet(3, num_classes, shape, depth=depth),
        {"type": "resnet", "depth": depth},
        data,
        batch_size,
    )


def language(
    dim: int, depth: int, num_heads: int, vocab_size: int, block: int, num_samples: int, batch_size: int
) -> Training:
    """Return a language model on random tokens."""
    sizes = {"dim": dim, "depth": depth, "num_heads": num_heads, "dropout": 0.0}

    def data() -> Prepared:
        stream = torch.randint(vocab_size, (num_samples * block + 1,), generator=torch.Generator().manual_seed(0))
        starts, lengths = torch.arange(num_samples) * block, torch.full((num_samples,), block)
        columns = Columns((Ragged(stream, starts, lengths),), Ragged(stream, starts + 1, lengths, IGNORED))
        source = {"vocab_size": vocab_size, "max_length": block}
        return _prepared(columns, tasks.LanguageModel(vocab_size), source, [block], "int64", None)

    return Training(
        f"language model of {dim} x {depth}, vocabulary of {vocab_size:,}, batches of {batch_size} x {block}",
        "tokens",
        block,
        lambda: CausalTransformer(vocab_size, block, **sizes),
        {"type": "causal_transformer", **sizes},
        data,
        batch_size,
    )


def _prepared(
    columns: Columns, task: tasks.Task, source: dict[str, Any], shape: list[int], dtype: str, counts: list[int] | None
) -> Prepared:
    facts = {
        "source": source,
        "task": tasks.facts_of(task),
        "input_shapes": [shape],
        "input_types": [dtype],
        "num_samples": {"train": len(columns), "val": 0, "test": 0},
        "class_counts": counts,
        "num_skipped": 0,
        "fingerprint": "",
    }
    return Prepared({"train": columns}, task, facts, task_is_inferred=False, notes=[])


def _is_possible(variant: str, *, on_gpu: bool, has_sequences: bool) -> bool:
    if not on_gpu:
        return variant in ("by hand", "dltrain")
    return not (has_sequences and variant.endswith("on the host"))


def _measure(name: str, training: Training, data: Prepared, device: str, *, tiny: bool) -> Measured:
    """Train for some steps, of which the first do not count, and leave no memory behind."""
    clock = _Clock(device, *((2, 4) if tiny else (20, 50)))
    if name == "by hand":
        by_hand(training, data, clock)
    else:
        by_dltrain(training, data, clock, _VARIANTS[name], on_host=name.endswith("on the host"))
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return Measured(training.batch_size * training.units * clock.num_steps / clock.seconds, clock.peak_mib)


class _Clock:
    """Tells the seconds of some steps after the first, and the most memory so far; waits at their begin and end."""

    def __init__(self, device: str, num_first: int, num_steps: int) -> None:
        self.device, self.num_first, self.num_steps = device, num_first, num_steps
        self.seconds = self.peak_mib = self._began = 0.0
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def begin(self, run: Path, plan: Plan) -> None:
        """See `dltrain.console.Watcher`."""

    def part(self, name: str, function: Function) -> Function:
        """Leave the parts of a step as they are."""
        return function

    def step(self, state: State, num_samples: int) -> None:
        """Be told by dltrain that a step is done."""
        self.done(state.step)

    def done(self, step: int) -> None:
        """Be told that so many steps are done."""
        if step not in (self.num_first, self.num_first + self.num_steps):
            return
        if self.device == "cuda":
            torch.cuda.synchronize()
            self.peak_mib = torch.cuda.max_memory_allocated() / 2**20
        self.seconds = time.perf_counter() - self._began
        self._began = time.perf_counter()

    @property
    def num_all(self) -> int:
        """Steps of the training."""
        return self.num_first + self.num_steps


def by_hand(training: Training, data: Prepared, clock: _Clock) -> None:
    """Train with what an expert would write."""
    device = torch.device(clock.device)
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    model: Any = training.make().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LR, weight_decay=_WEIGHT_DECAY, fused=True)
    columns, size = data.splits["train"], training.batch_size
    inputs, targets = (x.to(device) for x in _whole(columns))
    transform = input_transform(data.facts, device)
    loss_sum, order = torch.zeros((), device=device), torch.empty(0)
    for step in range(clock.num_all):
        batch = step % (len(columns) // size)
        if batch == 0:
            order = torch.randperm(len(columns), device=device)
        rows = order[batch * size : (batch + 1) * size]
        (x,), target = transform((inputs.index_select(0, rows),)), targets.index_select(0, rows)
        with torch.autocast(clock.device, dtype=torch.bfloat16):
            loss = F.cross_entropy(model(x).flatten(0, -2), target.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss_sum += loss.detach()
        clock.done(step + 1)
    loss_sum.item()


def _whole(columns: Columns) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of all samples."""
    (inputs,), target = columns.batch(slice(None), torch.device("cpu"))
    return inputs, target


def by_dltrain(training: Training, data: Prepared, clock: _Clock, settings: dict[str, Any], *, on_host: bool) -> None:
    """Train as `dltrain fit` does, with data that are there already."""
    steps = f"{clock.num_all} steps"
    config = {
        "data": {"type": "arrays", "path": "none.npz"},
        "split": {"val": 0, "test": 0},
        "model": training.model_config,
        "optimizer": {"type": "adamw", "lr": _LR, "weight_decay": _WEIGHT_DECAY, "decay_all": True},
        "train": {
            **dict.fromkeys(("duration", "evaluate_every", "checkpoint_every"), steps),
            "batch_size": training.batch_size,
            "drop_last": True,
            "device": clock.device,
            "precision": "bfloat16",
            **settings,
        },
    }

    def preparation(builder: Builder, *, raw_targets: bool) -> Prepared:
        return data

    share = plan._SHARE_OF_DEVICE
    plan._SHARE_OF_DEVICE = 0.0 if on_host else share
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "gpu.yaml")
            path.write_text(yaml.safe_dump(config), encoding="utf-8")
            fit(load_config(path), root=folder, watcher=clock, preparation=preparation, curves=False)
    finally:
        plan._SHARE_OF_DEVICE = share


def _describe(device: str) -> dict[str, Any]:
    """Return the device with the versions of what drives it, and its peak where that is known."""
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    peak = next((tflops for part, tflops in PEAKS_TFLOPS.items() if part in name), None)
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return {"name": name, "peak_tflops": peak, **versions}
