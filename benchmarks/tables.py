"""The look of all tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table


def new_table(title: str, texts: Sequence[str], numbers: Sequence[str]) -> Table:
    """Return a table without rows: columns of text to the left, columns of numbers to the right of them."""
    result = Table(title=title, box=None, pad_edge=False, header_style="bold")
    for column in texts:
        result.add_column(column)
    for column in numbers:
        result.add_column(column, justify="right")
    return result


def show(console: Console, *results: Table | str) -> None:
    """Print tables and lines; rich itself would break a title at the width of its table."""
    for result in results:
        if isinstance(result, Table) and result.title is not None:
            console.print(result.title)
            result.title = None
        console.print(result)
