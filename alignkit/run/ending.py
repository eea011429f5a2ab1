"""What a finished run prints: a table before and after, samples side by side, and where the report is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from alignkit.console import standard_output
from alignkit.models.locating import RUN_REWARDS
from alignkit.text import excerpt
from alignkit.trainers.ended_rewards import is_two_measures, read_ended

_SAMPLES = 10


def print_ending(
    before: dict[str, float],
    after: dict[str, float],
    rows_before: list[dict[str, Any]],
    rows_after: list[dict[str, Any]],
    folder: Path,
    report: Path,
    console: Console | None = None,
) -> None:
    """Prints it, to standard output unless a console is given."""
    console = console or standard_output()
    ended = read_ended(folder)
    learned = ended.learned if ended else []
    console.print()
    console.print(figures_table(before, after, learned))
    if learned:
        said = "what it says after" if len(learned) == 1 else "what they say after"
        said = f"{', '.join(learned)} changed with training: {said} does not compare with before"
        console.print(said, highlight=False, markup=False, soft_wrap=True)
    console.print(samples_table(rows_before, rows_after))
    console.print(f"model    {folder / 'model'}", highlight=False, soft_wrap=True)
    if ended is not None:
        console.print(f"rewards  {folder / RUN_REWARDS}, as they ended", highlight=False, soft_wrap=True)
    console.print(f"results  {folder / 'results.json'}", highlight=False, soft_wrap=True)
    console.print(f"report   {report}", highlight=False, soft_wrap=True)


def figures_table(before: dict[str, float], after: dict[str, float], learned: Sequence[str] = ()) -> Table:
    """A row a figure; without a change where a reward that changed itself is two measures."""
    table = Table(title="Held-out data", title_justify="left", title_style="bold")
    table.add_column("figure")
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right")
    for key in [*before, *(key for key in after if key not in before)]:
        first, last = before.get(key), after.get(key)
        apart = is_two_measures(key, learned)
        change = last - first if first is not None and last is not None and not apart else None
        table.add_row(key, figure(first), figure(last), figure(change, signed=True))
    return table


def samples_table(rows_before: list[dict[str, Any]], rows_after: list[dict[str, Any]]) -> Table:
    """The same prompts, answered before and after; each answer with its reward."""
    table = Table(title="Samples", title_justify="left", title_style="bold", show_lines=True)
    for name in ("prompt", "before", "after"):
        table.add_column(name, ratio=1, overflow="fold")
    for first, last in list(zip(rows_before, rows_after, strict=True))[:_SAMPLES]:
        # plain text: model output may hold what rich would read as markup
        table.add_row(*map(Text, (excerpt(first["prompt"], 160), _answer(first), _answer(last))))
    return table


def figure(value: float | None, signed: bool = False) -> str:
    """Four significant digits.

    >>> figure(0.51234), figure(123.456), figure(None), figure(0.25, signed=True)
    ('0.5123', '123.5', '', '+0.25')
    """
    return "" if value is None else f"{value:{'+' if signed else ''}.4g}"


def _answer(row: dict[str, Any]) -> str:
    reward = row.get("reward")
    score = f"  [{reward:.2f}]" if reward is not None else ""
    return excerpt(row["completion"], 200) + score
