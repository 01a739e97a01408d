"""The manual of configs, made from the schema classes: JSON schema for editors, tables of components for people."""

from __future__ import annotations

from typing import Any, get_args

from dltrain.config import words
from dltrain.config.schema.base import Component, Settings
from dltrain.config.schema.sections import KINDS, Config, Regularization
from dltrain.errors import ConfigError
from dltrain.names import did_you_mean, spell


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a config file (draft 2020-12)."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}


def show_components(kind: str | None, name: str | None) -> None:
    """Print the kinds of components with their names, those of one kind, or one with its arguments.

    A section without a type, such as "train", is a kind whose settings are shown. Raises ConfigError for an unknown
    kind or name, with the nearest.
    """
    from dltrain.console import out_console, table

    console = out_console()
    kinds = {one_of.kind: one_of for one_of in KINDS}
    sections = _sections()
    if kind is None:
        console.print(table(["kind", "components"], [[k, ", ".join(o.classes)] for k, o in kinds.items()]))
        console.print()
        console.print(table(["section", "settings"], [[k, ", ".join(s.model_fields)] for k, s in sections.items()]))
        return
    if kind in sections and name is None:
        console.print(f"{kind}: {summary(sections[kind])}", markup=False)
        console.print(table(["setting", "possible", "default", ""], arguments(sections[kind])))
        return
    if kind not in kinds:
        known = [*kinds, *sections]
        raise ConfigError(f"components: unknown kind '{kind}'; possible: {', '.join(known)}{did_you_mean(kind, known)}")
    classes = kinds[kind].classes
    if name is None:
        console.print(table([kind, ""], [[n, summary(cls)] for n, cls in classes.items()]))
        return
    if name not in classes:
        raise ConfigError(
            f"components: there is no {kind} '{name}'; possible: {', '.join(classes)}{did_you_mean(name, classes)}"
        )
    console.print(f"{name}: {summary(classes[name])}", markup=False)
    console.print(table(["argument", "possible", "default", ""], arguments(classes[name])))


def _sections() -> dict[str, type[Settings]]:
    """Return the sections of a config that have settings but no type, those inside `regularization` too."""
    sections: dict[str, type[Settings]] = {}
    for name, field in [*Config.model_fields.items(), *Regularization.model_fields.items()]:
        for annotation in (field.annotation, *get_args(field.annotation)):
            if (
                isinstance(annotation, type)
                and issubclass(annotation, Settings)
                and not issubclass(annotation, Component)
            ):
                sections[name] = annotation
    return sections


def summary(cls: type[Settings]) -> str:
    """Return the first paragraph of a schema class's docstring, as one line."""
    return " ".join((cls.__doc__ or "").strip().split("\n\n")[0].split())


def arguments(cls: type[Settings]) -> list[list[str]]:
    """Return [name, what is possible, default, description] of each argument of a schema class."""
    rows = []
    for name, field in cls.model_fields.items():
        if name != "type":
            default = "required" if field.is_required() else _value_text(field.get_default(call_default_factory=True))
            rows.append([name, words.possible(field.annotation, field.metadata), default, field.description or ""])
    return rows


def _value_text(value: Any) -> str:
    """Return a default as one writes it in the config."""
    if isinstance(value, Component):
        return f"{{type: {value.type}}}"
    return value if isinstance(value, str) else spell(value)
