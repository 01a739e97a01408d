"""curves.png."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dltrain import curves
from dltrain.curves import draw_curves
from dltrain.errors import TrainingError
from dltrain.run import Run


def run_with(folder: Path, rows: list[dict[str, Any]]) -> Path:
    with Run.create(folder, "small") as run:
        for row in rows:
            run.append_metrics(row)
    return run.folder


def row(step: int, **values: float | None) -> dict[str, Any]:
    return {"step": step, "epoch": step / 4, "lr": 0.1, "samples_per_s": 9.0, "elapsed_s": 1.0} | {
        name.replace("_", "/", 1): value for name, value in values.items()
    }


def picture(path: Path | None) -> Image.Image:
    assert path is not None
    with Image.open(path) as image:
        assert image.format == "PNG"
        return image.convert("RGB")


def test_a_run_has_a_picture_with_a_panel_for_each_quantity(tmp_path: Path) -> None:
    few = run_with(tmp_path, [row(n, train_loss=1 / n, val_loss=2 / n) for n in range(1, 5)])
    many = run_with(tmp_path, [row(n, train_loss=1 / n, train_penalty=0.1, val_accuracy=0.5) for n in range(1, 5)])
    pictures = [picture(draw_curves(folder)) for folder in (few, many)]
    assert pictures[1].height > pictures[0].height
    colours = {pixel for _, pixel in pictures[0].getcolors(1 << 20) or []}
    assert {(0x44, 0x77, 0xAA), (0xCC, 0x66, 0x77), (0x22, 0x88, 0x33)} <= colours  # train, val, neither


@pytest.mark.parametrize(
    "rows",
    [
        [row(1, train_loss=1.0)],
        [row(1, train_loss=1.0, val_r2=None), row(2, train_loss=None, val_r2=None)],
        [row(1, train_loss=1e300), row(2, train_loss=-1e300)],
        [row(1, train_loss=1.0), row(2, val_loss=1.0)],
    ],
    ids=["one row", "nulls", "huge", "columns that come and go"],
)
def test_odd_rows_are_drawn(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    assert picture(draw_curves(run_with(tmp_path, rows))).height > 100


def test_a_run_without_rows_has_no_picture(tmp_path: Path) -> None:
    assert draw_curves(run_with(tmp_path, [])) is None


def test_a_picture_that_cannot_be_written_is_a_training_error(tmp_path: Path) -> None:
    folder = run_with(tmp_path, [row(1, train_loss=1.0)])
    (folder / "curves.png").mkdir()
    with pytest.raises(TrainingError, match=r"curves\.png: cannot be written"):
        draw_curves(folder)


def test_drawing_needs_no_pyplot_which_wants_a_display(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    assert draw_curves(run_with(tmp_path, [row(1, train_loss=1.0)])) is not None


def test_what_training_freed_goes_back_before_matplotlib_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    given_back: list[bool] = []
    monkeypatch.setattr(curves, "give_back_freed", lambda: given_back.append(True))
    with pytest.raises(ImportError):
        draw_curves(run_with(tmp_path, [row(1, train_loss=1.0)]))
    assert given_back == [True]
