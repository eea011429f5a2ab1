"""A picture of a tree search: the text that was written, and at each token what else the search looked at."""

import math
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from alignkit.errors import DataError

_WIDTH, _HEIGHT = 1.6, 0.42  # inches of a step and of a child
_INK, _CHOSEN, _OTHER = "#333333", "#00796b", "#9e9e9e"


def draw_search_tree(steps: list[Any], processing_class: Any, path: str | Path, most: int = 6) -> Path:
    """Draw how one completion was found.

    From left to right the tokens that were chosen, in a row; below each the other children that its search visited
    most, with their visits N and values Q. The width of an edge grows with its visits.

    Args:
        steps: of one prompt, `MCTSOutput.steps[i]`.
        processing_class: the tokenizer, for the words.
        path: the picture's file: .svg, .png or .pdf.
        most: children of a step, the chosen one included.

    Returns:
        the path.

    Raises:
        DataError: no steps, as of a completion that was not searched for.
    """
    if not steps:
        raise DataError("there is no step to draw; pass MCTSOutput.steps[i] of a search with return_dict_in_generate")
    columns = [_column(step, processing_class, most) for step in steps]
    depth = max(len(column) for column in columns)
    figure = Figure(figsize=(_WIDTH * (len(columns) + 0.6), _HEIGHT * (depth + 1.2)))
    FigureCanvasSVG(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(-0.35, len(columns) + 0.45)
    axes.set_ylim(-depth - 0.1, 0.9)
    axes.plot([0], [0], "o", color=_CHOSEN, markersize=6)
    for place, column in enumerate(columns):
        most_visits = max(visits for _, visits, _, _ in column) or 1
        for row, (word, visits, quality, chosen) in enumerate(column):
            color = _CHOSEN if chosen else _OTHER
            width = 0.6 + 3.4 * math.sqrt(visits / most_visits)
            axes.plot([place, place + 0.5], [0, -row], color=color, linewidth=width, solid_capstyle="round", zorder=1)
            label = f"N {visits}" + ("" if quality is None else f"  Q {quality:.2f}")
            axes.text(
                place + 0.54, -row + 0.1, word, color=_CHOSEN if chosen else _INK, fontsize=9,
                fontweight="bold" if chosen else "normal", va="bottom", clip_on=True,
            )  # fmt: skip
            axes.text(place + 0.54, -row + 0.04, label, color=_INK, fontsize=6.5, va="top")
        axes.plot([place + 1], [0], "o", color=_CHOSEN, markersize=3 if place + 1 < len(columns) else 6, zorder=2)
    path = Path(path)
    figure.savefig(path, dpi=150)
    return path


def _column(step: Any, processing_class: Any, most: int) -> list[tuple[str, int, float | None, bool]]:
    """Word, N, Q and whether it was chosen, of each child that is drawn: the chosen one first, then by visits."""
    found = list(zip(step.tokens, step.visits, step.quality, strict=True))
    own = next((child for child in found if child[0] == step.token), (step.token, 0, None))
    others = sorted((child for child in found if child[0] != step.token), key=lambda child: -child[1])[: most - 1]
    return [(_word(token, processing_class), n, q, token == step.token) for token, n, q in [own, *others]]


def _word(token: int, processing_class: Any) -> str:
    """A token as a reader sees it, on one line, with no sign that matplotlib would take for a formula."""
    text = processing_class.decode([token]).replace("\n", "\\n").replace("$", "\\$")
    text = text if len(text) <= 12 else text[:11] + "…"
    return text if text.strip() else repr(text)
