"""report.html: a sweep on one page that needs nothing else, made from the sweep's folder alone by `write_report`.

`facts` is what is known; each function below it returns one chapter of the page. Whatever comes from configs, data and
errors goes through `escape`. Looks are in report.css, what answers the pointer is in report.js.
"""

from __future__ import annotations

import itertools
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dltrain.console import clock_text, number_text
from dltrain.errors import DataError
from dltrain.metrics import HIGHER_IS_BETTER
from dltrain.names import shortened, spell
from dltrain.run import writing
from dltrain.sweep import charts
from dltrain.sweep.axes import Axis, axis_of_values, is_number, short
from dltrain.sweep.charts import Curve, Mark, Point, escape
from dltrain.sweep.facts import NUM_SHADES, Facts
from dltrain.sweep.folder import CONFIG, config_of
from dltrain.sweep.importance import NUM_NEEDED, importance
from dltrain.sweep.journal import Trial, read_events
from dltrain.sweep.points import num_trials
from dltrain.sweep.space import options_of, options_of_trainings, text_of

REPORT = "report.html"
_LONGEST_ERROR = 120
_STATES = ("finished", "pruned", "failed", "open")


def write_report(sweep_folder: str | Path) -> Path:
    """Write `sweep_folder`/report.html, of a sweep that has ended or is running, and return its path.

    Raises:
        ConfigError, DataError: if there is no sweep in the folder, or it cannot be read.
        TrainingError: if the disk refuses.
    """
    folder = Path(sweep_folder)
    events = read_events(folder)
    file = config_of(folder, events)
    if file.config.sweep is None:
        raise DataError(f"{folder / CONFIG}: has no section 'sweep'")
    facts = Facts(folder, file, file.config.sweep, events)
    with writing(folder / REPORT) as path:
        temporary = path.with_name(f"{REPORT}.tmp")
        temporary.write_text(_page(facts), encoding="utf-8")
        os.replace(temporary, path)
    return path


def _page(facts: Facts) -> str:
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


def _head(facts: Facts) -> str:
    settings, states = facts.settings, [trial.state for trial in facts.trials]
    total = max(num_trials(settings), len(states))
    counts = {state: states.count(state) for state in _STATES[:3]}
    counts["open"] = total - sum(counts.values())
    goals = " and the ".join(
        f"{'highest' if higher else 'lowest'} <b>{escape(name)}</b>"
        for name, higher in zip(facts.objectives, facts.higher, strict=True)
    )
    one = len(settings.space) == 1
    how = f", each trained with {settings.seeds} seeds" if settings.seeds > 1 else ""
    how += f", chosen by {settings.sampler}" + ("" if settings.pruner == "none" else f", pruned by {settings.pruner}")
    figures = []
    if facts.best and len(facts.objectives) == 1:
        best = facts.best[0]
        figures.append(
            ("goal", f"best {facts.objectives[0]}", f"{_value_text(best, 0)} <small>trial {best.number}</small>")
        )
    elif facts.best:
        figures.append(("goal", "on the Pareto front", f"{len(facts.best)} <small>trials</small>"))
    figures += [("", state, f"{count:,}") for state, count in counts.items()]
    figures += [("", "trials in all", f"{total:,}"), ("", "elapsed", clock_text(facts.elapsed_s))]
    items = "".join(f'<div class="{kind}"><dt>{escape(name)}</dt><dd>{text}</dd></div>' for kind, name, text in figures)
    bar = "".join(f'<i class="{state}" style="flex:{count}"></i>' for state, count in counts.items() if count)
    return f"""<header>
<p class="kicker">Sweep {escape(_shown(facts.folder))}</p>
<h1>{escape(facts.file.name)}</h1>
<p class="lede">{total:,} trial{"" if total == 1 else "s"} over {len(settings.space)} setting{"" if one else "s"}{how},
for the {goals}.</p>
<dl class="figures">{items}</dl>
<div class="states" role="img" aria-label="states of the trials">{bar}</div>
</header>"""


def _best(facts: Facts) -> str:
    states = [trial.state for trial in facts.trials]
    commands = []
    if states.count("open") or len(states) < num_trials(facts.settings):
        commands.append(("Go on", f"dltrain sweep --resume {shlex.quote(_shown(facts.folder))}"))
    boxes = ""
    if facts.best:
        best = facts.best[0]
        run, own = _shown(facts.folder / best.runs[0].folder), options_of_trainings(facts.file)
        options = " ".join(f"--set {shlex.quote(option)}" for option in own + options_of(best.params))
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


def _parallel(facts: Facts) -> str:
    goals = facts.goals
    rows = [
        (facts.marks[t.number], [*(t.params.get(axis.name) for axis in facts.axes), *_values_or_none(facts, t)])
        for t in facts.worst_first
    ]
    chart = charts.parallel([*facts.axes, *goals], rows, facts.higher)
    return f"""<section>
<h2>All trials</h2>
<p class="note">A line is a trial: the settings it had, and on the right what came of it. The lines of trials without
a result end before it.{_edge_note(facts)} <span class="needs-js">Draw along an axis to choose trials everywhere
on this page; a click there chooses all again.</span></p>
{_legend(facts)}
<div class="chart">{chart}</div>
</section>"""


def _importance(facts: Facts) -> str:
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
    few = "; so few say little" if len(numbers) < 30 else ""
    return f"""{head}<p class="note">Share of the variance over the whole space that each setting accounts for by itself
(fANOVA on a random forest, from {len(numbers)} finished trials{few}).</p>
<div class="pair">{"".join(parts)}</div>\n</section>"""


def _bar(name: str, share: float, kind: str) -> str:
    width = f"{100 * share:.1f}%"
    return f'<span>{escape(name)}</span><i class="{kind}" style="width:{width}"></i><b>{100 * share:.0f} %</b>'


def _slices(facts: Facts) -> str:
    goals = facts.goals
    four = len(facts.axes) == 4 or len(facts.axes) > 6
    size = (265, 210) if four else (340, 230)
    parts = []
    for index, goal in enumerate(goals):
        if len(goals) > 1:
            parts.append(f"<h3>{escape(goal.name)}</h3>")
        cells = [charts.scatter(axis, goal, *_dots(facts, axis.name, index), size) for axis in facts.axes]
        parts.append(
            f'<div class="slices{" four" if four else ""}">{"".join(f"<div>{cell}</div>" for cell in cells)}</div>'
        )
    rug = " Ticks at the bottom are trials without a result." if len(facts.values) < len(facts.trials) else ""
    return f"""<section>
<h2>Setting by setting</h2>
<p class="note">The objective against each setting; a dot is a trial.{rug}{_edge_note(facts)}</p>
{"".join(parts)}
</section>"""


def _dots(facts: Facts, key: str, index: int) -> tuple[list[Point], list[tuple[Mark, Any]]]:
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


def _front(facts: Facts) -> str:
    if len(facts.objectives) < 2:
        return ""
    # A front is about the ends, so nothing is moved to the edge here.
    axes = [
        _with_arrow(axis_of_values(name, values, higher, share=1.0), higher)
        for name, values, higher in zip(facts.objectives, facts.columns, facts.higher, strict=True)
    ]
    finished = [(facts.marks[t.number], facts.values[t.number]) for t in facts.worst_first if t.number in facts.values]
    are_two = len(axes) == 2
    cells = []
    for i, j in itertools.combinations(range(len(axes)), 2):
        points = [Point(mark, values[i], values[j]) for mark, values in finished]
        cells.append(charts.front(axes[i], axes[j], points, facts.higher[i], alone=are_two))
    more = "" if are_two else " Some lie behind others where only two objectives are seen."
    pictures = "".join(f"<div>{cell}</div>" for cell in cells)
    return f"""<section>
<h2>Pareto front</h2>
<p class="note">The marked trials are those that no other beats in all objectives.{more}</p>
<div class="{"chart" if are_two else "slices"}">{pictures}</div>
{_table_of(facts, facts.best, "front") if facts.best else ""}
</section>"""


def _curves(facts: Facts) -> str:
    metrics = [name for name in facts.objectives if "/" in name] or [facts.file.config.train.monitor or "val/loss"]
    parts, cut = [], False
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
        y = axis_of_values(name, [value for curve in found for _, value in curve.points], higher, 0.9)
        chart = charts.curves(Axis("step", "linear", 0.0, last_step or 1.0), _with_arrow(y, higher), found)
        parts.append(f'<div class="chart">{chart}</div>')
        cut = cut or any(not y.low <= value <= y.high for curve in found for _, value in curve.points)
    silent = sum(
        not facts.rows.get(run.folder) for trial in facts.trials for run in trial.runs if run.state == "failed"
    )
    note = f" {silent} failed before the first evaluation and have none." if silent else ""
    note += " What is far worse than most is drawn at the edge." if cut else ""
    return f"""<section>
<h2>Learning curves</h2>
<p class="note">A curve for each training.{note}</p>
{_legend(facts)}
{"".join(parts)}
</section>"""


def _table(facts: Facts) -> str:
    return f"""<section>
<h2>Table of trials</h2>
<p class="note">Run directories lie beside this page. <span class="needs-js">A click on a column sorts by it.</span></p>
{_table_of(facts, facts.trials, "trials")}
</section>"""


def _error(text: str) -> str:
    """Return an error, the rest of a long one to be unfolded."""
    if len(text) <= _LONGEST_ERROR:
        return escape(text)
    return f"<details><summary>{escape(shortened(text, _LONGEST_ERROR))}</summary>{escape(text)}</details>"


# ---- what several chapters say ---------------------------------------------------------------------------------------


def _table_of(facts: Facts, trials: Sequence[Trial], name: str) -> str:
    """Return a table of trials; `data-v` is what a column is sorted by, with all digits."""
    errors = ["error"] if any(trial.error for trial in trials) else []
    heads = ["trial", "state", *facts.objectives, *facts.settings.space, "time", "run", *errors]
    rows = []
    for trial in trials:
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
        cells += [f'<td class="wide">{_error(trial.error)}</td>' for _ in errors]
        kind = f"{trial.state}{' best' if facts.marks[trial.number].is_best else ''}"
        rows.append(f'<tr data-t="{trial.number}" class="{kind}">{"".join(cells)}</tr>')
    columns = "".join(f"<th>{escape(head)}</th>" for head in heads)
    body = "\n".join(rows)
    return f"""<div class="table"><table id="{name}"><thead><tr>{columns}</tr></thead>
<tbody>
{body}
</tbody></table></div>"""


def _cell(value: Any, text: str) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"<td>{text}</td>"
    return f'<td class="n" data-v="{escape(repr(value))}">{text}</td>'


def _legend(facts: Facts) -> str:
    shades = "".join(f'<rect class="c{i}" x="{12 * i}" width="12" height="12"/>' for i in range(NUM_SHADES))
    what = escape(facts.objectives[0])
    parts = []
    if len(facts.values) > 1:
        parts.append(
            f'<span>worst <svg viewBox="0 0 {12 * NUM_SHADES} 12">{shades}</svg> best by rank in {what}</span>'
        )
    best = "best" if len(facts.objectives) == 1 else "Pareto front"
    looks = [("c8 best", best)] if facts.best else []
    looks += [(state, state) for state in _STATES[1:] if any(trial.state == state for trial in facts.trials)]
    parts += [
        f'<span><svg viewBox="0 0 26 12"><path class="{look}" d="M0 6H26"/></svg> {text}</span>' for look, text in looks
    ]
    return f'<div class="legend">{"".join(parts)}</div>'


def _edge_note(facts: Facts) -> str:
    """Return the sentence on trials that lie beyond an axis."""
    parts = zip(facts.goals, facts.columns, strict=True)
    beyond = [(axis.name, sum(not axis.low <= value <= axis.high for value in values)) for axis, values in parts]
    said = [f"{number} far worse in {escape(name)}" for name, number in beyond if number]
    return f" Drawn at the edge: {', '.join(said)}." if said else ""


def _with_arrow(axis: Axis, higher_is_better: bool) -> Axis:
    return Axis(f"{axis.name} ({'higher' if higher_is_better else 'lower'} is better)", axis.kind, axis.low, axis.high)


def _values_or_none(facts: Facts, trial: Trial) -> list[float | None]:
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
        section[name] = text_of(value)
    return "\n".join(_yaml_lines(tree, ""))


def _yaml_lines(tree: dict[str, Any], indent: str) -> list[str]:
    """Return sections of texts as lines, a setting on each."""
    lines = []
    for name, inner in tree.items():
        if isinstance(inner, dict):
            lines += [f"{indent}{name}:", *_yaml_lines(inner, indent + "  ")]
        else:
            lines.append(f"{indent}{name}: {inner}")
    return lines


def _shown(path: Path) -> str:
    """Return a path as one would type it: from the working directory, where it lies below it."""
    near = os.path.relpath(path)
    return str(path) if near.startswith("..") else near
