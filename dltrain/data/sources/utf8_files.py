"""Text files: UTF-8, whatever their line ends and with or without a byte-order mark; else an error with the line."""

from __future__ import annotations

import codecs

from dltrain.errors import DataError

_CHUNK = 1 << 20


def read_utf8(path: str) -> bytes:
    r"""Return the text of a file as UTF-8, its lines ending in \n. Raises DataError with the first line that is not."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise DataError(f"{path}: the text is UTF-16; save it as UTF-8")
    if content.startswith(codecs.BOM_UTF8):
        content = content[len(codecs.BOM_UTF8) :]
    if b"\r\n" in content:
        content = content.replace(b"\r\n", b"\n")
    if not _is_utf8(content):
        raise DataError(f"{path}: line {_first_bad_line(content)} is not UTF-8 text; save the file as UTF-8")
    return content


def _is_utf8(content: bytes) -> bool:
    """Return whether all of it is UTF-8; in chunks, as the text may take four times the memory of the bytes."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(content)
    try:
        for start in range(0, len(content), _CHUNK):
            decoder.decode(view[start : start + _CHUNK])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _first_bad_line(content: bytes) -> int:
    return next(number for number, line in enumerate(content.split(b"\n"), 1) if not _is_utf8(line))
