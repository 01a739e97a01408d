import io
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch import nn

from dltrain.console import Progress, clock_text, describe, number_text, table
from dltrain.data.prepare import Prepared
from dltrain.metrics import ConfusionMatrix, Metrics
from dltrain.state import State
from dltrain.tasks import Classification, Multilabel, Regression

ROW = {
    "step": 10,
    "epoch": 1.0,
    "lr": 0.001,
    "train/loss": 0.5,
    "train/penalty": 0.01,
    "train/accuracy": 0.75,
    "train/macro_f1": 0.7,
    "samples_per_s": 12345.6,
    "val/loss": 0.6,
    "val/accuracy": 0.7,
    "elapsed_s": 20.0,
}
REGRESSION = ROW | {"train/rmse": 12345.678, "train/r2": -0.25, "val/rmse": 7.5, "val/r2": None}
for name in ("train/accuracy", "val/accuracy"):
    del REGRESSION[name]
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


def prepared(task=None, source=None, notes=(), inferred=True):
    facts = {
        "source": source or {},
        "input_shapes": [[5]],
        "num_samples": {"train": 1200, "val": 30, "test": 0},
    }
    return Prepared({}, task or Classification(["cat", "dog"]), facts, inferred, list(notes))


def plan(data=None, step=0):
    """Return what a display looks at of a training of 100 steps, 10 an epoch."""
    model = nn.Linear(5, 2)
    optimizer = torch.optim.SGD(model.parameters())
    state = State(model, optimizer, None, None, Metrics(ConfusionMatrix(2)), step=step, total_steps=100)
    return SimpleNamespace(
        data=data or prepared(),
        network=SimpleNamespace(model=model),
        state=state,
        epoch_steps=10,
        device="cpu",
        length="100",
    )


class Screen:
    """What a progress display writes to a terminal of some width, or to a file."""

    def __init__(self, monkeypatch, width=None):
        self.file = io.StringIO()
        terminal = {} if width is None else {"width": width, "force_terminal": True, "color_system": None}
        console = Console(file=self.file, highlight=False, **({"width": 10_000} | terminal))
        monkeypatch.setattr("dltrain.console.err_console", lambda: console)

    @property
    def lines(self):
        return self.file.getvalue().splitlines()


def show(screen, rows=(), data=None, step=0):
    progress = Progress()
    progress.begin(Path("runs/x/1"), plan(data, step=step))
    for row in rows:
        progress.row(row)
    return screen.lines


# ---- at the beginning


def test_what_is_trained_on_what_is_said_first(monkeypatch):
    assert show(Screen(monkeypatch)) == [
        "run      runs/x/1",
        "data     1,200 train, 30 val, 0 test samples; inputs of 5",
        "task     classification (inferred) of 2 classes: cat, dog",
        "model    12 parameters on cpu",
        "",
    ]


def test_a_resumed_run_says_where_it_goes_on(monkeypatch):
    assert "resumed  at step 30 of 100" in show(Screen(monkeypatch), step=30)


@pytest.mark.parametrize(
    ("task", "inferred", "text"),
    [
        (Classification(list(range(12))), False, "classification of 12 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ..."),
        (Multilabel(["a", "b"], "|"), True, "multilabel (inferred) of 2 labels: a, b"),
        (Regression(["y"], [0.0], [1.0]), True, "regression (inferred) of y"),
    ],
    ids=lambda value: getattr(value, "type", None),
)
def test_the_task_and_whether_it_was_inferred_is_said(task, inferred, text):
    assert dict(describe(prepared(task, inferred=inferred)))["task"] == text


def test_the_columns_of_a_table_and_what_was_dropped_are_said(monkeypatch):
    columns = [
        {"name": "id", "kind": "ignore", "note": "whole numbers that count the rows"},
        {"name": "age", "kind": "numeric", "note": "18 to 79"},
        {"name": "city", "kind": "category", "note": "", "values": ["Bern", "Lima"]},
        {"name": "size", "kind": "numeric", "note": ""},
    ]
    lines = show(Screen(monkeypatch), data=prepared(source={"columns": columns}, notes=["x.csv: dropped 2 of 9 rows"]))
    assert lines[2:6] == [
        "columns  2 numeric: age, size",
        "         1 category: city (2 values)",
        "         1 ignored: id (whole numbers that count the rows)",
        "note     x.csv: dropped 2 of 9 rows",
    ]


def test_names_from_the_data_cannot_command_the_terminal(monkeypatch):
    screen = Screen(monkeypatch, width=80)
    show(screen, data=prepared(Classification(["\x1b[2J", "[bold]b[/bold]"])))
    assert not CONTROL.search(screen.file.getvalue())
    assert "[bold]b[/bold]" in screen.file.getvalue()


@pytest.mark.parametrize("width", [40, 80])
def test_long_texts_are_folded_between_words_under_their_label(monkeypatch, width):
    lines = show(Screen(monkeypatch, width), data=prepared(Classification([f"species number {i}" for i in range(9)])))
    assert max(map(len, lines)) <= width
    first = next(i for i, line in enumerate(lines) if line.startswith("task"))
    assert lines[first + 1].startswith(" " * 9)
    assert " ".join(line[9:] for line in lines[first:-2]).endswith("species number 7, species number 8")


# ---- the rows


def test_a_row_names_its_splits_and_has_the_numbers_under_their_names(monkeypatch):
    assert show(Screen(monkeypatch), [ROW])[5:] == [
        "       -- train -------------------  -- val -----------",
        "epoch      loss   penalty  accuracy      loss  accuracy        lr  samples/s     left",
        "    1    0.5000    0.0100    0.7500    0.6000    0.7000  1.00e-03     12,346     3:00",
    ]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
@pytest.mark.parametrize("row", [ROW, REGRESSION], ids=["classification", "regression"])
def test_no_line_is_wider_than_the_terminal(monkeypatch, width, row):
    lines = show(Screen(monkeypatch, width), [row] * 3)
    assert max(map(len, lines)) <= width
    names = next(line for line in lines if line.startswith("epoch")).split()
    assert names.count("loss") == 2


def test_a_narrow_terminal_goes_without_what_matters_least(monkeypatch):
    lines = show(Screen(monkeypatch, 80), [ROW])
    assert lines[6].split() == ["epoch", "loss", "penalty", "accuracy", "loss", "accuracy", "lr", "left"]
    lines = show(Screen(monkeypatch, 80), [REGRESSION])
    assert lines[6].split() == ["epoch", "loss", "penalty", "rmse", "loss", "rmse", "r2", "left"]


def test_names_are_repeated_so_that_they_stay_in_sight(monkeypatch):
    lines = show(Screen(monkeypatch), [ROW] * 45)
    assert sum(line.startswith("epoch") for line in lines) == 3


def test_names_are_repeated_where_numbers_no_longer_fit_under_them(monkeypatch):
    wide = ROW | {"train/loss": 1.25e-100}
    lines = show(Screen(monkeypatch), [ROW, wide, ROW])
    assert sum(line.startswith("epoch") for line in lines) == 2
    assert len({len(line) for line in lines[-3:]}) == 1


def test_a_training_without_validation_has_rows_too(monkeypatch):
    row = {name: value for name, value in ROW.items() if not name.startswith("val/")}
    assert show(Screen(monkeypatch), [row])[6].split() == [
        "epoch",
        "loss",
        "penalty",
        "accuracy",
        "lr",
        "samples/s",
        "left",
    ]


def test_a_part_of_an_epoch_and_an_undefined_metric_can_be_shown(monkeypatch):
    lines = show(Screen(monkeypatch), [ROW | {"epoch": 0.25, "val/accuracy": float("nan")}])
    assert lines[-1].split()[0] == "0.25"
    assert lines[-1].split()[5] == "-"


# ---- a terminal, a file, nothing


def run_with_bar(screen, mode="on"):
    progress = Progress(mode)
    training = plan()
    state = training.state
    progress.begin(Path("runs/x/1"), training)
    state.loss_sum += 3.0
    state.weight_sum += 2.0
    with progress:
        for step in range(1, 4):
            state.step = step
            progress.step(state)
        progress.row(ROW)
    return screen.file.getvalue()


def test_a_terminal_shows_a_bar_that_is_gone_at_the_end(monkeypatch):
    text = run_with_bar(Screen(monkeypatch, 100))
    assert "1/100" in text
    assert "loss 1.5000" in text
    assert text.rstrip("\n").endswith("\x1b[2K")  # the line is erased


def test_a_file_gets_plain_lines(monkeypatch):
    text = run_with_bar(Screen(monkeypatch))
    assert not CONTROL.search(text)
    assert "1/100" not in text
    assert text.splitlines()[-1].split()[0] == "1"


def test_a_piped_training_is_free_of_control_codes_and_quiet_is_silent(monkeypatch, capfd):
    monkeypatch.setenv("TERM", "xterm-256color")
    for mode in ("on", "off"):
        progress = Progress(mode)
        progress.begin(Path("runs/x/1"), plan())
        with progress:
            progress.row(ROW)
        out, err = capfd.readouterr()
        assert out == ""
        assert (err == "") == (mode == "off")
        assert not CONTROL.search(err)


# ---- tables and numbers


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (4.24, "4.2 s"),
        (9.94, "9.9 s"),
        (10, "0:10"),
        (125, "2:05"),
        (3723.4, "1:02:03"),
        (90000, "25:00:00"),
    ],
)
def test_times_are_read_at_a_glance(seconds, text):
    assert clock_text(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.98765432, "0.9877"),
        (0.0, "0.0000"),
        (12345.678, "1.235e+04"),
        (2e-7, "2.000e-07"),
        (-0.5, "-0.5000"),
        (float("nan"), "-"),
        (None, "-"),
        (1234567, "1,234,567"),
        (True, "True"),
    ],
)
def test_numbers_are_read_at_a_glance(number, text):
    assert number_text(number) == text


def test_tables_have_numbers_to_the_right_and_text_as_it_is():
    file = io.StringIO()
    Console(file=file, width=80).print(table(["name", "count"], [["[red]a", 5], ["b\x1b[2J", 12345]]))
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert lines == ["name     count", "[red]a       5", "b\N{REPLACEMENT CHARACTER}[2J   12,345"]
