"""`alignkit compare`: finished runs side by side, on the prompts that all of them answered."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from alignkit.comparison import Comparison, Row, compare_rows
from alignkit.errors import DataError
from alignkit.evaluation import finite
from alignkit.json_lines import read_json_lines
from alignkit.models.locating import RUN_RECIPE
from alignkit.run.ending import figure
from alignkit.whole_files import write_text


def compare_runs(
    runs: Sequence[str | Path], metrics: Sequence[str] = (), output: str | Path | None = None
) -> Comparison:
    """Prints what held-out completions after training say of each run, and how it differs from the first.

    Args:
        runs: folders of finished runs, or files that `alignkit evaluate --output` wrote.
        metrics: figures to compare; all when empty.
        output: JSON file for all of it.

    Raises:
        DataError: a folder or file without completions after training, or no prompt that all have.
        ConfigError: fewer than two runs, or a figure that none of them has.
    """
    names = _names([Path(run) for run in runs])
    rows = {name: _rows_after(Path(run)) for name, run in zip(names, runs, strict=True)}
    found = compare_rows(rows, metrics)
    console = Console()
    console.print(_table(found))
    for name, own in rows.items():
        if len(own) > found.prompts:
            console.print(f"{name}: {len(own) - found.prompts} of {len(own)} prompts are not shared by all, left out")
    remarks = _differing({name: _recipe(Path(run)) for name, run in zip(names, runs, strict=True)})
    for line in [*remarks, *found.verdicts]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if output is not None:
        folders = {name: str(run) for name, run in zip(names, runs, strict=True)}
        content = finite({"folders": folders, **found.to_dict(), "remarks": remarks})
        write_text(output, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        print(f"written to {output}")
    return found


def _names(runs: list[Path]) -> list[str]:
    """The folders' last parts where these tell the runs apart, else the paths as given."""
    short = [run.resolve().stem if run.is_file() else run.resolve().name for run in runs]
    names = short if len(set(short)) == len(short) else [str(run) for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{twice} was given twice; give the folders of different runs")
    return names


def _judged(file: Path) -> dict[str, Any]:
    """What `alignkit evaluate --output` wrote."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{file} is not what `alignkit evaluate --output` writes: {error}") from error
    if not isinstance(content, dict) or not content.get("rows"):
        raise DataError(f"{file} has no `rows`; give a file that `alignkit evaluate --output` wrote")
    return content


def _rows_after(run: Path) -> list[Row]:
    if run.is_file():
        return list(_judged(run)["rows"])
    file = run / "samples.jsonl"
    rows = [row for row in read_json_lines(file) if row.get("phase") == "after"] if file.is_file() else []
    if not rows:
        raise DataError(
            f"{run} has no completions after training (samples.jsonl, phase after); give the folder of a finished run "
            "(its training.output_dir) of a trainer that completes held-out prompts, or a file that "
            "`alignkit evaluate --output` wrote"
        )
    return rows


def _recipe(run: Path) -> dict[str, Any]:
    if run.is_file():
        return _judged(run).get("recipe") or {}
    file = run / RUN_RECIPE
    return (yaml.safe_load(file.read_text(encoding="utf-8")) or {}) if file.is_file() else {}


def _differing(recipes: dict[str, dict[str, Any]]) -> list[str]:
    """Where one name stands for different measures, whose figures do not compare."""
    measures: dict[str, dict[str, Any]] = {}
    for run, recipe in recipes.items():
        for name, spec in (recipe.get("rewards") or {}).items():
            own = {key: value for key, value in (spec or {}).items() if key != "weight"}
            measures.setdefault(f"rewards/{name}", {})[run] = own
        for name, spec in ((recipe.get("evaluation") or {}).get("metrics") or {}).items():
            measures.setdefault(name, {})[run] = spec
    remarks = []
    for name, of_runs in measures.items():
        first, *others = of_runs
        remarks += [
            f"{name} is not the same in {first} ({of_runs[first]}) and {run} ({of_runs[run]})"
            for run in others
            if of_runs[run] != of_runs[first]
        ]
    return remarks


def _table(found: Comparison) -> Table:
    first = found.systems[0]
    table = Table(title=f"{found.prompts} held-out prompts, after training", title_justify="left", title_style="bold")
    for name in ("figure", "system"):
        table.add_column(name, overflow="fold")  # a name that is cut off names nothing
    for name in ("mean", f"difference to {first}", "95% interval"):
        table.add_column(name, justify="right")
    table.add_column("")
    for name, standings in found.figures.items():
        shown = name
        for system, one in standings.items():
            interval = "" if one.interval is None else f"{one.interval[0]:+.4g} to {one.interval[1]:+.4g}"
            direction = "" if one.interval is None else {1: "up", -1: "down", 0: "unclear"}[one.direction]
            table.add_row(shown, system, figure(one.mean), figure(one.difference, signed=True), interval, direction)
            shown = ""
        table.add_section()
    return table
