"""How far a classifier's probabilities can be believed: its reliability diagram, and what its model card says of it.

Everything is drawn from what results.json has under `reliability`:

- `rows`: held-out texts; `labels`: names of the classes, in the order of their numbers;
- `as_trained` and, after temperature scaling, `scaled`: `nll`, `brier`, `calibration_error`, and `bins`, each with
  `low`, `high`, `count`, `right` and `confidence` (see `alignkit.run.calibration.Bin`);
- `temperature` and `fitted_on_rows`: of the scaling, and how many texts it was fitted on.
"""

import io
import json
from pathlib import Path
from typing import Any

from alignkit.report.plots import Plot, unit_plot
from alignkit.report.reading import RunFiles
from alignkit.report.words import figure_of, written
from alignkit.whole_files import write_bytes

DIAGRAM = "reliability.png"
_NAMES = {"as_trained": "as trained", "scaled": "after temperature scaling"}
_COLOURS = {"as_trained": "#8a95a5", "scaled": "#0d7a70"}
_FIGURES = ("nll", "brier", "calibration_error")


def reliability_plot(run: RunFiles) -> Plot | None:
    """The diagram for the report's page, None where the run has no classifier's probabilities."""
    found = run.reliability
    if not found:
        return None
    curves = [
        (_NAMES[side], style, [(one["confidence"], one["right"] / one["count"]) for one in found[side]["bins"]])
        for side, style in (("as_trained", "before"), ("scaled", "after"))
        if side in found
    ]
    return unit_plot(
        "Accuracy by confidence", "confidence: probability of the class that it names", curves, _low(found)
    )


def reliability_words(run: RunFiles) -> str:
    """What the diagram shows, in two or three sentences; empty where there is none."""
    found = run.reliability
    if not found:
        return ""
    said = (
        f"{found['rows']:,} held-out texts, by the probability of the class that the classifier names. On the diagonal "
        "it is right as often as it says; below it is too sure."
    )
    error = written(found["as_trained"]["calibration_error"])
    if "scaled" not in found:
        return f"{said} Its probabilities are as training left them; their calibration error is {error}."
    return (
        f"{said} Its logits were divided by {written(found['temperature'])}, fitted on {found['fitted_on_rows']:,} "
        f"texts of train that it did not learn from; that took the calibration error from {error} to "
        f"{written(found['scaled']['calibration_error'])}."
    )


def reliability_rows(run: RunFiles) -> list[tuple[str, str, str]]:
    """For each bin of the model as it is saved: bounds of the confidence, number of texts, accuracy."""
    found = run.reliability
    if not found:
        return []
    return [
        (
            f"{written(one['low'], True)} to {written(one['high'], True)}",
            f"{one['count']:,}",
            written(one["right"] / one["count"], True),
        )
        for one in found[_last(found)]["bins"]
    ]


def write_diagram(found: dict[str, Any], folder: str | Path) -> Path:
    """Draw the reliability diagram as `reliability.png`, with the number of texts in each bin below it.

    Args:
        found: what results.json has under `reliability`.
        folder: of the model.

    Returns:
        the picture's path.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter
    from scipy.stats import binomtest

    sides = [side for side in _NAMES if side in found]
    figure = Figure(figsize=(5.2, 5.8), layout="constrained")
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    low = _low(found)
    axes.plot([low, 1], [low, 1], color="#5e676e", linewidth=1, linestyle="--", label="right as often as it says")
    for side in sides:
        bins = found[side]["bins"]
        places = [one["confidence"] for one in bins]
        shares = [one["right"] / one["count"] for one in bins]
        label = f"{_NAMES[side]}: ECE {found[side]['calibration_error']:.3f}"
        axes.plot(places, shares, color=_COLOURS[side], marker="o", markersize=5, label=label, zorder=3)
        if side == sides[-1]:
            bounds = [binomtest(one["right"], one["count"]).proportion_ci(method="wilson") for one in bins]
            axes.vlines(places, [b.low for b in bounds], [b.high for b in bounds], color=_COLOURS[side], linewidth=1)
            lowest = min([low, *(b.low - 0.01 for b in bounds)])
        # side by side in the bin, so that neither hides the other
        width = 0.8 / len(sides)
        for one in bins:
            room = one["high"] - one["low"]
            left = one["low"] + room * (0.1 + width * sides.index(side))
            counts.bar(left, one["count"], room * width, align="edge", color=_COLOURS[side])
    axes.set(xlim=(low, 1.01), ylim=(lowest, 1.02), ylabel="share of them that it names rightly")
    axes.set_title(f"{found['rows']:,} held-out texts", fontsize=10, loc="left")
    axes.legend(frameon=False, fontsize=9, loc="best")
    counts.set(xlabel="probability of the class that it names", ylabel="texts")
    for each in (axes, counts):
        each.spines[["top", "right"]].set_visible(False)
        each.grid(axis="y", color="#edeae3")
        each.set_axisbelow(True)
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    counts.xaxis.set_major_formatter(PercentFormatter(1, 0))
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150, metadata={"Software": None})
    return write_bytes(Path(folder) / DIAGRAM, picture.getvalue())


def reliability_section(run: RunFiles) -> str:
    """The part of a model card that says how good a classifier is and how it serves as a reward.

    Args:
        run: of a classifier, with its `reliability`.

    Returns:
        Markdown with two headings of the second level; it shows `reliability.png`, which lies beside the card.
    """
    found, after = run.reliability, run.after
    sides = [side for side in _NAMES if side in found]
    rows = [f"| {' | '.join(['figure', *(_NAMES[side] for side in sides)])} |", f"| --- |{' ---: |' * len(sides)}"]
    for key in _FIGURES:
        figure = figure_of(key)
        name = f"{figure.label} ({figure.unit})" if figure.unit else figure.label
        rows.append(f"| {' | '.join([name, *(f'{found[side][key]:.4f}' for side in sides)])} |")
    bins = ["| confidence | texts | mean confidence | accuracy |", "| --- | ---: | ---: | ---: |"]
    for one in found[sides[-1]]["bins"]:
        share = one["right"] / one["count"]
        bins.append(
            f"| {one['low']:.1f} to {one['high']:.1f} | {one['count']:,} | {one['confidence']:.3f} | {share:.3f} |"
        )
    parts = [
        "## Accuracy and calibration",
        f"On {found['rows']:,} held-out texts (validation) its accuracy is {after['accuracy']:.4f}. {_guesses(after)}",
        _scaling(found),
        "\n".join(rows),
        "The Brier score is half the squared distance of the probabilities to the label. The calibration error (ECE) "
        "is the mean distance of confidence, the probability of the class that it names, and accuracy, over ten equal "
        "bins.",
        f"![Reliability diagram]({DIAGRAM})",
        f"The bins of the diagram, {_NAMES[sides[-1]]}; its vertical lines are 95% intervals (Wilson):",
        "\n".join(bins),
        "## Use as a reward",
        _use(run),
    ]
    return "\n\n".join(parts) + "\n"


def _guesses(after: dict[str, float]) -> str:
    said = f"Always naming the largest class gives {after['majority']:.4f}"
    if "baseline" in after:
        said += f", and the guess in the data's column `baseline`, which needs no model, {after['baseline']:.4f}"
    return f"{said}."


def _scaling(found: dict[str, Any]) -> str:
    if "scaled" not in found:
        return "Its probabilities are as training left them (the recipe does not say `calibrate: true`)."
    return (
        f"Its logits are divided by {found['temperature']:.4f}, in the weights of the last layer: temperature scaling "
        f"(Guo et al. 2017), fitted on {found['fitted_on_rows']:,} texts of train that it did not learn from."
    )


def _use(run: RunFiles) -> str:
    """How to load it, by the reward for pairs of texts or that for one text."""
    columns = run.environment["data"]["train"]["columns"]
    pair = "text_pair" in columns
    name = "look_ahead" if pair else "sentiment"
    labels = run.reliability["labels"]
    positive = next((label for label in labels if label.lower() == "positive"), None)
    counts = labels[-1] if positive is None else positive
    chosen = {} if positive is not None else {"label": counts}
    python = "".join(f", {key}={json.dumps(value, ensure_ascii=False)}" for key, value in chosen.items())
    written_so = "".join(f", {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in chosen.items())
    reads = "the last turn of the prompt and the completion" if pair else "the completion"
    call = 'prompts=["I lost my keys."], completions=["Oh no, where?"]'
    return f"""The reward `{name}` gives the probability of `{counts}`, in [0, 1], of {reads}.

```python
from alignkit import load_reward

reward = load_reward("{name}", model="path/to/this/model"{python})
print(reward({call}))
```

In a recipe `rewards: {{{name}: {{model: path/to/this/model{written_so}}}}}`, and on the command line

```bash
alignkit generate MODEL --prompt TEXT --reward '{name}: {{model: path/to/this/model{written_so}}}'
```"""


def _last(found: dict[str, Any]) -> str:
    """The probabilities that the saved model gives."""
    return [side for side in _NAMES if side in found][-1]


def _low(found: dict[str, Any]) -> float:
    """Where the axes begin: at the bin of chance, or lower where the classifier is."""
    bins = [one for side in _NAMES if side in found for one in found[side]["bins"]]
    lowest = min([1 / len(found["labels"]), *(one["right"] / one["count"] for one in bins)])
    return int(lowest * 10 + 1e-9) / 10
