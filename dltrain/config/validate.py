"""A read document to a valid `Config`, or every mistake in it at once, each with its place.

No file of data is opened and torch is not imported. Components of the user's own are checked by their signature
when they are built (`dltrain.build`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from dltrain.config.names import did_you_mean
from dltrain.config.reader import Document, Keys, override, read_file
from dltrain.config.schema.base import OneOf, Settings
from dltrain.config.schema.sections import Config
from dltrain.errors import ConfigError

_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping of names to values",
    "model_type": "a section of 'key: value' lines",
    "none_required": "null",
    "finite_number": "a finite number",
}
_USER_TYPES = ", or your own as package.module:Name or file.py:Name"


@dataclass(frozen=True)
class ConfigFile:
    """A valid config and where it came from."""

    config: Config
    document: Document
    folder: str
    """Folder of the config file, relative to the working directory: paths inside the config start there."""
    text: str
    """The file as the user wrote it."""

    @property
    def name(self) -> str:
        """Name of the runs of this config."""
        return self.config.name or Path(self.document.name).stem

    def place(self, *keys: str | int) -> str:
        """Return where a message about the value at `keys` should point, with its dotted path."""
        return f"{self.document.place_of_value(keys)}: {'.'.join(map(str, keys))}"


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> ConfigFile:
    """Read and validate the config at `path` after the `section.key=value` overrides.

    Raises ConfigError that holds all mistakes, a line each, as `file:line:column: what; what is possible`.
    """
    document = read_file(path)
    override(document, overrides)
    config = validate(document)
    return ConfigFile(
        config,
        document,
        folder=os.path.relpath(Path(path).resolve().parent),
        text=Path(path).read_text(encoding="utf-8-sig"),
    )


def validate(document: Document) -> Config:
    """Turn `document` into a Config. Raises ConfigError with all mistakes in the order of the file."""
    try:
        return Config.model_validate(document.value)
    except ValidationError as error:
        raise ConfigError(*_problems(document, error)) from None


def _problems(document: Document, error: ValidationError) -> list[str]:
    """Return one line for each wrong value; what several types of a union say of it becomes one list."""
    by_keys: dict[Keys, list[dict[str, Any]]] = {}
    for detail in error.errors(include_url=False):
        keys = _keys_of(document, detail)
        by_keys.setdefault(keys, []).append(dict(detail))
    lines = [_line(document, keys, details) for keys, details in by_keys.items()]
    return [line for _, line in sorted(lines, key=lambda entry: entry[0])]


def _keys_of(document: Document, detail: Any) -> Keys:
    """Return the path in the document that pydantic's `loc` means: without the tags of unions and the like."""
    keys: list[str | int] = []
    node: Any = document.value
    loc = detail["loc"]
    for index, item in enumerate(loc):
        is_last = index == len(loc) - 1
        names_key = isinstance(node, dict) and (item in node or (is_last and detail["type"] == "missing"))
        names_item = isinstance(node, list) and isinstance(item, int) and item < len(node)
        if names_key or names_item:
            keys.append(item)
            node = _item(node, item)
    return tuple(keys)


def _line(document: Document, keys: Keys, details: list[dict[str, Any]]) -> tuple[tuple[int, int], str]:
    """Return the message about the value at `keys` and what it is sorted by."""
    kind = details[0]["type"]
    about_key = kind in ("missing", "extra_forbidden")
    if kind == "missing":
        place = document.place_of_key(keys[:-1])
    elif about_key:
        place = document.place_of_key(keys)
    else:
        place = document.place_of_value(keys)
    name = ".".join(map(str, keys))
    parts = place.rsplit(":", 2)
    position = (int(parts[1]), int(parts[2])) if len(parts) == 3 and parts[2].isdigit() else (0, 0)
    return position, f"{place}: {name + ': ' if name else ''}{_what(document, keys, details)}"


def _what(document: Document, keys: Keys, details: list[dict[str, Any]]) -> str:
    detail = details[0]
    kind, context = detail["type"], detail.get("ctx", {})
    given = detail["input"]
    if kind == "extra_forbidden":
        return _unknown_key(document, keys)
    if kind == "missing":
        possible = _possible_types(document, keys[:-1]) if keys[-1] == "type" else ""
        return f"is missing{possible}"
    if kind == "layer":  # of a sequential model: the message is whole
        return str(detail["msg"])
    if kind == "union_tag_not_found":
        found = "'type' is missing" if isinstance(given, dict) else f"is {_spell(given)}; needed: {{type: name, ...}}"
        return found + _possible_types(document, keys)
    if kind == "union_tag_invalid":
        tag = given["type"] if isinstance(given, dict) else str(given)
        return f"unknown type '{tag}'{_possible_types(document, keys)}{did_you_mean(tag, _type_names(document, keys))}"
    if kind == "value_error":
        return f"{_spell(given)} {context['error']}" if _is_plain(given) else str(context["error"])
    if kind == "string_pattern_mismatch" and keys[-1] == "type":
        return f"'{given}' is no import path; possible: package.module:Name or path/file.py:Name"
    needed = " or ".join(dict.fromkeys(_needed(detail) for detail in details))
    choices = [choice for detail in details for choice in _choices(detail)]
    guess = did_you_mean(given, choices) if isinstance(given, str) else ""
    return f"is {_spell(given)}; possible: {needed}{guess}{_yaml_hint(given, details)}"


def _unknown_key(document: Document, keys: Keys) -> str:
    possible = _possible_keys(document, keys[:-1])
    guess = did_you_mean(str(keys[-1]), possible)
    return f"unknown key; possible: {', '.join(possible)}{guess}"


def _needed(detail: dict[str, Any]) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in _TYPES:
        return _TYPES[kind]
    if kind in ("literal_error", "enum"):
        return ", ".join(_choices(detail))
    bounds = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    if kind in bounds:
        return f"a number {signs[bounds[kind]]} {context[bounds[kind]]:g}"
    if kind in ("too_short", "string_too_short"):
        return f"at least {context['min_length']} of {'its characters' if kind[0] == 's' else 'them'}"
    if kind in ("too_long", "string_too_long"):
        return f"at most {context['max_length']} of {'its characters' if kind[0] == 's' else 'them'}"
    if kind == "string_pattern_mismatch":
        return f"text like {context['pattern']}"
    if kind == "value_error":
        return str(context["error"])
    return str(detail["msg"])


def _choices(detail: dict[str, Any]) -> list[str]:
    if detail["type"] not in ("literal_error", "enum"):
        return []
    return [word.strip("'") for word in detail["ctx"]["expected"].replace(" or ", ", ").split(", ")]


def _yaml_hint(given: Any, details: list[dict[str, Any]]) -> str:
    kinds = {detail["type"] for detail in details}
    if "string_type" in kinds and not isinstance(given, (dict, list)) and given is not None:
        return f'; write it in quotes: "{_spell(given)}"'
    if "bool_type" in kinds and isinstance(given, str) and given.lower() in ("on", "yes", "off", "no", "y", "n"):
        return "; YAML 1.2 reads on, off, yes and no as text"
    return ""


def _spell(value: Any) -> str:
    """Return `value` as a YAML user knows it, shortened."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_plain(value: Any) -> bool:
    return not isinstance(value, (dict, list))


# ---- what is possible at a place of the document --------------------------------------------------------------------


def expected_at(value: Any, keys: Keys) -> OneOf | type[Settings] | None:
    """Return what kind of section the schema wants at `keys` of the tree `value`; None for plain values."""
    expected: OneOf | type[Settings] | None = Config
    for key in keys:
        if isinstance(key, str):
            section = _chosen(expected, value)
            field = section.model_fields.get(key) if section else None
            expected = _section_in((field.annotation, *field.metadata)) if field else None
        value = _item(value, key)
    return expected


def _item(value: Any, key: str | int) -> Any:
    """Return the member of a mapping or list, or None."""
    if isinstance(value, dict):
        return value.get(key)
    return value[key] if isinstance(value, list) and isinstance(key, int) and key < len(value) else None


def _chosen(expected: OneOf | type[Settings] | None, value: Any) -> type[Settings] | None:
    if isinstance(expected, OneOf):
        return expected.classes.get(str(value.get("type"))) if isinstance(value, dict) else None
    return expected


def _section_in(types: Iterable[Any]) -> OneOf | type[Settings] | None:
    """Return the kind or section that is named somewhere in an annotation."""
    types = tuple(types)
    for item in types:
        if isinstance(item, OneOf):
            return item
    for item in types:
        if isinstance(item, type) and issubclass(item, Settings):
            return item
        if found := _section_in(get_args(item)):
            return found
    return None


def _possible_keys(document: Document, keys: Keys) -> list[str]:
    value: Any = document.value
    for key in keys:
        value = _item(value, key)
    section = _chosen(expected_at(document.value, keys), value)
    return list(section.model_fields) if section else []


def _type_names(document: Document, keys: Keys) -> list[str]:
    expected = expected_at(document.value, keys)
    return sorted(expected.classes) if isinstance(expected, OneOf) else []


def _possible_types(document: Document, keys: Keys) -> str:
    expected = expected_at(document.value, keys)
    if not isinstance(expected, OneOf):
        return ""
    names = ", ".join(sorted(expected.classes))
    return f"; possible: {names}{_USER_TYPES if expected.user else ''}"
