"""Plots as numbers: paths in a square of 100 by 100, ticks in per cent. The page's template draws them.

Only numbers leave this module inside paths, so nothing that a model wrote can end up in markup. The page scales the
square to whatever room there is and keeps strokes and text at their size.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from matplotlib.ticker import MaxNLocator

from alignkit.report.words import Figure, written

MOST_POINTS = 300
Points = Sequence[tuple[float, float]]


@dataclass
class Line:
    """One curve or cloud of points, ready to draw.

    Attributes:
        label: for the legend and the tooltip.
        style: CSS class of its colour (`train`, `held-out`, `before`, `after`, `other-1` ...).
        path: the curve itself.
        faint: what it was smoothed from.
        band: filled area between lowest and highest, where many points were put together.
        dots: a dot a point.
        values: JSON of [x in per cent, x as written, y as written] for the tooltip.
    """

    label: str
    style: str
    path: str = ""
    faint: str = ""
    band: str = ""
    dots: str = ""
    values: str = "[]"


@dataclass
class Plot:
    """A plot with its axes; ticks are (position in per cent, text)."""

    title: str
    unit: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]] = field(default_factory=list)
    y_ticks: list[tuple[float, str]] = field(default_factory=list)
    note: str = ""
    newest: str = ""
    x_label: str = "step"
    legend: bool = False


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float

    def place(self, value: float) -> float:
        return 100 * (value - self.low) / (self.high - self.low)


def line_plot(
    figure: Figure, curves: Sequence[tuple[str, str, Points]], missing: int = 0, x_label: str = "step"
) -> Plot | None:
    """Curves over steps.

    Args:
        figure: what is shown: label, unit, way of writing.
        curves: (label, style, points); points are (x, y), finite.
        missing: how many logged values were not finite, for a note.
        x_label: what x is.

    Returns:
        None where no curve has a point.
    """
    curves = [(label, style, sorted(points)) for label, style, points in curves if len(points)]
    if not curves:
        return None
    xs = [x for _, _, points in curves for x, _ in points]
    ys = [y for _, _, points in curves for _, y in points]
    x_axis, (y_axis, hidden) = _axis(min(xs), max(xs), tight=True), _range(ys)
    plot = Plot(
        figure.label,
        figure.unit,
        [_line(label, style, points, x_axis, y_axis, figure) for label, style, points in curves],
        _ticks(x_axis, Figure(""), 5, whole=True),
        [(100 - place, text) for place, text in _ticks(y_axis, figure, 5)],
        newest=written(curves[0][2][-1][1], figure.percent),
        x_label=x_label,
        legend=len(curves) > 1,
    )
    notes = []
    if hidden:
        extreme = max(hidden, key=abs)
        count = "1 value lies" if len(hidden) == 1 else f"{len(hidden)} values lie"
        notes.append(f"{count} outside the picture, up to {written(extreme, figure.percent)}")
    if missing:
        notes.append(f"{missing} logged value{'s were' if missing > 1 else ' was'} not a number")
    plot.note = "; ".join(notes)
    return plot


def scatter_plot(title: str, x: Figure, y: Figure, clouds: Sequence[tuple[str, str, Points]]) -> Plot | None:
    """Clouds of points; None where there are none."""
    clouds = [(label, style, points) for label, style, points in clouds if len(points)]
    if not clouds:
        return None
    every = [point for _, _, points in clouds for point in points]
    x_axis = _axis(min(p[0] for p in every), max(p[0] for p in every), from_zero=True)
    y_axis = _axis(min(p[1] for p in every), max(p[1] for p in every))
    return Plot(
        title,
        y.unit,
        [Line(label, style, dots=_dots(points, x_axis, y_axis)) for label, style, points in clouds],
        _ticks(x_axis, x, 6),
        [(100 - place, text) for place, text in _ticks(y_axis, y, 5)],
        x_label=f"{x.label} ({x.unit})" if x.unit else x.label,
        legend=True,
    )


def unit_plot(title: str, x_label: str, curves: Sequence[tuple[str, str, Points]], low: float = 0.0) -> Plot:
    """Shares against shares, with the diagonal where both are equal.

    Args:
        title: of the plot.
        x_label: what x is.
        curves: (label, style, points), each point a dot on its line; x and y lie in [low, 1].
        low: where both axes begin.
    """
    axis, share = _Axis(low, 1.0), Figure("", percent=True)
    lines = [Line("both equal", "diagonal", path=_path([(low, low), (1, 1)], axis, axis))]
    for label, style, points in curves:
        values = [[round(axis.place(x), 2), written(x, True), written(y, True)] for x, y in points]
        lines.append(
            Line(
                *(label, style, _path(points, axis, axis)),
                dots=_dots(points, axis, axis),
                values=json.dumps(values, ensure_ascii=False),
            )
        )
    ticks = _ticks(axis, share, 5)
    return Plot(title, "", lines, ticks, [(100 - place, text) for place, text in ticks], x_label=x_label, legend=True)


def spark(points: Points) -> str:
    """The path of a small curve without axes, at most 60 points."""
    points = thinned(sorted(points), 60)
    if len(points) < 2:
        return ""
    x_axis = _axis(points[0][0], points[-1][0], tight=True)
    ys = [y for _, y in points]
    return _path(points, x_axis, _axis(min(ys), max(ys)))


def thinned(points: Points, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` points, each the mean of its neighbourhood; all of them where they are few enough."""
    if len(points) <= most:
        return list(points)
    return [(float(part[:, 0].mean()), float(part[:, 1].mean())) for part in np.array_split(np.asarray(points), most)]


def smoothed(points: Points) -> list[tuple[float, float]]:
    """Running means over a fifteenth of the curve, centred; shorter windows at the ends."""
    xs, ys = np.asarray(points).T
    half = max(len(ys) // 30, 1)
    total = np.concatenate([[0.0], np.cumsum(ys)])
    index = np.arange(len(ys))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(ys))
    means = (total[high] - total[low]) / (high - low)
    return [(float(x), float(y)) for x, y in zip(xs, means, strict=True)]


def _line(label: str, style: str, points: Points, x_axis: _Axis, y_axis: _Axis, figure: Figure) -> Line:
    line = Line(label, style)
    shown = list(points)
    if len(points) > MOST_POINTS:
        parts = np.array_split(np.asarray(points), MOST_POINTS)
        low = [(float(part[:, 0].mean()), float(part[:, 1].min())) for part in parts]
        high = [(float(part[:, 0].mean()), float(part[:, 1].max())) for part in parts]
        line.band = _path(low + high[::-1], x_axis, y_axis) + "Z"
        shown = smoothed(thinned(points))
    elif len(points) >= 30 and style != "held-out":
        line.faint = _path(points, x_axis, y_axis)
        shown = smoothed(points)
    # two held-out points are a comparison, not a course: a line between them would claim what nobody measured
    drawn = len(shown) > (2 if style == "held-out" else 1)
    line.path = _path(shown, x_axis, y_axis) if drawn else ""
    if len(points) == 1 or style == "held-out":
        line.dots = _dots(shown, x_axis, y_axis)
    line.values = json.dumps(
        [[round(x_axis.place(x), 2), f"{round(x):,}", written(y, figure.percent)] for x, y in shown],
        ensure_ascii=False,
    )
    return line


def _path(points: Points, x_axis: _Axis, y_axis: _Axis) -> str:
    return "M" + "L".join(f"{x_axis.place(x):.2f} {_clip(100 - y_axis.place(y)):.2f}" for x, y in points)


def _dots(points: Points, x_axis: _Axis, y_axis: _Axis) -> str:
    """A dot is a line of no length with round ends, so that it stays round when the square is stretched."""
    return "".join(f"M{x_axis.place(x):.2f} {_clip(100 - y_axis.place(y)):.2f}h.001" for x, y in points)


def _clip(place: float) -> float:
    return min(max(place, -2.0), 102.0)


def _axis(low: float, high: float, tight: bool = False, from_zero: bool = False) -> _Axis:
    if low >= 0 and (from_zero or (not tight and low < 0.4 * high)):
        low = 0.0
    room = high - low
    if room <= 1e-12 * max(abs(low), abs(high)):
        return _Axis(0.0, 2 * high or 1.0) if low >= 0 else _Axis(2 * low, 0.0)
    if tight:
        return _Axis(low, high)
    return _Axis(low - (0.06 * room if low else 0.0), high + 0.08 * room)


def _range(values: Sequence[float]) -> tuple[_Axis, list[float]]:
    """The y axis, and the values that it leaves out: a few outliers must not flatten the rest."""
    low, high = min(values), max(values)
    if len(values) >= 20:
        inner_low, inner_high = np.quantile(values, [0.02, 0.98])
        room = (inner_high - inner_low) or abs(inner_high) or 1.0
        if high > inner_high + 2 * room:
            high = float(inner_high + 0.5 * room)
        if low < inner_low - 2 * room:
            low = float(inner_low - 0.5 * room)
    hidden = [value for value in values if value > high or value < low]
    return _axis(low, high), hidden


def _ticks(axis: _Axis, figure: Figure, count: int, whole: bool = False) -> list[tuple[float, str]]:
    locator = MaxNLocator(nbins=count, steps=[1, 2, 2.5, 5, 10], integer=whole)
    inside = [float(t) for t in locator.tick_values(axis.low, axis.high) if axis.low - 1e-12 <= t <= axis.high]
    gap = min((b - a for a, b in pairwise(inside)), default=abs(axis.high - axis.low))
    return [(axis.place(tick), _tick_text(tick, gap, figure.percent)) for tick in inside]


def _tick_text(tick: float, gap: float, percent: bool) -> str:
    """As many digits as tell neighbours apart."""
    if percent:
        tick, gap = 100 * tick, 100 * gap
    size = max(abs(tick), gap)
    if size >= 1e6 or size < 1e-3:
        text = f"{tick:.1e}".replace("e-0", "e-").replace("e+0", "e") if tick else "0"
    elif size >= 1e4 and gap >= 100:
        text = f"{tick / 1000:g}k" if tick else "0"
    else:
        digits = max(-math.floor(math.log10(gap) + 1e-9), 0)
        text = f"{tick:.{digits + (round(gap * 10**digits, 6) % 1 != 0)}f}"
    return text.replace("-", "−") + ("%" if percent else "")
