"""Two runs beside each other: the settings, versions and data in which they differ, and their metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dltrain.errors import ConfigError
from dltrain.listing import RunFacts, Values, best_row, environment_of, facts_of, read_run, spell_all
from dltrain.names import spell
from dltrain.run import find_runs, is_metric, read_metrics

_NO_ENVIRONMENT = ("set", "tags", "num_samples")


def diff(a: Path, b: Path) -> dict[str, Any]:
    """Return what two runs differ in: settings, tags, environment, data; and their metrics with the difference b - a.

    A setting that one of them lacks is left out on its side. Raises ConfigError for a folder that is no run.
    """
    runs = {"a": _run_at(a), "b": _run_at(b)}
    rows = {side: read_metrics(Path(run.about["run"])) for side, run in runs.items()}
    environments = {side: environment_of(path) for side, path in (("a", a), ("b", b))}
    facts = {side: facts_of(path) for side, path in (("a", a), ("b", b))}
    fingerprints = {side: of_run.get("fingerprint") for side, of_run in facts.items()}
    known = [value for value in fingerprints.values() if value is not None]
    return {
        "runs": {side: run.about["run"] for side, run in runs.items()},
        "settings": differences({side: run.settings for side, run in runs.items()}),
        "tags": differences({side: dict(run.tags) for side, run in runs.items()}),
        "environment": differences(
            {side: {k: v for k, v in e.items() if k not in _NO_ENVIRONMENT} for side, e in environments.items()}
        ),
        "data": {
            "same": known[0] == known[1] if len(known) == 2 else None,
            "fingerprint": fingerprints,
            "num_samples": {side: e.get("num_samples") for side, e in environments.items()},
        },
        "metrics": {
            "best": _beside(best_row(rows["a"]), best_row(rows["b"])),
            "last": _beside(*(rows[side][-1] if rows[side] else {} for side in ("a", "b"))),
        },
    }


def _run_at(folder: Path) -> RunFacts:
    if not (folder / "checkpoints").is_dir():
        runs = [str(run) for run in find_runs(folder)]
        hint = f"it holds runs: {', '.join(runs[:10])}" if runs else "such as runs/digits/1"
        raise ConfigError(f"{folder}: is no run directory (it has no checkpoints/); {hint}")
    return read_run(folder)


def differences(sides: dict[str, Values]) -> dict[str, Values]:
    """Return {key: {side: value}} for the keys whose values differ, or that one side lacks."""
    keys = dict.fromkeys(key for values in sides.values() for key in values)
    found = {key: {side: values[key] for side, values in sides.items() if key in values} for key in keys}
    return {
        key: values
        for key, values in found.items()
        if len(values) < len(sides) or len({spell_all(value) for value in values.values()}) > 1
    }


def _beside(a: Values, b: Values) -> dict[str, Values]:
    """Return {metric: {a, b, difference}} for all metrics of two rows, and where the rows stand."""
    names = [name for name in dict.fromkeys([*a, *b]) if name == "epoch" or is_metric(name)]
    table: dict[str, Values] = {}
    for name in names:
        one, other = a.get(name), b.get(name)
        numbers = isinstance(one, int | float) and isinstance(other, int | float)
        table[name] = {"a": one, "b": other, "difference": other - one if numbers else None}  # type: ignore[operator]
    return table


def show_diff(result: dict[str, Any]) -> None:
    """Print what `diff` returned."""
    from dltrain.console import out_console, table

    console = out_console()
    console.print(f"a  {result['runs']['a']}\nb  {result['runs']['b']}", markup=False, soft_wrap=True)
    for title in ("settings", "tags", "environment"):
        found = result[title]
        console.print()
        if found:
            cells = [[key, *(spelled(values, side) for side in ("a", "b"))] for key, values in found.items()]
            console.print(table([title, "a", "b"], cells))
        elif title != "tags":
            console.print(f"{title}: the same", markup=False)
    data = result["data"]
    words = {True: "the same", False: "differ", None: "cannot be compared: a run has no checkpoint"}
    console.print(f"\ndata: {words[data['same']]}", markup=False)
    if data["same"] is False:
        cells = [[key, *(spelled(data[key], side) for side in ("a", "b"))] for key in ("fingerprint", "num_samples")]
        console.print(table(["data", "a", "b"], cells))
    for title, rows in result["metrics"].items():
        if rows:
            console.print()
            cells = [[name, *(_cell(value) for value in values.values())] for name, values in rows.items()]
            console.print(table([f"{title} metrics", "a", "b", "b - a"], cells))


def spelled(values: Values, side: str) -> str:
    """Return the value of one side as it is written, "-" where that side has none."""
    if side not in values:
        return "-"
    return values[side] if isinstance(values[side], str) else spell(values[side])


def _cell(value: Any) -> Any:
    return "-" if value is None else value
