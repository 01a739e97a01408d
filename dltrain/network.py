"""The network of a config: the model, what it is called with, and the loss that judges it.

Training builds it afresh; evaluation and prediction build it from a checkpoint's config and facts, then load weights.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dltrain import tasks
from dltrain.build import Builder, user_failure
from dltrain.checkpoint import Checkpoint, compare_weights, load_weights, no_larger_than, understood
from dltrain.config.reader import Document
from dltrain.config.schema import losses
from dltrain.config.schema.base import Component, UserComponent, type_name
from dltrain.config.schema.sections import MODELS
from dltrain.config.validate import ConfigFile, config_file
from dltrain.data.prepare import Inputs, input_transform, offered
from dltrain.data.tokenizer import BEGIN, END
from dltrain.device import evaluating
from dltrain.errors import ConfigError, DltrainError
from dltrain.generation import beam_search, greedy
from dltrain.metrics import Metrics
from dltrain.names import either, first_line
from dltrain.seeds import WEIGHTS, seed_everything
from dltrain.tasks import SequenceTask, Task, Translation

Loss = Callable[[Tensor, Tensor], Tensor]
Transform = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Network:
    """A model on its device with all that surrounds a forward pass."""

    model: nn.Module
    loss: Loss
    task: Task
    transform: Callable[[Inputs], Inputs]
    """Stored inputs to what the model is called with."""
    device: torch.device

    def metrics(self) -> Metrics:
        """Return fresh metrics of the task."""
        return self.task.metrics(self.device, getattr(self.loss, "prediction", None))

    def example(self, facts: dict[str, Any]) -> Inputs:
        """Return two samples of zeros as the model is called with."""
        return self.transform(dummy_inputs(facts, 2, self.device))

    def predict(self, output: Tensor) -> dict[str, list[Any]]:
        """Return the columns of predictions that outputs (B, K) mean."""
        assert not isinstance(self.task, SequenceTask), "sequences are generated, see translate"
        prediction = getattr(self.loss, "prediction", None)
        return self.task.predict(output if prediction is None else prediction(output))

    def translate(self, sources: Inputs, max_length: int) -> list[list[int]]:
        """Return the target tokens of source tokens (B, S), by the search that the task asks for."""
        assert isinstance(self.task, Translation)
        beam, penalty = self.task.beam_size, self.task.length_penalty
        if beam == 1:
            return greedy(self.model, sources, begin=BEGIN, end=END, max_new_tokens=max_length)
        return beam_search(
            self.model,
            sources,
            begin=BEGIN,
            end=END,
            max_new_tokens=max_length,
            beam_size=beam,
            length_penalty=penalty,
        )


def build_network(builder: Builder, facts: dict[str, Any], device: torch.device) -> Network:
    """Build model and loss for the data that `facts` describe; initial weights follow from the config's seed.

    Raises ConfigError, with the place in the config, if they do not fit the data or each other.
    """
    config = builder.file.config
    task = tasks.from_facts(facts["task"])
    settings = config.loss or _default_loss(task)
    _check_loss(builder, settings, task)
    loss = builder.build_callable(settings, ("loss",), offered(facts))
    if isinstance(loss, nn.Module) and any(p.requires_grad for p in loss.parameters()):
        raise ConfigError(
            f"{builder.file.place('loss')}: {settings.type}: has parameters to be learned, and only the model's are "
            "trained and saved; move them into the model"
        )
    values = offered(facts, getattr(loss, "outputs_per_target", 1))
    _check_model(builder, facts)
    seed_everything(torch.device("cpu"), config.seed, WEIGHTS)
    model = builder.build(config.model, ("model",), values)
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"{builder.file.place('model')}: {config.model.type} gives {type(model).__name__}, no torch.nn.Module"
        )
    if not isinstance(config.model, UserComponent):  # whose own code may count on the other order
        # Convolutions take 0.6 to 0.9 of the time with channels last, on CPUs too (benchmarks/LOG.md).
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model, loss = model.to(device), loss.to(device) if isinstance(loss, nn.Module) else loss
    network = Network(model, loss, task, input_transform(facts, device), device)
    output = _try_forward(builder, network, facts, values["out_features"])
    _try_loss(builder, network, settings.type, output)
    return network


def restore_network(
    checkpoint: Checkpoint, where: str, device: torch.device, trusted: Sequence[str]
) -> tuple[Builder, Network]:
    """Build the network of a checkpoint and load the weights that are to be evaluated.

    Code that the checkpoint's config names runs only if it is listed in `trusted`.
    """
    builder = Builder(config_of(checkpoint, where), trusted)
    with understood(where):
        _parse(checkpoint.meta["facts"])
    refuse_another_size(builder, checkpoint, where)
    network = build_network(builder, checkpoint.meta["facts"], device)
    load_weights(network.model, checkpoint.evaluated_weights, where)
    network.model.eval()
    return builder, network


def refuse_another_size(builder: Builder, checkpoint: Checkpoint, where: str) -> None:
    """Raise CheckpointError if the model of a checkpoint's config has other weights than the checkpoint.

    A forged config may name a model of any size: it is built on torch's meta device, where nothing is allocated. Code
    of the user's own is not built twice for that.
    """
    config, facts, weights = builder.file.config, checkpoint.meta["facts"], checkpoint.evaluated_weights
    loss = config.loss or _default_loss(tasks.from_facts(facts["task"]))
    if isinstance(config.model, UserComponent) or isinstance(loss, UserComponent):
        return
    values = offered(facts, getattr(builder.target(loss, ("loss",)), "outputs_per_target", 1))
    # What cannot be built there, for whatever reason of a layer of torch's, is built as it is, and then compared.
    with contextlib.suppress(ConfigError, RuntimeError), torch.device("meta"), no_larger_than(weights, where):
        compare_weights(builder.build(config.model, ("model",), values), weights, where)


def config_of(checkpoint: Checkpoint, where: str, overrides: Sequence[str] = ()) -> ConfigFile:
    """Return the resolved config of a checkpoint with `section.key=value` overrides; `where` names it in messages."""
    document = Document(where, copy.deepcopy(checkpoint.meta["config"]))
    file = config_file(document, overrides, folder="")
    return replace(file, folder=_folder_of(checkpoint, Path(where)))


def _folder_of(checkpoint: Checkpoint, path: Path) -> str:
    """Return the folder that the config's relative paths start from: the one in which its data are found."""
    meta = checkpoint.meta
    data = str(meta["config"]["data"].get("path", "."))
    from_run = os.path.relpath(path.parent.parent / str(meta.get("folder_from_run", ".")))
    found = [folder for folder in (str(meta["folder"]), from_run) if os.path.exists(os.path.join(folder, data))]
    return found[0] if found else str(meta["folder"])


def build_augmentation(builder: Builder, network: Network, facts: dict[str, Any]) -> list[Transform]:
    """Build the transforms of the training batches, and try each on two samples of zeros.

    Raises ConfigError, with the place in the config, where one does not fit the data.
    """
    transforms: list[Transform] = []
    x, rng = network.example(facts)[0], torch.Generator(network.device)
    for index, settings in enumerate(builder.file.config.augment):
        keys = ("augment", index)
        transforms.append(builder.build_callable(settings, keys, {}))
        with builder.at(*keys):
            try:
                x = transforms[-1](x, rng)
            except ConfigError:
                raise
            except Exception as error:  # whatever a transform of the user's own does
                raise ConfigError(f"cannot take a batch of shape {tuple(x.shape)}: {first_line(error)}") from error
    return transforms


def augmented(inputs: Inputs, transforms: Sequence[Transform], rng: torch.Generator) -> Inputs:
    """Return the inputs of a batch with its first, the one that is augmented, changed by the transforms in turn."""
    for transform in transforms:
        inputs = (transform(inputs[0], rng), *inputs[1:])
    return inputs


def dummy_inputs(facts: dict[str, Any], num_samples: int, device: torch.device) -> Inputs:
    """Return zeros of the shapes and types of the stored inputs."""
    return tuple(
        torch.zeros(num_samples, *shape, dtype=getattr(torch, dtype), device=device)
        for shape, dtype in zip(facts["input_shapes"], facts["input_types"], strict=True)
    )


def _parse(facts: dict[str, Any]) -> None:
    """Read all that a network is built from; what fails here is wrong with the facts, and with nothing else."""
    device = torch.device("cpu")
    task = tasks.from_facts(facts["task"])
    if not isinstance(task, SequenceTask):
        task.predict(torch.zeros(2, task.num_outputs))
    task.metrics(device)
    offered(facts)
    input_transform(facts, device)
    dummy_inputs(facts, 2, device)


def _default_loss(task: Task) -> Component:
    cls = next(cls for cls in losses.ALL if type_name(cls) == task.default_loss)
    return cls(type=task.default_loss)


def _check_loss(builder: Builder, settings: Component, task: Task) -> None:
    """Raise ConfigError if a built-in loss is for another task than this."""
    fitting = getattr(type(settings), "tasks", None)  # of the class: a user's loss may have an argument of that name
    if fitting is not None and task.type not in fitting:
        names = ", ".join(type_name(cls) for cls in losses.ALL if task.type in getattr(cls, "tasks", ()))
        raise ConfigError(
            f"{builder.file.place('loss', 'type')}: {settings.type} is for {', '.join(fitting)}; "
            f"the task is {task.type}; possible: {names}"
        )


def _check_model(builder: Builder, facts: dict[str, Any]) -> None:
    """Raise ConfigError if a built-in model is for another kind of inputs than the data have."""
    settings, kind = builder.file.config.model, _kind_of_inputs(facts)
    takes = getattr(type(settings), "takes", None)
    if takes is not None and kind not in takes:
        shapes = " and ".join(str(tuple(shape)) for shape in facts["input_shapes"])
        possible = ", ".join(n for n, cls in MODELS.classes.items() if kind in getattr(cls, "takes", (kind,)))
        raise ConfigError(
            f"{builder.file.place('model', 'type')}: {settings.type} is for {either(takes)}; the data are {kind} of "
            f"shape {shapes}; possible: {possible}"
        )


def _kind_of_inputs(facts: dict[str, Any]) -> str:
    """Return what the inputs are, in the words in which models say what they take."""
    if facts["task"]["type"] == "language_model":
        return "a corpus"
    if facts["task"]["type"] == "translation":
        return "pairs of texts"
    if "vocab_size" in facts["source"]:
        return "texts"
    return {2: "series", 3: "images"}.get(len(facts["input_shapes"][0]), "numbers")


def _try_forward(builder: Builder, network: Network, facts: dict[str, Any], out_features: int) -> Tensor:
    """Run two samples of zeros through the model: sizes that torch infers are set, and what does not fit is said.

    Returns the output.
    """
    inputs = network.example(facts)
    shapes = " and ".join(str(tuple(x.shape[1:])) for x in inputs)
    with builder.at("model"), evaluating(network.model):
        try:
            output = network.model(*inputs)
        except DltrainError:
            raise
        except Exception as error:  # whatever a model does with inputs of a wrong shape
            one_expected = isinstance(error, TypeError) and len(inputs) > 1
            hint = "; set data.categories: onehot to have one input" if one_expected else ""
            raise ConfigError(f"cannot take samples of shape {shapes}: {user_failure(error)}{hint}") from error
        expected = (2, *_length_of_outputs(network.task, inputs), out_features)
        if not isinstance(output, Tensor) or tuple(output.shape) != expected:
            raise ConfigError(f"two samples give {_form(output)}; {network.task.type} needs shape {expected}")
        if not output.requires_grad and any(parameter.requires_grad for parameter in network.model.parameters()):
            raise ConfigError("its output has no gradient; is it detached, or computed under torch.no_grad()?")
    return output.detach()


def _length_of_outputs(task: Task, inputs: Inputs) -> tuple[int, ...]:
    """Return (L,), the tokens for which a model of sequences has outputs, else nothing."""
    return (inputs[-1].shape[1],) if isinstance(task, SequenceTask) else ()


def _try_loss(builder: Builder, network: Network, name: str, output: Tensor) -> None:
    """Judge an output of two samples: a loss that does not fit the task is said to be so before the first step."""
    task, prediction = network.task, getattr(network.loss, "prediction", None)
    place = f"{builder.file.place('loss')}: {name}"
    if output.shape[-1] != task.num_outputs and (task.type != "regression" or prediction is None):
        raise ConfigError(
            f"{place}: has outputs_per_target, which needs a regression and a prediction(output) that returns one "
            "number for each target"
        )
    if task.type == "classification" or isinstance(task, SequenceTask):
        target = torch.zeros(output.shape[:-1], dtype=torch.int64, device=output.device)
    else:
        target = torch.zeros(2, task.num_outputs, device=output.device)
    given = f"outputs of {_form(output)} and targets of {_form(target)}"
    try:
        with torch.enable_grad():
            output = output.float().requires_grad_().clone()
            loss = network.loss(output, target)
        predicted = output.detach() if prediction is None else prediction(output.detach())
    except DltrainError as error:
        raise type(error)(f"{place}: {error}") from None
    except Exception as error:  # whatever a loss of the user's own does
        raise ConfigError(f"{place}: cannot take {given}: {user_failure(error)}") from error
    if not isinstance(loss, Tensor) or loss.shape != ():
        raise ConfigError(f"{place}: gives {_form(loss)} for {given}; it must be one number, a tensor of shape ()")
    if not loss.requires_grad:
        raise ConfigError(f"{place}: has no gradient; it must be computed from the output by torch")
    expected = (*output.shape[:-1], task.num_outputs)
    if not isinstance(predicted, Tensor) or predicted.shape != expected:
        raise ConfigError(
            f"{place}: its prediction gives {_form(predicted)} for {given}; {task.type} needs shape {expected}"
        )


def _form(value: Any) -> str:
    """Return the shape of a tensor, or what else `value` is, for a message."""
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
