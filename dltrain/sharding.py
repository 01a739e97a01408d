"""`train.parallel: fsdp`: each of several processes holds a slice of every weight, and not the whole model.

torch's FSDP2 gathers a layer where a pass needs it and adds up the gradients of the slices. All else that a training
does to weights it does to the slices: they are the parameters of a plain tree of modules, `Shards.tree`, which has the
names of the model's and is what the state holds. A slice is a stretch of rows, so what works element by element, or row
by row, is right as it is; what needs the whole goes through `total` and `norm`.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dltrain import checkpoint as checkpoints
from dltrain.build import Builder
from dltrain.checkpoint import Checkpoint
from dltrain.config.schema.base import UserComponent
from dltrain.data.prepare import input_transform
from dltrain.device import evaluating
from dltrain.errors import ConfigError
from dltrain.names import first_line
from dltrain.network import Network
from dltrain.ranks import Ranks

_BY_ELEMENT = ("sgd", "adam", "adamw", "nadam", "radam", "rmsprop", "adagrad", "lion", "schedule_free_adamw")


def check_sharding(builder: Builder) -> None:
    """Raise ConfigError for settings that weights in slices cannot have, and for shards of a model that is whole."""
    file, config = builder.file, builder.file.config
    train, regularization = config.train, config.regularization
    if train.parallel != "fsdp":
        if train.checkpoint == "sharded":
            raise ConfigError(f"{file.place('train', 'checkpoint')}: sharded needs train.parallel: fsdp")
        return
    wrong: list[tuple[tuple[str | int, ...], str]] = []
    if config.optimizer.type not in _BY_ELEMENT:
        wrong.append((("optimizer",), f"{config.optimizer.type}; possible: {', '.join(_BY_ELEMENT)}"))
    if train.precision == "float16":
        wrong.append((("train", "precision"), "float16; use bfloat16"))
    if train.compile is not False:
        wrong.append((("train", "compile"), f"compile: {str(train.compile).lower()}; set it to false"))
    if regularization.clip is not None and regularization.clip.type == "adaptive":
        wrong.append((("regularization", "clip"), "clip of type adaptive; possible: norm, value"))
    if regularization.gradient_noise is not None:
        wrong.append((("regularization", "gradient_noise"), "gradient_noise; leave it out"))
    for index, penalty in enumerate(regularization.penalties):
        if isinstance(penalty, UserComponent):
            wrong.append((("regularization", "penalties", index), "penalties of your own; possible: the built-in ones"))
    if wrong:
        raise ConfigError(
            *(f"{file.place(*keys)}: train.parallel: fsdp does not go with {what}" for keys, what in wrong)
        )


def shard(builder: Builder, network: Network, facts: dict[str, Any], device: torch.device, ranks: Ranks) -> Shards:
    """Leave each of the `ranks` its slices of the network's model, which is on the CPU, on its `device`.

    The model is gathered layer by layer: the elements of lists of layers that a pass calls once are such layers, and
    what is left is one more. Raises ConfigError where FSDP2 cannot do that to the model.
    """
    # Only here, since it takes seconds.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # the root: nobody changes its output
    mesh, model = init_device_mesh(device.type, (ranks.size,)), network.model
    layers = [*_layers(model, network.example(facts)), model]
    network = replace(
        network,
        loss=network.loss.to(device) if isinstance(network.loss, nn.Module) else network.loss,
        transform=input_transform(facts, device),
        device=device,
    )
    with builder.at("train", "parallel"):
        try:
            for parameter in model.parameters():
                parameter.data = parameter.data.contiguous()  # convolutions have their channels last
            for layer in layers:
                # The root too, or it would stay gathered with weights that are changed after an evaluation.
                sharded: Any = fully_shard(layer, mesh=mesh, reshard_after_forward=True)
                sharded.set_gradient_divide_factor(1.0)  # sums, as of processes that hold the whole
                sharded.set_force_sum_reduction_for_comms(True)
            shards = Shards(network, network.example(facts), ranks, sharded_files=builder.file.config.train.checkpoint)
        except (NotImplementedError, ValueError, RuntimeError, TypeError) as error:
            raise ConfigError(f"fsdp cannot shard {builder.file.config.model.type}: {first_line(error)}") from error
    return shards


def _layers(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[nn.Module]:
    """Return the outermost elements of lists of layers that can be gathered by themselves.

    A pass calls them once, and their parts and weights through them alone. Nor do they return views, a change of which
    in place FSDP2 would not survive.
    """
    calls: Counter[nn.Module] = Counter()
    inside: dict[nn.Module, set[nn.Module]] = {}  # what was at work whenever a module was called
    at_work: list[nn.Module] = []

    def begin(module: nn.Module, _: object) -> None:
        at_work.append(module)
        calls[module] += 1
        inside[module] = inside.get(module, {*at_work}) & {*at_work}

    def end(module: nn.Module, _: object, output: object) -> None:
        at_work.pop()
        calls[module] += isinstance(output, Tensor) and output._is_view()

    hooks = [m.register_forward_pre_hook(begin) for m in model.modules()]
    hooks += [m.register_forward_hook(end) for m in model.modules()]
    with evaluating(model):
        model(*inputs)
    for hook in hooks:
        hook.remove()
    uses = Counter(parameter for _, parameter in model.named_parameters(remove_duplicate=False))
    found: list[nn.Module] = []

    def find(parent: nn.Module) -> None:
        for child in parent.children():
            parameters = list(child.parameters())
            if (
                isinstance(parent, nn.Sequential | nn.ModuleList | nn.ModuleDict)
                and parameters
                and calls[child] == 1
                and all(child in inside.get(part, {child}) for part in child.modules())
                and all(uses[parameter] == 1 for parameter in parameters)
            ):
                found.append(child)
            else:
                find(child)

    find(model)
    return found


class Shards:
    """The slices of a model that one process has from FSDP2, and what the processes do with them together."""

    def __init__(self, network: Network, example: tuple[Tensor, ...], ranks: Ranks, *, sharded_files: str) -> None:
        self.network = network
        """Whose model is called; by all processes, equally often."""
        self.elapsed_s, self.stop = 0.0, False
        """What a step has told, as with `StepSum`."""
        self._ranks, self._example, self._in_files = ranks, example, sharded_files == "sharded"
        with evaluating(network.model):
            self.keep_step(1)  # shows what cannot be done; and FSDP2 puts the slices in their final place
        self._whole: dict[str, Any] = dict(network.model.named_parameters(remove_duplicate=False))  # DTensors
        own = {p: nn.Parameter(p.to_local().detach(), p.requires_grad) for p in self._whole.values()}
        self._pairs = [*own.items()]
        for whole in own:
            whole.grad = None
        self._local_shapes = {name: own[p].shape for name, p in self._whole.items()}
        first: dict[nn.Parameter, str] = {}
        self._alias_of = {name: first.setdefault(p, name) for name, p in self._whole.items()}
        self.tree = _tree(network.model, own, {})

    def keep_step(self, number: int) -> None:
        """Call the model `number` times without an effect, since others call it as often with samples of theirs."""
        for _ in range(number):
            output = self.network.model(*self._example)
            if torch.is_grad_enabled():
                torch.autograd.backward(output, torch.zeros_like(output))

    def __call__(self, loss: Tensor | None, elapsed_s: float, stop: bool) -> Tensor:
        """Put the gradients, which FSDP2 has added up, to the slices; return the sum of the losses. See `StepSum`."""
        for whole, own in self._pairs:
            own.grad, whole.grad = None if whole.grad is None else whole.grad.to_local(), None
        total = torch.zeros((), device=self.network.device) if loss is None else loss.clone()
        words = torch.tensor([elapsed_s if self._ranks.first else 0.0, stop], dtype=torch.float64)
        self._ranks.add(total, words)
        self.elapsed_s, self.stop = float(words[0]), bool(words[1])
        return total

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of the values of all processes."""
        total = value.clone()
        self._ranks.add(total)
        return total

    def norm(self, norms: Tensor) -> Tensor:
        """Return the norm of a whole of which each process knows the `norms` of its slices."""
        return self.total(norms.square().sum()).sqrt()

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def rows(self, number: int) -> slice:
        """Return which of `number` rows are in this process's slice, as FSDP2 divides them."""
        size = math.ceil(number / self._ranks.size)
        return slice(min(number, self._ranks.index * size), min(number, (self._ranks.index + 1) * size))

    def own(self, checkpoint: Checkpoint) -> Checkpoint:
        """Return this process's slices of a checkpoint that holds the whole, or slices already."""
        tensors = {}
        for key, tensor in checkpoint.tensors.items():
            name = self._owner(key)
            is_whole = name is not None and tensor.shape == self._whole[name].shape
            tensors[key] = tensor[self.rows(len(tensor))] if is_whole else tensor
        return Checkpoint(tensors, checkpoint.meta)

    def save(self, path: Path, checkpoint: Checkpoint, *, keep_as: str | None = None) -> None:
        """Write what the processes hold of a checkpoint: in one file, or each its slices in a file of its own."""
        slices = {key: name for key, tensor in checkpoint.tensors.items() if (name := self._slice_of(key, tensor))}
        if not self._in_files:
            whole = self._gathered(checkpoint.tensors, slices)
            if self._ranks.first:
                checkpoints.save(path, Checkpoint(whole, checkpoint.meta), keep_as=keep_as)
            return
        folder = checkpoints.shard_folder(path) if self._ranks.first else None
        folder = path.parent / checkpoints.SHARDS / self._ranks.from_first(folder.name if folder is not None else "")
        own = {key: checkpoint.tensors[key] for key in slices}
        digests = self._ranks.texts(checkpoints.save_shard(folder, self._ranks.index, own))
        if self._ranks.first:
            rest = {key: tensor for key, tensor in checkpoint.tensors.items() if key not in slices}
            rows = {key: self._whole[name].shape[0] for key, name in slices.items()}
            shards = {"folder": folder.name, "sha256": digests, "rows": rows}
            checkpoints.save(path, Checkpoint(rest, {**checkpoint.meta, "shards": shards}), keep_as=keep_as)
            checkpoints.remove_unused_shards(path.parent)

    def _owner(self, key: str) -> str | None:
        """Return the parameter that a tensor of a checkpoint is, or belongs to."""
        part, _, name = key.partition("/")
        name = name.rpartition("/")[0] if part == "optimizer" else name
        return name if part in ("model", "averaged", "optimizer") and name in self._whole else None

    def _slice_of(self, key: str, tensor: Tensor) -> str | None:
        """Return the parameter of whose shape a tensor of this process's state is a slice."""
        name = self._owner(key)
        return name if name is not None and tensor.shape == self._local_shapes[name] else None

    def _gathered(self, tensors: dict[str, Tensor], slices: dict[str, str]) -> dict[str, Tensor]:
        """Return the tensors with whole ones, on the CPU, in the place of slices; on the first process alone."""
        whole: dict[str, Tensor] = {}
        for key, tensor in tensors.items():
            name = slices.get(key)
            if name is None:
                whole[key] = tensor
            elif (alias_of := self._alias_of[name]) != name:
                whole[key] = whole[key.partition("/")[0] + "/" + alias_of]
            else:
                gathered = self._ranks.rows_of_all(tensor, self._whole[name].shape[0])
                whole[key] = gathered.cpu() if self._ranks.first else tensor
        return whole


def _tree(module: nn.Module, own: dict[nn.Parameter, nn.Parameter], made: dict[nn.Module, nn.Module]) -> nn.Module:
    """Return modules of the names of `module`, with its own buffers and, in the place of its parameters, the `own`."""
    if module not in made:
        made[module] = tree = nn.Module()
        tree._buffers = module._buffers
        tree._non_persistent_buffers_set = module._non_persistent_buffers_set
        tree._parameters = {n: None if p is None else own[p] for n, p in module._parameters.items()}
        for name, child in module._modules.items():
            tree._modules[name] = None if child is None else _tree(child, own, made)
    return made[module]
