"""The commands that show what there is: runs, diff, compare, cache, schema, components."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dltrain.cli.options import JsonOption, print_json


def runs(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder of runs.")] = Path("runs"),
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="'KEY OP VALUE'",
            help="Only runs of which this holds: 'val/accuracy > 0.9', 'optimizer.lr < 0.01', 'tag.NAME == x', "
            "'name == digits', 'state == finished'. Several must hold together.",
        ),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="By a metric, a setting or a tag, such as val/accuracy; -KEY: downwards."),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(metavar="KEY,KEY,...", help="Show these, such as run,optimizer.lr,val/loss,elapsed_s."),
    ] = None,
    json_: JsonOption = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print the result as CSV.")] = False,
) -> None:
    """List runs with their metrics and the settings in which they differ, newest first."""
    from dltrain import listing

    chosen = [key.strip() for key in columns.split(",") if key.strip()] if columns else []
    rows = listing.list_runs(folder, sort, where or [], chosen)
    if json_:
        print_json(rows)
    elif csv:
        listing.write_csv(rows, sys.stdout)
    else:
        listing.show(rows, folder, whole=bool(chosen))


def diff(
    a: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    b: Annotated[Path, typer.Argument(metavar="RUN", help="Another.")],
    json_: JsonOption = False,
) -> None:
    """Show what two runs differ in: settings, versions, data; and their metrics side by side."""
    from dltrain import difference

    result = difference.diff(a, b)
    if json_:
        print_json(result)
    else:
        difference.show_diff(result)


def compare(
    a: Annotated[str, typer.Argument(help="The runs of one setting: a folder, or run directories: RUN,RUN,...")],
    b: Annotated[str, typer.Argument(help="The runs of the other setting.")],
    metric: Annotated[str | None, typer.Option(help="Such as val/loss; else the monitored one.")] = None,
    last: Annotated[bool, typer.Option("--last", help="The values at the end, not at the best checkpoint.")] = False,
    json_: JsonOption = False,
) -> None:
    """Test whether two settings, each trained with several seeds, differ by more than the seeds make them."""
    from dltrain import comparison

    result = comparison.compare(a, b, metric=metric, last=last)
    if json_:
        print_json(result)
    else:
        comparison.show_comparison(result)


def cache(
    entries: Annotated[
        list[str] | None, typer.Argument(metavar="[ENTRY]...", help="Only these; the start of a name will do.")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Remove them, or all that is there.")] = False,
    json_: JsonOption = False,
) -> None:
    """List the prepared data and the compiled code that the cache keeps, with their sizes, or remove them."""
    from dltrain.data import cache_entries
    from dltrain.data.storage import cache_folder

    folder = cache_folder()
    limit = 0 if folder is None else cache_entries.limit_bytes(folder)
    rows = cache_entries.clear(entries or ()) if clear else cache_entries.list_entries(entries or ())
    if json_:
        print_json({"folder": folder, "limit_bytes": limit, "removed" if clear else "entries": rows})
    else:
        _print_cache(folder, limit, rows, clear)


def schema() -> None:
    """Print the JSON schema of configs, by which editors complete and check them."""
    from dltrain.config.manual import json_schema

    print_json(json_schema())


def components(
    kind: Annotated[str | None, typer.Argument(help="data, model, loss, optimizer, ...", show_default=False)] = None,
    name: Annotated[str | None, typer.Argument(help="One of that kind.", show_default=False)] = None,
) -> None:
    """Show the built-in components, their arguments, defaults and ranges."""
    from dltrain.config.manual import show_components

    show_components(kind, name)


def _print_cache(folder: Path | None, limit_bytes: int, rows: list[dict[str, Any]], removed: bool) -> None:
    from dltrain.console import err_console, out_console, table

    size_mib = sum(row["size_bytes"] for row in rows) / 2**20
    if rows and not removed:
        columns = ["entry", "data", "use", "samples", "MiB", "created", "used"]
        cells = [
            [
                row["entry"],
                row.get("data", "(unfinished or damaged)"),
                row.get("use", ""),
                sum(row["samples"].values()) if "samples" in row else "",
                f"{row['size_bytes'] / 2**20:.1f}",
                row.get("created", "")[:16],
                row["used"][:16],
            ]
            for row in rows
        ]
        out_console().print(table(columns, cells))
    verb = "removed" if removed else "in the cache"
    where = f"{folder} (limit {limit_bytes / 2**30:.1f} GiB)" if folder else "that DLTRAIN_CACHE=off switches off"
    num_entries = "1 entry" if len(rows) == 1 else f"{len(rows)} entries"
    err_console().print(f"{num_entries} of {size_mib:.1f} MiB {verb} {where}", markup=False, soft_wrap=True)
