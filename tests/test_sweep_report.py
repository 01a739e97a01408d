"""The report of a sweep says what the journal says, whatever the journal says, and is one sound page."""

from __future__ import annotations

import json
import math
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from dltrain.config.validate import load_config
from dltrain.errors import ConfigError
from dltrain.sweep.axes import Axis, axis_of_values, short
from dltrain.sweep.importance import importance
from dltrain.sweep.journal import EVENTS, FORMAT_VERSION
from dltrain.sweep.report import write_report
from dltrain.sweep.sweep import sweep
from tests.small_runs import Sections, dltrain_here, write_config

SPACE: Sections = {"optimizer.lr": {"log_uniform": [1e-4, 1e-1]}, "model.hidden": [[4], [8, 8]]}
EVIL = "<script>alert('x')</script>\x1b[31m & \"quoted\""
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """A page that was read: its texts, its tables, and whether each element was closed where it was opened."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self._open: list[str] = []
        self.texts: list[str] = []
        self.tables: dict[str, list[list[tuple[str, str | None]]]] = {}
        self.num_scripts = 0
        self.links: list[str] = []
        self.feed(self.source)
        self.close()
        assert self._open == []
        for svg in re.findall(r"<svg.*?</svg>", self.source, re.DOTALL):
            ElementTree.fromstring(svg)
        places = "".join(re.findall(r' (?:d|cx|cy|x|y)="[^"]*"', self.source))
        assert not re.search(r"nan|inf|None", places)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.num_scripts += tag == "script"
        self.links += [found[name] or "" for name in ("href", "src") if name in found]
        if tag == "table":
            self.tables[found["id"] or ""] = self._rows = []
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append(("", found.get("data-v")))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.texts.append(data)
            if {"td", "th"} & set(self._open):
                text, value = self._rows[-1][-1]
                self._rows[-1][-1] = text + data, value

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def by_trial(self) -> dict[int, dict[str, tuple[str, str | None]]]:
        """Trial -> column -> what stands there, and what it is sorted by."""
        heads, *rows = self.tables["trials"]
        names = [text for text, _ in heads]
        return {int(row[0][0]): dict(zip(names, row, strict=True)) for row in rows}


def made_up(folder: Path, events: list[dict[str, Any]], settings: Sections | None = None, **head: Any) -> Path:
    """Make the folder of a sweep with these events, a second from one to the next."""
    sections: Sections = {"sweep": {"space": SPACE, "trials": 8, **(settings or {})}}
    path = write_config(folder, sections)
    place = folder / "runs" / "small-sweep" / "1"
    place.mkdir(parents=True)
    (place / "sweep.yaml").write_text(path.read_text())
    first = {"event": "sweep", "format_version": FORMAT_VERSION, "dltrain": "0", "config": "small.yaml", "set": []}
    objectives = sections["sweep"].get("objective", "val/accuracy")
    names = objectives if isinstance(objectives, list) else [objectives]
    goals = [[name, name.endswith("accuracy")] for name in names]
    first |= {"folder_from_sweep": "../../..", "data": {}, "goals": goals, **head}
    lines = [json.dumps({"seed_index": 0, **event, "time": 100.0 + k}) for k, event in enumerate([first, *events])]
    (place / EVENTS).write_text("".join(f"{line}\n" for line in lines))
    return place


def trial(number: int, kind: str, lr: Any = 0.01, hidden: Any = (4,), **facts: Any) -> list[dict[str, Any]]:
    """Return the events of a trial that ended in this way."""
    params = {"optimizer.lr": lr, "model.hidden": hidden}
    run = {"event": "started", "trial": number, "run": f"small/{number}"}
    end = {"event": kind, "trial": number, "reports": [], **facts}
    if kind == "failed":
        end = {"diverged": False, "again": False, **end}
    return [{"event": "asked", "trial": number, "params": params}, run, *([] if kind == "started" else [end])]


def finished(number: int, value: float, **params: Any) -> list[dict[str, Any]]:
    return trial(number, "finished", values=[value], metrics={"val/accuracy": value}, elapsed_s=1.5, **params)


def write_metrics(folder: Path, number: int, rows: list[dict[str, Any]]) -> None:
    (folder / "small" / str(number)).mkdir(parents=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "small" / str(number) / "metrics.jsonl").write_text(text)


def test_the_page_says_what_the_journal_says(tmp_path: Path) -> None:
    events = [*finished(1, 0.8125, lr=0.02), *finished(2, 0.9375123, lr=0.0375), *trial(3, "pruned", reports=[0.5])]
    events += [*trial(4, "failed", error="the loss is not finite"), *trial(5, "started")]
    folder = made_up(tmp_path, events)
    write_metrics(folder, 2, [{"step": k, "val/accuracy": k / 10} for k in range(1, 9)])
    path = write_report(folder)
    assert path == folder / "report.html"
    assert not list(folder.glob("*.tmp"))
    page = Page(path)
    for words in ("8 trials over 2 settings", "highest val/accuracy", "best val/accuracy 0.9375 trial 2"):
        assert words in page.text
    assert "finished 2 pruned 1 failed 1 open 4 trials in all 8 elapsed 0:14" in page.text
    assert "optimizer: lr: 0.0375 model: hidden: [4]" in page.text
    assert "dltrain sweep --resume" in page.text
    assert "small-sweep/1/small/2" in page.text
    assert [row["state"][0] for row in page.by_trial.values()] == ["finished", "finished", "pruned", "failed", "open"]
    assert page.by_trial[2]["val/accuracy"] == ("0.9375", "0.9375123")
    assert page.by_trial[2]["optimizer.lr"] == ("0.0375", "0.0375")
    assert page.by_trial[3]["val/accuracy"] == ("", None)
    assert page.by_trial[4]["error"][0] == "the loss is not finite"
    assert page.source.count('d="M') > 5  # lines, and the one learning curve
    assert "10 finished trials are needed to tell; there are 2" in page.text


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    page = Page(write_report(made_up(tmp_path, finished(1, 0.5))))
    assert page.links == ["./small/1/"]
    assert page.num_scripts == 1
    assert not re.search(r"https?://|@import|url\(|fetch\(", page.source)


def test_nothing_that_was_read_is_code(tmp_path: Path) -> None:
    events = [*finished(1, 0.5, hidden=EVIL), *trial(2, "failed", error=EVIL * 9, lr=EVIL)]
    events[1]["run"] = EVIL
    events[2]["metrics"] = {EVIL: 1.0, "val/accuracy": 0.5}
    settings = {"space": {**SPACE, "model.hidden": [EVIL, [4]]}, "objective": "val/accuracy"}
    page = Page(write_report(made_up(tmp_path, events, settings, dltrain=EVIL, config=EVIL)))
    assert page.num_scripts == 1
    assert "<script>alert" not in page.source
    assert "\x1b" not in page.source
    assert "<script>alert('x')</script>" in page.text
    assert all(link.startswith("./") for link in page.links)


def test_values_that_are_no_numbers_are_survived(tmp_path: Path) -> None:
    events = [*finished(1, math.nan), *finished(2, math.inf), *finished(3, 0.5), *finished(4, 0.25, lr=None)]
    events += [*trial(5, "finished", values=[None], metrics={}, elapsed_s=None), *finished(6, 0.5, lr=math.nan)]
    events += trial(7, "pruned", reports=[None, math.nan, 0.5], lr=-1.0, hidden=None)
    folder = made_up(tmp_path, events)
    rows = [{"step": 1, "val/accuracy": None}, {"step": 2, "val/accuracy": math.nan}, {"step": 3}]
    write_metrics(folder, 3, [*rows, {"step": 4, "val/accuracy": "x"}, {"step": 5, "val/accuracy": 0.5}])
    page = Page(write_report(folder))
    assert "best val/accuracy 0.5000 trial 3" in page.text
    assert len(page.by_trial) == 7


@pytest.mark.parametrize("torn", ["", '{"event": "fini'])
def test_a_sweep_that_is_running_or_has_lost_its_runs_has_a_report(tmp_path: Path, torn: str) -> None:
    folder = made_up(tmp_path, trial(1, "started"))
    with (folder / EVENTS).open("a") as file:
        file.write(torn)
    before = (folder / EVENTS).read_bytes()
    page = Page(write_report(folder))
    assert "No trial finished yet" in page.text
    assert "No training has written" in page.text
    assert (folder / EVENTS).read_bytes() == before


def test_a_folder_without_a_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder of a sweep"):
        write_report(tmp_path)


def test_several_objectives_have_a_front(tmp_path: Path) -> None:
    values = [[0.9, 100.0], [0.8, 10.0], [0.7, 50.0], [0.95, 5000.0]]
    events = [e for n, v in enumerate(values, 1) for e in trial(n, "finished", values=v, metrics={}, elapsed_s=1.0)]
    page = Page(write_report(made_up(tmp_path, events, {"objective": ["val/accuracy", "num_parameters"]})))
    assert "Pareto front" in page.text
    assert "on the Pareto front 3 trials" in page.text
    assert page.by_trial[4]["num_parameters"] == ("5,000", "5000.0")
    assert set(re.findall(r'<circle data-t="(\d)" class="\w+ best"', page.source)) == {"1", "2", "4"}
    assert [row[0][0] for row in page.tables["front"]] == ["trial", "4", "1", "2"]
    assert page.source.count('class="front"') == 1


def test_of_three_objectives_all_pairs_are_shown_and_the_front_is_listed(tmp_path: Path) -> None:
    values = [[0.9, 0.5, 100.0], [0.8, 0.2, 500.0], [0.7, 0.6, 10.0], [0.6, 0.7, 50.0]]
    events = [e for n, v in enumerate(values, 1) for e in trial(n, "finished", values=v, metrics={}, elapsed_s=1.0)]
    events += trial(5, "failed", error="the loss is not finite")
    objectives = ["val/accuracy", "val/loss", "num_parameters"]
    page = Page(write_report(made_up(tmp_path, events, {"objective": objectives})))
    chapter = page.source.partition("<h2>Pareto front</h2>")[2].partition("</section>")[0]
    labels = re.findall(r'aria-label="([^;]*); the Pareto front is marked"', chapter)
    short_labels = [re.sub(r" \(\w+ is better\)", "", label) for label in labels]
    assert short_labels == [
        "val/loss against val/accuracy",
        "num_parameters against val/accuracy",
        "num_parameters against val/loss",
    ]
    assert len(re.findall(r'<circle data-t="\d" class="\w+ best"', chapter)) == 3 * 3
    assert 'class="front"' not in chapter  # no line through two of three objectives is the front
    heads, *rows = page.tables["front"]
    assert [text for text, _ in heads][2:5] == objectives
    assert [(row[0][0], row[4][0]) for row in rows] == [("1", "100"), ("2", "500"), ("3", "10")]
    assert len(page.by_trial) == 5


def test_seeds_give_a_deviation(tmp_path: Path) -> None:
    events = trial(1, "started")
    for index, value in enumerate([0.5, 0.7]):
        end = {"event": "finished", "trial": 1, "seed_index": index, "values": [value], "metrics": {}, "reports": []}
        events.append({**end, "run": f"small/{index + 1}", "elapsed_s": 1.0})
    folder = made_up(tmp_path, events, {"seeds": 2, "objective": "val/accuracy", "trials": 1})
    page = Page(write_report(folder))
    assert "each trained with 2 seeds" in page.text
    assert page.by_trial[1]["val/accuracy"][0] == "0.6000 ± 0.1414"
    assert page.links == ["./small/1/", "./small/2/"]


def test_one_setting_needs_no_importance(tmp_path: Path) -> None:
    settings = {"space": {"optimizer.lr": {"log_uniform": [1e-4, 1e-1]}}, "trials": 1}
    page = Page(write_report(made_up(tmp_path, finished(1, 0.5), settings)))
    assert "1 trial over 1 setting," in page.text
    assert "Only one setting was searched" in page.text
    assert "--resume" not in page.text


def test_a_thousand_trials_make_a_page_of_a_few_megabytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    events = [e for n in range(1, 1001) for e in finished(n, float(rng.random()), lr=float(10 ** rng.uniform(-4, -1)))]
    folder = made_up(tmp_path, events, {"trials": 1000})
    for number in range(1, 11):
        write_metrics(folder, number, [{"step": k, "val/accuracy": k / 9000} for k in range(1, 9001)])
    path = write_report(folder)
    assert path.stat().st_size < 3e6
    assert len(Page(path).by_trial) == 1000


def test_a_sweep_writes_its_report_and_names_it(tmp_path: Path) -> None:
    path = write_config(tmp_path, {"sweep": {"space": SPACE, "trials": 2, "slots": 1}})
    summary = sweep(load_config(path), root=tmp_path / "runs")
    page = Page(Path(summary["report"]))
    assert Path(summary["report"]).parent == Path(summary["sweep"])
    best = summary["best"][0]
    assert page.by_trial[best["trial"]]["val/accuracy"][1] == repr(best["values"]["val/accuracy"])


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_importance_is_that_of_optuna() -> None:
    optuna = pytest.importorskip("optuna")
    rng = np.random.default_rng(0)
    points = rng.random((30, 3))
    values = points[:, 0] ** 2 + 0.3 * points[:, 1] + points[:, 0] * points[:, 1]
    names = ["a", "b", "c"]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    distributions = {name: optuna.distributions.FloatDistribution(0, 1) for name in names}
    for point, value in zip(points.tolist(), values.tolist(), strict=True):
        params = dict(zip(names, point, strict=True))
        study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = optuna.importance.FanovaImportanceEvaluator(seed=0).evaluate(study)
    found = importance(points.tolist(), values.tolist())
    assert found is not None
    shares, rest = found
    total = sum(theirs.values())
    assert np.allclose(np.array(shares) / sum(shares), [theirs[name] / total for name in names], atol=0.03)
    assert math.isclose(sum(shares) + rest, 1.0)
    assert importance(points.tolist(), values.tolist()) == found
    assert importance(points.tolist(), [1.0] * 30) is None


def test_an_axis_shows_what_the_good_trials_differ_in() -> None:
    axis = axis_of_values("val/accuracy", [0.97, 0.975, 0.98, 0.96, 0.965, 0.972, 0.978, 0.1], True)
    assert axis.low > 0.95
    assert axis.at(0.1) == 0.0
    assert axis.at(math.nan) is None


def test_ticks_are_round_and_lie_on_the_axis() -> None:
    assert [text for _, text in Axis("lr", "log", 1e-4, 1e-1).ticks()] == ["0.0001", "0.001", "0.01", "0.1"]
    assert [text for _, text in Axis("p", "linear", 0.0, 0.6).ticks(3)] == ["0", "0.2", "0.4", "0.6"]
    assert Axis("c", "choice", choices=("1", "2"), labels=("1", "2")).ticks() == [(0.25, "1"), (0.75, "2")]
    for low, high in ((0.0, 1e-9), (-5.0, 1e12), (0.999, 1.001), (3.0, 3.0000001)):
        places = [place for place, _ in Axis("x", "linear", low, high).ticks()]
        assert 1 < len(places) < 15
        assert all(0 <= place <= 1 for place in places)


def test_numbers_are_short() -> None:
    numbers = [0.98519, 3e-5, 12345, 12345.678, True, None, math.nan, 0, -2.5e-9]
    assert [short(number) for number in numbers] == [
        "0.9852",
        "3e-5",
        "12,345",
        "1.235e4",
        "–",
        "–",
        "–",
        "0",
        "-2.5e-9",
    ]


def test_the_command_writes_the_newest_sweeps_report(tmp_path: Path) -> None:
    folder = made_up(tmp_path, [*finished(1, 0.9), *finished(2, 0.8, lr=0.1)])
    result = dltrain_here("sweep", "report", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{folder.relative_to(tmp_path)}/report.html\n"
    assert "0.9" in (folder / "report.html").read_text()


def test_the_command_that_trains_the_best_again_has_what_the_sweep_was_given(tmp_path: Path) -> None:
    """With `dltrain sweep --set train.duration=...` a trial's training is as long as that, not as the file says."""
    given = ["sweep.trials=8", "train.duration=2 epochs"]
    folder = made_up(tmp_path, finished(1, 0.9, lr=0.01), set=given)
    page = write_report(folder).read_text()
    assert "--set &#x27;train.duration=2 epochs&#x27; --set optimizer.lr=0.01" in page
    assert "sweep.trials=8" not in page
