"""curves.png: how a run went, drawn from its metrics.jsonl."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dltrain.errors import TrainingError
from dltrain.machine import give_back_freed
from dltrain.run import Run, read_metrics, writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = {"train": "#4477aa", "val": "#cc6677", "": "#228833"}
_NO_CURVE = ("step", "epoch", "samples_per_s", "elapsed_s", "best")


@contextlib.contextmanager
def draws_curves(run: Run, say: Callable[[str], None]) -> Iterator[None]:
    """Context of a training whose curves are drawn when it ends, however it ends. A full disk costs only these."""
    try:
        yield
    finally:
        try:
            draw_curves(run.folder)
        except TrainingError as error:
            say(f"warning: {error}; all else of the run is saved")
            with contextlib.suppress(TrainingError):
                run.log(f"warning: {error}")


def draw_curves(folder: Path) -> Path | None:
    """Draw loss, penalty, metrics and learning rate into `folder`/curves.png; None if there are no rows."""
    rows = read_metrics(folder)
    if not rows:
        return None
    give_back_freed()  # else matplotlib, some 25 MiB, would come on top of the most that training took
    # pyplot would take a second more to import, and a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for row in rows for name in row if name not in _NO_CURVE))
    panels: dict[str, list[str]] = {}
    for name in sorted(names, key=_order):
        panels.setdefault(name.rpartition("/")[2], []).append(name)
    num_rows = (len(panels) + 1) // 2
    height = 2.6 * num_rows
    figure = Figure(figsize=(9, height))
    FigureCanvasAgg(figure)
    axes = figure.subplots(num_rows, 2, squeeze=False).flatten().tolist()
    # Fixed margins, in inches: matplotlib's own layout engine takes as long as the drawing itself (0.2 s).
    figure.subplots_adjust(left=0.08, right=0.98, top=1 - 0.3 / height, bottom=0.5 / height, hspace=0.55, wspace=0.2)
    for axis, (title, members) in zip(axes, panels.items(), strict=False):
        _draw_panel(axis, title, members, rows)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    with writing(folder / "curves.png") as path:
        figure.savefig(path, dpi=110)
    return path


def _order(name: str) -> tuple[int, str]:
    """Loss and penalty first, the learning rate last."""
    kind = name.rpartition("/")[2]
    return {"loss": 0, "penalty": 1, "lr": 9}.get(kind, 5), kind


def _draw_panel(axis: Axes, title: str, members: list[str], rows: list[dict[str, Any]]) -> None:
    for name in members:
        points = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
        split = name.rpartition("/")[0]
        marker = "o" if len(points) == 1 else None
        if points:
            epochs, values = zip(*points, strict=True)
            axis.plot(epochs, values, color=_COLORS[split], label=split or None, marker=marker)
    best = [row["epoch"] for row in rows if row.get("best")]
    if best and len(rows) > 1:
        axis.axvline(best[-1], color="#999999", linewidth=0.8, linestyle="--", label="best")
    axis.set_title(title, fontsize=10)
    axis.locator_params(axis="x", integer=True)
    axis.set_xlabel("epoch", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    if len(members) > 1:
        axis.legend(fontsize=8, frameon=False)
