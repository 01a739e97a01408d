"""`dltrain runs`: what lies in a folder of runs, read from the run directories alone, without torch.

A run is a mapping by key: what it is (run, name, state, ...), its settings ("optimizer.lr"), its tags ("tag.owner")
and the metrics of its best checkpoint ("val/loss"). Filters, sorting and columns all name these keys.
"""

from __future__ import annotations

import csv
import json
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from dltrain.config.reader import read_scalar, read_text
from dltrain.errors import ConfigError
from dltrain.names import did_you_mean, spell
from dltrain.run import find_runs, is_locked, read_metrics

Values = dict[str, Any]

_MAX_HEADER_BYTES = 2**28
_ALWAYS = ("run", "state", "started", "epoch", "best_epoch")
_ASKED_FOR = ("name", "elapsed_s", "step")
"""Keys that every run has and that are shown only where somebody asks for them."""
_METRICS = ("loss", "accuracy", "micro_f1", "rmse", "r2", "perplexity", "token_accuracy", "exact_match")
_NOT_OF_THE_BEST = ("epoch", "best", "step", "samples_per_s", "elapsed_s", "lr")
_TAG = "tag."
_TAG_NAME = re.compile(r"[A-Za-z0-9_-]+")
_CONDITION = re.compile(r"\s*([^\s<>=!]+)\s*(<=|>=|==|!=|<|>|=)\s*(.*\S)\s*", re.DOTALL)
_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def list_runs(
    folder: Path, sort: str | None = None, where: Sequence[str] = (), columns: Sequence[str] = ()
) -> list[Values]:
    """Return a row for each run at or below `folder`, newest first.

    A row holds what the run is, the settings that `--set` gave to one of the listed runs or in which runs of the same
    name differ, the tags, and the metrics of the best checkpoint.

    Args:
        folder: searched with all that is below it.
        sort: a key to sort by; "-key" for downwards. Runs that lack it come last.
        where: conditions such as "val/accuracy > 0.9", all of which must hold.
        columns: the keys of the rows, in place of those above.

    Raises:
        ConfigError: if there is no such folder, no run has a key, or a condition cannot be read.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder of runs")
    conditions = [_read_condition(text) for text in where]
    runs = [read_run(run) for run in find_runs(folder)][::-1]  # of those started in one second, too, the newest first
    runs.sort(key=lambda run: run.about["started"], reverse=True)
    if not runs:
        return []
    known = _names([run.values for run in runs])
    for condition in conditions:
        _check_condition(condition, runs, known)
    listed = [run for run in runs if all(_holds(condition, run.values) for condition in conditions)]
    keys = list(columns) or _shown_keys(listed)
    for key in columns:
        if key not in known:
            raise ConfigError(f"--columns {key}: no run has that{_nearest_key(key, known)}")
    if sort is not None:
        name = sort.removeprefix("-")
        if name not in known:
            possible = ", ".join(_shown_keys(runs))
            raise ConfigError(f"--sort {sort}: no run has that; possible: {possible}{_nearest_key(name, known)}")
        listed = _sorted(listed, name, downwards=sort.startswith("-"))
        keys = list(dict.fromkeys([*keys, *([] if columns else [name])]))
    return [{key: run.values.get(key) for key in keys if columns or key in run.values} for run in listed]


def write_csv(rows: list[Values], file: IO[str]) -> None:
    """Write rows of `list_runs`; the columns are those of all rows."""
    if not rows:
        return
    writer = csv.DictWriter(file, _names(rows), restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: spell(value) if isinstance(value, bool | list) else value for key, value in row.items()})


def show(rows: list[Values], folder: Path, *, whole: bool = False) -> None:
    """Print rows of `list_runs` as a table; `whole` with all columns, else with those that tell runs apart."""
    from dltrain.console import err_console, out_console, table

    if not rows:
        err_console().print(f"no runs in {folder}", markup=False)
        return
    console = out_console()
    shown = _names(rows)
    if not whole:
        shown = [name for name in shown if name in _ALWAYS or _is_main_metric(name) or _tells_apart(name, rows)]
        for name in ("train/loss", "started", "val/loss", "epoch", "best_epoch", "state"):
            if console.is_terminal and _width(shown, rows) > console.width and name in shown:
                shown.remove(name)
    console.print(table(shown, [[_text(name, row.get(name)) for name in shown] for row in rows]))


def _names(rows: list[Values]) -> list[str]:
    """Return the keys of all rows; what a later row has more goes where it stands there."""
    names: list[str] = []
    for row in rows:
        at = 0
        for key in row:
            if key in names:
                at = names.index(key) + 1
            else:
                names.insert(at, key)
                at += 1
    return names


def _is_main_metric(name: str) -> bool:
    split, _, metric = name.partition("/")
    return metric in _METRICS and (split != "train" or metric == "loss")


def _tells_apart(name: str, rows: list[Values]) -> bool:
    """Return whether a column is a setting or a tag, and has not one value in all of several rows."""
    return "/" not in name and (len(rows) == 1 or len({spell_all(row.get(name)) for row in rows}) > 1)


def _width(names: list[str], rows: list[Values]) -> int:
    """Return how many columns of a terminal the table takes."""
    from dltrain.console import number_text

    texts = [[number_text(_text(name, row.get(name))) for row in rows] for name in names]
    return sum(2 + max(len(name), *map(len, column)) for name, column in zip(names, texts, strict=True))


def _text(name: str, value: Any) -> Any:
    if isinstance(value, float) and (name in ("epoch", "best_epoch") or "." in name):
        return f"{value:.4g}"
    if name == "started":
        return str(value)[5:16]
    return "-" if value is None else value if isinstance(value, str | int | float) else spell(value)


# ---- what is known of a run ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run from its directory; what is damaged or not there yet is left out."""

    about: Values
    """run, name, state, started; epoch, best_epoch, step and elapsed_s once there are metrics."""
    settings: Values
    """All settings by dotted key."""
    changed: frozenset[str]
    """Keys of the settings that `--set` gave."""
    tags: dict[str, str]
    metrics: Values
    """Of the best checkpoint."""

    @property
    def values(self) -> Values:
        """All of it by key."""
        return self.about | self.settings | {f"{_TAG}{key}": value for key, value in self.tags.items()} | self.metrics


def read_run(run: Path) -> RunFacts:
    """Read what is known of a run."""
    metrics = read_metrics(run)
    best = best_row(metrics)
    started, state = _log(run)
    about: Values = {
        "run": str(run),
        "name": run.resolve().parent.name,
        "state": "running" if is_locked(run) else state,
        "started": started,
    }
    if metrics:
        about |= {"epoch": metrics[-1].get("epoch"), "best_epoch": best.get("epoch")}
        about |= {key: metrics[-1][key] for key in ("step", "elapsed_s") if key in metrics[-1]}
    changes, tags = _changes_and_tags(environment_of(run))
    settings = changes | settings_of(run)
    settings.pop("name", None)  # the folder says it, also where the file of the config does
    return RunFacts(
        about,
        settings,
        frozenset(changes) & settings.keys(),
        tags,
        {key: value for key, value in best.items() if key not in _NOT_OF_THE_BEST},
    )


def best_row(metrics: list[Values]) -> Values:
    """Return the row of metrics of the best checkpoint; the last row if none is marked."""
    return next((row for row in reversed(metrics) if row.get("best")), metrics[-1] if metrics else {})


def settings_of(run: Path) -> Values:
    """Return the settings of a run with all defaults, by dotted key."""
    try:
        tree = read_text((run / "resolved.yaml").read_text(encoding="utf-8"), "resolved.yaml").value
    except (OSError, UnicodeDecodeError, ConfigError):
        return {}
    return flat(tree)


def environment_of(run: Path) -> Values:
    """Return what environment.json says: versions, host, device, and what the command line set."""
    try:
        environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return environment if isinstance(environment, dict) else {}


def _changes_and_tags(environment: Values) -> tuple[Values, dict[str, str]]:
    """Return what `--set` gave, by dotted key, and the tags."""
    given, tags = ({**found} if isinstance(found := environment.get(key), dict) else {} for key in ("set", "tags"))
    for key in [key for key in given if key.startswith(_TAG)]:  # where the first runs have their tags
        tags[key.removeprefix(_TAG)] = given.pop(key)
    return flat(given), {name: str(value) for name, value in tags.items()}


def checkpoint_meta_of(run: Path) -> Values:
    """Return the metadata of the run's last checkpoint, or of its best: read without the weights, and not verified."""
    for name in ("last.safetensors", "best.safetensors"):
        try:
            with (run / "checkpoints" / name).open("rb") as file:
                size_bytes = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size_bytes)) if size_bytes < _MAX_HEADER_BYTES else {}
            meta = json.loads(header["__metadata__"]["dltrain"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(meta, dict):
            return meta
    return {}


def facts_of(run: Path) -> Values:
    """Return what the data of the run taught, as its checkpoint has it; nothing where there is none."""
    facts = checkpoint_meta_of(run).get("facts")
    return facts if isinstance(facts, dict) else {}


def flat(tree: Any, prefix: str = "") -> Values:
    """Return {"a.b": value} for a tree of mappings and of lists of mappings; other lists are values."""
    if isinstance(tree, list) and tree and all(isinstance(item, dict) for item in tree):
        tree = dict(enumerate(tree))
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree} if prefix else {}
    values: Values = {}
    for key, value in tree.items():
        values |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return values


def _log(run: Path) -> tuple[str, str]:
    """Return when the run started, as "YYYY-MM-DD HH:MM:SS", and how it ended since: finished, stopped or failed."""
    try:
        lines = (run / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "", "stopped"
    messages = [line[20:] for line in lines]
    last = next((m for m in reversed(messages) if m.startswith(("start", "resume", "finished", "ended by"))), "")
    failed = last.startswith("ended by") and not last.startswith(("ended by Stopped", "ended by Lost"))
    state = "finished" if last.startswith("finished") else "failed" if failed else "stopped"
    return lines[0][:19] if lines else "", state


# ---- which runs, in which order, with which columns ------------------------------------------------------------------


class _Condition(NamedTuple):
    text: str
    key: str
    relation: str
    value: Any
    text_of_value: str


def _read_condition(text: str) -> _Condition:
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"--where {text}: is not of the form 'KEY OP VALUE', such as 'val/accuracy > 0.9', in quotes; "
            "possible OP: ==, !=, <, <=, >, >="
        )
    key, relation, value = match.groups()
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    value = value[1:-1] if quoted else value
    return _Condition(text, key, "==" if relation == "=" else relation, value if quoted else read_scalar(value), value)


def _check_condition(condition: _Condition, runs: list[RunFacts], known: list[str]) -> None:
    """Raise ConfigError if no run has the key, or if its values are of another kind than what they are compared to."""
    key = condition.key
    if key not in known:
        raise ConfigError(f"--where {condition.text}: no run has '{key}'{_nearest_key(key, known)}")
    found = [_comparable(key, run.values[key]) for run in runs if run.values.get(key) is not None]
    if condition.relation in _ORDERS and found and not any(_ordered(value, condition.value) for value in found):
        raise ConfigError(
            f"--where {condition.text}: {key} is {spell(found[0])}, which is neither less nor more than "
            f"{spell(condition.value)}"
        )


def _holds(condition: _Condition, values: Values) -> bool:
    found = _comparable(condition.key, values.get(condition.key))
    if condition.relation in _ORDERS:
        return _ordered(found, condition.value) and _ORDERS[condition.relation](found, condition.value)
    same_type = isinstance(found, bool) == isinstance(condition.value, bool)
    written = values.get(condition.key)
    same_text = written is not None and _plain(written) == _plain(condition.text_of_value)
    is_equal = same_text or (same_type and found == condition.value)
    return is_equal == (condition.relation == "==")


def _plain(value: Any) -> str:
    """Return a value as one writes it, without what may be written in several ways: spaces and quotes in a list."""
    if isinstance(value, list):
        return "[" + ",".join(_plain(item) for item in value) + "]"
    if isinstance(value, str) and value.startswith("["):
        return value.translate({ord(character): None for character in " '\""})
    return value if isinstance(value, str) else spell(value)


def _comparable(key: str, value: Any) -> Any:
    """Return a value as it is compared: tags are texts, and those that are numbers count as such."""
    return read_scalar(value) if key.startswith(_TAG) and isinstance(value, str) else value


def _ordered(one: Any, other: Any) -> bool:
    """Return whether one of the two is less than the other or equal: both are numbers, or both texts."""
    return (_is_number(one) and _is_number(other)) or (isinstance(one, str) and isinstance(other, str))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _sorted(runs: list[RunFacts], key: str, *, downwards: bool) -> list[RunFacts]:
    """Return runs by a key, numbers before texts; those without a value last in both directions."""

    def order(run: RunFacts) -> tuple[bool, Any]:
        value = _comparable(key, run.values[key])
        return (False, value) if _is_number(value) else (True, _plain(value))

    with_value = [run for run in runs if run.values.get(key) is not None]
    without = [run for run in runs if run.values.get(key) is None]
    return sorted(with_value, key=order, reverse=downwards) + without


def _shown_keys(runs: list[RunFacts]) -> list[str]:
    """Return the keys of a list of runs, in the order in which they are shown."""
    by_name: dict[str, list[RunFacts]] = {}
    for run in runs:
        by_name.setdefault(run.about["name"], []).append(run)
    settings = {key for run in runs for key in run.changed}
    settings |= {key for group in by_name.values() for key in differing(run.settings for run in group)}
    rows = [run.about | {k: v for k, v in run.values.items() if k in settings or k not in run.settings} for run in runs]
    return [key for key in _names(rows) if key not in _ASKED_FOR]


def differing(settings: Iterable[Values]) -> list[str]:
    """Return the settings that some runs have otherwise than others; those that only some have do not count."""
    seen: dict[str, str] = {}
    found: dict[str, None] = {}
    for of_run in settings:
        for key, value in of_run.items():
            text = spell_all(value)
            if seen.setdefault(key, text) != text:
                found[key] = None
    return list(found)


def spell_all(value: Any) -> str:
    """Return a value as a text in which any difference shows."""
    return json.dumps(value, sort_keys=True, default=str)


def _nearest_key(key: str, known: list[str]) -> str:
    """Return the key that ends in what was written ("lr" for "optimizer.lr"), or the nearest one, as a question."""
    ends = [name for name in known if re.split(r"[./]", name)[-1] == key]
    best = next((name for name in ends if name.startswith("val/")), ends[0] if ends else "")
    return f"; did you mean '{best}'?" if best else did_you_mean(key, known)


# ---- tags ------------------------------------------------------------------------------------------------------------


def read_tags(options: Sequence[str]) -> dict[str, str]:
    """Return the tags that `--tag NAME=VALUE` options give. Raises ConfigError."""
    tags: dict[str, str] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not _TAG_NAME.fullmatch(name) or not value.isprintable():
            raise ConfigError(f"--tag {option}: is not of the form NAME=VALUE; a name has letters, digits, - and _")
        tags[name] = value
    return tags
