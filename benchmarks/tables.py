"""The look of all tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table


def new_table(title: str, texts: Sequence[str], numbers: Sequence[str]) -> Table:
    """Return a table without rows: columns of text to the left, columns of numbers to the right of them."""
    result = Table(
        title=title,
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
        min_width=len(title),  # else the title is broken at the width of the columns
        expand=False,
    )
    for column in texts:
        result.add_column(column)
    for column in numbers:
        result.add_column(column, justify="right")
    return result
