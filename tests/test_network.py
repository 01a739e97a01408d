"""A model that does not fit the data is said to be so, with its place, before anything is trained."""

import numpy as np
import pytest
import torch

from dltrain.build import Builder
from dltrain.checkpoint import Checkpoint
from dltrain.config.validate import load_config
from dltrain.data.prepare import prepare
from dltrain.errors import CheckpointError, ConfigError
from dltrain.network import build_augmentation, build_network, refuse_another_size, restore_network

CPU = torch.device("cpu")
OWN = """
import torch
from torch import nn

class Narrow(nn.Module):
    def __init__(self, in_features, hidden=4):
        super().__init__()
        self.layer = nn.Linear(in_features, hidden)

    def forward(self, x):
        return self.layer(x)

class Pair(Narrow):
    def forward(self, x):
        return self.layer(x), x

class Wide(Narrow):
    def forward(self, x):
        return self.layer(x.repeat(1, 2))

class Lazy(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))

    def forward(self, x):
        return self.layers(x)

class Greedy(nn.Module):
    def __init__(self, in_features, num_klasses):
        super().__init__()

class Broken(nn.Module):
    def __init__(self, num_classes):
        raise ValueError("no")

class Images(nn.Module):
    def __init__(self, in_channels, num_classes):
        super().__init__()

def number(num_classes):
    return num_classes

def vector(output, target):
    return (output - target).square().mean(1)

def cut(output, target):
    return (output.detach() - target).square().mean()

def for_classes(output, target):
    return nn.functional.cross_entropy(output, target)

def twice(output, target):
    return output.square().mean() + target.mean()

twice.outputs_per_target = 2

def twice_too_wide(output, target):
    return twice(output, target)

twice_too_wide.outputs_per_target = 2
twice_too_wide.prediction = lambda output: output

def with_tasks(output, target, tasks):
    return (output - target).square().mean() * tasks

class Learned(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, output, target):
        return ((output - target) * self.scale).square().mean()

def swap(x, rng):
    return x.transpose(1, 7)
"""


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.savez("flat.npz", x=rng.normal(size=(30, 5)), y=np.arange(30) % 3)
    np.savez("images.npz", x=rng.normal(size=(30, 2, 8, 8)), y=np.arange(30) % 3)
    np.savez("labels.npz", x=rng.normal(size=(30, 5)), y=np.arange(60).reshape(30, 2) % 2)
    np.savez("numbers.npz", x=rng.normal(size=(30, 5)), y=rng.normal(size=(30, 2)))
    with open("own.py", "w", encoding="utf-8") as file:
        file.write(OWN)


def build(data, model, more=""):
    with open("c.yaml", "w", encoding="utf-8") as file:
        file.write(f"data: {{type: arrays, path: {data}.npz}}\nmodel: {{{model}}}\n{more}")
    builder = Builder(load_config("c.yaml"))
    prepared = prepare(builder)
    return builder, prepared, build_network(builder, prepared.facts, CPU)


def error(kind, *arguments):
    with pytest.raises(kind) as caught:
        build(*arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    ("data", "model", "num_outputs"),
    [
        ("flat", "type: mlp, hidden: [4]", 3),
        ("images", "type: mlp, hidden: [4]", 3),
        ("images", "type: linear", 3),
        ("images", "type: convnet, channels: [4]", 3),
        ("images", "type: resnet, depth: 20, width: 0.25", 3),
        ("labels", "type: mlp, hidden: [4]", 2),
        ("numbers", "type: mlp, hidden: [4]", 2),
        ("images", "type: own.py:Lazy", 3),
        ("flat", "type: own.py:Narrow, hidden: 3", 3),
    ],
)
def test_models_take_their_sizes_from_the_data(data, model, num_outputs):
    _, prepared, network = build(data, model)
    inputs, target = prepared.splits["train"].batch(torch.arange(4), CPU)
    output = network.model(*network.transform(inputs))
    assert output.shape == (4, num_outputs)
    assert torch.isfinite(network.loss(output, target))


def test_a_loss_may_ask_for_two_outputs_a_target():
    _, prepared, network = build("numbers", "type: linear", "loss: {type: gaussian_nll}")
    inputs, _ = prepared.splits["train"].batch(torch.arange(4), CPU)
    output = network.model(*inputs)
    assert output.shape == (4, 4)
    assert network.predict(output).keys() == {"prediction_target0", "prediction_target1"}


@pytest.mark.parametrize("name", ["convnet", "resnet"])
def test_a_model_for_images_refuses_other_data(name):
    message = error(ConfigError, "flat", f"type: {name}")
    assert message.startswith(
        f"c.yaml:2:15: model.type: {name} is for images; the data are numbers of shape (5,); "
        "possible: mlp, linear, sequential"
    )
    assert "transformer" not in message


def test_a_model_of_ones_own_that_asks_for_channels_refuses_other_data():
    message = error(ConfigError, "flat", "type: own.py:Images")
    assert message.startswith("c.yaml:2:8: model: own.py:Images needs in_channels; the data offer in_features, ")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("Narrow", "two samples give shape (2, 4); classification needs shape (2, 3)"),
        ("Pair, hidden: 3", "two samples give a tuple; classification needs shape (2, 3)"),
        (
            "Wide, hidden: 3",
            "cannot take samples of shape (5,): RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x10 and 5x3) "
            "(own.py:19)",
        ),
        ("number", "own.py:number gives int, no torch.nn.Module"),
    ],
)
def test_a_model_of_ones_own_that_does_not_fit_is_an_error(model, message):
    assert error(ConfigError, "flat", f"type: own.py:{model}") == f"c.yaml:2:8: model: {message}"


def test_a_parameter_that_the_data_do_not_decide_is_named():
    assert error(ConfigError, "flat", "type: own.py:Greedy") == (
        "c.yaml:2:8: model: own.py:Greedy needs num_klasses; the data offer in_features, input_shape, out_features, "
        "cardinalities, num_classes, num_samples, class_counts"
    )


def test_an_error_inside_a_model_of_ones_own_is_told_with_its_place():
    found = error(ConfigError, "flat", "type: own.py:Broken")
    assert found.startswith("c.yaml:2:8: model: own.py:Broken failed: ValueError: no")


def test_a_model_of_one_input_is_told_what_to_do_with_categories():
    with open("data.csv", "w", encoding="utf-8") as file:
        file.write("u,c,t\n" + "".join(f"{i},{'ab'[i % 2]},{'xyz'[i % 3]}\n" for i in range(30)))
    with open("c.yaml", "w", encoding="utf-8") as file:
        file.write("data: {type: table, path: data.csv, target: t}\nmodel: {type: own.py:Narrow, hidden: 3}\n")
    builder = Builder(load_config("c.yaml"))
    with pytest.raises(
        ConfigError,
        match=r"c.yaml:2:8: model: cannot take samples of shape \(1,\) and \(1,\): .*; "
        r"set data.categories: onehot to have one input$",
    ):
        build_network(builder, prepare(builder).facts, CPU)


def test_a_loss_for_another_task_is_an_error():
    assert error(ConfigError, "flat", "type: linear", "loss: {type: mse}") == (
        "c.yaml:3:14: loss.type: mse is for regression; the task is classification; "
        "possible: cross_entropy, focal, hinge"
    )
    found = error(ConfigError, "labels", "type: linear", "loss: {type: cross_entropy}")
    assert found.endswith(
        "cross_entropy is for classification, language_model, translation; the task is multilabel; possible: bce"
    )


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            "vector",
            "gives shape (2,) for outputs of shape (2, 2) and targets of shape (2, 2); "
            "it must be one number, a tensor of shape ()",
        ),
        ("cut", "has no gradient; it must be computed from the output by torch"),
        (
            "twice",
            "has outputs_per_target, which needs a regression and a prediction(output) that returns one number for "
            "each target",
        ),
        (
            "twice_too_wide",
            "its prediction gives shape (2, 4) for outputs of shape (2, 4) and targets of shape (2, 2); "
            "regression needs shape (2, 2)",
        ),
        (
            "Learned",
            "has parameters to be learned, and only the model's are trained and saved; move them into the model",
        ),
    ],
)
def test_a_loss_of_ones_own_that_cannot_be_trained_with_is_an_error(loss, message):
    found = error(ConfigError, "numbers", "type: linear", f"loss: {{type: own.py:{loss}}}")
    assert found == f"c.yaml:3:7: loss: own.py:{loss}: {message}"


def test_a_loss_of_ones_own_for_another_task_is_an_error():
    found = error(ConfigError, "labels", "type: linear", "loss: {type: own.py:with_tasks, tasks: [1]}")
    assert found.startswith("c.yaml:3:7: loss: own.py:with_tasks: cannot take outputs of shape (2, 2) and targets of")


def test_a_loss_of_ones_own_may_have_an_argument_called_tasks():
    _, _, network = build("numbers", "type: linear", "loss: {type: own.py:with_tasks, tasks: 3}")
    assert network.loss(torch.ones(1, 2), torch.zeros(1, 2)) == 3


def test_a_model_whose_signature_python_does_not_know_is_an_error():
    found = error(ConfigError, "flat", "type: 'builtins:dict'")
    assert found == "c.yaml:2:8: model: builtins:dict gives dict, no torch.nn.Module"


def checkpoint_of(data, model):
    builder, prepared, network = build(data, model)
    weights = {f"model/{name}": value for name, value in network.model.state_dict().items()}
    return Checkpoint(weights, {"config": builder.file.config.model_dump(), "facts": prepared.facts, "folder": "."})


@pytest.mark.parametrize(
    ("data", "changes"),
    [
        ("flat", {"task": {"type": "classification", "classes": 3}}),
        ("flat", {"task": {"type": "ranking"}}),
        ("flat", {"input_types": ["no type"]}),
        ("flat", {"input_shapes": []}),
        ("flat", {"num_samples": {}}),
        ("numbers", {"task": {"type": "regression", "names": ["a", "b"], "mean": ["x", 0], "std": [1, 1]}}),
    ],
)
def test_facts_that_no_dltrain_has_written_are_an_error_of_the_checkpoint(data, changes):
    checkpoint = checkpoint_of(data, "type: linear")
    restore_network(checkpoint, "x", CPU, [])
    checkpoint.meta["facts"].update(changes)
    with pytest.raises(CheckpointError, match="x: its metadata are not understood"):
        restore_network(checkpoint, "x", CPU, [])


def test_a_bug_is_not_blamed_on_the_checkpoint(monkeypatch):
    checkpoint = checkpoint_of("flat", "type: linear")
    monkeypatch.setattr("dltrain.network.build_network", lambda *arguments: {}["a bug"])
    with pytest.raises(KeyError, match="a bug"):
        restore_network(checkpoint, "x", CPU, [])


def test_initial_weights_follow_from_the_seed_alone():
    def weights(seed):
        torch.manual_seed(torch.initial_seed() + 1)
        _, _, network = build("images", "type: convnet, channels: [4]", f"seed: {seed}")
        return torch.cat([parameter.flatten() for parameter in network.model.parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_convolutions_have_channels_last():
    for model in ("type: convnet, channels: [4, 8]", "type: resnet, depth: 20"):
        kernels = [p for p in build("images", model)[2].model.parameters() if p.dim() == 4]
        assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def test_augmentation_that_does_not_fit_the_data_is_an_error_with_its_place():
    builder, prepared, network = build("flat", "type: linear", "augment:\n  - {type: flip}\n")
    with pytest.raises(ConfigError) as caught:
        build_augmentation(builder, network, prepared.facts)
    assert str(caught.value).startswith("c.yaml:4:5: augment.0: flip needs images")
    builder, prepared, network = build("images", "type: linear", "augment: [{type: flip}, {type: crop, padding: 1}]")
    assert len(build_augmentation(builder, network, prepared.facts)) == 2
    builder, prepared, network = build("images", "type: linear", "augment: [{type: own.py:swap}]")
    message = r"^c.yaml:3:11: augment.0: cannot take a batch of shape \(2, 2, 8, 8\): Dimension out of range"
    with pytest.raises(ConfigError, match=message):
        build_augmentation(builder, network, prepared.facts)


@pytest.mark.parametrize("init", ["default", "kaiming", "xavier", "orthogonal", "trunc_normal"])
@pytest.mark.parametrize(
    ("data", "model"),
    [
        ("flat", "type: mlp, norm: batch, residual: true, hidden: [4, 4], init: {init}"),
        ("images", "type: convnet, init: {init}"),
        ("images", "type: resnet, depth: 20, init: {init}"),
    ],
)
def test_another_size_is_told_without_building_the_model(data, model, init):
    builder, prepared, network = build(data, model.format(init=init))
    weights = {f"model/{name}": value for name, value in network.model.state_dict().items()}
    facts = {"facts": prepared.facts}
    refuse_another_size(builder, Checkpoint(weights, facts), "here")
    smaller = {name: value[:1] for name, value in weights.items() if value.dim()}
    with pytest.raises(CheckpointError, match=r"here: does not fit the model"):
        refuse_another_size(builder, Checkpoint(smaller, facts), "here")
