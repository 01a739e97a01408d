"""report.html: a sweep on one page that needs nothing else, made from the sweep's folder alone by `write_report`.

`_Facts` is what is known, each function below it returns one chapter of the page. Whatever comes from configs, data and
errors goes through `escape`. Looks are in report.css, what answers the pointer in report.js; without it nothing is lost.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from dltrain.config.schema.sweep import Sweep
from dltrain.config.validate import ConfigFile
from dltrain.console import clock_text, number_text
from dltrain.metrics import HIGHER_IS_BETTER, PRIMARY
from dltrain.names import spell
from dltrain.run import read_metrics, writing
from dltrain.sweep import charts
from dltrain.sweep.axes import Axis, axis_of_setting, axis_of_values, is_number, short
from dltrain.sweep.charts import Curve, Mark, Point, escape
from dltrain.sweep.folder import file_of
from dltrain.sweep.importance import NUM_NEEDED, importance
from dltrain.sweep.journal import Trial, ranked, read_events, trials_of
from dltrain.sweep.points import num_trials
from dltrain.sweep.space import options_of, settings_of

REPORT = "report.html"
_NUM_SHADES = 9
_STATES = ("finished", "pruned", "failed", "open")


def write_report(sweep_folder: str | Path) -> Path:
    """Write `sweep_folder`/report.html, of a sweep that has ended or is running, and return its path.

    Raises:
        ConfigError, DataError: if there is no sweep in the folder, or it cannot be read.
        TrainingError: if the disk refuses.
    """
    folder = Path(sweep_folder)
    events = read_events(folder)
    file = file_of(folder, events)
    facts = _Facts(folder, file, settings_of(file), events)
    with writing(folder / REPORT) as path:
        temporary = path.with_name(f"{REPORT}.tmp")
        temporary.write_text(_page(facts), encoding="utf-8")
        os.replace(temporary, path)
    return path


@dataclass(frozen=True)
class _Facts:
    """What the page says, before it is said."""

    folder: Path
    file: ConfigFile
    settings: Sweep
    events: list[dict[str, Any]]

    @cached_property
    def trials(self) -> list[Trial]:
        return list(trials_of(self.events, self.settings.seeds).values())

    @cached_property
    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """Run directory, relative to the sweep's -> its lines of metrics."""
        folders = [run.folder for trial in self.trials for run in trial.runs if run.folder]
        return {folder: read_metrics(self.folder / folder) for folder in folders}

    @cached_property
    def objectives(self) -> list[str]:
        if self.settings.objectives:
            return self.settings.objectives
        return [self.file.config.train.monitor or self._monitor()]

    @cached_property
    def higher(self) -> list[bool]:
        """Of each objective, whether higher is better."""
        return [HIGHER_IS_BETTER.get(name.partition("/")[2], False) for name in self.objectives]

    @cached_property
    def values(self) -> dict[int, list[float]]:
        """Trial -> its objectives, for those that finished with numbers."""
        found = [t for t in self.trials if t.state == "finished"]
        width = len(self.objectives)
        found = [t for t in found if all(len(r.values) == width and all(map(is_number, r.values)) for r in t.runs)]
        return {trial.number: trial.values for trial in found}

    @cached_property
    def best(self) -> list[Trial]:
        """All finished trials, the best first; of several objectives those of the Pareto front."""
        return ranked({trial.number: trial for trial in self.trials if trial.number in self.values}, self.higher)

    @cached_property
    def marks(self) -> dict[int, Mark]:
        """Trial -> how it looks; the colours are by rank in the first objective, so that a bad one cannot use them up."""
        order = sorted(self.values, key=lambda number: self.values[number][0], reverse=not self.higher[0])
        last = max(1, len(order) - 1)
        looks = {number: f"c{(_NUM_SHADES - 1) * place // last}" for place, number in enumerate(order)}
        best = {trial.number for trial in (self.best[:1] if len(self.objectives) == 1 else self.best)}
        return {
            trial.number: Mark(trial.number, looks.get(trial.number, _look(trial)), trial.number in best)
            for trial in self.trials
        }

    @cached_property
    def worst_first(self) -> list[Trial]:
        """All trials in the order in which they are drawn over each other."""

        def depth(trial: Trial) -> tuple[bool, bool, float]:
            value = self.values.get(trial.number, [0.0])[0]
            is_best = self.marks[trial.number].is_best
            return is_best, trial.number in self.values, value if self.higher[0] else -value

        return sorted(self.trials, key=depth)

    @cached_property
    def axes(self) -> list[Axis]:
        return [axis_of_setting(key, dimension) for key, dimension in self.settings.space.items()]

    @cached_property
    def elapsed_s(self) -> float:
        """Time in which the sweep was at work, without the pauses before it was resumed."""
        total_s, last = 0.0, None
        for event in self.events:
            now = event.get("time")
            if is_number(now) and last is not None and event["event"] != "resumed":
                total_s += max(0.0, now - last)
            last = now if is_number(now) else last
        return total_s

    def _monitor(self) -> str:
        """Return the metric of the tasks that the trials were judged by: the one that had the reported values."""
        possible = [f"{split}/{name}" for split in ("val", "train") for name in [*PRIMARY.values(), "loss"]]
        pairs = [(r.values[0], r.metrics) for t in self.trials for r in t.runs if r.values]
        for run in (run for trial in self.trials for run in trial.runs):
            pairs += zip(run.reports, self.rows.get(run.folder, []), strict=False)
        pairs = [(value, row) for value, row in pairs if value is not None]
        return next((name for name in possible if all(row.get(name) == value for value, row in pairs)), possible[-1])


def _look(trial: Trial) -> str:
    return "open" if trial.state == "finished" else trial.state


def _page(facts: _Facts) -> str:
    here = Path(__file__)
    chapters = [_head(facts), _best(facts), _parallel(facts), _importance(facts), _slices(facts), _front(facts)]
    chapters += [_curves(facts), _table(facts)]
    written = time.strftime("%Y-%m-%d %H:%M")
    version = escape(facts.events[0].get("dltrain", ""))
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(facts.file.name)}: sweep report</title>",
            f"<style>\n{here.with_suffix('.css').read_text(encoding='utf-8')}</style>\n</head>\n<body>",
            *(chapter for chapter in chapters if chapter),
            f'<footer class="note">Written {written} by dltrain {version} from trials.jsonl and the run directories.',
            f"</footer>\n<script>\n{here.with_suffix('.js').read_text(encoding='utf-8')}</script>\n</body>\n</html>\n",
        ]
    )


# ---- the chapters ----------------------------------------------------------------------------------------------------


def _head(facts: _Facts) -> str:
    settings, states = facts.settings, [trial.state for trial in facts.trials]
    total = max(num_trials(settings), len(states))
    counts = {state: states.count(state) for state in _STATES[:3]}
    counts["open"] = total - sum(counts.values())
    goals = " and the ".join(
        f"{'highest' if higher else 'lowest'} <b>{escape(name)}</b>"
        for name, higher in zip(facts.objectives, facts.higher, strict=True)
    )
    one = len(settings.space) == 1
    how = f"chosen by {settings.sampler}" + ("" if settings.pruner == "none" else f", pruned by {settings.pruner}")
    seeds = f", each trained with {settings.seeds} seeds" if settings.seeds > 1 else ""
    figures = []
    if facts.best and len(facts.objectives) == 1:
        best = facts.best[0]
        figures.append(("goal", f"best {facts.objectives[0]}", f"{_value_text(best, 0)} <small>trial {best.number}</small>"))
    elif facts.best:
        figures.append(("goal", "on the Pareto front", f"{len(facts.best)} <small>trials</small>"))
    figures += [("", state, f"{count:,}") for state, count in counts.items()]
    figures += [("", "trials in all", f"{total:,}"), ("", "elapsed", clock_text(facts.elapsed_s))]
    items = "".join(f'<div class="{kind}"><dt>{escape(name)}</dt><dd>{text}</dd></div>' for kind, name, text in figures)
    bar = "".join(f'<i class="{state}" style="flex:{count}"></i>' for state, count in counts.items() if count)
    return f"""<header>
<p class="kicker">Sweep {escape(_shown(facts.folder))}</p>
<h1>{escape(facts.file.name)}</h1>
<p class="lede">{total:,} trial{"" if total == 1 else "s"} over {len(settings.space)} setting{"" if one else "s"}{seeds},
{how}, for the {goals}.</p>
<dl class="figures">{items}</dl>
<div class="states" role="img" aria-label="{", ".join(f"{count} {state}" for state, count in counts.items())}">{bar}</div>
</header>"""


def _best(facts: _Facts) -> str:
    states = [trial.state for trial in facts.trials]
    commands = []
    if states.count("open") or len(states) < num_trials(facts.settings):
        commands.append(("Go on", f"dltrain sweep --resume {shlex.quote(_shown(facts.folder))}"))
    boxes = ""
    if facts.best:
        best = facts.best[0]
        run = _shown(facts.folder / best.runs[0].folder)
        options = " ".join(f"--set {shlex.quote(option)}" for option in options_of(best.params))
        commands.append(("Look at the best run", f"dltrain evaluate {shlex.quote(run)}"))
        commands.append(("Train it again", f"dltrain fit {shlex.quote(str(facts.file.document.name))} {options}"))
        others = f", the first of {len(facts.best)} on the front" if len(facts.objectives) > 1 else ""
        boxes += _box([(f"Settings of trial {best.number}{others}", _yaml_of(best.params))])
    boxes += _box(commands) if commands else ""
    title = "The best" if facts.best else "No trial finished yet" if "open" in states else "No trial finished"
    return f'<section>\n<h2>{title}</h2>\n<div class="pair">{boxes}</div>\n</section>'


def _box(texts: Sequence[tuple[str, str]]) -> str:
    copy = '<button class="copy needs-js" type="button">copy</button>' if len(texts) == 1 else ""
    inner = "".join(f"<h3>{escape(title)}</h3><pre>{escape(text)}</pre>" for title, text in texts)
    return f'<div class="box">{copy}{inner}</div>'


def _parallel(facts: _Facts) -> str:
    goals = _goal_axes(facts)
    rows = [
        (facts.marks[t.number], [*(t.params.get(axis.name) for axis in facts.axes), *_values_or_none(facts, t)])
        for t in facts.worst_first
    ]
    chart = charts.parallel([*facts.axes, *goals], rows, len(facts.axes))
    return f"""<section>
<h2>All trials</h2>
<p class="note">A line is a trial: the settings it had, and on the right what came of it. The lines of trials without
a result end before it.{_edge_note(facts, goals)} <span class="needs-js">Draw along an axis to choose trials everywhere
on this page; a click there chooses all again.</span></p>
{_legend(facts)}
<div class="chart">{chart}</div>
</section>"""


def _importance(facts: _Facts) -> str:
    head = "<section>\n<h2>Which settings mattered</h2>\n"
    places = {t.number: [axis.at(t.params.get(axis.name)) for axis in facts.axes] for t in facts.trials}
    numbers = [number for number in facts.values if None not in places[number]]
    if len(facts.axes) < 2:
        return f'{head}<p class="note">Only one setting was searched: all that differs comes from it.</p>\n</section>'
    if len(numbers) < NUM_NEEDED:
        text = f"{NUM_NEEDED} finished trials are needed to tell; there are {len(numbers)}."
        return f'{head}<p class="note">{text}</p>\n</section>'
    parts = []
    for index, name in enumerate(facts.objectives):
        points = [[place or 0.0 for place in places[number]] for number in numbers]
        found = importance(points, [facts.values[number][index] for number in numbers])
        title = f"<h3>{escape(name)}</h3>" if len(facts.objectives) > 1 else ""
        if found is None:
            parts.append(f'<div>{title}<p class="note">All trials came to the same {escape(name)}.</p></div>')
            continue
        shares, rest = found
        bars = sorted(zip(facts.settings.space, shares, strict=True), key=lambda bar: -bar[1])
        rows = [_bar(key, share, "") for key, share in bars] + [_bar("several together", rest, "rest")]
        parts.append(f'<div>{title}<div class="bars">{"".join(rows)}</div></div>')
    return f"""{head}<p class="note">Share of the variance over the whole space that each setting accounts for by itself
(fANOVA on a random forest, from {len(numbers)} finished trials{"; so few say little" if len(numbers) < 30 else ""}).</p>
<div class="pair">{"".join(parts)}</div>\n</section>"""


def _bar(name: str, share: float, kind: str) -> str:
    width = f"{100 * share:.1f}%"
    return f'<span>{escape(name)}</span><i class="{kind}" style="width:{width}"></i><b>{100 * share:.0f} %</b>'


def _slices(facts: _Facts) -> str:
    goals = _goal_axes(facts)
    parts = []
    for index, goal in enumerate(goals):
        if len(goals) > 1:
            parts.append(f"<h3>{escape(goal.name)}</h3>")
        cells = [charts.scatter(axis, goal, *_dots(facts, axis.name, index), (340, 230)) for axis in facts.axes]
        parts.append(f'<div class="slices">{"".join(f"<div>{cell}</div>" for cell in cells)}</div>')
    rug = " Ticks at the bottom are trials without a result." if len(facts.values) < len(facts.trials) else ""
    return f"""<section>
<h2>Setting by setting</h2>
<p class="note">The objective against each setting; a dot is a trial.{rug}{_edge_note(facts, goals)}</p>
{"".join(parts)}
</section>"""


def _dots(facts: _Facts, key: str, index: int) -> tuple[list[Point], list[tuple[Mark, Any]]]:
    """Return the trials as points of a setting and an objective, and those that have no value there."""
    points, others = [], []
    for trial in facts.worst_first:
        mark, value = facts.marks[trial.number], trial.params.get(key)
        if trial.number in facts.values:
            spread = trial.deviations[index] if trial.deviations else 0.0
            points.append(Point(mark, value, facts.values[trial.number][index], spread))
        else:
            others.append((mark, value))
    return points, others


def _front(facts: _Facts) -> str:
    if len(facts.objectives) < 2:
        return ""
    x, y = (axis_of_values(name, values, False, 1.0) for name, values in _columns(facts)[:2])
    points = [
        Point(facts.marks[t.number], *facts.values[t.number][:2]) for t in facts.worst_first if t.number in facts.values
    ]
    chart = charts.front(_with_arrow(x, facts.higher[0]), _with_arrow(y, facts.higher[1]), points, facts.higher[0], len(facts.objectives) == 2)
    more = "" if len(facts.objectives) == 2 else f" Of {len(facts.objectives)} objectives the first two are shown."
    return f"""<section>
<h2>Pareto front</h2>
<p class="note">The marked trials are those that no other beats in all objectives.{more}</p>
<div class="chart">{chart}</div>
</section>"""


def _curves(facts: _Facts) -> str:
    metrics = [name for name in facts.objectives if "/" in name] or [facts.file.config.train.monitor or facts._monitor()]
    parts = []
    for name in metrics:
        found = [
            Curve(facts.marks[trial.number], points)
            for trial in facts.worst_first
            for run in trial.runs
            if (points := charts.curve_points(facts.rows.get(run.folder, []), name))
        ]
        if not found:
            parts.append(f'<p class="note">No training has written {escape(name)}.</p>')
            continue
        higher = HIGHER_IS_BETTER.get(name.partition("/")[2], False)
        last_step = max(curve.points[-1][0] for curve in found)
        y = axis_of_values(name, [value for curve in found for _, value in curve.points], higher, 0.97)
        chart = charts.curves(Axis("step", "linear", 0.0, last_step or 1.0), _with_arrow(y, higher), found)
        parts.append(f'<div class="chart">{chart}</div>')
    silent = sum(not facts.rows.get(run.folder) for trial in facts.trials for run in trial.runs if run.state == "failed")
    note = f" {silent} failed before the first evaluation and have none." if silent else ""
    return f"""<section>
<h2>Learning curves</h2>
<p class="note">A curve for each training.{note}</p>
{_legend(facts)}
{"".join(parts)}
</section>"""


def _table(facts: _Facts) -> str:
    """Return the table; `data-v` is what a column is sorted by, with all digits."""
    has_errors = any(trial.error for trial in facts.trials)
    heads = ["trial", "state", *facts.objectives, *facts.settings.space, "time", "run", *(["error"] if has_errors else [])]
    rows = []
    for trial in facts.trials:
        mark = facts.marks[trial.number]
        cells = [_cell(trial.number, str(trial.number)), f"<td>{trial.state}</td>"]
        for index, value in enumerate(_values_or_none(facts, trial)):
            cells.append("<td></td>" if value is None else _cell(value, _value_text(trial, index)))
        for key in facts.settings.space:
            value = trial.params.get(key)
            text = value if isinstance(value, str) else short(value) if isinstance(value, float) else spell(value)
            cells.append(_cell(value, escape(text)))
        elapsed_s = sum(run.elapsed_s for run in trial.runs if is_number(run.elapsed_s))
        cells.append(_cell(elapsed_s, f"{short(elapsed_s)} s") if elapsed_s else "<td></td>")
        folders = [run.folder for run in trial.runs if run.folder]
        links = [f'<a href="./{escape(quote(folder))}/">{escape(folder)}</a>' for folder in folders]
        cells.append(f"<td>{'<br>'.join(links)}</td>")
        if has_errors:
            cells.append(f'<td class="wide">{escape(trial.error)}</td>')
        kind = f"{trial.state}{' best' if mark.is_best else ''}"
        rows.append(f'<tr data-t="{trial.number}" class="{kind}">{"".join(cells)}</tr>')
    columns = "".join(f"<th>{escape(head)}</th>" for head in heads)
    return f"""<section>
<h2>Table of trials</h2>
<p class="note">Run directories lie beside this page. <span class="needs-js">A click on a column sorts by it.</span></p>
<div class="table"><table id="trials"><thead><tr>{columns}</tr></thead>
<tbody>
{chr(10).join(rows)}
</tbody></table></div>
</section>"""


# ---- what several chapters say ---------------------------------------------------------------------------------------


def _cell(value: Any, text: str) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"<td>{text}</td>"
    return f'<td class="n" data-v="{escape(repr(value))}">{text}</td>'


def _legend(facts: _Facts) -> str:
    shades = "".join(f'<rect class="c{i}" x="{12 * i}" width="12" height="12"/>' for i in range(_NUM_SHADES))
    what = escape(facts.objectives[0])
    parts = [f'<span>worst <svg viewBox="0 0 {12 * _NUM_SHADES} 12">{shades}</svg> best by rank in {what}</span>']
    best = "best" if len(facts.objectives) == 1 else "Pareto front"
    looks = [(f"c8 best", best)] if facts.best else []
    looks += [(state, state) for state in _STATES[1:] if any(trial.state == state for trial in facts.trials)]
    parts += [f'<span><svg viewBox="0 0 26 12"><path class="{look}" d="M0 6H26"/></svg> {text}</span>' for look, text in looks]
    return f'<div class="legend">{"".join(parts)}</div>'


def _columns(facts: _Facts) -> list[tuple[str, list[float]]]:
    """Return the objectives and of each the values of all finished trials."""
    return [(name, [values[index] for values in facts.values.values()]) for index, name in enumerate(facts.objectives)]


def _goal_axes(facts: _Facts) -> list[Axis]:
    return [
        axis_of_values(name, values, higher) for (name, values), higher in zip(_columns(facts), facts.higher, strict=True)
    ]


def _edge_note(facts: _Facts, goals: Sequence[Axis]) -> str:
    """Return the sentence on trials that lie beyond an axis."""
    beyond = [
        (name, number)
        for (name, values), axis in zip(_columns(facts), goals, strict=True)
        if (number := sum(not axis.low <= value <= axis.high for value in values))
    ]
    return "".join(f" {number} far worse in {escape(name)} are drawn at the edge." for name, number in beyond)


def _with_arrow(axis: Axis, higher_is_better: bool) -> Axis:
    return Axis(f"{axis.name} ({'higher' if higher_is_better else 'lower'} is better)", axis.kind, axis.low, axis.high)


def _values_or_none(facts: _Facts, trial: Trial) -> list[float | None]:
    return list(facts.values.get(trial.number, [None for _ in facts.objectives]))


def _value_text(trial: Trial, index: int) -> str:
    value = trial.values[index]
    text = short(value) if float(value).is_integer() else number_text(value)
    return f"{text} <small>± {number_text(trial.deviations[index])}</small>" if trial.deviations else text


def _yaml_of(params: dict[str, Any]) -> str:
    """Return the settings as sections of a config; as --set options where one is a position in a list."""
    if any(part.isdecimal() for key in params for part in key.split(".")):
        return "\n".join(f"--set {shlex.quote(option)}" for option in options_of(params))
    tree: dict[str, Any] = {}
    for key, value in params.items():
        *above, name = key.split(".")
        section = tree
        for part in above:
            section = section.setdefault(part, {})
        section[name] = value
    return str(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)).rstrip()


def _shown(path: Path) -> str:
    """Return a path as one would type it: from the working directory, where it lies below it."""
    near = os.path.relpath(path)
    return str(path) if near.startswith("..") else near
