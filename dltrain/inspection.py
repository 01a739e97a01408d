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

from dltrain.build import Builder
from dltrain.config.reader import write_text
from dltrain.config.validate import ConfigFile
from dltrain.console import describe, out_console, table
from dltrain.data.prepare import Inputs, Prepared
from dltrain.device import autocast, evaluating
from dltrain.names import printable
from dltrain.network import Network, augmented
from dltrain.plan import Plan, make_plan
from dltrain.seeds import AUGMENTATION, seed_of

_NO_BREAK = "\N{NO-BREAK SPACE}"


def check(file: ConfigFile) -> None:
    """Print the resolved config, what the data hold, the model's layers, and the loss and gradient of a real batch.

    Raises ConfigError or DataError as `fit` would, before a run directory is made.
    """
    config, console = file.config, out_console()
    _title(console, "Config", "with all defaults")
    console.print(Syntax(compact_yaml(file, console.width), "yaml", background_color="default"))
    plan = make_plan(Builder(file))
    data, network = plan.data, plan.network
    _title(console, "Data", dict(describe(data))["data"].partition("; ")[2])
    _show_data(console, data)
    inputs, target = _first_batch(file, plan)
    _title(console, "Model", f"{config.model.type} on {plan.device}")
    console.print(table(["layer", "kind", "output", "parameters"], layers(network.model, inputs)))
    loss, norm = _try_batch(network, inputs, target, config.train.precision)
    penalty = sum(term().item() for term in plan.regularizer.penalties)
    _title(console, "Training", f"monitors {plan.goal.metric}")
    console.print(
        f"first batch of {len(target)}: loss {loss:.4f}, penalty {penalty:.4f}, gradient norm {norm:.4f}\n"
        f"{plan.epoch_steps:,} steps an epoch, {plan.length} in all, "
        f"with {type(plan.state.optimizer).__name__} from lr {plan.lr * plan.schedule(*plan.progress(plan.state)):.3g}",
        markup=False,
    )


def compact_yaml(file: ConfigFile, width: int) -> str:
    """Return the config with all defaults as YAML: each section in as few lines of `width` as it needs."""
    lines = []
    for key, value in file.resolved.items():
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


def _first_batch(file: ConfigFile, plan: Plan) -> tuple[Inputs, Tensor]:
    """Return the (first micro-) batch of a training, augmented."""
    inputs, target = plan.train.batch(plan.batches.samples(0)[: file.config.train.micro_batch_size], plan.device)
    rng = torch.Generator(plan.device).manual_seed(seed_of(file.config.seed, AUGMENTATION, 0))
    return augmented(plan.network.transform(inputs), plan.augment, rng), target


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
    with evaluating(model), torch.no_grad():
        model(*inputs)
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
