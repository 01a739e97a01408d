"""The manual of configs, made from the schema classes: JSON schema for editors, tables of components for people."""

from __future__ import annotations

import types
from typing import Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from dltrain.config.durations import DurationValue
from dltrain.config.names import did_you_mean
from dltrain.config.schema.base import Component, OneOf, Settings
from dltrain.config.schema.sections import KINDS, Config
from dltrain.errors import ConfigError

_NAMES = {
    int: "integer",
    float: "number",
    str: "text",
    bool: "true|false",
    type(None): "null",
    DurationValue: "duration",
}
_BOUNDS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a config file (draft 2020-12)."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}


def show_components(kind: str | None, name: str | None) -> None:
    """Print the kinds of components with their names, those of one kind, or one with its arguments.

    Raises ConfigError for an unknown kind or name, with the nearest.
    """
    from dltrain.console import out_console, table

    console = out_console()
    kinds = {one_of.kind: one_of for one_of in KINDS}
    if kind is None:
        console.print(table(["kind", "components"], [[k, ", ".join(o.classes)] for k, o in kinds.items()]))
        return
    if kind not in kinds:
        raise ConfigError(f"components: unknown kind '{kind}'; possible: {', '.join(kinds)}{did_you_mean(kind, kinds)}")
    classes = kinds[kind].classes
    if name is None:
        console.print(table([kind, ""], [[n, summary(cls)] for n, cls in classes.items()]))
        return
    if name not in classes:
        raise ConfigError(
            f"components: there is no {kind} '{name}'; possible: {', '.join(classes)}{did_you_mean(name, classes)}"
        )
    console.print(f"{name}: {summary(classes[name])}", markup=False)
    console.print(table(["argument", "type", "default", ""], arguments(classes[name])))


def summary(cls: type[Settings]) -> str:
    """Return the first paragraph of a schema class's docstring, as one line."""
    return " ".join((cls.__doc__ or "").strip().split("\n\n")[0].split())


def arguments(cls: type[Settings]) -> list[list[str]]:
    """Return [name, type with range, default, description] of each argument of a schema class."""
    rows = []
    for name, field in cls.model_fields.items():
        if name != "type":
            default = "required" if field.is_required() else _value_text(field.get_default(call_default_factory=True))
            rows.append([name, _type_text(field.annotation, field.metadata), default, field.description or ""])
    return rows


def _type_text(annotation: Any, metadata: Any = ()) -> str:
    """Return a type as a person writes it: "number > 0", "list of integer", "relu|gelu"."""
    for item in metadata:
        if isinstance(item, OneOf):
            return f"{{type: {'|'.join(item.classes)}, ...}}"
    origin, inner = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        text = _type_text(inner[0], annotation.__metadata__)
    elif origin in (Union, types.UnionType):
        text = " or ".join(_type_text(part) for part in inner)
    elif origin is list:
        text = f"list of {_type_text(inner[0])}" if inner else "list"
    elif origin is dict:
        text = f"mapping of {_type_text(inner[0])} to {_type_text(inner[1])}"
    elif inner:  # Literal
        text = "|".join(_value_text(value) for value in inner)
    elif isinstance(annotation, type) and issubclass(annotation, Settings):
        text = "{" + ", ".join(annotation.model_fields) + "}"
    else:
        text = _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))
    return " ".join([text, *_bounds(metadata)])


def _bounds(metadata: Any) -> list[str]:
    items = [m for item in metadata for m in (item.metadata if isinstance(item, FieldInfo) else [item])]
    return [f"{sign} {getattr(item, name):g}" for item in items for name, sign in _BOUNDS if hasattr(item, name)]


def _value_text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Component):
        return f"{{type: {value.type}}}"
    if isinstance(value, list):
        return "[" + ", ".join(_value_text(item) for item in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
