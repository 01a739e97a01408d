"""YAML 1.2 text to plain values in which every key and value knows its place, and back.

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
from dltrain.names import did_you_mean, shortened, spell

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 20_000
_MAX_DIGITS = 100

Keys = tuple[str | int, ...]
"""Where a value stands in the tree: ("regularization", "penalties", 0, "strength")."""

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL: dict[str, Any] = {"": None, "~": None}
_SPECIAL |= dict.fromkeys(("null", "Null", "NULL"))
_SPECIAL |= dict.fromkeys(("true", "True", "TRUE"), True)
_SPECIAL |= dict.fromkeys(("false", "False", "FALSE"), False)
_SPECIAL |= {sign + form: float(sign + "inf") for form in (".inf", ".Inf", ".INF") for sign in ("", "+", "-")}
_SPECIAL |= {form: float("nan") for form in (".nan", ".NaN", ".NAN")}
_VARIABLE = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)(?::([^}]*))?\}")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_WORDS = {
    r"cannot start any token": "this character cannot begin a value; quote the text",
    r"expected ',' or '([]}])'": r"a ',' is missing before this, or the '\1' to the bracket opened at {context}",
    r"expected alphabetic or numeric": "'*' and '&' begin names of anchors; quote the text",
    r"could not find expected ':'": "a key without its ':'",
    r"(sequence|entries).* not allowed": "a '-' where no list can stand; put the list on lines of its own",
    r"unknown escape": "no such escape in double quotes; in single quotes a '\\\\' stands for itself",
    r"end of stream": "the quotes opened at {context} are not closed",
    r"expected (the )?node content": "a value is missing before this",
    r"expected '-' indicator": "an item of a list must begin with '- ', in one column with the others",
    r"expected (key|<block end>)": "no key where one must stand; check the indentation and the brackets",
    r"maximum nesting depth": f"is nested deeper than {MAX_DEPTH} levels",
}
"""What the parser says, as a pattern, and what it means for a person."""


@dataclass
class Document:
    """What a config file and its `--set` options say, before anything is known of its meaning."""

    name: str
    value: dict[str, Any] = field(default_factory=dict)
    key_places: dict[Keys, str] = field(default_factory=dict)
    value_places: dict[Keys, str] = field(default_factory=dict)
    texts: dict[Keys, str] = field(default_factory=dict)
    """Plain scalars as they are written: 1e2, 012, ~."""
    text: str = ""
    """The file as a whole."""

    def place_of_key(self, keys: Keys) -> str:
        """Return "file:line:column" of the key at `keys`, or of the nearest section around it."""
        for length in range(len(keys), 0, -1):
            place = self.key_places.get(keys[:length]) or self.value_places.get(keys[:length])
            if place:
                return place
        return f"{self.name}:1:1" if () in self.value_places else self.name

    def place_of_value(self, keys: Keys) -> str:
        """Return "file:line:column" of the value at `keys`, or of the nearest section around it."""
        return self.value_places.get(keys) or self.place_of_key(keys)

    def forget(self, keys: Keys) -> None:
        """Drop the places of all that stands at `keys`."""
        for entries in (self.key_places, self.value_places, self.texts):
            for old in [old for old in entries if old[: len(keys)] == keys]:
                del entries[old]


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
        found = "a list" if isinstance(root, _Sequence) else spell(read_scalar(root.text) if root.plain else root.text)
        raise ConfigError(f"{root.place}: is {found}; a config is a mapping of sections such as 'data:' and 'model:'")
    document = Document(name, text=text)
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
    place = "--set " + shortened(option.replace("\n", "\\n"), 100)
    path, equals, text = option.partition("=")
    names = path.strip().split(".")
    if not equals or "" in names:
        raise ConfigError(f"{place}: is not of the form section.key=value")
    node = _parse(text, place) or _Scalar(place, "", plain=True)
    section: Any = document.value
    keys: Keys = ()
    for name in names[:-1]:
        key = _key_in(section, name, place, keys)
        keys = (*keys, key)
        if isinstance(section, dict) and section.get(key) is None:
            section[key] = {}
            document.forget(keys)
            document.key_places[keys] = place
        section = section[key]
    key = _key_in(section, names[-1], place, keys)
    keys = (*keys, key)
    document.forget(keys)
    document.key_places[keys] = place
    converter = _Converter(document)
    section[key] = converter.convert(node, keys)
    if converter.problems:
        raise ConfigError(*converter.problems)


def _key_in(section: Any, name: str, place: str, above: Keys) -> Any:
    """Return `name` as a key of a mapping or a position in a list."""
    if isinstance(section, dict):
        return name
    if not isinstance(section, list):
        raise ConfigError(f"{place}: {_dotted(above)} is {spell(section)}, not a section")
    if not name.isdecimal() or int(name) >= len(section):
        raise ConfigError(f"{place}: {_dotted(above)} is a list of {len(section)}; '{name}' is none of its positions")
    return int(name)


def _dotted(keys: Keys) -> str:
    return ".".join(map(str, keys))


def _similar_files(path: Path) -> str:
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
    control = _CONTROL.search(text)
    if control:
        line, column = text.count("\n", 0, control.start()) + 1, control.start() - text.rfind("\n", 0, control.start())
        place = name if name.startswith("--set") else f"{name}:{line}:{column}"
        raise ConfigError(f"{place}: is not text: it holds the control character U+{ord(control[0]):04X}")
    parser = _Parser(name)
    try:
        return parser.document(yaml.parse(text, Loader=_Loader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = parser.place(mark) if mark else name
        raise ConfigError(f"{place}: is not YAML: {_explain(error, text, parser)}") from None


def _explain(error: yaml.YAMLError, text: str, parser: _Parser) -> str:
    """Return in plain words what the parser found, and what to do."""
    mark, opened = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    what = str(getattr(error, "problem", None) or error).splitlines()[0]
    line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
    before, after = (line[: mark.column], line[mark.column :]) if mark else ("", "")
    if after.startswith("\t") or before.strip(" ") == "\t":
        return "a tab cannot indent YAML; use spaces"
    if "mapping values are not allowed" in what:
        if ":" in before:
            return "a second ':' in one line; quote the text"
        return "a key where none can stand; the line above lacks its ': ', or this one is indented too far"
    for pattern, words in _WORDS.items():
        if found := re.search(pattern, what):
            return found.expand(words).replace("{context}", parser.place(opened) if opened else "an earlier place")
    return what


class _Parser:
    """Turns PyYAML's events into nodes; aliases share the node that they name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.anchors: dict[str, _Node] = {}
        self.num_nodes = 0

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
        self.num_nodes += 1
        if depth > MAX_DEPTH:
            raise ConfigError(f"{place}: is nested deeper than {MAX_DEPTH} levels")
        if self.num_nodes > MAX_NODES:
            raise ConfigError(f"{place}: the config has more than {MAX_NODES} values")
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                raise ConfigError(
                    f"{place}: alias '*{event.anchor}' names no anchor above it; quote the text if it is a pattern"
                )
            return self.anchors[event.anchor]
        if event.tag is not None and event.tag != "!":
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise ConfigError(f"{place}: tags such as '{shortened(tag)}' are not read; write the plain value")
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
            return self.scalar(node, keys)
        if isinstance(node, _Sequence):
            return [self.convert(item, (*keys, i)) for i, item in enumerate(node.items)]
        return self.mapping(node, keys)

    def mapping(self, node: _Mapping, keys: Keys) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.items:
            if not isinstance(key_node, _Scalar):
                self.problems.append(f"{key_node.place}: a list or mapping cannot be a key")
                continue
            key = key_node.text
            if key == "<<" and key_node.plain:
                self.problems.append(
                    f"{key_node.place}: merge keys ('<<') are not part of YAML 1.2; write the keys out"
                )
            elif key in values:
                first = self.document.key_places[(*keys, key)]
                where = "" if first == key_node.place else f"; the first is at {first}"
                self.problems.append(f"{key_node.place}: key '{shortened(key)}' stands here a second time{where}")
            else:
                self.document.key_places[(*keys, key)] = key_node.place
                values[key] = self.convert(value_node, (*keys, key))
        return values

    def scalar(self, node: _Scalar, keys: Keys) -> Any:
        text = _VARIABLE.sub(lambda match: self.variable(match, node.place), node.text)
        if not node.plain:
            return text
        self.document.texts[keys] = text
        value = read_scalar(text)
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            self.problems.append(f"{node.place}: {_dotted(keys)}: is {shortened(text)}; too large for 64 bits")
        return value

    def variable(self, match: re.Match[str], place: str) -> str:
        name, default = match[1], match[2]
        value = os.environ.get(name, default)
        if value is None:
            self.problems.append(
                f"{place}: environment variable '{name}' is not set; set it or give a default: ${{env:{name}:default}}"
            )
            return ""
        return value


def read_scalar(text: str) -> Any:
    """Return what `text` without quotes means in YAML 1.2: a number, true or false, null, or else text."""
    if text in _SPECIAL:
        return _SPECIAL[text]
    if _INTEGER.fullmatch(text):
        if len(text) > _MAX_DIGITS:
            return 10**_MAX_DIGITS
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


# ---- values -> text -------------------------------------------------------------------------------------------------


def write_text(value: Any, *, width: float = 110, flow: bool = False) -> str:
    """Return `value` as YAML that `read_text` reads as the same; with `flow` in one line of brackets."""
    return yaml.dump(value, Dumper=_Dumper, default_flow_style=flow, sort_keys=False, allow_unicode=True, width=width)


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.2 would read as something else (1e3), escapes line ends, repeats instead of naming anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if not text.isprintable() else None if isinstance(read_scalar(text), str) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
