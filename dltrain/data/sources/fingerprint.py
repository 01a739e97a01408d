"""Short hashes of what a source reads: equal while the data are, whatever the folder is called or its dates say."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable

import numpy as np

from dltrain.errors import DataError

_BLOCK_BYTES = 2**16


def fingerprint_files(files: Iterable[tuple[str, str]]) -> str:
    """Return 16 hex digits for the names and the contents of `files`, pairs of a name and a path.

    Raises DataError for a file that cannot be read.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, path in sorted(files):
        try:
            content = _digest_of(path)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}") from None
        digest.update(os.fsencode(name) + b"\0" + content)
    return digest.hexdigest()


def _digest_of(path: str) -> bytes:
    """Return the BLAKE2b of a file: hashlib.file_digest takes twice as long for small ones."""
    digest = hashlib.blake2b()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.digest()


def fingerprint_arrays(arrays: Iterable[np.ndarray]) -> str:
    """Return 16 hex digits for types, shapes and every value of `arrays`, none of them of Python objects."""
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
