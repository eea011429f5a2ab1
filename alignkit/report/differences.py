"""Systems against the first of them, figure by figure: a dot for each difference, a line for its interval."""

import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit.errors import ConfigError
from alignkit.report.words import figure_of
from alignkit.settings import did_you_mean
from alignkit.whole_files import write_bytes

_ABOVE, _BELOW, _UNCLEAR = "C0", "C3", "0.6"
_ABREAST = 3  # panels beside each other
# a system this many times further away than is usual stands at the edge, or nothing could be told of the others
_FAR = 4.0


def draw_differences(axes: Any, standings: Mapping[str, Mapping[str, Any]], systems: Sequence[str]) -> None:
    """One figure's differences to the first system, with their intervals, a system a line from top to bottom.

    An interval above 0 is blue, one below it red, one that holds 0 grey. A system far beyond the others is an arrow at
    the edge, with its difference beside it.

    Args:
        axes: of matplotlib.
        standings: system -> `mean`, `difference` and `interval`, as `Comparison.to_dict` has them for one figure.
        systems: all systems in order, the first one first.
    """
    others = list(systems)[1:]
    known = {name: standings[name] for name in others if standings.get(name, {}).get("interval") is not None}
    reach = {name: max(map(abs, one["interval"])) for name, one in known.items()}
    usual = statistics.median(reach.values()) if reach else 0.0
    near = [name for name, far in reach.items() if far <= _FAR * usual]
    ends = [0.0, *(end for name in near for end in known[name]["interval"])]
    # room on both sides, so that an arrow has a place where all others lie on one
    margin = 0.08 * (max(ends) - min(ends)) or 1.0
    left, right = min(ends) - margin, max(ends) + margin
    axes.axvline(0, color="0.3", lw=0.9)
    for name, one in known.items():
        place, (low, high), difference = others.index(name), one["interval"], one["difference"]
        colour = _ABOVE if low > 0 else _BELOW if high < 0 else _UNCLEAR
        if name not in near:
            edge, marker, inwards, align = (left, "<", 9, "left") if difference < 0 else (right, ">", -9, "right")
            axes.plot([edge], [place], color=colour, marker=marker, ms=7, clip_on=False)
            axes.annotate(
                f"{difference:+.3g}", (edge, place), (inwards, 0), textcoords="offset points", fontsize=8,
                color=colour, va="center", ha=align,
            )  # fmt: skip
        else:
            axes.plot([low, high], [place, place], color=colour, lw=2, solid_capstyle="butt")
            axes.plot([difference], [place], color=colour, marker="o", ms=6)
    axes.set_xlim(left, right)
    axes.set_ylim(len(others) - 0.5, -0.5)
    axes.set_yticks(range(len(others)), others)
    axes.tick_params(left=False)
    axes.grid(axis="x", alpha=0.25)
    axes.locator_params(axis="x", nbins=5)


def write_differences(found: Mapping[str, Any], file: str | Path, figures: Mapping[str, str] | None = None) -> Path:
    """Writes a picture with a panel for each figure.

    Args:
        found: what `Comparison.to_dict` gives.
        file: .png or .svg, to write.
        figures: keys of `found["figures"]` and what to call them; by default all that have an interval.

    Returns:
        the path of the picture.

    Raises:
        ConfigError: no such figure, none that compares, or a file that is neither .png nor .svg.
    """
    from matplotlib.figure import Figure

    kind = picture_format(file)
    names = {name: figure_of(name).label for name in comparing(found)} if figures is None else dict(figures)
    for name in names:
        if name not in comparing(found):
            raise ConfigError(f"no difference to draw of {name!r}{did_you_mean(name, comparing(found), 99)}")
    if not names:
        raise ConfigError("no figure of these systems compares, so that there is nothing to draw")
    across, down = min(len(names), _ABREAST), -(-len(names) // _ABREAST)
    height = 0.9 + 0.32 * (len(found["systems"]) - 1)
    picture = Figure(figsize=(1.6 + 2.9 * across, down * height), layout="constrained")
    panels = picture.subplots(down, across, squeeze=False, sharey=True).flat
    for axes, (name, label) in zip(panels, names.items(), strict=False):
        draw_panel(axes, found, name, label)
    for axes in list(panels)[len(names) :]:
        axes.set_visible(False)
    target = Path(file)
    content = io.BytesIO()
    picture.savefig(content, format=kind, dpi=160)
    return write_bytes(target, content.getvalue())


def picture_format(file: str | Path) -> str:
    """`png` or `svg`, by the file's name.

    Raises:
        ConfigError: it says neither.
    """
    kind = Path(file).suffix.removeprefix(".").lower()
    if kind not in ("png", "svg"):
        raise ConfigError(f"a picture is a .svg or a .png file, got {str(file)!r}")
    return kind


def draw_panel(axes: Any, found: Mapping[str, Any], name: str, label: str) -> None:
    """`draw_differences` of one figure, with its title and what it is held against."""
    draw_differences(axes, found["figures"][name], found["systems"])
    axes.set_title(label, fontsize=10)
    axes.set_xlabel(f"difference to {found['systems'][0]}", fontsize=9)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def comparing(found: Mapping[str, Any]) -> list[str]:
    """The figures of which at least one system has a difference with an interval."""
    return [
        name
        for name, standings in found["figures"].items()
        if any(one["interval"] is not None for one in standings.values())
    ]
