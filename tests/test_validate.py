"""A document becomes a frozen Config with its defaults; what stands where is found again for messages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

import dltrain
from dltrain.config.reader import Document, override, read_text
from dltrain.config.schema.base import UserComponent
from dltrain.config.schema.optimizers import AdamW
from dltrain.config.schema.sections import Config
from dltrain.config.validate import load_config, setting_at, validate
from dltrain.errors import ConfigError

MINIMAL = "data: {type: sklearn, name: digits}\nmodel: {type: mlp}\n"
CONFIGS = sorted(Path(__file__).parent.parent.glob("configs/*.yaml"))


def test_two_lines_are_a_config_and_the_rest_are_defaults() -> None:
    config = validate(read_text(MINIMAL, "c.yaml"))
    assert config.optimizer == AdamW(type="adamw")
    assert config.train.batch_size == 64
    assert str(config.train.duration) == "10 epochs"
    assert config.task is None
    assert config.regularization.penalties == []


def test_a_config_cannot_be_changed_afterwards() -> None:
    config = validate(read_text(MINIMAL, "c.yaml"))
    with pytest.raises(ValidationError):
        config.seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        config.optimizer.lr = 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_valid_and_named_by_their_file(path: Path) -> None:
    file = load_config(path)
    assert file.name == path.stem
    assert file.text == path.read_text(encoding="utf-8")


def test_paths_in_a_config_start_at_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "c.yaml").write_text(MINIMAL)
    monkeypatch.chdir(tmp_path)
    assert load_config("deep/c.yaml").folder == "deep"
    assert load_config(tmp_path / "deep" / "c.yaml").folder == "deep"
    assert dltrain.load_config("deep/c.yaml").config == load_config("deep/c.yaml").config


def test_the_name_in_a_config_goes_before_the_files() -> None:
    file = load_config(CONFIGS[0], ["name=mine"])
    assert file.name == "mine"


@pytest.mark.parametrize(
    ("file_name", "name"),
    [("my config.yaml", "my-config"), (".hidden.yaml", "hidden"), ("größe/2.yaml", "2"), ("日本.yaml", "run")],
)
def test_a_file_of_any_name_gives_runs_whose_checkpoints_can_be_read(file_name: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / file_name
    path.parent.mkdir(exist_ok=True)
    path.write_text(MINIMAL)
    assert load_config(path).name == name
    assert load_config(path, [f"name='{name}'"]).name == name  # as a checkpoint's config has it


def test_the_config_can_come_from_a_pipe(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from dltrain import load_config; print(load_config('/dev/stdin').text, end='')"]
    result = subprocess.run(command, input=MINIMAL, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert result.stdout == MINIMAL


def test_a_message_can_point_at_what_stands_in_the_config_and_at_what_does_not() -> None:
    file = load_config(CONFIGS[0], ["train.batch_size=7"])
    name = os.fspath(CONFIGS[0])
    assert file.place("train", "batch_size") == "--set train.batch_size=7: train.batch_size"
    assert file.place("model", "type").startswith(f"{name}:")
    assert file.place("model", "type").endswith(": model.type")
    assert file.place("augment", 0, "p") == f"{name}:1:1: augment.0.p"


def test_a_component_of_the_users_own_may_have_any_settings() -> None:
    text = "data: {type: sklearn, name: digits}\nmodel: {type: 'own.py:Net', width: 3, blocks: [{depth: 2}]}"
    model = validate(read_text(text, "c.yaml")).model
    assert isinstance(model, UserComponent)
    assert model.arguments() == {"width": 3, "blocks": [{"depth": 2}]}


def test_an_argument_of_the_users_own_may_have_any_name() -> None:
    names = ("copy", "json", "validate", "builds", "build_only", "arguments", "model_fields")
    text = "data: {type: sklearn, name: digits}\nmodel: {type: 'own.py:Net', " + ": 1, ".join(names) + ": 1}"
    assert validate(read_text(text, "c.yaml")).model.arguments() == dict.fromkeys(names, 1)


@pytest.mark.parametrize("value", [".inf", "[1, {a: -.inf}]", "{a: [.nan]}"])
def test_a_number_that_no_checkpoint_can_hold_is_refused_at_any_depth(value: str) -> None:
    text = f"data: {{type: sklearn, name: digits}}\nmodel: {{type: 'own.py:Net', width: {value}}}"
    with pytest.raises(ConfigError) as error:
        validate(read_text(text, "c.yaml"))
    assert str(error.value) == "c.yaml:2:36: model.width: holds a number that is not finite"


@pytest.mark.parametrize("name", ["own.py:Net", "folder/own.py:Net", "/a b/own.py:Net", "package.module:Net", "m:f_1"])
def test_import_paths_are_accepted(name: str) -> None:
    document = read_text(f"data: {{type: sklearn, name: digits}}\nmodel: {{type: '{name}'}}", "c.yaml")
    assert validate(document).model.type == name


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_written_with_its_defaults_is_the_same_config(path: Path) -> None:
    config = load_config(path).config
    text = yaml.safe_dump(config.model_dump(), sort_keys=False)
    without_sweep = config.model_copy(update={"sweep": None})  # which no run keeps
    assert validate(read_text(text, "resolved.yaml")) == without_sweep


def test_mistakes_of_a_checkpoints_config_name_the_checkpoint() -> None:
    """Its config has no places: the messages name the file and the setting."""
    document = Document("last.safetensors", {"data": {"type": "sklearn", "name": "digits"}, "model": {"type": "mlq"}})
    override(document, ["seed=x"])
    with pytest.raises(ConfigError) as error:
        validate(document)
    assert [problem.partition("; ")[0] for problem in error.value.problems] == [
        "--set seed=x: seed: is 'x'",
        "last.safetensors: model.type: is 'mlq'",
    ]


def test_the_schema_says_what_is_possible_at_any_place() -> None:
    value = {"model": {"type": "mlp"}, "regularization": {"penalties": [{"type": "l1"}]}}

    def possible(*keys: str | int) -> str | None:
        setting = setting_at(value, keys)
        return setting.possible if setting else None

    assert possible("model", "dropout") == "a number >= 0 and < 1"
    assert possible("regularization", "penalties", 0, "strength") == "a number > 0"
    assert possible("optimizer", "groups", 0, "params") is None  # which optimizer is not said
    assert possible("model", "no_such_key") is None
    assert set(Config.model_fields) == {key for key in Config.model_fields if possible(key)}
