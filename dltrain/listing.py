"""`dltrain runs`: what lies in a folder of runs, read from the run directories alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import IO, Any

from dltrain.errors import ConfigError
from dltrain.names import did_you_mean
from dltrain.run import find_runs, is_locked, read_metrics

_ALWAYS = ("run", "state", "started", "epoch", "best_epoch")
_METRICS = ("loss", "accuracy", "micro_f1", "rmse", "r2")
_NOT_OF_THE_BEST = ("epoch", "best", "step", "samples_per_s", "elapsed_s", "lr")


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
    shown = [name for name in names if name in _ALWAYS or "." in name or name.partition("/")[2] in _METRICS]
    shown = [name for name in shown if not name.startswith("train/") or name == "train/loss"]
    console = out_console()
    for name in ("train/loss", "started", "val/loss", "epoch", "best_epoch", "state"):
        if console.is_terminal and _width(shown, rows) > console.width and name in shown:
            shown.remove(name)
    console.print(table(shown, [[_text(name, row.get(name)) for name in shown] for row in rows]))


def _width(names: list[str], rows: list[dict[str, Any]]) -> int:
    """Return how many columns of a terminal the table takes."""
    from dltrain.console import number_text

    texts = [[number_text(_text(name, row.get(name))) for row in rows] for name in names]
    return sum(2 + max(len(name), *map(len, column)) for name, column in zip(names, texts, strict=True))


def _row(run: Path) -> dict[str, Any]:
    """Return how far a run is, what `--set` changed in it, and the metrics of its best checkpoint."""
    metrics = read_metrics(run)
    best = next((row for row in reversed(metrics) if row.get("best")), metrics[-1] if metrics else {})
    started, state = _log(run)
    row: dict[str, Any] = {"run": str(run), "state": "running" if is_locked(run) else state, "started": started}
    if metrics:
        row |= {"epoch": metrics[-1].get("epoch"), "best_epoch": best.get("epoch")}
    return row | _changes(run) | {key: value for key, value in best.items() if key not in _NOT_OF_THE_BEST}


def _changes(run: Path) -> dict[str, Any]:
    """Return the settings that `--set` gave the run, by dotted key."""
    try:
        changes = json.loads((run / "environment.json").read_text(encoding="utf-8"))["set"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return changes if isinstance(changes, dict) else {}


def _log(run: Path) -> tuple[str, str]:
    """Return when the run started, as "YYYY-MM-DD HH:MM:SS", and how it ended since: finished, stopped or failed."""
    try:
        lines = (run / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "", "stopped"
    messages = [line[20:] for line in lines]
    last = next((m for m in reversed(messages) if m.startswith(("start", "resume", "finished", "ended by"))), "")
    failed = last.startswith("ended by") and not last.startswith("ended by Stopped")
    state = "finished" if last.startswith("finished") else "failed" if failed else "stopped"
    return lines[0][:19] if lines else "", state


def _text(name: str, value: Any) -> Any:
    if name in ("epoch", "best_epoch") and isinstance(value, float):
        return f"{value:.4g}"
    if name == "started":
        return str(value)[5:16]
    return "-" if value is None else value if isinstance(value, str | int | float) else str(value)
