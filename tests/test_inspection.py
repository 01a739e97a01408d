"""`dltrain check` as a user reads it, and what it finds before anything is trained."""

import itertools
import os

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from dltrain.config.validate import load_config
from dltrain.errors import ConfigError, DltrainError
from dltrain.inspection import check, compact_yaml, layers


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("images.npz", x=np.random.default_rng(0).normal(size=(40, 1, 8, 8)), y=np.arange(40) % 4)
    np.savez("flat.npz", x=np.random.default_rng(0).normal(size=(33, 5)), y=np.arange(33) % 3)


def config(data="images", model="type: convnet, channels: [4, 8]", more=""):
    with open("c.yaml", "w", encoding="utf-8") as file:
        file.write(f"data: {{type: arrays, path: {data}.npz}}\nmodel: {{{model}}}\n{more}")
    return load_config("c.yaml")


def sections(text):
    """Return {title: lines} of what `check` prints; lines without trailing spaces."""
    blocks = {}
    for line in text.splitlines():
        title = line.partition(" ")[0]
        if title in ("Config", "Data", "Model", "Training"):
            blocks[title] = block = []
        else:
            block.append(line.rstrip())
    return blocks


def test_check_shows_the_config_the_data_the_layers_and_a_batch(capsys):
    check(config())
    found = sections(capsys.readouterr().out)
    assert list(found) == ["Config", "Data", "Model", "Training"]
    assert found["Data"] == [
        "split  samples  share",
        "train       32  80.0%",
        "val          4  10.0%",
        "test         4  10.0%",
        "",
        "task: classification (inferred) of 4 classes: 0, 1, 2, 3",
        "",
    ]
    assert found["Model"] == [
        "layer      kind               output  parameters",
        "layers.0   Conv2d             4x8x8           36",
        "layers.1   BatchNorm2d        4x8x8            8",
        "layers.2   ReLU               4x8x8            0",
        "layers.3   MaxPool2d          4x4x4            0",
        "layers.4   Conv2d             8x4x4          288",
        "layers.5   BatchNorm2d        8x4x4           16",
        "layers.6   ReLU               8x4x4            0",
        "layers.7   MaxPool2d          8x2x2            0",
        "layers.8   AdaptiveAvgPool2d  8x1x1            0",
        "layers.9   Flatten            8                0",
        "layers.10  Linear             4               36",
        "total                                        384",
        "",
    ]
    assert found["Training"][0].startswith("first batch of 32: loss 1.")
    assert found["Training"][1] == "1 steps an epoch, 10 in all, with AdamW from lr 0.001"


def test_the_shown_config_is_the_whole_config(capsys):
    file = config(more="augment: [{type: flip}]\noptimizer: {type: sgd, lr: 1e-8}\nname: 'on'\n")
    check(file)
    shown = yaml.safe_load("\n".join(sections(capsys.readouterr().out)["Config"]))
    assert shown == yaml.safe_load(yaml.safe_dump(file.config.model_dump()))


@pytest.mark.parametrize("width", [60, 100, 160])
def test_the_shown_config_takes_few_lines_that_end_after_commas(width):
    file = config(more="regularization: {average: {type: ema, decay: 0.9}}")
    lines = compact_yaml(file, width).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) < 42 * 60 / width
    assert all(line.endswith(",") for line, after in itertools.pairwise(lines) if after.startswith(" "))


def test_the_columns_of_a_table_are_shown_with_their_kinds(capsys):
    with open("data.csv", "w", encoding="utf-8") as file:
        file.write("u,c,t\n" + "".join(f"{i},{'ab'[i % 2]},{'xyz'[i % 3]}\n" for i in range(30)))
    with open("c.yaml", "w", encoding="utf-8") as file:
        file.write("data: {type: table, path: data.csv, target: t}\nmodel: {type: mlp}")
    check(load_config("c.yaml"))
    lines = sections(capsys.readouterr().out)["Data"]
    assert lines[5].split() == ["column", "kind", "note"]
    assert lines[6].split()[:2] == ["u", "numeric"]
    assert lines[7].split()[:2] == ["c", "category"]


def test_large_numbers_have_their_thousands_apart(capsys):
    check(config(model="type: mlp, hidden: [300, 300]"))
    assert sections(capsys.readouterr().out)["Model"][-2].split() == ["total", "111,004"]


def test_the_penalty_is_shown_apart_from_the_loss(capsys):
    check(config(more="regularization: {penalties: [{type: l2, strength: 10.0}]}"))
    line = sections(capsys.readouterr().out)["Training"][0]
    numbers = dict(part.rsplit(" ", 1) for part in line.partition(": ")[2].split(", "))
    assert float(numbers["loss"]) < 3 < float(numbers["penalty"])


def test_check_writes_no_file(capsys):
    before = sorted(os.listdir())
    check(config())
    assert sorted(os.listdir()) == sorted({*before, "c.yaml"})


@pytest.mark.parametrize(
    ("data", "more", "message"),
    [
        ("flat", "augment: [{type: flip}]", "c.yaml:3:11: augment.0: flip needs images"),
        ("flat", "train: {batch_size: 64, drop_last: true}", "c.yaml:3:36: train.drop_last: drops every batch"),
        ("flat", "train: {monitor: val/rmse}", "c.yaml:3:18: train.monitor: is 'val/rmse'; possible for classif"),
        ("flat", "loss: {type: cross_entropy, class_weights: [1, 2]}", "loss.class_weights: has 2 numbers"),
        ("flat", "regularization: {penalties: [{type: l1, strength: 1, params: nope}]}", "matches no parameter"),
        ("nope", "", "nope.npz: no such file"),
    ],
)
def test_check_finds_what_training_would_stumble_over(data, more, message):
    with pytest.raises(DltrainError) as caught:
        check(config(data, "type: linear", more))
    assert message in str(caught.value)


def test_a_setting_that_only_the_loop_would_meet_is_found_too():
    with pytest.raises(ConfigError, match="leave a batch of one, which BatchNorm cannot normalise"):
        check(config("flat", "type: mlp, norm: batch", "train: {batch_size: 13}"))


# ---- the table of layers


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.once = nn.Linear(5, 4)
        self.twice = nn.Linear(4, 4)
        self.never = nn.Linear(7, 7)
        self.pair = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x):
        output, _ = self.pair(self.twice(self.twice(self.once(x))).unsqueeze(1))
        return output[:, 0] * self.scale


def test_every_parameter_is_counted_once_in_the_row_of_its_module():
    rows = layers(Branches(), (torch.zeros(2, 5),))
    assert rows == [
        ["once", "Linear", "4", 24],
        ["twice", "Linear", "4", 20],
        ["pair", "LSTM", "tuple", 108],
        ["(model)", "Branches", "3", 3],
        ["never", "Linear", "(not called)", 56],
        ["total", "", "", 211],
    ]


def test_looking_at_a_model_leaves_it_as_it_was():
    model = nn.Sequential(nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 2)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layers(model, (torch.randn(4, 5),))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
