"""Every built-in component keeps its contract: it can be built, is documented, and says of itself what it takes."""

from __future__ import annotations

import importlib
import inspect
import json
import types
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import yaml

from dltrain.config.durations import DurationValue, to_steps
from dltrain.config.manual import json_schema, summary
from dltrain.config.reader import read_text
from dltrain.config.schema import regularization, sweep
from dltrain.config.schema.base import Component, OneOf, Settings, type_name
from dltrain.config.schema.layers import LAYERS
from dltrain.config.schema.sections import KINDS, Config, Regularization, Split, Train
from dltrain.config.validate import validate

BUILT_IN = [
    pytest.param(one_of, cls, id=f"{one_of.kind}-{name}") for one_of in KINDS for name, cls in one_of.classes.items()
]
SECTIONS = (
    Config,
    Split,
    Regularization,
    Train,
    regularization.Sam,
    regularization.GradientNoise,
    regularization.MaxNorm,
    regularization.EarlyStopping,
    sweep.Sweep,
    sweep.Dimension,
)

PROVIDED = {
    "data": {"base"},
    "task": {"samples", "num_outputs"},
    "augment": set(),
    "model": {
        "in_features",
        "in_channels",
        "input_shape",
        "out_features",
        "cardinalities",
        "vocab_size",
        "max_length",
        "shared_vocabulary",
    },
    "loss": {"num_classes", "num_samples", "class_counts", "positive_counts"},
    "optimizer": {"params"},
    "schedule": {"step", "total"},
    "penalty": {"parameters"},
    "mix": {"inputs", "rng"},
    "clip": {"parameters", "norm_of"},
    "average": {"step", "total"},
}
"""What each kind is given besides its settings: what the data decide, and what the loop hands in at each step."""

NOT_OFFERED = {"foreach", "fused", "maximize", "capturable", "differentiable", "decoupled_weight_decay"}
"""Arguments of torch's optimizers that change no result, belong to the machine, or are a type of their own."""

PLACES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "augment": lambda settings: {"augment": [settings]},
    "penalty": lambda settings: {"regularization": {"penalties": [settings]}},
    "mix": lambda settings: {"regularization": {"mix": settings}},
    "clip": lambda settings: {"regularization": {"clip": settings}},
    "average": lambda settings: {"regularization": {"average": settings}},
}


def target_of(one_of: OneOf, cls: type[Component]) -> Callable[..., Any]:
    """Return what takes the settings; most tasks learn from the samples with them."""
    module, _, name = cls.builds.partition(":")
    target = getattr(importlib.import_module(module), name)
    return getattr(target, "learn", target) if one_of.kind == "task" else target  # type: ignore[no-any-return]


def example_of(annotation: Any) -> Any:
    """Return a value that a required setting of this type may have."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        return example_of(annotation.__origin__)
    if origin in (Union, types.UnionType, list):
        example = example_of(inner[0])
        return [example] if origin is list else example
    if origin is Literal:
        return inner[0]
    return {DurationValue: "3 epochs", float: 0.5, int: 1, str: "x", dict: {"type": "ReLU"}}[origin or annotation]


def required_settings(cls: type[Component]) -> dict[str, Any]:
    fields = {name: field for name, field in cls.model_fields.items() if field.is_required() and name != "type"}
    return {"type": type_name(cls)} | {name: example_of(field.annotation) for name, field in fields.items()}


def whole_config(one_of: OneOf, settings: dict[str, Any]) -> str:
    place = PLACES.get(one_of.kind, lambda settings: {one_of.kind: settings})
    return yaml.safe_dump({"data": {"type": "sklearn", "name": "iris"}, "model": {"type": "mlp"}} | place(settings))


def test_every_kind_of_component_is_covered() -> None:
    assert [one_of.kind for one_of in KINDS] == list(PROVIDED)
    assert all(len(one_of.classes) > 1 for one_of in KINDS)


@pytest.mark.parametrize(("one_of", "cls"), BUILT_IN)
def test_settings_are_the_parameters_that_the_data_do_not_decide(one_of: OneOf, cls: type[Component]) -> None:
    parameters = inspect.signature(target_of(one_of, cls)).parameters
    settings = set(cls.model_fields) - {"type", *cls.build_only}
    assert settings <= set(parameters)
    assert set(parameters) - settings - PROVIDED[one_of.kind] <= NOT_OFFERED
    required = {name for name in settings if parameters[name].default is inspect.Parameter.empty}
    assert not {name for name in settings - required if cls.model_fields[name].is_required()}


@pytest.mark.parametrize(("one_of", "cls"), BUILT_IN)
def test_defaults_are_those_of_the_code(one_of: OneOf, cls: type[Component]) -> None:
    parameters = inspect.signature(target_of(one_of, cls)).parameters
    for name, field in cls.model_fields.items():
        if name in parameters and parameters[name].default is not inspect.Parameter.empty:
            assert plain(field.default) == plain(parameters[name].default), name


def plain(value: Any) -> Any:
    if isinstance(value, DurationValue):
        return to_steps(value, steps_per_epoch=1)
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(("one_of", "cls"), BUILT_IN)
def test_it_is_documented(one_of: OneOf, cls: type[Component]) -> None:
    assert summary(cls).endswith((".", ")."))
    assert inspect.getdoc(target_of(one_of, cls))
    check_fields(cls)


@pytest.mark.parametrize("cls", SECTIONS)
def test_sections_are_documented(cls: type[Settings]) -> None:
    assert summary(cls).endswith(".")
    check_fields(cls)


def check_fields(cls: type[Settings]) -> None:
    for name, field in cls.model_fields.items():
        if name != "type":
            assert field.description, name
            assert not field.description.endswith("."), name


@pytest.mark.parametrize(("one_of", "cls"), BUILT_IN)
def test_what_is_required_is_enough(one_of: OneOf, cls: type[Component]) -> None:
    config = validate(read_text(whole_config(one_of, required_settings(cls)), "c.yaml"))
    assert f"'type': '{type_name(cls)}'" in str(config.model_dump())


@pytest.mark.parametrize(("one_of", "cls"), BUILT_IN)
def test_a_config_with_all_defaults_written_out_means_the_same(one_of: OneOf, cls: type[Component]) -> None:
    config = validate(read_text(whole_config(one_of, required_settings(cls)), "c.yaml"))
    written = yaml.safe_dump(config.model_dump(), sort_keys=False)
    assert validate(read_text(written, "resolved.yaml")) == config


def test_the_json_schema_offers_every_setting_to_editors() -> None:
    schema = json.loads(json.dumps(json_schema(), allow_nan=False))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert list(schema["properties"]) == list(Config.model_fields)
    assert schema["required"] == ["data", "model"]
    assert schema["additionalProperties"] is False
    text = json.dumps(schema)
    for one_of in KINDS:
        for name, cls in one_of.classes.items():
            same_type = [entry for entry in objects_in(schema) if const_of(entry) == name]
            (entry,) = [entry for entry in same_type if set(entry["properties"]) == set(cls.model_fields)]
            assert entry["additionalProperties"] is False
            assert set(entry["required"]) == {n for n, field in cls.model_fields.items() if field.is_required()}
            for key, setting in entry["properties"].items():
                assert key == "type" or setting["description"] == cls.model_fields[key].description
    for layer in LAYERS:
        assert f'"const": "{layer}"' in text


def objects_in(node: Any) -> list[dict[str, Any]]:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    own = [node] if isinstance(node, dict) and isinstance(node.get("properties"), dict) else []
    return own + [found for child in children for found in objects_in(child)]


def const_of(entry: dict[str, Any]) -> Any:
    return entry["properties"].get("type", {}).get("const")
