import inspect
import math
import subprocess
import sys
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from torch import nn

from dltrain.config.schema import layers as layer_schema
from dltrain.config.schema import models as schema
from dltrain.config.schema import models_text as text_schema
from dltrain.errors import ConfigError
from dltrain.models import layers
from dltrain.models.bag_of_embeddings import BagOfEmbeddings
from dltrain.models.convnet import ConvNet
from dltrain.models.convnet1d import ConvNet1d
from dltrain.models.linear import Linear
from dltrain.models.mlp import MLP
from dltrain.models.resnet import CIFAR_FORMS, IMAGENET_FORMS, Block, ResNet
from dltrain.models.sequential import INFERRED, Sequential
from dltrain.models.text_convnet import TextConvNet

FROM_DATA = {"in_features", "in_channels", "input_shape", "out_features", "num_classes", "cardinalities", "vocab_size"}


def num_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def same_parameters(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# ---- layers


@pytest.mark.parametrize("name", layers.ACTIVATIONS)
def test_activation_is_torchs(name):
    x = torch.linspace(-3, 3, 13)
    expected = x if name == "identity" else getattr(torch, name, getattr(F, name, None))(x)
    assert torch.equal(layers.activation(name)(x), expected)


def test_unknown_activation_names_the_possible_ones():
    with pytest.raises(ConfigError, match=r"^activation: 'rellu' is unknown; possible: relu, leaky_relu, "):
        layers.activation("rellu")


def standardized(x, dims):
    return (x - x.mean(dims, keepdim=True)) / (x.var(dims, correction=0, keepdim=True) + 1e-5).sqrt()


def test_norms_of_images_follow_their_definitions():
    x = torch.randn(4, 16, 5, 6) * 3 + 1
    close = torch.testing.assert_close
    close(layers.norm("batch", 16, dims=2)(x), standardized(x, (0, 2, 3)))
    close(layers.norm("layer", 16, dims=2)(x), standardized(x, (1, 2, 3)))
    close(layers.norm("instance", 16, dims=2)(x), standardized(x, (2, 3)))
    groups = standardized(x.view(4, 2, 8, 5, 6), (2, 3, 4)).view_as(x)
    close(layers.norm("group", 16, dims=2)(x), groups)
    assert isinstance(layers.norm("none", 16, dims=2), nn.Identity)


def test_norms_of_features_follow_their_definitions():
    x = torch.randn(8, 32) * 3 + 1
    close = torch.testing.assert_close
    close(layers.norm("batch", 32)(x), standardized(x, 0))
    close(layers.norm("layer", 32)(x), standardized(x, 1))
    close(layers.norm("group", 32)(x), standardized(x.view(8, 4, 8), 2).view_as(x))
    close(layers.norm("rms", 32)(x), x / (x.square().mean(1, keepdim=True) + 1e-5).sqrt())


@pytest.mark.parametrize("name", layers.NORMS[0])
def test_norms_work_in_bfloat16(name):
    with torch.autocast("cpu", torch.bfloat16):
        output = MLP(8, 2, hidden=[16], norm=name)(torch.randn(4, 8))
    assert torch.isfinite(output).all()


@pytest.mark.parametrize(
    ("num_features", "num_groups"),
    [(1, 1), (7, 1), (8, 1), (16, 2), (33, 1), (48, 4), (64, 8), (256, 32), (1024, 32)],
)
def test_group_norm_has_wide_groups_that_divide_the_features(num_features, num_groups):
    assert layers.norm("group", num_features, dims=2).num_groups == num_groups


def test_a_norm_that_makes_no_sense_is_an_error():
    with pytest.raises(ConfigError, match=r"^norm: 'instance' is not possible for flat inputs; possible: none, batch"):
        layers.norm("instance", 8)
    with pytest.raises(ConfigError, match=r"^norm: 'rms' is not possible for inputs with 2 spatial dimensions"):
        layers.norm("rms", 8, dims=2)
    with pytest.raises(ConfigError, match=r"^norm: 'layer' over a single feature leaves nothing of it"):
        layers.norm("layer", 1)


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean():
    drop = layers.StochasticDepth(0.25)
    x = torch.rand(4000, 3, 2) + 1
    y = drop(x)
    dropped = (y == 0).all(dim=(1, 2))
    torch.testing.assert_close(y[~dropped], x[~dropped] / 0.75)
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert drop.eval()(x) is x
    with pytest.raises(ConfigError, match=r"^stochastic_depth: 1.0 is not possible"):
        layers.StochasticDepth(1.0)


def test_embeddings_stand_side_by_side_and_the_unknown_is_zero():
    embeddings = layers.Embeddings([3, 5], dim=4)
    y = embeddings(torch.tensor([[2, 0], [0, 4]]))
    assert y.shape == (2, 8)
    assert torch.equal(y[0, :4], embeddings.tables[0].weight[2])
    assert torch.equal(y[1, 4:], embeddings.tables[1].weight[4])
    assert (y[0, 4:] == 0).all()
    assert (y[1, :4] == 0).all()


def test_embedding_widths_grow_by_fastais_rule():
    assert [layers.embedding_dim(n) for n in (2, 10, 100, 1000)] == [2, 6, 21, 77]
    assert layers.embedding_dim(10**6) == 600
    assert layers.Embeddings([2, 10]).width == 8


def test_initialize_fills_by_definition():
    linear, convolution = nn.Linear(400, 300), nn.Conv2d(32, 64, 3)

    layers.initialize(linear, "kaiming")
    assert linear.weight.std().item() == pytest.approx(math.sqrt(2 / 400), rel=0.02)
    assert (linear.bias == 0).all()
    layers.initialize(convolution, "kaiming")
    assert convolution.weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.03)
    layers.initialize(linear, "xavier")
    assert linear.weight.abs().max().item() == pytest.approx(math.sqrt(6 / 700), rel=0.01)
    layers.initialize(linear, "orthogonal")
    torch.testing.assert_close(linear.weight @ linear.weight.T, torch.eye(300), atol=1e-5, rtol=0)
    layers.initialize(linear, "trunc_normal")
    assert linear.weight.abs().max().item() <= 0.04
    assert linear.weight.std().item() == pytest.approx(0.0176, rel=0.02)
    layers.initialize(linear, "zeros")
    assert (linear.weight == 0).all()
    with pytest.raises(ConfigError, match=r"^init: 'he' is unknown; possible: default, kaiming, "):
        layers.initialize(linear, "he")


# ---- mlp


def test_plain_mlp_is_exactly_linear_relu_linear():
    torch.manual_seed(3)
    model = MLP(20, 5, hidden=[16, 12])
    state = torch.get_rng_state()
    torch.manual_seed(3)
    plain = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5))
    assert torch.equal(state, torch.get_rng_state())
    assert same_parameters(model, plain)
    assert [type(m) for m in model.layers] == [type(m) for m in plain]
    x = torch.randn(7, 20)
    assert torch.equal(model(x), plain(x))


def test_mlp_block_is_linear_norm_activation_dropout():
    model = MLP(20, 5, hidden=[16], norm="batch", activation="gelu", dropout=0.1)
    assert [type(m) for m in model.layers] == [nn.Linear, nn.BatchNorm1d, nn.GELU, nn.Dropout, nn.Linear]


def test_mlp_flattens_images():
    assert MLP(3 * 4 * 4, 2)(torch.randn(5, 3, 4, 4)).shape == (5, 2)


def test_mlp_embeds_categories():
    model = MLP(2, 3, cardinalities=[4, 9], hidden=[6], embedding_dim=5)
    x, categories = torch.randn(8, 2), torch.randint(0, 4, (8, 2))
    expected = model.layers(torch.cat([x, model.embeddings(categories)], dim=1))
    assert torch.equal(model(x, categories), expected)
    assert MLP(0, 3, cardinalities=[4])(torch.empty(8, 0), categories[:, :1]).shape == (8, 3)


def test_residual_mlp_adds_inputs_where_widths_agree():
    model = MLP(6, 2, hidden=[8, 8], residual=True)
    assert [type(m) for m in model.layers] == [nn.Linear, nn.ReLU, layers.Residual, nn.Linear]
    x = torch.randn(3, 8)
    residual = model.layers[2]
    assert torch.equal(residual(x), x + F.relu(residual.layers[0](x)))


def test_mlp_settings_without_effect_are_errors():
    with pytest.raises(ConfigError, match=r"^embedding_dim: the data have no categorical columns"):
        MLP(6, 2, embedding_dim=3)
    with pytest.raises(ConfigError, match=r"^residual: no two layers of \[6, 8, 4\]"):
        MLP(6, 2, hidden=[8, 4], residual=True)


@pytest.mark.parametrize(
    "model",
    [
        MLP(48, 4, zero_init_head=True),
        Linear(48, 4, init="zeros"),
        ConvNet(3, 4, zero_init_head=True),
        ResNet(3, 4, depth=20, zero_init_head=True),
    ],
)
def test_zero_head_starts_from_equal_outputs(model):
    assert (model(torch.randn(2, 3, 4, 4)) == 0).all()


# ---- linear


def test_linear_is_torchs_linear():
    torch.manual_seed(1)
    model = Linear(12, 3)
    torch.manual_seed(1)
    x = torch.randn(5, 3, 4)
    torch.manual_seed(1)
    assert torch.equal(model(x), nn.Linear(12, 3)(x.flatten(1)))


def test_linear_treats_categories_as_one_hot_columns():
    model = Linear(2, 3, cardinalities=[4, 5])
    nn.init.normal_(model.categories.weight)
    x, categories = torch.randn(6, 2), torch.stack([torch.arange(6) % 4, torch.arange(6) % 5], dim=1)
    one_hot = torch.cat([F.one_hot(categories[:, 0], 4), F.one_hot(categories[:, 1], 5)], dim=1).float()
    expected = model.linear(x) + one_hot @ model.categories.weight
    torch.testing.assert_close(model(x, categories), expected)


def test_linear_on_categories_alone():
    model = Linear(0, 3, cardinalities=[4])
    assert (model(torch.empty(2, 0), torch.tensor([[0], [3]])) == 0).all()
    assert set(model.state_dict()) == {"linear.weight", "linear.bias", "categories.weight"}


# ---- convnet


@pytest.mark.parametrize("size", [(1, 1), (3, 8), (8, 8), (29, 31)])
@pytest.mark.parametrize("pool", ["max", "avg"])
def test_convnet_takes_any_size(size, pool):
    model = ConvNet(1, 4, channels=[4, 5, 6, 7, 8], pool=pool)
    x = torch.randn(2, 1, *size, requires_grad=True)
    model(x).sum().backward()
    assert model(x).shape == (2, 4)
    assert torch.isfinite(x.grad).all()


def test_convnet_is_convolution_norm_activation_pool_mean_linear():
    model = ConvNet(3, 2, channels=[8], kernel_size=5, norm="none", dropout=0.5).eval()
    convolution, head = model.layers[0], model.layers[-1]
    x = torch.randn(4, 3, 8, 8)
    hidden = F.max_pool2d(F.relu(F.conv2d(x, convolution.weight, convolution.bias, padding=2)), 2)
    torch.testing.assert_close(model(x), F.linear(hidden.mean((2, 3)), head.weight, head.bias))
    assert [type(m) for m in ConvNet(3, 2, channels=[8], dropout=0.5).layers] == [
        nn.Conv2d,
        nn.BatchNorm2d,
        nn.ReLU,
        nn.MaxPool2d,
        nn.AdaptiveAvgPool2d,
        nn.Flatten,
        nn.Dropout,
        nn.Linear,
    ]


def test_convnet_refuses_what_it_cannot_do():
    with pytest.raises(ConfigError, match=r"^kernel_size: 4 is even; use an odd number, such as 5$"):
        ConvNet(3, 2, kernel_size=4)
    with pytest.raises(ConfigError, match=r"^pool: 'mean' is unknown; possible: max, avg$"):
        ConvNet(3, 2, pool="mean")


# ---- convnet1d


@pytest.mark.parametrize("length", [1, 7, 80, 1001])
@pytest.mark.parametrize("pool", ["max", "avg"])
def test_convnet1d_takes_any_length(length, pool):
    model = ConvNet1d(2, 4, channels=[4, 5, 6, 7, 8], pool=pool)
    x = torch.randn(2, 2, length, requires_grad=True)
    model(x).sum().backward()
    assert model(x).shape == (2, 4)
    assert torch.isfinite(x.grad).all()


def test_convnet1d_is_convolution_norm_activation_pool_mean_linear():
    model = ConvNet1d(3, 2, channels=[8, 4], first_kernel_size=20, first_stride=5, pool_size=2, norm="none").eval()
    first, second, head = model.layers[0], model.layers[3], model.layers[-1]
    x = torch.randn(4, 3, 200)
    hidden = F.max_pool1d(F.relu(F.conv1d(x, first.weight, first.bias, stride=5, padding=10)), 2, ceil_mode=True)
    hidden = F.max_pool1d(F.relu(F.conv1d(hidden, second.weight, second.bias, padding=1)), 2, ceil_mode=True)
    torch.testing.assert_close(model(x), F.linear(hidden.mean(2), head.weight, head.bias))
    assert [type(m) for m in ConvNet1d(3, 2, channels=[8], dropout=0.5, pool_size=1).layers] == [
        nn.Conv1d,
        nn.BatchNorm1d,
        nn.ReLU,
        nn.AdaptiveAvgPool1d,
        nn.Flatten,
        nn.Dropout,
        nn.Linear,
    ]


def test_convnet1d_can_have_the_layers_of_m5():
    """[80/4, 128], [3, 128], [3, 256], [3, 512]."""
    model = ConvNet1d(1, 10, channels=[128, 128, 256, 512])
    shapes = [tuple(m.weight.shape) for m in model.layers if isinstance(m, nn.Conv1d)]
    assert shapes == [(128, 1, 80), (128, 128, 3), (256, 128, 3), (512, 256, 3)]
    assert model.layers[0].stride == (4,)


def test_convnet1d_tells_pitches_apart():
    torch.manual_seed(0)
    time = torch.arange(1600) / 8000
    target = torch.arange(48) % 3
    pitch = torch.tensor([300.0, 500.0, 900.0])[target] * (1 + 0.05 * torch.randn(48))
    x = torch.sin(2 * math.pi * pitch[:, None] * time + 6 * torch.rand(48, 1)).unsqueeze(1) + 0.1 * torch.randn(
        48, 1, 1600
    )
    model = ConvNet1d(1, 3, channels=[16, 16])
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(25):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / 25)
        optimizer.zero_grad()
        F.cross_entropy(model(x[:24]), target[:24]).backward()
        optimizer.step()
    assert (model.eval()(x[24:]).argmax(1) == target[24:]).float().mean().item() > 0.9  # of pitches never heard


def test_convnet1d_refuses_what_it_cannot_do():
    with pytest.raises(ConfigError, match=r"^kernel_size: 4 is even; use an odd number, such as 5$"):
        ConvNet1d(3, 2, kernel_size=4)
    with pytest.raises(ConfigError, match=r"^pool: 'mean' is unknown; possible: max, avg$"):
        ConvNet1d(3, 2, pool="mean")


# ---- resnet


@pytest.mark.parametrize(("depth", "count"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)])
def test_imagenet_forms_have_the_published_number_of_parameters(depth, count):
    with torch.device("meta"):
        assert num_parameters(ResNet(3, 1000, depth=depth)) == count


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_cifar_forms_have_the_published_number_of_parameters(depth, millions):
    # He et al. 2015, table 6; their shortcuts have no parameters, the projections of ours add 2,752
    with torch.device("meta"):
        count = num_parameters(ResNet(3, 10, depth=depth)) - 2752
    assert count / 1e6 == pytest.approx(millions, abs=0.005 if depth < 110 else 0.05)


@pytest.mark.parametrize(
    ("depth", "width", "millions"),
    [(18, 1.5, 25.9), (18, 2.0, 45.6), (34, 1.5, 48.6), (34, 2.0, 86.0), (50, 2.0, 68.9)],
)
def test_wide_forms_have_the_published_number_of_parameters(depth, width, millions):
    # Zagoruyko & Komodakis 2016, tables 7 and 8
    with torch.device("meta"):
        assert num_parameters(ResNet(3, 1000, depth=depth, width=width)) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize("depth", IMAGENET_FORMS | CIFAR_FORMS)
def test_depth_counts_the_layers_with_weights_on_the_longest_way(depth):
    with torch.device("meta"):
        model = ResNet(3, 10, depth=depth)
    shortcuts = sum(block.shortcut is not None for block in model.modules() if isinstance(block, Block))
    weighted = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules())
    assert weighted - shortcuts == depth


def test_resnet_stages_halve_the_image():
    model = ResNet(3, 10, depth=18, stem="imagenet").eval()
    x = model.stem(torch.randn(1, 3, 64, 64))
    shapes = [tuple(x.shape[1:])]
    for stage in model.stages:
        x = stage(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(64, 16, 16), (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (17, 30)])
@pytest.mark.parametrize("depth", [20, 50])
def test_resnet_takes_any_size(size, depth):
    model = ResNet(1, 3, input_shape=(1, *size), depth=depth, width=0.25).eval()
    assert model(torch.randn(2, 1, *size)).shape == (2, 3)


@pytest.mark.parametrize(
    ("depth", "input_shape", "stride"),
    [
        (18, None, 2),
        (18, (3, 224, 224), 2),
        (18, (3, 64, 64), 2),
        (18, (3, 200, 32), 1),
        (20, (3, 224, 224), 1),
    ],
)
def test_auto_stem_follows_form_and_image(depth, input_shape, stride):
    model = ResNet(3, 2, input_shape=input_shape, depth=depth, width=0.1)
    assert model.stem[0].stride == (stride, stride)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_block_is_activation_of_branch_plus_shortcut(bottleneck):
    settings = {"drop_rate": 0.0, "norm": "batch", "activation": "relu", "bottleneck": bottleneck}
    same = Block(8, 8, 8, 1, zero_init=True, **settings)
    x = torch.randn(2, 8, 6, 6)
    assert torch.equal(same(x), F.relu(x))  # a branch that starts at zero
    changing = Block(8, 4, 16, 2, zero_init=False, **settings)
    y = changing(x)
    assert y.shape == (2, 16, 3, 3)
    torch.testing.assert_close(y, F.relu(changing.branch(x) + changing.shortcut(x)))


def test_stochastic_depth_rises_linearly_to_the_rate_of_the_last_block():
    model = ResNet(3, 2, depth=20, stochastic_depth=0.5)
    rates = [m.rate for m in model.modules() if isinstance(m, layers.StochasticDepth)]
    assert rates == pytest.approx([0.5 * i / 9 for i in range(1, 10)])
    model.eval()
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(model(x), model(x))


def test_resnet_without_extras_has_no_layers_for_them():
    with torch.device("meta"):
        model = ResNet(3, 2)
    assert not any(isinstance(m, nn.Dropout | nn.Identity | layers.StochasticDepth) for m in model.modules())


def test_resnet_refuses_what_it_cannot_do():
    with pytest.raises(ConfigError, match=r"^depth: 19 is not a ResNet; possible: 18, 34, 50, 20, 32, 44, 56, 110$"):
        ResNet(3, 2, depth=19)
    with pytest.raises(ConfigError, match=r"^norm: a ResNet needs one; possible: batch"):
        ResNet(3, 2, norm="none")
    with pytest.raises(ConfigError, match=r"^stem: 'small' is unknown; possible: auto, imagenet, cifar$"):
        ResNet(3, 2, stem="small")


# ---- sequential

LENET = [
    {"type": "Conv2d", "out_channels": 6, "kernel_size": 5, "padding": 2},
    {"type": "BatchNorm2d"},
    {"type": "ReLU"},
    {"type": "MaxPool2d", "kernel_size": [2, 2]},
    {"type": "GroupNorm", "num_groups": 2},
    {"type": "Flatten"},
    {"type": "Dropout", "p": 0.5},
    {"type": "LayerNorm"},
    {"type": "Linear", "out_features": "auto"},
]


def test_sequential_is_torchs_with_the_sizes_filled_in():
    torch.manual_seed(2)
    model = Sequential(LENET, out_features=10, input_shape=(1, 8, 8))
    state = torch.get_rng_state()
    torch.manual_seed(2)
    plain = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d((2, 2)),
        nn.GroupNorm(2, 6),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.LayerNorm(96),
        nn.Linear(96, 10),
    )
    assert torch.equal(state, torch.get_rng_state())  # finding the sizes uses no chance
    assert same_parameters(model, plain)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), plain.buffers(), strict=True))
    assert model.training
    assert all(m.training for m in model.modules())
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(model.eval()(x), plain.eval()(x))


def test_sequential_may_end_in_a_convolution_and_start_with_an_embedding():
    pixels = [
        {"type": "Conv2d", "out_channels": "auto", "kernel_size": 3},
        {"type": "AdaptiveAvgPool2d", "output_size": 1},
    ]
    assert Sequential([*pixels, {"type": "Flatten"}], 4, (3, 9, 9))(torch.randn(2, 3, 9, 9)).shape == (2, 4)
    words = [{"type": "Embedding", "num_embeddings": 9, "embedding_dim": 3}, {"type": "Flatten"}]
    model = Sequential([*words, {"type": "Linear", "out_features": "auto"}], 4, (5,))
    assert model(torch.randint(0, 9, (2, 5))).shape == (2, 4)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (
            [{"type": "Flatten"}, {"type": "Linear", "in_features": 5, "out_features": 2}],
            r"^layer 2 \(Linear\) with an input of shape \(64,\) per sample: mat1 and mat2 shapes cannot be",
        ),
        (
            [{"type": "Conv2d", "out_channels": 3, "kernel_size": 3, "groups": 2}],
            r"^layer 1 \(Conv2d\): out_channels must",
        ),
        (
            [{"type": "Conv2d", "out_channels": 3, "kernel_size": 9}],
            r"^layer 1 \(Conv2d\) with an input of shape \(2, 8, 4\)",
        ),
        ([{"type": "Lineer"}], r"^layer 1 \(Lineer\): torch.nn has no such layer$"),
        ([{"type": "functional"}], r"^layer 1 \(functional\): torch.nn has no such layer$"),
        ([{"type": "ReLU", "slope": 1}], r"^layer 1 \(ReLU\): .*unexpected keyword argument 'slope'$"),
        (
            [{"type": "Flatten"}, {"type": "LSTM", "input_size": 64, "hidden_size": 2}],
            r"^layer 2 \(LSTM\): gives a tuple",
        ),
        (
            [{"type": "Linear", "out_features": "auto"}],
            r"^layers: the last gives shape \(2, 8, 7\) per sample, the data ask for \(7,\); end with",
        ),
    ],
)
def test_sequential_names_the_layer_that_fails(items, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Sequential(items, out_features=7, input_shape=(2, 8, 4))
    assert "\n" not in str(caught.value)


# ---- all of them


@pytest.mark.parametrize(
    "build",
    [
        lambda: MLP(64, 3, norm="layer", residual=True, dropout=0.1),
        lambda: Linear(64, 3),
        lambda: ConvNet(1, 3, channels=[8]),
        lambda: ResNet(1, 3, depth=20, width=0.5, stochastic_depth=0.1),
        lambda: Sequential(LENET, 3, (1, 8, 8)),
    ],
    ids=["MLP", "Linear", "ConvNet", "ResNet", "Sequential"],
)
def test_every_model_learns_and_keeps_what_it_learned(build, tmp_path):
    model = build()  # here, so that its weights follow from the seed and not from what was collected before
    stripes = torch.eye(2).repeat(1, 4)[0].expand(8, 8)
    target = torch.arange(24) % 3
    x = torch.stack([torch.zeros(8, 8), stripes, stripes.T])[target].unsqueeze(1) + 0.3 * torch.randn(24, 1, 8, 8)
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(50):
        # To 0, so that the running statistics of batch normalisation come to rest at those of the weights.
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / 50)
        optimizer.zero_grad()
        F.cross_entropy(model(x), target).backward()
        optimizer.step()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert (model.eval()(x).argmax(1) == target).float().mean().item() > 0.9
    torch.save(model.state_dict(), tmp_path / "state")
    output = model(x)
    for p in model.parameters():
        nn.init.ones_(p)
    model.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert torch.equal(model(x), output)


# ---- texts

TEXT_MODELS = {
    "bag": lambda **settings: BagOfEmbeddings(20, 3, **{"embedding_dim": 8} | settings).eval(),
    "deep bag": lambda **settings: BagOfEmbeddings(20, 3, **{"embedding_dim": 8, "hidden": [6, 5]} | settings).eval(),
    "convnet": lambda **settings: TextConvNet(20, 3, **{"embedding_dim": 8, "channels": 4} | settings).eval(),
    "even": lambda **settings: TextConvNet(20, 3, **{"embedding_dim": 8, "kernel_sizes": [1, 2, 4]} | settings).eval(),
}


@pytest.fixture(params=TEXT_MODELS)
def text_model(request):
    return TEXT_MODELS[request.param]


def test_padding_changes_no_output(text_model):
    model = text_model()
    nn.init.normal_(model.embedding.weight)  # the row of the padding too, whatever has changed it
    ids = torch.randint(1, 20, (4, 7))
    ids[1, 4:], ids[2, 1:], ids[3] = 0, 0, 0
    output = model(ids)
    assert torch.isfinite(output).all()
    for row, length in enumerate([7, 4, 1, 1]):
        torch.testing.assert_close(model(ids[row : row + 1, :length])[0], output[row], atol=1e-6, rtol=0)
    torch.testing.assert_close(model(F.pad(ids, (0, 9))), output, atol=1e-6, rtol=0)


def test_a_text_without_tokens_has_a_gradient_without_nan(text_model):
    model = text_model().train()
    model(torch.zeros(2, 3, dtype=torch.int64)).sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_text_models_work_in_bfloat16(text_model):
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(text_model()(torch.randint(1, 20, (4, 7)))).all()


def test_the_bag_is_the_mean_of_the_embeddings_whatever_their_order():
    model = BagOfEmbeddings(20, 3, embedding_dim=8, hidden=[6])
    ids = torch.tensor([[3, 7, 7, 0], [7, 3, 7, 0]])
    mean = model.embedding.weight[[3, 7, 7]].mean(0)
    first, head = model.layers[0], model.layers[-1]
    torch.testing.assert_close(model(ids)[0], head(F.relu(first(mean))))
    torch.testing.assert_close(*model(ids))
    assert [type(m) for m in BagOfEmbeddings(20, 3, hidden=[6], dropout=0.5).layers] == [
        nn.Dropout,
        nn.Linear,
        nn.ReLU,
        nn.Dropout,
        nn.Linear,
    ]
    assert [type(m) for m in BagOfEmbeddings(20, 3).layers] == [nn.Linear]
    assert model.embedding.weight.abs().max() <= 1 / 8


def test_the_text_convnet_is_the_maximum_over_time_of_its_convolutions():
    model = TextConvNet(20, 3, embedding_dim=8, channels=4, kernel_sizes=[1, 3]).eval()
    ids = torch.randint(1, 20, (2, 6))
    x = model.embedding(ids).transpose(1, 2)
    one, three = model.convolutions
    features = [F.relu(one(x)).amax(2), F.relu(F.conv1d(x, three.weight, three.bias, padding=1)).amax(2)]
    torch.testing.assert_close(model(ids), model.head(torch.cat(features, 1)))
    assert model.embedding.weight.abs().max() <= 0.25
    assert [type(m) for m in model.head] == [nn.Dropout, nn.Linear]


def test_a_text_may_be_shorter_than_the_kernels():
    assert TextConvNet(20, 3, kernel_sizes=[3, 8])(torch.tensor([[5]])).shape == (1, 3)


# ---- the schema of the models

CLASSES = {
    "mlp": MLP,
    "linear": Linear,
    "convnet": ConvNet,
    "convnet1d": ConvNet1d,
    "resnet": ResNet,
    "sequential": Sequential,
    "bag_of_embeddings": BagOfEmbeddings,
    "text_convnet": TextConvNet,
}


@pytest.mark.parametrize("settings", schema.ALL + text_schema.ALL, ids=lambda settings: settings.__name__)
def test_schema_has_the_parameters_and_defaults_of_the_model(settings):
    (name,) = get_args(settings.model_fields["type"].annotation)
    model_class = CLASSES[name]
    assert settings.builds == f"{model_class.__module__}:{model_class.__name__}"
    parameters = inspect.signature(model_class).parameters
    fields = {key: field for key, field in settings.model_fields.items() if key != "type"}
    assert set(fields) == set(parameters) - FROM_DATA
    for key, field in fields.items():
        assert field.description
        default = parameters[key].default
        assert field.is_required() == (default is inspect.Parameter.empty)
        if not field.is_required():
            assert field.default == (list(default) if isinstance(default, tuple) else default)


def test_schema_offers_the_names_that_the_layers_know():
    assert set(get_args(schema.Activation)) == set(layers.ACTIVATIONS)
    assert set(get_args(schema.FeatureNorm)) == set(layers.NORMS[0])
    assert set(get_args(schema.ImageNorm)) == set(layers.NORMS[2])
    assert set(get_args(schema.ResidualNorm)) == set(layers.NORMS[2]) - {"none"}
    assert set(get_args(schema.Init)) == {"default", *layers.INITIALIZERS} - {"zeros"}
    assert set(get_args(schema.ResNet.model_fields["depth"].annotation)) == set(IMAGENET_FORMS | CIFAR_FORMS)


@pytest.mark.parametrize(
    ("settings", "values", "place"),
    [
        (schema.MLP, {"type": "mlp", "hidden": [64, 0]}, ("hidden", 1)),
        (schema.MLP, {"type": "mlp", "hidden": []}, ("hidden",)),
        (schema.MLP, {"type": "mlp", "dropout": 1.0}, ("dropout",)),
        (schema.MLP, {"type": "mlp", "norm": "instance"}, ("norm",)),
        (schema.ConvNet, {"type": "convnet", "kernel_size": 4}, ("kernel_size",)),
        (schema.ConvNet1d, {"type": "convnet1d", "kernel_size": 4}, ("kernel_size",)),
        (schema.ConvNet1d, {"type": "convnet1d", "pool_size": 0}, ("pool_size",)),
        (schema.ResNet, {"type": "resnet", "depth": 19}, ("depth",)),
        (schema.ResNet, {"type": "resnet", "width": 0}, ("width",)),
    ],
)
def test_values_out_of_range_are_refused_at_their_place(settings, values, place):
    with pytest.raises(ValidationError) as caught:
        settings.model_validate(values)
    assert [error["loc"] for error in caught.value.errors()] == [place]


def layer_problems(*items):
    with pytest.raises(ValidationError) as caught:
        schema.Sequential.model_validate({"type": "sequential", "layers": list(items)})
    return [(error["loc"], error["msg"]) for error in caught.value.errors()]


def test_layers_stay_as_they_are_written():
    assert schema.Sequential(type="sequential", layers=LENET).model_dump() == {
        "type": "sequential",
        "layers": LENET,
    }


def test_all_mistakes_in_layers_are_found_at_their_keys():
    assert layer_problems(
        {"type": "Linear", "out_features": 3},
        {"type": "Lineer", "out_features": 3},
        {"type": "relu"},
        {"type": "Softmax", "dim": 1},
        {"type": "Linear", "out_feature": 3, "bias": "no"},
        {"type": "Tanh", "in{place}": True},
        {"type": "Conv2d", "out_channels": True, "kernel_size": [3, 0]},
        {"type": "Dropout", "p": 1.5},
        {},
        "ReLU",
        7,
        {"type": ["Linear"]},
        {"type": "wavelet"},
    ) == [
        (("layers", 1, "type"), "unknown layer 'Lineer'; did you mean 'Linear'?"),
        (("layers", 2, "type"), "unknown layer 'relu'; did you mean 'ReLU'?"),
        (("layers", 3, "type"), "unknown layer 'Softmax'; leave it out, the loss applies it to the outputs"),
        (("layers", 4, "out_features"), "Field required"),
        (
            ("layers", 4, "out_feature"),
            "unknown argument 'out_feature' of Linear; possible: in_features, out_features, bias; "
            "did you mean 'out_features'?",
        ),
        (("layers", 4, "bias"), "'no' is not possible; possible: true or false"),
        (
            ("layers", 5, "in{place}"),
            "unknown argument 'in{place}' of Tanh; possible: none, it has no arguments",
        ),
        (
            ("layers", 6, "out_channels"),
            "True is not possible; possible: a whole number of at least 1, or 'auto' for the number of "
            "outputs that the data ask for",
        ),
        (
            ("layers", 6, "kernel_size"),
            "[3, 0] is not possible; possible: a whole number of at least 1, or a list of them",
        ),
        (("layers", 7, "p"), "1.5 is not possible; possible: a number from 0 to 1"),
        (("layers", 8, "type"), "Field required"),
        (("layers", 9), "is not a layer {type: name, ...arguments}; write {type: ReLU}"),
        (("layers", 10), "is not a layer {type: name, ...arguments}"),
        (("layers", 11, "type"), "unknown layer ['Linear']; did you mean 'Linear'?"),
        (
            ("layers", 12, "type"),
            "unknown layer 'wavelet'; possible: layers of torch.nn with one input and one output",
        ),
    ]


# Without effect in a model, of another output or gradient, deprecated, or `*args` of layers without arguments
LEFT_OUT = {
    "device",
    "dtype",
    "return_indices",
    "sparse",
    "_weight",
    "_freeze",
    "min_value",
    "max_value",
    "args",
    "kwargs",
}


@pytest.mark.parametrize("layer", layer_schema.LAYERS)
def test_layer_table_agrees_with_torch(layer):
    parameters = dict(inspect.signature(getattr(nn, layer)).parameters)
    for name in LEFT_OUT | ({"bias"} if "affine" in parameters else set()):  # torch 2.10 has no bias there
        parameters.pop(name, None)
    arguments = layer_schema.parse_arguments(layer)
    assert set(arguments) == set(parameters)
    for name, mark in arguments.items():
        default = parameters[name].default
        assert (mark != "") == (default is inspect.Parameter.empty)
        assert (mark == "?") == (name in INFERRED)
        if default is not inspect.Parameter.empty and default is not None:
            assert layer_schema.accepts(name, default)


def test_argument_table_has_no_argument_that_no_layer_has():
    used = {name for layer in layer_schema.LAYERS for name in layer_schema.parse_arguments(layer)}
    assert set(layer_schema.ARGUMENTS) == used


def test_json_schema_completes_the_arguments_of_each_layer():
    (convolution,) = [s for s in TypeAdapter(layer_schema.Layer).json_schema()["oneOf"] if s["title"] == "Conv2d"]
    assert convolution["properties"]["type"] == {"const": "Conv2d"}
    assert convolution["required"] == ["type", "out_channels", "kernel_size"]
    assert convolution["properties"]["groups"]["minimum"] == 1
    assert convolution["additionalProperties"] is False


def test_schema_loads_no_torch():
    code = "import sys, dltrain.config.schema.models as m; m.MLP(type='mlp'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
