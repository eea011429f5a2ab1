"""Samples from a file, their scores as a table and as a file."""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from alignkit.errors import DataError
from alignkit.reward import scalar_score
from alignkit.text import excerpt

Scores = list[float | list[float] | None]


def read_samples(
    path: Path, prompt: str = "prompt", completion: str = "completion", limit: int | None = None
) -> tuple[list, list, dict[str, list]]:
    """Prompts, completions and the other columns of a file; see `alignkit.data.reading.read_file` for the formats.

    A file without prompts gives empty ones, with a word on stderr: many rewards read the completion only.

    Raises:
        DataError: unreadable, without rows, or without the column of the completions.
    """
    from alignkit.data.reading import read_file

    rows = read_file(path)
    if completion not in rows.column_names:
        raise DataError(
            f"{path} has no column '{completion}'; it has: {', '.join(rows.column_names)}. Name the column with the "
            "completions: --completion COLUMN"
        )
    if limit is not None:
        rows = rows.select(range(min(limit, len(rows))))
    columns = {name: list(rows[name]) for name in rows.column_names}
    completions = columns.pop(completion)
    empty = [i for i, text in enumerate(completions) if text is None]
    if empty:
        raise DataError(f"{path}: row {empty[0]} has no {completion} (null); {len(empty)} rows lack one")
    if prompt not in columns:
        print(f"{path} has no column '{prompt}': scoring with empty prompts (--prompt COLUMN)", file=sys.stderr)
        return [""] * len(completions), completions, columns
    return columns.pop(prompt), completions, columns


def show_scores(name: str, prompts: list, completions: list, scores: Scores, rows: int) -> None:
    """A table of the first rows and a line of figures over all."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from alignkit.console import standard_output

    table = Table(box=box.SIMPLE_HEAD, expand=True)
    table.add_column(name, justify="right", no_wrap=True, width=min(max(len(name), 8), 20))
    table.add_column("prompt", ratio=1, no_wrap=True)
    table.add_column("completion", ratio=2, no_wrap=True)
    for prompt, completion, score in list(zip(prompts, completions, scores, strict=True))[:rows]:
        # As Text: brackets in what a model wrote are no markup.
        table.add_row(_shown(score), Text(excerpt(prompt, 200)), Text(excerpt(completion, 400)))
    console = standard_output()
    console.print(table)
    if len(scores) > rows:
        console.print(f"  ... and {len(scores) - rows} more rows (--rows N shows more)", highlight=False)
    known = [value for score in scores if (value := scalar_score(score)) is not None]
    line = f"{len(scores)} completions"
    if known:
        line += f", mean {statistics.fmean(known):.4g}, std {statistics.pstdev(known):.4g}"
        line += f", min {min(known):.4g}, max {max(known):.4g}"
    if len(known) < len(scores):
        line += f", no opinion on {len(scores) - len(known)}"
    print(line)


def write_scores(path: Path, name: str, prompts: list, completions: list, columns: dict, scores: Scores) -> None:
    """One JSON object a line: prompt, completion, `rewards: {name: score}` and the other columns."""
    with path.open("w", encoding="utf-8") as file:
        for i, score in enumerate(scores):
            row: dict[str, Any] = {column: values[i] for column, values in columns.items()}
            known = row.get("rewards")
            rewards = {**(known if isinstance(known, dict) else {}), name: score}
            row.update(prompt=prompts[i], completion=completions[i], rewards=rewards)
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def _shown(score: float | list[float] | None) -> str:
    if score is None:
        return "-"
    if isinstance(score, list):
        return f"{sum(score):.4f} ({len(score)})"
    return f"{score:.4f}"
