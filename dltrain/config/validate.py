"""A read document to a valid `Config`, or every mistake in it at once, each with its place.

No file of data is opened and torch is not imported. Components of the user's own are checked by their signature
when they are built (`dltrain.build`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from dltrain.config import words
from dltrain.config.reader import Document, Keys, override, read_file, read_scalar
from dltrain.config.schema.base import USER_WORDS, OneOf, Settings
from dltrain.config.schema.sections import Config
from dltrain.errors import ConfigError
from dltrain.names import did_you_mean, shortened, spell

_ABOUT_KEYS = ("missing", "extra_forbidden")
_YAML_1_1_BOOLEANS = ("on", "yes", "off", "no", "y", "n")


@dataclass(frozen=True)
class ConfigFile:
    """A valid config and where it came from."""

    config: Config
    document: Document
    folder: str
    """Folder of the config file, relative to the working directory: paths inside the config start there."""
    text: str
    """The file as the user wrote it."""
    overrides: tuple[str, ...] = ()
    """The `section.key=value` options that changed it."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """What its runs are marked with; no settings."""

    @property
    def name(self) -> str:
        """Name of the runs of this config: its own, or its file's with '-' for what a name cannot hold."""
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(self.document.name).stem).lstrip("._-")
        return self.config.name or stem or "run"

    @property
    def resolved(self) -> dict[str, Any]:
        """The config with all defaults and the name of its runs, as plain values."""
        return {**self.config.model_dump(), "name": self.name}

    @property
    def changes(self) -> dict[str, Any]:
        """What the overrides set, by dotted key, as read."""
        changes = {}
        for key in (option.partition("=")[0].strip() for option in self.overrides):
            value: Any = self.document.value
            for part in key.split("."):
                value = value[int(part)] if isinstance(value, list) else value[part]
            changes[key] = value
        return changes

    def place(self, *keys: str | int) -> str:
        """Return where a message about the value at `keys` should point, with its dotted path."""
        return f"{self.document.place_of_value(keys)}: {'.'.join(map(str, keys))}"


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> ConfigFile:
    """Read and validate the config at `path` after the `section.key=value` overrides.

    Raises ConfigError that holds all mistakes, a line each, as `file:line:column: what; what is possible`.
    """
    return config_file(read_file(path), overrides, folder=os.path.relpath(Path(path).resolve().parent))


def config_file(document: Document, overrides: Sequence[str], folder: str) -> ConfigFile:
    """Change `document` by the `section.key=value` overrides and validate it; its paths start in `folder`.

    Raises ConfigError as `load_config` does.
    """
    override(document, overrides)
    return ConfigFile(validate(document), document, folder, document.text, tuple(overrides))


def validate(document: Document) -> Config:
    """Turn `document` into a Config. Raises ConfigError with all mistakes in the order of the file."""
    if nulls := [f"{document.place_of_value(keys)}: {_dotted(keys)}" for keys in _with_null(document.value, ())]:
        raise ConfigError(
            *(f"{place}: holds the character U+0000, which no name of a file can have" for place in nulls)
        )
    try:
        return Config.model_validate(document.value)
    except ValidationError as error:
        raise ConfigError(*_problems(document, error)) from None


def _with_null(value: Any, keys: Keys) -> Iterator[Keys]:
    """Yield where a text stands, as a key or a value, that holds U+0000."""
    if isinstance(value, str) and "\0" in value:
        yield keys
    if isinstance(value, dict):
        yield from ((*keys, key) for key in value if "\0" in str(key))
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _with_null(item, (*keys, key))


def _dotted(keys: Keys) -> str:
    return ".".join(shortened(str(key)) for key in keys)


# ---- pydantic's errors -> one line for each wrong value -------------------------------------------------------------


def _problems(document: Document, error: ValidationError) -> list[str]:
    """Return one line for each wrong value, in the order of the file."""
    by_keys: dict[Keys, dict[str, Any]] = {}
    for detail in error.errors(include_url=False):
        by_keys.setdefault(_keys_of(document, detail), dict(detail))  # of a union, the first type speaks for all
    above = {keys[:length] for keys in by_keys for length in range(len(keys))}
    # A list or mapping that is only called wrong for what is wrong inside it needs no line of its own.
    details = {keys: d for keys, d in by_keys.items() if keys not in above or d["type"] in _ABOUT_KEYS}
    lines = [_line(document, keys, detail) for keys, detail in details.items()]
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


def _line(document: Document, keys: Keys, detail: dict[str, Any]) -> tuple[tuple[int, int], str]:
    """Return the message about the value at `keys` and what it is sorted by."""
    if detail["type"] == "missing":
        place = document.place_of_key(keys[:-1])
    elif detail["type"] == "extra_forbidden":
        place = document.place_of_key(keys)
    else:
        place = document.place_of_value(keys)
    name = _dotted(keys)
    parts = [] if place.startswith("--set") else place.rsplit(":", 2)
    position = (int(parts[1]), int(parts[2])) if len(parts) == 3 and parts[2].isdigit() else (0, 0)
    return position, f"{place}: {name + ': ' if name else ''}{_what(document, keys, detail)}"


def _what(document: Document, keys: Keys, detail: dict[str, Any]) -> str:
    """Return what was found and what is possible."""
    kind, given = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return _unknown_key(document, keys)
    if kind == "layer":  # of a sequential model: the message is whole
        return str(detail["msg"])
    if kind == "value_error" and isinstance(given, dict):  # of settings that exclude each other
        return str(detail["ctx"]["error"])
    setting = setting_at(document.value, keys)
    if kind == "missing":
        return f"is missing; possible: {setting.possible}{_default_type(document, keys)}" if setting else "is missing"
    if setting is None:
        return str(detail["msg"])
    found = document.texts.get(keys, "") if not isinstance(given, str) else ""
    found = shortened(found) or spell(given)
    if kind == "value_error":
        return f"is {found}; {detail['ctx']['error']}"
    possible = setting.possible
    if kind == "finite_number":
        possible = possible.replace("a number", "a finite number")
    return f"is {found}; possible: {possible}{_advice(setting, given, found)}"


def _unknown_key(document: Document, keys: Keys) -> str:
    key = str(keys[-1])
    if ":" in key:
        return "unknown key; a space must follow its ':'"
    section = section_at(document.value, keys[:-1])
    possible = list(section.model_fields) if section else []
    return f"unknown key; possible: {', '.join(possible)}{did_you_mean(key, possible)}"


def _default_type(document: Document, keys: Keys) -> str:
    """Return the advice for a component without a type: the name that stands in place of it, or the default."""
    *above, last = keys
    parent = setting_at(document.value, tuple(above)) if last == "type" else None
    if parent is None or parent.one_of is None:
        return ""
    given = _value_at(document.value, tuple(above))
    names = [name for name in given if name in parent.one_of.classes and isinstance(given[name], dict | None)]
    if names:
        return f"; did you mean {{type: {names[0]}, ...}}?"
    default = parent.field.default if parent.field else None
    return f"; the default is {default.type}" if default is not None and hasattr(default, "type") else ""


def _advice(setting: Setting, given: Any, found: str) -> str:
    """Return what to write instead, where that can be guessed."""
    if given is None:
        return "; leave the key out for the default" if setting.field and not setting.field.is_required() else ""
    if isinstance(given, bool | int | float):
        if str in setting.types and not setting.types & {int, float}:
            return f'; write it in quotes: "{found}"'
        whole = int in setting.types and isinstance(given, float) and given.is_integer()
        return f"; write {given:.0f}" if whole else ""
    if not isinstance(given, str):
        return ""
    if setting.one_of is not None:
        return _advice_on_component(setting.one_of, given)
    if setting.would_be(read_scalar(given)):
        return "; write it without quotes"
    if bool in setting.types and given.lower() in _YAML_1_1_BOOLEANS:
        return "; YAML 1.2 reads on, off, yes and no as text"
    if setting.is_type and given.endswith(".py"):
        return f"; say what to take of the file: '{shortened(given)}:Name'"
    if setting.is_type and "." in given:
        return "; did you mean '{}:{}'?".format(*shortened(given).rsplit(".", 1))
    return did_you_mean(given, [value for value in setting.literals if isinstance(value, str)])


def _advice_on_component(one_of: OneOf, given: str) -> str:
    """Return how the component is written that `given` names."""
    if one_of.class_of({"type": given}) is not None:
        return f"; write {{type: {given}}}"
    guess = did_you_mean(given, one_of.classes)
    return guess.replace("'", "{type: ", 1).replace("'", "}", 1)


# ---- what is possible at a place of the document --------------------------------------------------------------------


class Setting(NamedTuple):
    """What the schema says of one place in a config."""

    annotation: Any
    metadata: Sequence[Any] = ()
    field: FieldInfo | None = None
    is_type: bool = False
    """Whether it is the `type` of a component that may be the user's own."""

    @property
    def possible(self) -> str:
        """What it may be, in words."""
        return words.possible(self.annotation, self.metadata) + f", or your own as {USER_WORDS}" * self.is_type

    @property
    def members(self) -> list[tuple[Any, Sequence[Any]]]:
        """The types of which it has one, each with its annotations."""
        return [_unwrapped(part, self.metadata) for part in words.union_parts(self.annotation)]

    @property
    def types(self) -> set[Any]:
        """The plain types among its members: int, list, ..."""
        return {get_origin(member) or member for member, _ in self.members}

    @property
    def literals(self) -> list[Any]:
        """The values that it may have, where they are counted out."""
        return [value for member, _ in self.members if get_origin(member) is Literal for value in get_args(member)]

    @property
    def one_of(self) -> OneOf | None:
        """The kind of component that it is, if it is one."""
        return next((item for _, metadata in self.members for item in metadata if isinstance(item, OneOf)), None)

    def would_be(self, value: Any) -> bool:
        """Return whether `value` has the type of a setting that is no text."""
        return not isinstance(value, str | None) and (type(value) in self.types or value in self.literals)

    def below(self, value: Any, key: str | int) -> Setting | None:
        """Return what is possible at `key` of this section, which holds `value`; None if there is no such key."""
        section = self.section(value)
        if isinstance(key, str) and section is not None and key in section.model_fields:
            field = section.model_fields[key]
            return Setting(field.annotation, field.metadata, field)
        if key == "type" and self.one_of is not None:
            return Setting(Literal[tuple(self.one_of.classes)], is_type=self.one_of.user)
        for member, _ in self.members:
            inner = get_args(member)
            if get_origin(member) is list and isinstance(key, int):
                return Setting(*_unwrapped(inner[0]))
            if get_origin(member) is dict and isinstance(key, str) and inner[1] is not Any:
                return Setting(*_unwrapped(inner[1]))
        return None

    def section(self, value: Any) -> type[Settings] | None:
        """Return the class of the section that is possible here; for a component, the one that `value` chooses."""
        if self.one_of is not None:
            return self.one_of.class_of(value)
        return next((cls for cls in self.types if isinstance(cls, type) and issubclass(cls, Settings)), None)


def setting_at(value: Any, keys: Keys) -> Setting | None:
    """Return what the schema says of the place at `keys` of the tree `value`; None if it knows no such place."""
    setting: Setting | None = Setting(Config)
    for key in keys:
        setting = setting.below(value, key) if setting else None
        value = _item(value, key)
    return setting


def section_at(value: Any, keys: Keys) -> type[Settings] | None:
    """Return the class of the section at `keys` of the tree `value`, if there is one."""
    setting = setting_at(value, keys)
    return setting.section(_value_at(value, keys)) if setting else None


def _unwrapped(annotation: Any, metadata: Sequence[Any] = ()) -> tuple[Any, Sequence[Any]]:
    """Return an annotation without what `Annotated` adds, and that with `metadata`."""
    if hasattr(annotation, "__metadata__"):
        return annotation.__origin__, [*annotation.__metadata__, *metadata]
    return annotation, metadata


def _value_at(value: Any, keys: Keys) -> Any:
    for key in keys:
        value = _item(value, key)
    return value


def _item(value: Any, key: str | int) -> Any:
    """Return the member of a mapping or list, or None."""
    if isinstance(value, dict):
        return value.get(key)
    return value[key] if isinstance(value, list) and isinstance(key, int) and key < len(value) else None
