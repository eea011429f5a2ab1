"""The pictures of docs/results.md: a study's runs by two figures, over temperatures, and over the steps of training."""

import statistics
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.errors import DataError
from alignkit.report.temperatures import axis_label, draw_curves

if TYPE_CHECKING:
    from make_results import Run, Study


def draw_all(study: "Study") -> None:
    """Draws what study.yaml asks for, beside the study's folder."""
    for wanted, picture, suffix in (
        (study.plot, draw_figures, ""),
        (study.curves, draw_temperatures, "-temperatures"),
        (study.steps, draw_steps, "-steps"),
    ):
        if wanted:
            picture(study, study.folder.parent / f"{study.folder.name}{suffix}.svg")


@contextmanager
def panels(study: "Study", labels: Iterable[str], target: Path) -> Iterator[list[Any]]:
    """Axes side by side, one for each label of the vertical axis, written to `target` when all are drawn."""
    plt = _pyplot()
    names = list(labels)
    with plt.rc_context(_style(study)):
        fig, row = plt.subplots(1, len(names), figsize=(5 * len(names), 4.2), layout="constrained", squeeze=False)
        try:
            for axes, name in zip(row[0], names, strict=True):
                axes.set_ylabel(name)
                axes.grid(alpha=0.25)
            yield list(row[0])
            fig.savefig(target, metadata={"Date": None})
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
    """A curve over temperatures for each method that was judged at several."""
    plt = _pyplot()
    assert study.curves is not None
    x, y = study.curves["x"], study.curves["y"]
    judged = {name: [run.temperatures for run in study.runs if run.method == name] for name in study.methods()}
    with plt.rc_context(_style(study)):
        fig, axes = plt.subplots(figsize=(6.4, 4.6), layout="constrained")
        try:
            draw_curves(axes, {name: sweeps for name, sweeps in judged.items() if any(sweeps)}, x, y)
        except DataError as error:
            raise SystemExit(f"{study.folder}: {error}") from error
        axes.set_xlabel(axis_label(x))
        axes.set_ylabel(axis_label(y))
        fig.savefig(target, metadata={"Date": None})
        plt.close(fig)


def _pyplot() -> Any:
    import matplotlib.pyplot

    matplotlib.use("svg")
    return matplotlib.pyplot


def _style(study: "Study") -> dict[str, Any]:
    return {"svg.hashsalt": study.title, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}


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
            axes.legend(frameon=False)


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
