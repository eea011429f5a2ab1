"""The pictures of docs/results.md: runs by two figures, over temperatures and over steps, and their differences."""

import statistics
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.errors import DataError
from alignkit.report.differences import draw_panel
from alignkit.report.temperatures import axis_label, draw_curves, value_at
from alignkit.report.words import figure_of

if TYPE_CHECKING:
    from results_reading import Run, Study

_MORE_COLOURS = ("black", "goldenrod", "darkblue", "salmon", "darkgreen", "orchid")  # behind the ten of matplotlib


def pictures(study: "Study") -> dict[Path, Any]:
    """The files that study.yaml asks for, beside the study's folder, and what draws each."""
    wanted = (
        (study.plot, draw_figures, ""),
        (study.curves, draw_temperatures, "-temperatures"),
        (study.steps, draw_steps, "-steps"),
        (study.differences, draw_differences, "-differences"),
    )
    return {study.folder.parent / f"{study.folder.name}{suffix}.svg": draw for asked, draw, suffix in wanted if asked}


def draw_all(study: "Study") -> None:
    """Draws all of them."""
    for target, draw in pictures(study).items():
        draw(study, target)


def stale(study: "Study") -> list[Path]:
    """Those that are not there, or were drawn from other runs."""
    return [p for p in pictures(study) if not p.is_file() or study.digest() not in p.read_text(encoding="utf-8")]


@contextmanager
def panels(study: "Study", labels: Iterable[str], target: Path, width: float = 5.0) -> Iterator[list[Any]]:
    """Axes side by side, one for each label of the vertical axis, written to `target` when all are drawn."""
    plt = _pyplot()
    names = list(labels)
    with plt.rc_context(_style(study)):
        size = (width * len(names), 4.2)
        fig, row = plt.subplots(1, len(names), figsize=size, layout="constrained", squeeze=False)
        try:
            for axes, name in zip(row[0], names, strict=True):
                axes.set_ylabel(name)
                axes.grid(alpha=0.25)
            yield list(row[0])
            fig.savefig(target, metadata={"Date": None, "Description": study.digest()})
        finally:
            plt.close(fig)


def draw_figures(study: "Study", target: Path) -> None:
    """A panel for each figure: a dot for each run's end, a line for its way there, a cross for each method's mean."""
    assert study.plot is not None
    x, figures = study.plot["x"], study.plot["y"]
    with panels(study, figures.values(), target) as row:
        for axes, y in zip(row, figures, strict=True):
            for i, method in enumerate(study.methods()):
                _method(axes, [run for run in study.runs if run.method == method], x, y, f"C{i}")
            axes.set_xlabel(study.plot.get("x_label", x))
        row[-1].legend(frameon=False)


def draw_temperatures(study: "Study", target: Path) -> None:
    """A curve over temperatures for each method that was judged at several, and how far it lies from the first's."""
    assert study.curves is not None
    x, y = study.curves["x"], study.curves["y"]
    judged = {name: [run.temperatures for run in study.runs if run.method == name] for name in study.methods()}
    judged = {name: sweeps for name, sweeps in judged.items() if any(sweeps)}
    first = next(iter(judged), "")
    with panels(study, [axis_label(y), f"difference to {first} at equal {figure_of(x).label}"], target) as row:
        try:
            draw_curves(row[0], judged, x, y)
            _draw_differences(row[1], judged, x, y)
        except DataError as error:
            raise SystemExit(f"{study.folder}: {error}") from error
        row[0].get_legend().remove()  # beside the panels it hides nothing
        row[0].figure.legend(*row[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
        for axes in row:
            axes.set_xlabel(axis_label(x))


def _draw_differences(axes: Any, judged: dict[str, list[Any]], x: str, y: str) -> None:
    """A line for each system's difference to the first, a band for its seeds' standard deviation."""
    for colour, points in enumerate(differences_over(judged, x, y).values()):
        places, means, spreads = zip(*points, strict=True) if points else ((), (), ())
        axes.plot(places, means, color=f"C{colour}", lw=1.6)
        low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
        axes.fill_between(places, low, high, color=f"C{colour}", alpha=0.1, lw=0)


def differences_over(judged: dict[str, list[Any]], x: str, y: str) -> dict[str, list[tuple[float, float, float]]]:
    """By system, at values of x: x, the mean over seeds of y less the first system's there, and the seeds' standard
    deviation; where a seed of either does not reach, nothing."""
    first = next(iter(judged.values()))
    ends = [point["figures"][x] for sweeps in judged.values() for sweep in sweeps for point in sweep]
    places = [min(ends) + (max(ends) - min(ends)) * i / 80 for i in range(81)]
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in judged}
    for name, sweeps in judged.items():
        for place in places:
            own, base = (
                [value for sweep in each if (value := value_at(sweep, x, y, place)) is not None]
                for each in (sweeps, first)
            )
            if len(own) == len(sweeps) and len(base) == len(first):
                spread = statistics.stdev(own) if len(own) > 1 else 0.0
                found[name].append((place, statistics.fmean(own) - statistics.fmean(base), spread))
    return found


def _pyplot() -> Any:
    import matplotlib.pyplot

    matplotlib.use("svg")
    return matplotlib.pyplot


def _style(study: "Study") -> dict[str, Any]:
    import matplotlib
    from cycler import cycler

    colours = [*matplotlib.color_sequences["tab10"], *_MORE_COLOURS]
    frame = {"axes.spines.top": False, "axes.spines.right": False}
    return {"svg.hashsalt": study.title, "font.size": 10, "axes.prop_cycle": cycler(color=colours), **frame}


def _method(axes: Any, runs: "list[Run]", x: str, y: str, colour: str) -> None:
    for run in runs:
        curve = [row for row in run.curve if f"eval_{x}" in row and f"eval_{y}" in row]
        axes.plot([r[f"eval_{x}"] for r in curve], [r[f"eval_{y}"] for r in curve], color=colour, lw=0.9, alpha=0.5)
    xs, ys = [run.after[x] for run in runs], [run.after[y] for run in runs]
    axes.scatter(xs, ys, color=colour, s=26, label=runs[0].method, zorder=3)
    axes.scatter([statistics.fmean(xs)], [statistics.fmean(ys)], color=colour, marker="+", s=160, zorder=4)


def draw_steps(study: "Study", target: Path) -> None:
    """A panel for each figure: over the steps of training, a thin line a seed and a line for the mean of a method's."""
    with panels(study, study.steps.values(), target) as row:
        for axes, key in zip(row, study.steps, strict=True):
            for i, method in enumerate(study.methods()):
                lines = [over_steps(run, key) for run in study.runs if run.method == method]
                lines = [line for line in lines if line]
                mean = mean_line(lines)
                if lines and not mean:
                    raise SystemExit(f"{study.folder}: the seeds of {method} have {key!r} at no step in common")
                for line in lines if len(lines) > 1 else []:
                    axes.plot(*zip(*line.items(), strict=True), color=f"C{i}", lw=0.7, alpha=0.4)
                if mean:
                    axes.plot(*zip(*mean.items(), strict=True), color=f"C{i}", lw=1.7, label=method)
            if not axes.lines:
                raise SystemExit(f"{study.folder}: no run has {key!r} of `steps` in its metrics.jsonl")
            axes.set_xlabel("optimiser step")
        handles = {label: line for axes in row for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        ordered = [method for method in study.methods() if method in handles]
        row[0].figure.legend([handles[name] for name in ordered], ordered, loc="outside right upper", frameon=False)


def draw_differences(study: "Study", target: Path) -> None:
    """A panel for each figure: the systems' differences to the first one, with their intervals over prompts."""
    with panels(study, [""] * len(study.differences), target, 3.6) as row:
        for axes, (name, label) in zip(row, study.differences.items(), strict=True):
            axes.grid(visible=False)
            draw_panel(axes, study.comparison, name, label)
        for axes in row[1:]:
            axes.set_yticklabels([])


def over_steps(run: "Run", key: str) -> dict[int, float]:
    """Step -> figure, of the rows that have it; of two rows at one step the last."""
    return {int(row["step"]): row[key] for row in run.curve if row.get(key) is not None}


def mean_line(lines: list[dict[int, float]]) -> dict[int, float]:
    """The mean at each step that all lines have.

    >>> mean_line([{0: 1.0, 5: 2.0}, {0: 3.0, 9: 1.0}])
    {0: 2.0}
    """
    steps = [step for step in (lines[0] if lines else {}) if all(step in line for line in lines)]
    return {step: statistics.fmean(line[step] for line in lines) for step in sorted(steps)}
