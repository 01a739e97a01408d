"""How good a model is on a split: the same code while training and for `dltrain evaluate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dltrain import checkpoint as checkpoints
from dltrain.build import Builder
from dltrain.config.validate import load_config
from dltrain.data.columns import Columns
from dltrain.data.prepare import PreparedSplit, open_source, prepare_path, prepare_split
from dltrain.device import autocast, evaluating, open_device
from dltrain.errors import ConfigError
from dltrain.losses import count
from dltrain.memory import in_halves
from dltrain.metrics import Metrics
from dltrain.network import Network, restore_network
from dltrain.ranks import ALONE, Ranks
from dltrain.run import finite_or_none
from dltrain.sharding import Shards
from dltrain.tasks import SequenceTask, Task, Translation
from dltrain.text_scores import score

_LARGEST_OUTPUT = 2**24
"""Numbers in the outputs of sequences that are evaluated together: 64 MiB."""


@torch.no_grad()
def evaluate_columns(
    network: Network,
    model: nn.Module,
    columns: Columns,
    precision: str,
    batch_size: int,
    ranks: Ranks = ALONE,
    shards: Shards | None = None,
) -> tuple[float, Metrics]:
    """Return the mean loss over `columns`, per sample or per token, and the metrics; neither depends on `batch_size`.

    `model` is the one of the network, or its averaged form; it is left in the mode in which it came. Several processes
    take batches in turn, and all return the same; with a model in `shards` all call it equally often.
    """
    device = network.device
    metrics = network.metrics()
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    total = torch.zeros((), dtype=torch.float64, device=device)
    context = autocast(device, precision)
    with evaluating(model):
        batches = list(_batches(columns, batch_size, network.task))
        own = batches[ranks.index :: ranks.size]
        for rows in own:
            inputs, target = columns.batch(rows, device)
            with context:
                output = model(*network.transform(inputs)).float()
                loss = network.loss(output, target)
            weight = count(network.loss, target)
            loss_sum += loss.double() * weight
            total += weight
            metrics.update(output, target)
        if shards is not None:
            shards.keep_step(-(-len(batches) // ranks.size) - len(own))
    if not ranks.alone:
        sums = metrics.state
        ranks.add(loss_sum, total, sums)
        metrics.load(sums)
    return float(loss_sum / total), metrics


def _batches(columns: Columns, batch_size: int, task: Task) -> Iterator[Tensor | slice]:
    """Yield which samples are evaluated together: stretches, or sequences of like length."""
    lengths = columns.lengths
    if lengths is not None and isinstance(task, SequenceTask):
        batch_size = min(batch_size, max(1, _LARGEST_OUTPUT // (int(lengths.max()) * task.num_outputs)))
    order = None if lengths is None else lengths.argsort(stable=True)
    for start in range(0, len(columns), batch_size):
        rows = slice(start, start + batch_size)
        yield rows if order is None else order[rows]


def evaluate(
    path: str | Path,
    *,
    split: str = "test",
    data: str | None = None,
    device: str = "auto",
    trusted: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure a checkpoint file, or the best checkpoint of a run directory.

    Args:
        path: the checkpoint or the run.
        split: "test", "val" or "train" of the data that the run was trained on.
        data: other data instead: a file or folder, all samples of which are used, or a config whose split is used.
        device: "auto", "cpu", "cuda" or "cuda:n".
        trusted: files and modules named by the checkpoint that may run.

    Returns:
        checkpoint, step, split, num_samples, metrics (by name), labels, report (JSON values) and notes: what to know
        of the data, such as rows that were dropped. Translations are also generated and compared with the targets.
    """
    file = checkpoints.find(Path(path))
    checkpoint = checkpoints.load(file)
    target_device = open_device(device)
    builder, network = restore_network(checkpoint, str(file), target_device, trusted)
    facts = checkpoint.meta["facts"]
    prepared, name = _prepared(builder, facts, split, data)
    columns, train = prepared.columns, builder.file.config.train
    measure = partial(evaluate_columns, network, network.model, columns, train.precision)
    loss, metrics = in_halves(measure, train.eval_batch_size, lambda size, failure: None)
    values = {"loss": loss, **metrics.compute()}
    if isinstance(network.task, Translation):
        values |= score(_translations(network, builder, facts, columns), prepared.references)
    return {
        "checkpoint": str(file),
        "step": checkpoint.meta["step"],
        "split": name,
        "num_samples": len(columns),
        "metrics": {name: finite_or_none(value) for name, value in values.items()},
        "labels": _labels(network),
        "report": metrics.report(),
        "notes": prepared.notes,
    }


@torch.inference_mode()
def _translations(network: Network, builder: Builder, facts: dict[str, Any], columns: Columns) -> list[str]:
    """Return the text that the model makes of each source text, in their order."""
    source, state, texts = open_source(builder), facts["source"], [""] * len(columns)
    all_rows = torch.arange(len(columns))
    train = builder.file.config.train
    with autocast(network.device, train.precision):
        for rows in _batches(columns, train.eval_batch_size, network.task):
            sources = tuple(x[rows].to(network.device) for x in columns.inputs[:-1])  # the last is the target itself
            for row, ids in zip(all_rows[rows].tolist(), network.translate(sources, state["max_length"]), strict=True):
                texts[row] = source.decode_target(ids, state)
    return texts


def _prepared(builder: Builder, facts: dict[str, Any], split: str, data: str | None) -> tuple[PreparedSplit, str]:
    """Return the samples to measure, and what to call them."""
    if data is None:
        return prepare_split(builder, facts, split), split
    if not Path(data).exists():
        raise ConfigError(f"--data {data}: there is no such file or folder")
    if data.endswith((".yaml", ".yml")):
        other = Builder(load_config(data))
        return prepare_split(other, facts, split, same_data=False), f"{data} {split}"
    return prepare_path(builder, facts, data), data


def _labels(network: Network) -> list[str]:
    """Return the names of classes, labels or targets, in the order of the report."""
    task = network.task
    names = getattr(task, "classes", None) or getattr(task, "labels", None) or getattr(task, "names", None)
    return [str(name) for name in names or ()]
