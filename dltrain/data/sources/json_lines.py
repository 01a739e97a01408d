"""JSON lines as Arrow tables: an object a row, a key a column; and what is wrong where Arrow refuses a file."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pyarrow as pa
import pyarrow.json as pajson

from dltrain.names import shortened

_LONGEST_ROW_MIB = 16
_NULL_ROW = re.compile(rb"(\A|[\r\n])\s*null")
_KINDS = {str: "text", bool: "true or false", int: "a number", float: "a number", dict: "an object", list: "a list"}


def read_json_lines(stream: pa.NativeFile) -> pa.Table:
    """Return all rows; a key that a row lacks is null there. Raises ArrowInvalid: see `explain_json_lines`."""
    content = stream.read()
    if _NULL_ROW.search(content):  # at the beginning of a block it crashes Arrow
        raise pa.ArrowInvalid("a row is null")
    table = pajson.read_json(pa.BufferReader(content), pajson.ReadOptions(block_size=_LONGEST_ROW_MIB << 20))
    table.validate(full=True)  # Arrow takes text for UTF-8 without a look
    return table


def explain_json_lines(stream: pa.NativeFile, message: str) -> str:
    """Return what is wrong with a file that Arrow refuses with `message`: the first bad row, counted from 1."""
    if "straddles" in message:
        return f"a row is longer than {_LONGEST_ROW_MIB} MiB; JSON lines hold one object on each line"
    kinds: dict[str, tuple[str, int]] = {}
    row_number = 0
    for line in io.BufferedReader(stream):
        if not line.strip():
            continue
        row_number += 1
        problem = _problem_of(line.removeprefix(b"\xef\xbb\xbf"), kinds, row_number)
        if problem:
            return f"row {row_number}{problem}"
    return f"cannot be read as JSON lines: {message}"


def _problem_of(line: bytes, kinds: dict[str, tuple[str, int]], row_number: int) -> str:
    """Return what is wrong with a row, or ""; `kinds` holds the kind of each column and where it was first seen."""
    try:
        row = json.loads(line.decode(), object_pairs_hook=_Pairs)
    except UnicodeDecodeError:
        return ": is not UTF-8 text; save the file as UTF-8"
    except ValueError as error:
        return f": is not JSON ({error}); each line holds one object: {shortened(line.decode().strip())!r}"
    if not isinstance(row, _Pairs):
        return f': is {_KINDS.get(type(row), "null")}; each line holds one object, like {{"text": ...}}'
    seen: set[str] = set()
    for name, value in row:
        if name in seen:
            return f": has the key {name!r} twice"
        seen.add(name)
        if isinstance(value, str) and not value.isascii() and not _is_unicode(value):
            return f", column {name!r}: holds half of a surrogate pair, which is no character"
        kind = "an object" if isinstance(value, _Pairs) else _KINDS.get(type(value), "")
        first_kind, first_row = kinds.setdefault(name, (kind, row_number)) if kind else ("", 0)
        if kind != first_kind:
            return f", column {name!r}: is {kind}, and {first_kind} in row {first_row}; a column holds one kind"
    return ""


class _Pairs(list[tuple[str, Any]]):
    """An object with all its keys, also those written twice."""


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
