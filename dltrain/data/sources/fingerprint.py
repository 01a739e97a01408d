"""Short hashes of what a source reads: equal while the data are, whatever the folder is called or its dates
say.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable

import numpy as np

from dltrain.errors import DataError

WHOLE_BYTES = 64 * 2**20
"""Up to this much is hashed to the last byte; of more, only the ends of each file."""
END_BYTES = 2**20


def fingerprint_files(files: Iterable[tuple[str, str]]) -> str:
    """Return 16 hex digits for `files`, pairs of a name (which counts) and a path (which does not).

    Files of 64 MiB together are hashed whole; of more, the size and the first and last MiB of each.
    Raises DataError for a file that cannot be read.
    """
    digest = hashlib.blake2b(digest_size=8)
    path = ""
    try:
        sized = []
        for name, path in sorted(files):
            sized.append((name, path, os.path.getsize(path)))
        whole = sum(size for _, _, size in sized) <= WHOLE_BYTES
        for name, path, size_bytes in sized:
            digest.update(os.fsencode(name) + b"\0" + size_bytes.to_bytes(8, "big"))
            with open(path, "rb") as stream:
                if whole or size_bytes <= 2 * END_BYTES:
                    digest.update(stream.read())
                else:
                    digest.update(stream.read(END_BYTES))
                    stream.seek(-END_BYTES, os.SEEK_END)
                    digest.update(stream.read())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    return digest.hexdigest()


def fingerprint_arrays(arrays: Iterable[np.ndarray]) -> str:
    """Return 16 hex digits for types, shapes and every value of `arrays`, none of them of Python objects."""
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
