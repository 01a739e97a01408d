"""What a setting may be and what it is, in words: for error messages and for the tables of `dltrain components`."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from dltrain.config.schema.base import InWords, OneOf, Settings
from dltrain.names import either, spell

_NOUNS: dict[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    bool: ("true or false", "true or false"),
    type(None): ("null", "null"),
    Any: ("anything", "anything"),
}
_BOUNDS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))


def possible(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Return what a setting of this type may be: "a number > 0", "a list of 2 whole numbers, or null"."""
    return _phrase(annotation, metadata, plural=False)


def _phrase(annotation: Any, metadata: Sequence[Any], *, plural: bool) -> str:
    metadata = _flat(metadata)
    for item in metadata:
        if isinstance(item, OneOf):
            return f"{{type: {'|'.join(item.classes)}, ...}}"
    parts = union_parts(annotation)
    if len(parts) > 1:
        return either([_phrase(part, metadata, plural=False) for part in parts], comma=True)
    origin, inner = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        return _phrase(inner[0], [*annotation.__metadata__, *metadata], plural=plural)
    if annotation is type(None):
        return "null"
    for item in metadata:
        if isinstance(item, InWords):
            return item.text
    if origin is Literal:
        return either([spell(value) if isinstance(value, bool) else str(value) for value in inner])
    if origin is list:
        return f"a list of {_count(metadata)}{_phrase(inner[0], (), plural=True)}"
    if origin is dict:
        return f"a mapping of names to {_phrase(inner[1], (), plural=False)}"
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return "{" + ", ".join(annotation.model_fields) + "}"
    if annotation is str:
        return _text(metadata, plural=plural)
    return " ".join([_NOUNS[annotation][plural], *filter(None, [" and ".join(_bounds(metadata))])])


def union_parts(annotation: Any) -> tuple[Any, ...]:
    """Return the types of which one may be chosen: the members of a union, or the type itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _flat(metadata: Sequence[Any]) -> list[Any]:
    """Return annotations with those that pydantic's fields hold."""
    return [m for item in metadata for m in (item.metadata if isinstance(item, FieldInfo) else [item])]


def _bounds(metadata: Sequence[Any]) -> list[str]:
    found = [(sign, getattr(item, name, None)) for item in metadata for name, sign in _BOUNDS]
    return [
        f"{sign} {limit:g}" if isinstance(limit, float) else f"{sign} {limit}"
        for sign, limit in found
        if limit is not None
    ]


def _lengths(metadata: Sequence[Any]) -> tuple[int, int | None]:
    least = max((item.min_length for item in metadata if hasattr(item, "min_length")), default=0)
    return least, min((item.max_length for item in metadata if hasattr(item, "max_length")), default=None)


def _count(metadata: Sequence[Any]) -> str:
    least, most = _lengths(metadata)
    if least == most:
        return f"{least} "
    if most is not None:
        return f"{least} to {most} "
    return {0: "", 1: "one or more "}.get(least, f"{least} or more ")


def _text(metadata: Sequence[Any], *, plural: bool) -> str:
    least, most = _lengths(metadata)
    noun = _NOUNS[str][plural]
    if least == most == 1:
        return "a single character"
    if least and most is None:
        return noun if plural else f"{noun} (not empty)"
    return noun if most is None else f"{noun} of {least} to {most} characters"
