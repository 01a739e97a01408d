"""Arrays in files: .npy, a member of an .npz, and the IDX files of MNIST, plain or gzipped.

All three are a header and then the numbers, so one class reads them, whole or in blocks of rows. The format
is known by content, not by name. No pickle; what a header claims is checked against the length of the file
before memory is asked for.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

import numpy as np
from numpy.lib import format as npy_format

from dltrain.data.storage import allocate
from dltrain.errors import DataError
from dltrain.names import first_line

_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MAX_DEFLATE_RATIO = 1032  # deflate cannot do better: https://zlib.net/zlib_tech.html
_MAX_HEADER_BYTES = 2**16  # numpy reads no more than 10,000 characters
_CHUNK_BYTES = 2**24


class ArrayFile:
    """An open array of `shape` and `dtype` whose rows (axis 0) are read forwards. A context manager."""

    def __init__(self, stream: IO[bytes], name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self._stream = stream
        self._rows_left = shape[0]

    def __enter__(self) -> ArrayFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def read(self, num_rows: int | None = None) -> np.ndarray:
        """Return the next `num_rows` rows, or all that are left; fewer, at last none, at the end of the file.

        Raises DataError where the file is truncated or damaged.
        """
        num_rows = self._rows_left if num_rows is None else min(num_rows, self._rows_left)
        array = allocate((num_rows, *self.shape[1:]), self.dtype)
        with _errors_of(self.name):
            _fill(array, self._stream)
            self._rows_left -= num_rows
            if self._rows_left == 0 and self._stream.read(1):  # also lets zip and gzip check their sums
                raise ValueError("holds more bytes than its header says")
        native = self.dtype.newbyteorder("=")
        return array if self.dtype == native else array.byteswap(inplace=True).view(native)


def array_names(path: str) -> list[str] | None:
    """Return the names of the arrays of the .npz at `path`, or None if it is a file of one array."""
    with _errors_of(path):
        if not _is_zip(path):
            return None
        with zipfile.ZipFile(path) as archive:
            return [name[:-4] for name in archive.namelist() if name.endswith(".npy")]


def open_array(path: str, name: str | None = None) -> ArrayFile:
    """Open the array in `path`, of an .npz the one called `name`. Raises DataError with what is wrong."""
    with _errors_of(path):
        if _is_zip(path):
            return _open_member(path, name or "")
        size_bytes = os.path.getsize(path)
        if size_bytes == 0:
            raise ValueError("is empty")
        with open(path, "rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        stream = cast(IO[bytes], gzip.open(path, "rb") if zipped else open(path, "rb"))  # noqa: SIM115
        return _closing_on_error(stream, path, size_bytes, zipped)


def _open_member(path: str, name: str) -> ArrayFile:
    with zipfile.ZipFile(path) as archive:  # an open member keeps the file open
        member = archive.getinfo(f"{name}.npy")
        if member.file_size > _MAX_DEFLATE_RATIO * member.compress_size + 64:
            raise ValueError(f"array {name!r} claims a size that it cannot have; the file is damaged")
        return _closing_on_error(archive.open(member), f"{path}: {name}", member.file_size, zipped=False)


def _closing_on_error(stream: IO[bytes], name: str, size_bytes: int, zipped: bool) -> ArrayFile:
    try:
        with _errors_of(name):
            return _read_header(stream, name, size_bytes, zipped)
    except BaseException:
        stream.close()
        raise


def _read_header(stream: IO[bytes], name: str, size_bytes: int, zipped: bool) -> ArrayFile:
    """Read up to the first number; `size_bytes` counts the bytes of all, gzipped if `zipped`."""
    start = stream.read(4)
    if start == npy_format.MAGIC_PREFIX[:4]:
        shape, in_columns, dtype, header_bytes = _read_npy_header(stream, start)
    elif len(start) == 4 and start[:2] == b"\0\0":
        shape, dtype = _read_idx_header(stream, start)
        in_columns, header_bytes = False, 4 + 4 * len(shape)
    else:
        raise ValueError("is not an array; possible: .npy, .npz, or the IDX format of MNIST, which may be gzipped")
    if dtype.kind not in "biufUS":
        raise ValueError(f"holds {dtype}; possible are numbers and text, without Python objects")
    if not shape:
        raise ValueError("is a single number, not an array of samples")
    claimed_bytes = header_bytes + math.prod(shape) * dtype.itemsize
    if zipped:
        if claimed_bytes > _MAX_DEFLATE_RATIO * size_bytes:
            raise ValueError(f"is truncated: its header says {shape}, {claimed_bytes:,} bytes unzipped")
    elif claimed_bytes != size_bytes:
        problem = "is truncated" if claimed_bytes > size_bytes else "does not fit its header"
        raise ValueError(f"{problem}: its header says {shape}, {claimed_bytes:,} bytes, there are {size_bytes:,}")
    if in_columns:  # Fortran order cannot be read by rows: turn it in memory
        columns = np.empty(shape[::-1], dtype)
        _fill(columns, stream)
        stream.close()
        stream = io.BytesIO(columns.T.tobytes())
    return ArrayFile(stream, name, shape, dtype)


def _read_npy_header(stream: IO[bytes], start: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Return shape, whether it is in Fortran order, type, and the number of bytes before the first number."""
    lengths = {1: "<H", 2: "<I"}
    version = (start + stream.read(4))[6:]
    if len(version) < 2 or version[0] not in lengths:
        raise ValueError("has a header that is damaged or not of this version of numpy's format")
    prefix = stream.read(struct.calcsize(lengths[version[0]]))
    num_chars = struct.unpack(lengths[version[0]], prefix)[0]
    if num_chars > _MAX_HEADER_BYTES:
        raise ValueError(f"has a header of {num_chars:,} bytes; the file is damaged")
    text = stream.read(num_chars)
    read = npy_format.read_array_header_1_0 if version[0] == 1 else npy_format.read_array_header_2_0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that Python 2 wrote it
            shape, in_columns, dtype = read(io.BytesIO(prefix + text))
    except (TypeError, IndexError, SyntaxError, tokenize.TokenError) as error:
        raise ValueError(f"has a header that is damaged: {error}") from None
    if any(size < 0 for size in shape):
        raise ValueError(f"has an impossible shape: {shape}")
    return shape, in_columns, dtype, 8 + len(prefix) + len(text)


def _read_idx_header(stream: IO[bytes], start: bytes) -> tuple[tuple[int, ...], np.dtype]:
    """Return shape and type; the format is described at the end of http://yann.lecun.com/exdb/mnist."""
    code, num_dimensions = start[2], start[3]
    if code not in _IDX_TYPES or not 1 <= num_dimensions <= 4:
        raise ValueError(f"is not an IDX file: magic number 0x{start.hex()}")
    return struct.unpack(f">{num_dimensions}I", stream.read(4 * num_dimensions)), np.dtype(_IDX_TYPES[code])


def _fill(array: np.ndarray, stream: IO[bytes]) -> None:
    view = array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")
    position = 0
    while position < len(view):
        chunk = stream.read(min(_CHUNK_BYTES, len(view) - position))
        if not chunk:
            raise ValueError("is truncated")
        view[position : position + len(chunk)] = chunk
        position += len(chunk)


def _is_zip(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


@contextmanager
def _errors_of(name: str) -> Iterator[None]:
    """Turn what reading a file can raise into a DataError that begins with `name`."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{name}: no such file") from None
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or error}") from None
    except KeyError:
        raise DataError(f"{name}: no such array") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, RuntimeError) as error:
        raise DataError(f"{name}: is damaged or truncated ({error})") from None
    except ValueError as error:
        raise DataError(f"{name}: {first_line(error)}") from None
