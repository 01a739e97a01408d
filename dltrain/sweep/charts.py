"""The charts of a sweep's report, each a piece of SVG; colours and strokes are those of report.css.

All that belongs to one trial carries its number in `data-t`, by which report.js finds it.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dltrain.names import printable, shortened
from dltrain.sweep.axes import Axis, is_number

_GOLDEN = 0.6180339887
_POINTS_OF_ALL_CURVES = 40_000


@dataclass(frozen=True)
class Mark:
    """How a trial looks in all charts."""

    trial: int
    look: str
    """Class of the style: c0 (worst) to c8 (best), pruned, failed, or open."""
    is_best: bool = False

    @property
    def attributes(self) -> str:
        """Of its SVG element."""
        return f'data-t="{self.trial}" class="{self.look}{" best" if self.is_best else ""}"'


@dataclass(frozen=True)
class Point:
    """A trial in a scatter chart."""

    mark: Mark
    x: Any
    y: Any
    spread: float = 0.0
    """Standard deviation of y between the seeds."""


@dataclass(frozen=True)
class Curve:
    """The learning curve of a training."""

    mark: Mark
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class _Frame:
    """The place of a chart's axes in the picture, in pixels."""

    width: int
    height: int
    x: Axis
    y: Axis
    left: int = 52
    right: int = 22
    top: int = 12
    bottom: int = 52

    def place(self, x: Any, y: Any) -> tuple[float, float] | None:
        """Return the pixel of a point; None for what has no place."""
        across, up = self.x.at(x), self.y.at(y)
        return None if across is None or up is None else (self.across(across), self.up(up))

    def across(self, share: float) -> float:
        return self.left + share * (self.width - self.left - self.right)

    def up(self, share: float) -> float:
        return self.height - self.bottom - share * (self.height - self.top - self.bottom)

    def svg(self, body: list[str], label: str) -> str:
        """Return the picture: grid, ticks and names of the axes, and `body` over them."""
        x0, x1, y0, y1 = self.across(0), self.across(1), self.up(0), self.up(1)
        ink = []
        for share, text in self.y.ticks():
            y = self.up(share)
            ink.append(f'<line class="grid" x1="{x0:.0f}" x2="{x1:.0f}" y1="{y:.1f}" y2="{y:.1f}"/>')
            ink.append(f'<text class="tick" x="{x0 - 6:.0f}" y="{y + 3.5:.1f}" text-anchor="end">{escape(text)}</text>')
        ticks = self.x.ticks(max(2, int((x1 - x0) / 75)))
        room = (x1 - x0) / max(1, len(ticks)) / 5.8 if self.x.kind == "choice" else 99
        lines = 2 if any(len(text) > room for _, text in ticks) else 1  # long labels stand in two lines, in turn
        for index, (share, text) in enumerate(ticks):
            x = self.across(share)
            ink.append(f'<line class="stroke" x1="{x:.1f}" x2="{x:.1f}" y1="{y0:.0f}" y2="{y0 + 4:.0f}"/>')
            text, line = escape(shortened(text, max(5, int(room * lines)))), y0 + 16 + 11 * (index % lines)
            ink.append(f'<text class="tick" x="{x:.1f}" y="{line:.0f}" text-anchor="middle">{text}</text>')
        ink.append(f'<line class="stroke" x1="{x0:.0f}" x2="{x1:.0f}" y1="{y0:.0f}" y2="{y0:.0f}"/>')
        name = shortened(self.x.name, int((x1 - x0) / 6))
        under = f'x="{(x0 + x1) / 2:.0f}" y="{self.height - 7}" text-anchor="middle"'
        ink.append(f'<text class="name" {under}>{escape(name)}</text>')
        if self.y.name:
            middle = (y0 + y1) / 2
            ink.append(
                f'<text class="name" transform="translate(11 {middle:.0f}) rotate(-90)" text-anchor="middle">'
                f"{escape(shortened(self.y.name, int((y0 - y1) / 6)))}</text>"
            )
        return _svg(self.width, self.height, [*ink, *body], label)


def parallel(axes: Sequence[Axis], trials: Sequence[tuple[Mark, Sequence[Any]]], higher: Sequence[bool]) -> str:
    """Return the chart of parallel coordinates; the last axes are those of objectives, `higher` says which way is up.

    Trials are drawn in their order, over each other; None is a value that a trial does not have.
    """
    gap = max(120, 940 // max(1, len(axes) - 1))
    num_settings = len(axes) - len(higher)
    left, top, bottom, height = 64, 52, 16, 380
    width = left + gap * (len(axes) - 1) + 84
    low = height - bottom
    body = [f'<g class="lines" style="{_faintness(len(trials))}">']
    for mark, values in trials:
        places = []
        for index, (axis, value) in enumerate(zip(axes, values, strict=True)):
            share = axis.at(value)
            if share is not None:
                share += _jitter(axis, mark.trial)
                places.append((left + index * gap, low - share * (low - top)))
        if len(places) > 1:
            body.append(f'<path {mark.attributes} d="{_smooth(places)}"/>')
    body.append("</g>")
    for index, axis in enumerate(axes):
        x = left + index * gap
        kind = "axis goal" if index >= num_settings else "axis"
        body.append(f'<g class="{kind}"><line x1="{x}" x2="{x}" y1="{top}" y2="{low}"/>')
        above, dot, name = axis.name.rpartition("." if index < num_settings else "/")
        longest = gap // 7
        better = "" if index < num_settings else " ↑" if higher[index - num_settings] else " ↓"
        if dot:
            body.append(
                f'<text class="tick" x="{x}" y="{top - 32}" text-anchor="middle">'
                f"{escape(shortened(above, longest) + dot)}</text>"
            )
        body.append(
            f'<text class="name strong" x="{x}" y="{top - 17}" text-anchor="middle">'
            f"{escape(shortened(name, longest))}{better}</text>"
        )
        for share, text in axis.ticks(6):
            y = low - share * (low - top)
            body.append(f'<line x1="{x - 3}" x2="{x + 3}" y1="{y:.1f}" y2="{y:.1f}"/>')
            body.append(f'<text class="tick halo" x="{x + 7}" y="{y + 3.5:.1f}">{escape(text)}</text>')
        body.append(
            f'<rect class="brush" data-x="{x}" x="{x - 14}" y="{top}" width="28" height="{low - top}"/>'
            f'<rect class="chosen" x="{x - 7}" y="{top}" width="14" height="0"/></g>'
        )
    return _svg(width, height, body, "Settings and objective of all trials, a line for each", "parallel")


def scatter(x: Axis, y: Axis, points: Sequence[Point], rug: Sequence[tuple[Mark, Any]], size: tuple[int, int]) -> str:
    """Return a chart with a dot for each trial, and for those without a y a tick below; later ones lie above."""
    frame = _Frame(*size, x, y, left=52 if y.name == "" else 66)
    body = []
    for mark, value in rug:
        share = x.at(value)
        if share is not None:
            across, low = frame.across(share + _jitter(x, mark.trial)), frame.up(0)
            body.append(f'<path {mark.attributes} d="M{across:.1f} {low - 1:.0f}v-7"/>')
    for point in points:
        place = frame.place(point.x, point.y)
        if place is None:
            continue
        across = place[0] + _jitter(x, point.mark.trial) * (frame.across(1) - frame.across(0))
        if point.spread > 0:
            ends = [frame.place(point.x, point.y + sign * point.spread) for sign in (-1, 1)]
            low, high = (end[1] if end is not None else place[1] for end in ends)
            body.append(f'<path {point.mark.attributes} d="M{across:.1f} {low:.1f}V{high:.1f}"/>')
        radius = 5 if point.mark.is_best else 3.2 if len(points) < 200 else 2
        body.append(f'<circle {point.mark.attributes} cx="{across:.1f}" cy="{place[1]:.1f}" r="{radius}"/>')
    return frame.svg(body, f"{y.name or 'objective'} against {x.name}")


def front(x: Axis, y: Axis, points: Sequence[Point], x_higher: bool, *, alone: bool) -> str:
    """Return the chart of two objectives; the front is what is marked best, joined where these two `alone` make it."""
    frame = _Frame(*((760, 400) if alone else (340, 260)), x, y, left=72)
    best = [point for point in points if point.mark.is_best]
    body = []
    places = sorted(place for point in best if (place := frame.place(point.x, point.y)) is not None)
    if alone and places:
        # What lies beyond the line is beaten by none that was tried.
        steps = f"M{places[0][0]:.1f} {places[0][1]:.1f}"
        for x_next, y_next in places[1:]:
            steps += f"V{y_next:.1f}H{x_next:.1f}" if x_higher else f"H{x_next:.1f}V{y_next:.1f}"
        body.append(f'<path class="front" d="{steps}"/>')
    for point in points:
        place = frame.place(point.x, point.y)
        if place is None:
            continue
        radius = 5 if point.mark.is_best else 3.6
        body.append(f'<circle {point.mark.attributes} cx="{place[0]:.1f}" cy="{place[1]:.1f}" r="{radius}"/>')
    free: list[tuple[float, float]] = []
    for point in best:
        place = frame.place(point.x, point.y)
        if place is not None and all(math.dist(place, other) > 22 for other in free):
            free.append(place)
            body.append(
                f'<text class="tick halo" x="{place[0] + 8:.1f}" y="{place[1] - 6:.1f}">{point.mark.trial}</text>'
            )
    return frame.svg(body, f"{y.name} against {x.name}; the Pareto front is marked")


def curves(x: Axis, y: Axis, found: Sequence[Curve]) -> str:
    """Return the learning curves; those of failed trainings end with a cross."""
    frame = _Frame(1040, 380, x, y, left=66)
    longest = max(20, _POINTS_OF_ALL_CURVES // max(1, len(found)))
    body, crosses = [f'<g class="lines" style="{_faintness(len(found))}">'], []
    for curve in found:
        places = [place for point in _thinned(curve.points, longest) if (place := frame.place(*point)) is not None]
        if not places:
            continue
        if len(places) == 1:
            body.append(f'<circle {curve.mark.attributes} cx="{places[0][0]:.1f}" cy="{places[0][1]:.1f}" r="2.5"/>')
        else:
            line = "M" + " ".join(f"{across:.1f},{up:.1f}" for across, up in places)
            body.append(f'<path {curve.mark.attributes} d="{line}"/>')
        if curve.mark.look == "failed":
            across, up = places[-1]
            cross = f"M{across - 4:.1f} {up - 4:.1f}l8 8m0 -8l-8 8"
            crosses.append(f'<path data-t="{curve.mark.trial}" class="failed cross" d="{cross}"/>')
    return frame.svg([*body, *crosses, "</g>"], f"{y.name} against {x.name}, a curve for each training")


def escape(text: Any) -> str:
    """Return text that is safe in HTML and SVG, in an attribute too."""
    return html.escape(printable(str(text)))


def curve_points(rows: Sequence[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    """Return (step, value) of the rows of a metrics.jsonl in which the metric `name` is a finite number."""
    return [(row["step"], row[name]) for row in rows if is_number(row.get(name))]


def _thinned(points: list[tuple[float, float]], longest: int) -> list[tuple[float, float]]:
    """Return at most about `longest` of the points, evenly chosen, the first and the last among them."""
    if len(points) <= longest:
        return points
    last = len(points) - 1
    return [points[round(index * last / (longest - 1))] for index in range(longest)]


def _jitter(axis: Axis, number: int) -> float:
    """Return by how much a trial is moved beside its choice, so that equal ones do not hide each other."""
    return (number * _GOLDEN % 1 - 0.5) * 0.5 / len(axis.choices) if axis.kind == "choice" else 0.0


def _faintness(number: int) -> str:
    """Return the style by which so many lines can be told apart."""
    return f"--faint:{max(0.2, min(0.75, 0.75 * (80 / max(1, number)) ** 0.5)):.2f}"


def _smooth(places: Sequence[tuple[float, float]]) -> str:
    """Return a path through the places that crosses each axis at a right angle."""
    path = f"M{places[0][0]:.0f} {places[0][1]:.1f}"
    for (x0, y0), (x1, y1) in itertools.pairwise(places):
        bend = (x1 - x0) * 0.4
        path += f"C{x0 + bend:.0f} {y0:.1f} {x1 - bend:.0f} {y1:.1f} {x1:.0f} {y1:.1f}"
    return path


def _svg(width: int, height: int, body: Sequence[str], label: str, name: str = "") -> str:
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}"'
    head += f' class="{name}"' if name else ""
    least, most = min(width, 860) if width > 400 else 0, 1.3 * width if width < 400 else 1.05 * width
    return "".join([head, f' style="min-width:{least}px;max-width:{most:.0f}px">', *body, "</svg>"])
