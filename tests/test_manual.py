"""`dltrain components` and `dltrain schema`: what the config format offers, as people and editors read it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import get_args

import pytest

from dltrain.config.manual import arguments, show_components
from dltrain.config.schema.data_arrays import Images
from dltrain.config.schema.models import MLP
from dltrain.config.schema.optimizers import Adam
from dltrain.config.schema.schedules import Step
from dltrain.config.schema.sections import KINDS, Config, Regularization
from dltrain.errors import ConfigError


def shown(capsys: pytest.CaptureFixture[str], *names: str | None) -> str:
    show_components(*(*names, None, None)[:2])
    return capsys.readouterr().out


def test_all_kinds_are_listed_with_their_components(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys)
    for one_of in KINDS:
        (line,) = [line for line in text.splitlines() if line.startswith(f"{one_of.kind} ")]
        assert line.split(maxsplit=1)[1].strip() == ", ".join(one_of.classes)


def test_a_kind_is_listed_with_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, "schedule").splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(KINDS[6].classes)
    assert "Multiply the learning rate by gamma at equal distances." in lines[1]


def test_a_component_is_shown_with_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    title, head, *lines = shown(capsys, "schedule", "step").splitlines()
    assert title == "step: Multiply the learning rate by gamma at equal distances."
    assert head.split() == ["argument", "possible", "default"]
    assert lines[1].split(maxsplit=1)[1].startswith("a number > 0 and <= 1")


@pytest.mark.parametrize(
    ("cls", "row"),
    [
        (Step, ["every", "'500 steps', '10 epochs' or '5%'", "required"]),
        (Step, ["warmup", "'500 steps', '10 epochs' or '5%'", "0 steps"]),
        (MLP, ["hidden", "a list of one or more whole numbers > 0", "[128, 128]"]),
        (MLP, ["residual", "true or false", "false"]),
        (MLP, ["embedding_dim", "a whole number > 0, or null", "null"]),
        (MLP, ["norm", "none, batch, layer, group or rms", "none"]),
        (Adam, ["betas", "a list of 2 numbers >= 0 and < 1", "[0.9, 0.999]"]),
        (Adam, ["groups", "a list of {params, lr, lr_scale, weight_decay}", "[]"]),
        (Images, ["path", "text (not empty)", "required"]),
        (
            Images,
            ["size", "a whole number >= 1 and <= 8192, a list of 2 whole numbers >= 1 and <= 8192, or null", "null"],
        ),
        (Config, ["optimizer", f"{{type: {'|'.join(KINDS[5].classes)}, ...}}", "{type: adamw}"]),
    ],
)
def test_arguments_are_told_in_plain_words(cls: type, row: list[str]) -> None:
    (found,) = [entry for entry in arguments(cls) if entry[0] == row[0]]
    assert found[:3] == row
    assert found[3]


def test_a_wrong_name_brings_up_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^components: unknown kind 'modle'; possible: data, .* mean 'model'\?$"):
        show_components("modle", None)
    with pytest.raises(ConfigError, match=r"^components: there is no model 'restnet'; .*; did you mean 'resnet'\?$"):
        show_components("model", "restnet")


def test_the_commands_print_without_torch_and_without_control_codes() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "dltrain"]
    schema = subprocess.run([*command, "schema"], capture_output=True, text=True, check=True)
    assert list(json.loads(schema.stdout)["properties"]) == list(Config.model_fields)
    table = subprocess.run([*command, "components", "loss"], capture_output=True, text=True, check=True)
    assert "\x1b" not in table.stdout
    assert "torch" not in schema.stderr + table.stderr


@pytest.mark.parametrize("section", ["train", "split", "regularization", "early_stopping"])
def test_a_section_is_shown_with_its_settings(section: str, capsys: pytest.CaptureFixture[str]) -> None:
    cls = (
        Regularization.model_fields[section] if section in Regularization.model_fields else Config.model_fields[section]
    )
    text = shown(capsys, section)
    (settings,) = [c for c in (cls.annotation, *get_args(cls.annotation)) if hasattr(c, "model_fields")]
    assert [line.split()[0] for line in text.splitlines()[2:] if line[:1].strip()] == list(settings.model_fields)
