"""YAML 1.2 text to plain values in which every key and value knows its place.

PyYAML's event stream gives positions; the meaning of scalars is YAML 1.2's (`1e-3` is a number, `on` is text).
Keys given twice, tags, endless aliases, and files that are too large or too deep are errors with a place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dltrain.errors import ConfigError

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 20_000

Keys = tuple[str | int, ...]
"""Where a value stands in the tree: ("regularization", "penalties", 0, "strength")."""

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INTEGER = re.compile(r"[-+]?[0-9]{1,30}|0o[0-7]{1,30}|0x[0-9a-fA-F]{1,30}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL: dict[str, Any] = {"": None, "~": None}
_SPECIAL |= dict.fromkeys(("null", "Null", "NULL"))
_SPECIAL |= dict.fromkeys(("true", "True", "TRUE"), True)
_SPECIAL |= dict.fromkeys(("false", "False", "FALSE"), False)
_SPECIAL |= {sign + form: float(sign + "inf") for form in (".inf", ".Inf", ".INF") for sign in ("", "+", "-")}
_SPECIAL |= {form: float("nan") for form in (".nan", ".NaN", ".NAN")}
_VARIABLE = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)(?::([^}]*))?\}")
_WORDS = {
    r"found character.* that cannot start any token": "a character that cannot begin a value; quote the text",
    r"mapping values are not allowed in this context": "a ':' where no key can stand; quote the text or indent it",
    r"did not find expected key": "no key where one must stand; check the indentation and the brackets",
    r"could not find expected ':'": "a key without its ':'",
}


@dataclass
class Document:
    """What a config file and its `--set` options say, before anything is known of its meaning."""

    name: str
    value: dict[str, Any] = field(default_factory=dict)
    key_places: dict[Keys, str] = field(default_factory=dict)
    value_places: dict[Keys, str] = field(default_factory=dict)

    def place_of_key(self, keys: Keys) -> str:
        """Return "file:line:column" of the key at `keys`, or of the nearest section around it."""
        return self._nearest(self.key_places, keys)

    def place_of_value(self, keys: Keys) -> str:
        """Return "file:line:column" of the value at `keys`, or of the nearest section around it."""
        return self.value_places.get(keys) or self._nearest(self.key_places, keys)

    def _nearest(self, places: dict[Keys, str], keys: Keys) -> str:
        while keys and keys not in places:
            keys = keys[:-1]
        return places.get(keys, f"{self.name}:1:1" if places else self.name)


def read_file(path: str | os.PathLike[str]) -> Document:
    """Read the config at `path`. Raises ConfigError with all that is wrong with its form."""
    name = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror or error}{_similar_files(Path(path))}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{name}: is larger than {MAX_BYTES >> 20} MiB; this is no config")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise ConfigError(f"{name}:{line}:{column}: is not UTF-8 text") from None
    return read_text(text, name)


def read_text(text: str, name: str) -> Document:
    """Read a config from `text`; `name` stands in its messages. Raises ConfigError."""
    root = _parse(text, name)
    if root is None:
        raise ConfigError(f"{name}:1:1: is empty; a config needs at least 'data' and 'model'")
    if not isinstance(root, _Mapping):
        raise ConfigError(f"{root.place}: is no mapping of sections such as 'data:' and 'model:'")
    document = Document(name)
    converter = _Converter(document)
    document.value = converter.convert(root, ())
    if converter.problems:
        raise ConfigError(*converter.problems)
    return document


def override(document: Document, options: Sequence[str]) -> None:
    """Carry out `--set section.key=value` options, in order; values are read as YAML. Raises ConfigError."""
    problems: list[str] = []
    for option in options:
        try:
            _override_one(document, option)
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(*problems)


def _override_one(document: Document, option: str) -> None:
    place = f"--set {option}"
    path, equals, text = option.partition("=")
    keys: Keys = tuple(int(key) if key.isdecimal() else key for key in path.strip().split("."))
    if not equals or "" in keys:
        raise ConfigError(f"{place}: is not of the form section.key=value")
    node = _parse(text, place) or _Scalar(place, "", plain=True)
    section: Any = document.value
    for depth, key in enumerate(keys[:-1], start=1):
        if isinstance(section, dict) and section.get(str(key)) is None:
            section[str(key)] = {}
            document.key_places[keys[:depth]] = place
        section = _child(section, key, place, keys[: depth - 1])
    last = keys[-1]
    if isinstance(section, list):
        _child(section, last, place, keys[:-1])
        section_key: str | int = last
    elif isinstance(section, dict):
        section_key = str(last)
    else:
        raise ConfigError(f"{place}: {_dotted(keys[:-1])} is a value, not a section")
    for places in (document.key_places, document.value_places):
        for old in [old for old in places if old[: len(keys)] == keys]:
            del places[old]
    document.key_places[keys] = place
    converter = _Converter(document)
    section[section_key] = converter.convert(node, keys)
    for keys_below in document.value_places:
        if keys_below[: len(keys)] == keys:
            document.value_places[keys_below] = place
    if converter.problems:
        raise ConfigError(*converter.problems)


def _child(section: Any, key: str | int, place: str, above: Keys) -> Any:
    if isinstance(section, dict):
        return section[str(key)]
    if isinstance(section, list):
        if isinstance(key, int) and key < len(section):
            return section[key]
        raise ConfigError(f"{place}: {_dotted(above)} is a list of {len(section)}; '{key}' is none of its positions")
    raise ConfigError(f"{place}: {_dotted(above)} is a value, not a section")


def _dotted(keys: Keys) -> str:
    return ".".join(map(str, keys))


def _similar_files(path: Path) -> str:
    from dltrain.config.names import did_you_mean

    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.suffix in (".yaml", ".yml")]
    except OSError:
        return ""
    return did_you_mean(path.name, names)


# ---- text -> nodes with places --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scalar:
    place: str
    text: str
    plain: bool


@dataclass(frozen=True)
class _Sequence:
    place: str
    items: list[_Node]


@dataclass(frozen=True)
class _Mapping:
    place: str
    items: list[tuple[_Node, _Node]]


_Node = _Scalar | _Sequence | _Mapping


def _parse(text: str, name: str) -> _Node | None:
    """Return the one document in `text` as nodes, or None if there is nothing in it."""
    parser = _Parser(name)
    try:
        return parser.document(yaml.parse(text, Loader=_Loader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = parser.place(mark) if mark else f"{name}:1:1" if not name.startswith("--set") else name
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error).splitlines()[0]
        words = next((words for pattern, words in _WORDS.items() if re.search(pattern, what)), what)
        if (
            mark
            and text.splitlines()[mark.line : mark.line + 1]
            and text.splitlines()[mark.line][mark.column :][:1] == "\t"
        ):
            words = "a tab cannot indent YAML; use spaces"
        raise ConfigError(f"{place}: is not YAML: {words}") from None


class _Parser:
    """Turns PyYAML's events into nodes; aliases share the node that they name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.anchors: dict[str, _Node] = {}

    def place(self, mark: Any) -> str:
        if self.name.startswith("--set"):
            return self.name
        return f"{self.name}:{mark.line + 1}:{mark.column + 1}"

    def document(self, events: Iterator[Any]) -> _Node | None:
        next(events)  # start of the stream
        if isinstance(next(events), yaml.StreamEndEvent):
            return None
        node = self.node(events, next(events), 0)
        next(events)  # end of the document
        after = next(events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise ConfigError(f"{self.place(after.start_mark)}: a second document begins; a config is one")
        empty = isinstance(node, _Scalar) and node.plain and not node.text
        return None if empty else node

    def node(self, events: Iterator[Any], event: Any, depth: int) -> _Node:
        place = self.place(event.start_mark)
        if depth > MAX_DEPTH:
            raise ConfigError(f"{place}: is nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                raise ConfigError(f"{place}: alias '*{event.anchor}' names no anchor above it")
            return self.anchors[event.anchor]
        if event.tag is not None and event.tag != "!":
            raise ConfigError(f"{place}: tags such as '{event.tag}' are not read; write the plain value")
        node: _Node
        if isinstance(event, yaml.ScalarEvent):
            node = _Scalar(place, event.value, plain=event.style in (None, ""))
        elif isinstance(event, yaml.SequenceStartEvent):
            items: list[_Node] = []
            while not isinstance(following := next(events), yaml.SequenceEndEvent):
                items.append(self.node(events, following, depth + 1))
            node = _Sequence(place, items)
        else:
            pairs: list[tuple[_Node, _Node]] = []
            while not isinstance(following := next(events), yaml.MappingEndEvent):
                key = self.node(events, following, depth + 1)
                pairs.append((key, self.node(events, next(events), depth + 1)))
            node = _Mapping(place, pairs)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node


# ---- nodes -> values ------------------------------------------------------------------------------------------------


class _Converter:
    """Turns nodes into values, writes their places into the document and collects problems."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[str] = []
        self.num_nodes = 0

    def convert(self, node: _Node, keys: Keys) -> Any:
        self.num_nodes += 1
        if self.num_nodes > MAX_NODES:
            raise ConfigError(
                f"{node.place}: the config has more than {MAX_NODES} values once its aliases are expanded"
            )
        self.document.value_places[keys] = node.place
        if isinstance(node, _Scalar):
            return self.scalar(node)
        if isinstance(node, _Sequence):
            return [self.convert(item, (*keys, i)) for i, item in enumerate(node.items)]
        return self.mapping(node, keys)

    def mapping(self, node: _Mapping, keys: Keys) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.items:
            if not isinstance(key_node, _Scalar):
                self.problems.append(f"{key_node.place}: a key must be a word")
                continue
            key = key_node.text
            if key == "<<" and key_node.plain:
                self.problems.append(
                    f"{key_node.place}: merge keys ('<<') are not part of YAML 1.2; write the keys out"
                )
            elif key in values:
                first = self.document.key_places[(*keys, key)]
                self.problems.append(
                    f"{key_node.place}: key '{key}' stands here a second time; the first is at {first}"
                )
            else:
                self.document.key_places[(*keys, key)] = key_node.place
                values[key] = self.convert(value_node, (*keys, key))
        return values

    def scalar(self, node: _Scalar) -> Any:
        text = _VARIABLE.sub(lambda match: self.variable(match, node.place), node.text)
        if not node.plain:
            return text
        if text in _SPECIAL:
            return _SPECIAL[text]
        if _INTEGER.fullmatch(text):
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
        return text

    def variable(self, match: re.Match[str], place: str) -> str:
        name, default = match[1], match[2]
        value = os.environ.get(name, default)
        if value is None:
            self.problems.append(
                f"{place}: environment variable '{name}' is not set; set it or give a default: ${{env:{name}:default}}"
            )
            return ""
        return value
