"""How a PPO step grows: CPU seconds and memory as one dimension doubles, with fitted exponents and a plot."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plan import GROWTH, GROWTH_START
from tables import Table, number

TITLES = {
    "batch": "batch",
    "new_tokens": "answer length",
    "vocabulary": "vocabulary",
    "width": "model width",
    "layers": "layers",
}
# The colours of a run's report.
COLOURS = ("#0d7a70", "#c2570c", "#7a5fb0", "#d49a1f", "#6f86c9")
INK, SOFT, GRID = "#1c2226", "#5e676e", "#e3e0d8"


@dataclass(frozen=True)
class Curve:
    """One dimension: its values, CPU seconds a step, and peak memory (MiB) beyond what the imports take."""

    dimension: str
    sizes: list[int]
    seconds: list[float]
    memory: list[float]


def curves(rows: list[dict[str, Any]]) -> list[Curve]:
    """A curve for each dimension of which every point was measured."""
    found = []
    for dimension, values in GROWTH.items():
        points = []
        for value in values:
            wanted = {**GROWTH_START, dimension: value}.items()
            points += [row for row in rows if all(row[key] == size for key, size in wanted)][:1]
        if len(points) == len(values):
            memory = [row["peak_rss_mib"] - row["imports_rss_mib"] for row in points]
            found.append(Curve(dimension, list(values), [row["step_cpu_s"] for row in points], memory))
    return found


def exponent(sizes: list[int], values: list[float]) -> float:
    """Slope of the least-squares line through the logarithms.

    >>> round(exponent([1, 2, 4, 8], [3.0, 6.0, 12.0, 24.0]), 6), round(exponent([1, 2, 4], [5.0, 20.0, 80.0]), 6)
    (1.0, 2.0)
    """
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


def table(rows: list[dict[str, Any]]) -> Table:
    """Figures and exponents, one row a dimension."""
    found = [["dimension", "values", "CPU s/step", "exponent", "MiB beyond imports", "exponent"]]
    for curve in curves(rows):
        cells = [", ".join(map(str, curve.sizes))]
        for values in (curve.seconds, curve.memory):
            cells += [", ".join(map(number, values)), f"{exponent(curve.sizes, values):.2f}"]
        found.append([TITLES[curve.dimension], *cells])
    return found


def draw(rows: list[dict[str, Any]], target: Path) -> None:
    """Both figures over the factor by which a dimension grew, each relative to its first point, beside slope 1."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    style: Any = {
        "svg.hashsalt": "growth", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
        "axes.edgecolor": SOFT, "axes.labelcolor": INK, "xtick.color": SOFT, "ytick.color": SOFT, "text.color": INK,
    }  # fmt: skip
    with plt.rc_context(style):
        figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained", sharey=True)
        for axes, what, label in zip(
            panels, ("seconds", "memory"), ("CPU seconds a step", "peak memory beyond imports"), strict=True
        ):
            axes.plot([1, 8], [1, 8], color=SOFT, lw=1, ls=(0, (4, 3)), label="in proportion")
            for curve, colour in zip(curves(rows), COLOURS, strict=False):
                values = getattr(curve, what)
                title = f"{TITLES[curve.dimension]}: {exponent(curve.sizes, values):.2f}"
                factors = [size / curve.sizes[0] for size in curve.sizes]
                relative = [value / values[0] for value in values]
                axes.plot(factors, relative, color=colour, lw=1.8, marker="o", ms=4, label=title)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log", base=2)
            axes.set_xticks([1, 2, 4, 8], ["×1", "×2", "×4", "×8"])
            axes.yaxis.set_major_formatter(lambda value, position: f"×{value:g}")
            axes.set_xlabel("growth of the dimension")
            axes.set_ylabel(f"{label}, relative")
            axes.grid(color=GRID, lw=0.7)
            axes.legend(frameon=False, fontsize=9, title="exponent", title_fontsize=9)
        figure.savefig(target, metadata={"Date": None})
        plt.close(figure)
