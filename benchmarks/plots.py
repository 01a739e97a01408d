"""Plots as PNG files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison import REFERENCE, Comparison
from benchmarks.implementations import IMPLEMENTATIONS


def ratios(comparisons: Sequence[Comparison], path: Path) -> None:
    """Draw time in the loop and of the process, and peak memory, of each work as multiples of the hand-tuned loop."""
    figures = {"loop_s": "time in the loop", "process_s": "whole process", "peak_mib": "peak memory"}
    figure, axes = _axes(len(figures), width=4 + 1.2 * len(comparisons))
    names = [name for name in IMPLEMENTATIONS if name != REFERENCE]
    for axis, (key, title) in zip(axes, figures.items(), strict=True):
        for index, name in enumerate(names):
            points = [(at, c.ratio(name, key)) for at, c in enumerate(comparisons) if name in c.rounds[0]]
            if not points:
                continue
            middle = [ratio for _, (ratio, _, _) in points]
            spread = [[r - low for _, (r, low, _) in points], [high - r for _, (r, _, high) in points]]
            places = [at + 0.8 * (index + 0.5) / len(names) - 0.4 for at, _ in points]
            axis.bar(places, middle, 0.8 / len(names), yerr=spread, label=name)
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.set_xticks(range(len(comparisons)), [c.work.name for c in comparisons], rotation=30, ha="right")
        axis.set_title(f"{title}, times {REFERENCE}")
    axes[0].legend()
    figure.savefig(path)


def growths(series: Mapping[str, Mapping[float, float]], ylabel: str, path: Path) -> None:
    """Draw each of `series`, whose names say what x is, on logarithmic axes with its slope."""
    figure, axes = _axes(len(series), width=5)
    for axis, (name, values) in zip(axes, series.items(), strict=True):
        axis.loglog([*values], [*values.values()], marker="o")
        axis.set(xlabel=name, ylabel=ylabel, title=f"slope {slope(values):.2f}, last part {last_slope(values):.2f}")
        axis.grid(True, which="both", alpha=0.3)
    figure.savefig(path)


def slope(values: Mapping[float, float]) -> float:
    """Return the exponent p of the best fit y = c x^p: least squares of the logarithms."""
    xs, ys = [math.log(x) for x in values], [math.log(y) for y in values.values()]
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    products = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True))
    return products / sum((x - x_mean) ** 2 for x in xs)


def last_slope(values: Mapping[float, float]) -> float:
    """Return the same of the last two points, where what is constant counts least."""
    return slope(dict([*values.items()][-2:]))


def _axes(num: int, width: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * num, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, num, squeeze=False)[0]
