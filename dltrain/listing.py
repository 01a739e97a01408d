"""`dltrain runs`: what lies in a folder of runs, read from the run directories alone."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import IO, Any

from dltrain.errors import ConfigError
from dltrain.names import did_you_mean
from dltrain.run import find_runs, is_locked, read_metrics

_SHOWN = ("loss", "accuracy", "micro_f1", "rmse", "penalty")


def list_runs(folder: Path, sort: str | None = None) -> list[dict[str, Any]]:
    """Return a row for each run at or below `folder`, newest first, or by the column `sort` ("-name" for downwards).

    Raises ConfigError if there is no such folder or column.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder of runs")
    rows = [_row(run) for run in find_runs(folder)][::-1]  # of those started in one second, too, the newest first
    rows.sort(key=lambda row: row["started"], reverse=True)
    if sort is not None and rows:
        name = sort.removeprefix("-")
        columns = list(dict.fromkeys(key for row in rows for key in row))
        if name not in columns:
            raise ConfigError(
                f"--sort {sort}: no run has that; possible: {', '.join(columns)}{did_you_mean(name, columns)}"
            )
        with_value = [row for row in rows if row.get(name) is not None]
        with_value.sort(key=lambda row: row[name], reverse=sort.startswith("-"))
        rows = with_value + [row for row in rows if row.get(name) is None]
    return rows


def write_csv(rows: list[dict[str, Any]], file: IO[str]) -> None:
    """Write rows of `list_runs`; the columns are those of all rows."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def show(rows: list[dict[str, Any]], folder: Path) -> None:
    """Print rows of `list_runs` as a table."""
    from dltrain.console import err_console, out_console, table

    if not rows:
        err_console().print(f"no runs in {folder}", markup=False)
        return
    names = dict.fromkeys(key for row in rows for key in row)
    shown = [n for n in names if n in ("run", "state", "epoch", "step", "started") or n.partition("/")[2] in _SHOWN]
    cells = [[_text(name, row.get(name)) for name in shown] for row in rows]
    out_console().print(table(shown, cells))


def _row(run: Path) -> dict[str, Any]:
    metrics = read_metrics(run)
    last = metrics[-1] if metrics else {}
    started, finished = _log(run)
    state = "running" if is_locked(run) else "finished" if finished else "stopped"
    return {"run": str(run), "state": state, "started": started, **last}


def _log(run: Path) -> tuple[str, bool]:
    """Return when the run started, as "YYYY-MM-DD HH:MM:SS", and whether it finished after its last start."""
    try:
        lines = (run / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "", False
    events = [line[20:].partition(" ")[0] for line in lines]
    last = next((event for event in reversed(events) if event in ("start", "resume", "finished")), "")
    return lines[0][:19] if lines else "", last == "finished"


def _text(name: str, value: Any) -> Any:
    if name == "epoch" and isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else value
