"""`dltrain check`: all that can be said of a config without training: data, settings, layers, and one real batch."""

from __future__ import annotations

from typing import Any

import torch
from rich.syntax import Syntax
from torch import Tensor, nn

from dltrain import plan, records
from dltrain.build import Builder, Clock
from dltrain.config.durations import to_steps
from dltrain.config.validate import ConfigFile
from dltrain.console import out_console, table
from dltrain.data.batches import epoch_order, steps_per_epoch
from dltrain.data.prepare import prepare
from dltrain.device import autocast, open_device
from dltrain.network import Network, build_network


def check(file: ConfigFile) -> None:
    """Print the resolved config, what the data hold, the model's layers, and the loss and gradient of a real batch.

    Raises ConfigError or DataError as `fit` would, before a run directory is made.
    """
    config, console = file.config, out_console()
    console.print(Syntax(records.resolved_text(file), "yaml", background_color="default"))
    device = open_device(config.train.device)
    builder = Builder(file)
    data = prepare(builder, raw_targets=plan.needs_raw_targets(builder))
    train = data.splits["train"]
    counts = data.facts["num_samples"]
    console.print(table(["split", "samples"], [[name, counts[name]] for name in counts]))
    if columns := data.facts["source"].get("columns"):
        console.print()
        console.print(table(["column", "kind", "note"], [[c["name"], c["kind"], c.get("note") or ""] for c in columns]))
    network = build_network(builder, data.facts, device)
    epoch_steps = steps_per_epoch(len(train), config.train.batch_size, config.train.drop_last)
    total_steps = max(1, to_steps(config.train.duration, epoch_steps))
    clock = Clock(epoch_steps, total_steps)
    optimizer = plan.build_optimizer(builder, network.model, device)
    regularizer = plan.build_regularizer(builder, network.model, clock)
    builder.partial(config.schedule, ("schedule",), clock)(0, total_steps)
    plan.goal(builder, data)
    order = epoch_order(len(train), config.seed, 0, "shuffle")[
        : config.train.micro_batch_size or config.train.batch_size
    ]
    inputs, target = train.batch(order, device)
    inputs = network.transform(inputs)
    console.print()
    console.print(table(["layer", "kind", "output", "parameters"], layers(network.model, inputs)))
    loss, norm = _try_batch(network, inputs, target, config.train.precision)
    penalty = sum(float(term()) for term in regularizer.penalties)
    console.print()
    console.print(
        f"one batch of {len(target)}: loss {loss:.4f}, penalty {penalty:.4f}, gradient norm {norm:.4f}; "
        f"{epoch_steps} steps an epoch, {total_steps} in all; {type(optimizer).__name__}; {device}",
        markup=False,
    )


def layers(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[list[Any]]:
    """Return [name, class, output shape of a sample, own parameters] of each leaf module, in order of call."""
    rows: dict[str, list[Any]] = {}

    def hook(name: str, module: nn.Module) -> Any:
        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            shape = "x".join(map(str, output.shape[1:])) if isinstance(output, Tensor) else type(output).__name__
            count = sum(parameter.numel() for parameter in module.parameters(recurse=False))
            rows.setdefault(name, [name or "(model)", type(module).__name__, shape, count])

        return record

    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    handles = [module.register_forward_hook(hook(name, module)) for name, module in leaves]
    training = model.training
    model.eval()
    with torch.no_grad():
        model(*inputs)
    model.train(training)
    for handle in handles:
        handle.remove()
    total = sum(parameter.numel() for parameter in model.parameters())
    return [*rows.values(), ["total", "", "", total]]


def _try_batch(network: Network, inputs: tuple[Tensor, ...], target: Tensor, precision: str) -> tuple[float, float]:
    """Return loss and gradient norm of one training batch."""
    with autocast(network.device, precision):
        loss = network.loss(network.model(*inputs).float(), target)
    torch.autograd.backward(loss)
    gradients = [parameter.grad for parameter in network.model.parameters() if parameter.grad is not None]
    return loss.item(), float(torch.nn.utils.get_total_norm(gradients))
