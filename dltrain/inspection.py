"""`dltrain check`: all that can be said of a config without training: data, settings, layers, and one real batch."""

from __future__ import annotations

import math
import re
import textwrap
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax
from torch import Tensor, nn

from dltrain import plan
from dltrain.build import Builder, Clock
from dltrain.config.durations import to_steps
from dltrain.config.names import printable
from dltrain.config.reader import write_text
from dltrain.config.validate import ConfigFile
from dltrain.console import describe, out_console, table
from dltrain.data.batches import epoch_order, mix, steps_per_epoch
from dltrain.data.prepare import Inputs, Prepared, prepare
from dltrain.device import autocast, open_device
from dltrain.network import Network, build_augmentation, build_network
from dltrain.state import State

_NO_BREAK = "\N{NO-BREAK SPACE}"


def check(file: ConfigFile) -> None:
    """Print the resolved config, what the data hold, the model's layers, and the loss and gradient of a real batch.

    Raises ConfigError or DataError as `fit` would, before a run directory is made.
    """
    config, console = file.config, out_console()
    _title(console, "Config", "with all defaults")
    console.print(Syntax(compact_yaml(file, console.width), "yaml", background_color="default"))
    device = open_device(config.train.device)
    builder = Builder(file)
    data = prepare(builder, raw_targets=plan.needs_raw_targets(builder))
    _title(console, "Data", dict(describe(data))["data"].partition("; ")[2])
    _show_data(console, data)
    network = build_network(builder, data.facts, device)
    clock = _clock(file, len(data.splits["train"]))
    optimizer = plan.build_optimizer(builder, network.model, device)
    regularizer = plan.build_regularizer(builder, network.model, clock)
    factor = builder.partial(config.schedule, ("schedule",), clock)(0, clock.total_steps)
    plan.check(builder, data, State(network.model, optimizer, None, None, network.metrics()), clock.steps_per_epoch)
    inputs, target = _first_batch(builder, data, network)
    _title(console, "Model", f"{config.model.type} on {device}")
    console.print(table(["layer", "kind", "output", "parameters"], layers(network.model, inputs)))
    loss, norm = _try_batch(network, inputs, target, config.train.precision)
    penalty = sum(term().item() for term in regularizer.penalties)
    _title(console, "Training", f"monitors {plan.goal(builder, data).metric}")
    console.print(
        f"first batch of {len(target)}: loss {loss:.4f}, penalty {penalty:.4f}, gradient norm {norm:.4f}\n"
        f"{clock.steps_per_epoch:,} steps an epoch, {clock.total_steps:,} in all, "
        f"with {type(optimizer).__name__} from lr {optimizer.param_groups[0]['base_lr'] * factor:.3g}",
        markup=False,
    )


def compact_yaml(file: ConfigFile, width: int) -> str:
    """Return the config with all defaults as YAML: each section in as few lines of `width` as it needs."""
    lines = []
    for key, value in {**file.config.model_dump(), "name": file.name}.items():
        text = write_text(value, width=math.inf, flow=True)
        text = re.sub("(?<!,) ", _NO_BREAK, text.removesuffix("...\n").strip())  # lines end after commas
        indent = " " * (len(key) + 3)
        lines += textwrap.wrap(
            f"{key}: {text}", width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
    return "\n".join(lines).replace(_NO_BREAK, " ")


def _title(console: Console, title: str, remark: str) -> None:
    if title != "Config":
        console.print()
    console.print(f"[bold]{title}[/bold]  [dim]{escape(printable(remark))}[/dim]")


def _show_data(console: Console, data: Prepared) -> None:
    counts = data.facts["num_samples"]
    total = sum(counts.values())
    rows = [[name, counts[name], f"{counts[name] / total:.1%}"] for name in counts]
    console.print(table(["split", "samples", "share"], rows))
    if columns := data.facts["source"].get("columns"):
        console.print()
        console.print(table(["column", "kind", "note"], [[c["name"], c["kind"], c.get("note") or ""] for c in columns]))
    console.print()
    for label, text in describe(data):
        if label in ("note", "task"):
            console.print(f"{label}: {printable(text)}", markup=False)


def _clock(file: ConfigFile, num_samples: int) -> Clock:
    train = file.config.train
    epoch_steps = steps_per_epoch(num_samples, train.batch_size, train.drop_last)
    return Clock(epoch_steps, max(1, to_steps(train.duration, epoch_steps)))


def _first_batch(builder: Builder, data: Prepared, network: Network) -> tuple[Inputs, Tensor]:
    """Return the (first micro-) batch of a training, augmented."""
    config, train = builder.file.config, data.splits["train"]
    order = epoch_order(len(train), config.seed, 0, config.train.sampler, train.target)
    inputs, target = train.batch(order[: config.train.micro_batch_size or config.train.batch_size], network.device)
    inputs = network.transform(inputs)
    rng = torch.Generator(network.device).manual_seed(mix(config.seed, 0, 1))
    for transform in build_augmentation(builder, network, data.facts):
        inputs = (transform(inputs[0], rng), *inputs[1:])
    return inputs, target


def layers(model: nn.Module, inputs: Inputs) -> list[list[Any]]:
    """Return [name, class, output shape of a sample, own parameters] of each module that computes, in order of call.

    Modules that only hold others are left out, unless they have parameters of their own; the last row is the total.
    """
    rows: dict[str, list[Any]] = {}

    def row(name: str, module: nn.Module, output: str) -> None:
        count = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        rows.setdefault(name, [name or "(model)", type(module).__name__, output, count])

    def hook(name: str) -> Any:
        def record(module: nn.Module, _inputs: Any, output: Any) -> None:
            is_tensor = isinstance(output, Tensor)
            row(name, module, "x".join(map(str, output.shape[1:])) if is_tensor else type(output).__name__)

        return record

    shown = {
        name: module
        for name, module in model.named_modules()
        if not list(module.children()) or list(module.parameters(recurse=False))
    }
    handles = [module.register_forward_hook(hook(name)) for name, module in shown.items()]
    training = model.training
    model.eval()
    with torch.no_grad():
        model(*inputs)
    model.train(training)
    for handle in handles:
        handle.remove()
    for name, module in shown.items():
        if list(module.parameters(recurse=False)):
            row(name, module, "(not called)")
    return [*rows.values(), ["total", "", "", sum(parameter.numel() for parameter in model.parameters())]]


def _try_batch(network: Network, inputs: tuple[Tensor, ...], target: Tensor, precision: str) -> tuple[float, float]:
    """Return loss and gradient norm of one training batch."""
    with autocast(network.device, precision):
        loss = network.loss(network.model(*inputs).float(), target)
    torch.autograd.backward(loss)
    gradients = [parameter.grad for parameter in network.model.parameters() if parameter.grad is not None]
    return loss.item(), float(torch.nn.utils.get_total_norm(gradients))
