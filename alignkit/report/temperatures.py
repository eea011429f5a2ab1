"""One figure against another over sampling temperatures, such as BLEU against self-BLEU: systems as curves.

A single temperature decides how a generator trades quality for variety, so that two systems compare by their curves
(Caccia et al. 2020, arXiv:1811.02549). The figures are those that `alignkit evaluate --temperatures` wrote.
"""

import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignkit.errors import DataError
from alignkit.report.words import figure_of
from alignkit.whole_files import write_bytes

Sweep = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class CurvePoint:
    """A system at one temperature: means over its seeds, and their standard deviations (0 of one seed)."""

    temperature: float
    x: float
    y: float
    x_spread: float
    y_spread: float


def read_temperatures(file: str | Path) -> list[dict[str, Any]]:
    """What a file of `alignkit evaluate --temperatures --output` has: `temperature` and `figures` of each.

    Raises:
        DataError: it is none.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict) or not content.get("temperatures"):
        raise DataError(f"{file} has no figures over temperatures; write it with alignkit evaluate RUN --temperatures")
    return content["temperatures"]


def curve(seeds: Sequence[Sweep], x: str, y: str) -> list[CurvePoint]:
    """The points of one system, by temperature.

    Args:
        seeds: for each seed the figures at every temperature.
        x: key of a figure.
        y: key of a figure.

    Raises:
        DataError: no seed, seeds at different temperatures, or a figure that is missing.

    >>> seeds = [[{"temperature": 1.0, "figures": {"a": 0.2, "b": value}}] for value in (0.4, 0.6)]
    >>> curve(seeds, "a", "b")[0].y
    0.5
    """
    temperatures = [sorted(one["temperature"] for one in sweep) for sweep in seeds]
    if not seeds or any(own != temperatures[0] for own in temperatures):
        raise DataError(f"the seeds of a system are measured at the same temperatures, got {temperatures}")
    points = []
    for temperature in temperatures[0]:
        found = [one["figures"] for sweep in seeds for one in sweep if one["temperature"] == temperature]
        for key in (x, y):
            lacking = next((own for own in found if own.get(key) is None), None)
            if lacking is not None:
                raise DataError(
                    f"there is no figure {key!r} at temperature {temperature:g}; there are: {', '.join(lacking)}"
                )
        values = [[float(own[key]) for own in found] for key in (x, y)]
        means = [statistics.fmean(own) for own in values]
        spreads = [statistics.stdev(own) if len(own) > 1 else 0.0 for own in values]
        points.append(CurvePoint(temperature, *means, *spreads))
    return points


def value_at(sweep: Sweep, x: str, y: str, at: float) -> float | None:
    """The figure y of one seed's curve where its x is `at`, on the straight line between the two nearest points.

    Two systems at one x compare without their temperatures. None where the curve does not reach.

    >>> sweep = [{"temperature": t, "figures": {"a": t, "b": 2 * t}} for t in (1.0, 0.5)]
    >>> value_at(sweep, "a", "b", 0.75), value_at(sweep, "a", "b", 1.25)
    (1.5, None)
    """
    points = sorted((point.x, point.y) for point in curve([sweep], x, y))
    xs, ys = zip(*points, strict=True)
    found = float(np.interp(at, xs, ys, left=math.nan, right=math.nan))
    return None if math.isnan(found) else found


def draw_curves(axes: Any, systems: Mapping[str, Sequence[Sweep]], x: str, y: str) -> None:
    """Draws each system: a line through the means over seeds, bars of a standard deviation, thin lines for the seeds.

    The ends of a line say their temperature; of more than three systems those of the first alone.

    Args:
        axes: of matplotlib.
        systems: name -> its seeds, see `curve`.
        x: key of the figure on the horizontal axis.
        y: key of the other one.
    """
    for place, (name, seeds) in enumerate(systems.items()):
        colour, points = f"C{place}", curve(seeds, x, y)
        if len(seeds) > 1:
            for sweep in seeds:
                own = curve([sweep], x, y)
                axes.plot([p.x for p in own], [p.y for p in own], color=colour, lw=0.7, alpha=0.35)
        axes.errorbar(
            [p.x for p in points], [p.y for p in points],
            xerr=[p.x_spread for p in points] if len(seeds) > 1 else None,
            yerr=[p.y_spread for p in points] if len(seeds) > 1 else None,
            color=colour, lw=1.6, marker="o", ms=4, elinewidth=0.9, capsize=2, label=name,
        )  # fmt: skip
        if place and len(systems) > 3:
            continue  # labels of many curves lie on each other
        for point, (right, up) in ((points[0], (6, 4)), (points[-1], (6, -10))):
            axes.annotate(
                f"T {point.temperature:g}", (point.x, point.y), (right, up), textcoords="offset points",
                fontsize=7, color=colour,
            )  # fmt: skip
    axes.margins(0.08)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)


def write_curves(
    systems: Mapping[str, Sequence[str | Path]],
    file: str | Path,
    x: str = "self_bleu_4",
    y: str = "bleu_4",
    title: str | None = None,
) -> Path:
    """Writes a picture of several systems' curves.

    Args:
        systems: name -> files of `alignkit evaluate --temperatures --output`, one a seed.
        file: .png or .svg, to write.
        x: key of the figure on the horizontal axis.
        y: key of the other one.
        title: over the picture.

    Returns:
        the path of the picture.

    Raises:
        DataError: files that have no such figures, or no system.
    """
    from matplotlib.figure import Figure

    if not systems:
        raise DataError("there is no system to draw; give a name with its files")
    read = {name: [read_temperatures(one) for one in files] for name, files in systems.items()}
    picture = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = picture.subplots()
    draw_curves(axes, read, x, y)
    axes.set_xlabel(axis_label(x))
    axes.set_ylabel(axis_label(y))
    if title:
        axes.set_title(title)
    target = Path(file)
    content = io.BytesIO()
    picture.savefig(content, format=target.suffix.removeprefix(".") or "png", dpi=160)
    return write_bytes(target, content.getvalue())


def axis_label(key: str) -> str:
    """What an axis is called, and which way is better.

    >>> axis_label("self_bleu_4")
    'Self-BLEU-4 (lower is better)'
    """
    figure = figure_of(key)
    better = {1: " (higher is better)", -1: " (lower is better)"}.get(figure.better, "")
    return f"{figure.label}{better}"
