"""Rows of an Arrow table, of which a column is gathered when it is asked for, so that large tables are never copied.

Each column of each split is in memory for a moment, in place of all columns of all splits for good.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True)
class Rows:
    """Some rows of a table, or all."""

    table: pa.Table
    indices: np.ndarray | None = None
    """(N,) int64, the rows; None for all, in their order."""

    def __len__(self) -> int:
        return self.table.num_rows if self.indices is None else len(self.indices)

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        """Return the cells of a column."""
        column = self.table[name]
        if self.indices is None or len(self.indices) == 0:
            return column.slice(0, len(self))
        first = int(self.indices.min())  # Arrow joins all the chunks that it takes from
        stretch = column.slice(first, int(self.indices.max()) + 1 - first)
        return stretch.take(self.indices - first)

    @property
    def column_names(self) -> list[str]:
        """Names of the columns of the table."""
        return list(self.table.column_names)

    @property
    def file(self) -> str:
        """What messages call the file that the rows are from."""
        return str(self.table.schema.metadata[b"file"].decode())

    def take(self, indices: np.ndarray) -> Rows:
        """Return the rows at `indices` (int64) of these."""
        return Rows(self.table, indices if self.indices is None else self.indices[indices])

    def blocks(self) -> Iterator[tuple[slice, Rows]]:
        """Yield stretches of the rows, in order, each with where it stands."""
        for start in range(0, len(self), _ROWS_AT_ONCE):
            at = slice(start, min(start + _ROWS_AT_ONCE, len(self)))
            if self.indices is None:
                yield at, Rows(self.table.slice(start, at.stop - start))
            else:
                yield at, Rows(self.table, self.indices[at])
