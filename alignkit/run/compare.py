"""`alignkit compare`: finished runs side by side, on the prompts that all of them answered."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from alignkit.comparison import Comparison, Row, compare_rows, mean_of_seeds
from alignkit.console import standard_output
from alignkit.errors import DataError
from alignkit.evaluation import finite
from alignkit.json_lines import read_json_lines
from alignkit.models.locating import RUN_RECIPE
from alignkit.report.differences import picture_format, write_differences
from alignkit.run.ending import figure
from alignkit.run.saved_rewards import with_origins
from alignkit.whole_files import prepare_output, write_text

_MOST_REMARKS = 4  # of one name; seeds of learned rewards all differ


def compare_runs(
    runs: Sequence[str | Path],
    metrics: Sequence[str] = (),
    output: str | Path | None = None,
    plot: str | Path | None = None,
) -> Comparison:
    """Prints what held-out completions after training say of each system, and how it differs from the first.

    Args:
        runs: folders of finished runs, or files that `alignkit evaluate --output` wrote. `NAME=RUN,RUN,RUN` is one
            system of several seeds, each of whose figures is the mean over them. Where the first system has
            all seeds of another, and more, that one's differences are to the first's runs of the same seeds
            (`training.seed` of the recipe that each was judged by).
        metrics: figures to compare; all when empty.
        output: JSON file for all of it.
        plot: .svg or .png file for a picture of the differences.

    Raises:
        DataError: a folder or file without completions after training, or no prompt that all have.
        ConfigError: fewer than two runs, a figure that none of them has, or a plot of another kind.
    """
    prepare_output(output, "--output")
    if plot is not None:
        picture_format(plot)
        prepare_output(plot, "--plot")
    systems = _systems([str(run) for run in runs])
    given = {name: {str(run): _rows_after(run) for run in seeds} for name, seeds in systems.items()}
    recipes = {name if len(seeds) == 1 else str(run): _recipe(run) for name, seeds in systems.items() for run in seeds}
    differing = _differing(recipes)
    unlike = {name.removeprefix("rewards/") for name in differing if name.startswith("rewards/")}
    beside, said = _of_the_same_seeds(systems, {name: [_recipe(run) for run in runs] for name, runs in systems.items()})
    first = next(iter(given))
    found = compare_rows(
        {name: mean_of_seeds(seeds) for name, seeds in given.items()},
        metrics,
        unlike=unlike,
        baselines={name: mean_of_seeds({run: given[first][run] for run in runs}) for name, runs in beside.items()},
    )
    console = standard_output()
    console.print(_table(found))
    for name, seeds in given.items():
        for run, own in seeds.items():
            if len(own) > found.prompts:
                who = name if len(seeds) == 1 else run
                console.print(
                    f"{who}: {len(own) - found.prompts} of {len(own)} prompts are not shared by all, left out"
                )
    remarks = [line for name, lines in differing.items() if name in found.figures or not metrics for line in lines]
    for line in [*remarks, *said, *found.verdicts]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if plot is not None:
        print(f"drawn to {write_differences(found.to_dict(), plot)}")
    if output is not None:
        folders = {name: [str(run) for run in seeds] for name, seeds in systems.items()}
        content = finite({"folders": folders, **found.to_dict(), "remarks": [*remarks, *said]})
        content["baselines"] = {name: list(seeds.values()) for name, seeds in beside.items()}
        write_text(output, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        print(f"written to {output}")
    return found


def _systems(given: list[str]) -> dict[str, list[Path]]:
    """Name -> its runs. A run without a name has its last part where these tell all apart, else the path as given."""
    named = [one.partition("=") if "=" in one and not os.path.exists(one) else ("", "", one) for one in given]
    for name, _, paths in named:
        if name and not all(paths.split(",")):
            raise DataError(f"{name}={paths}: a run between two commas is empty; write NAME=RUN,RUN")
    runs = [[Path(run) for run in paths.split(",")] if name else [Path(paths)] for name, _, paths in named]
    short = [
        name or (own[0].resolve().stem if own[0].is_file() else own[0].resolve().name)
        for (name, *_), own in zip(named, runs, strict=True)
    ]
    names = short if len(set(short)) == len(short) else [name or paths for name, _, paths in named]
    for kind, all_given in (("", names), ("a run of one of the systems: ", [str(run) for own in runs for run in own])):
        twice = next((one for one in all_given if all_given.count(one) > 1), None)
        if twice is not None:
            raise DataError(f"{kind}{twice} was given twice; give different runs, with names (NAME=RUN) if need be")
    return dict(zip(names, runs, strict=True))


def _of_the_same_seeds(
    systems: dict[str, list[Path]], recipes: dict[str, list[dict[str, Any]]]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """System -> the first's runs of its seeds -> seed, where the first has all of them and more; and what to say of it.

    Runs of one seed have data, order and often a start in common: a mean over other seeds would add their differences.
    """
    of = {name: [(recipe.get("training") or {}).get("seed") for recipe in own] for name, own in recipes.items()}
    first, *others = systems
    runs = dict(zip(of[first], map(str, systems[first]), strict=True))
    known = None not in runs and len(runs) == len(systems[first])
    beside: dict[str, dict[str, Any]] = {}
    said = []
    for name in others:
        if sorted(map(str, of[name])) == sorted(map(str, of[first])) or len(of[name]) == len(of[first]) == 1:
            continue
        if known and set(of[name]) < set(runs):
            beside[name] = {run: seed for seed, run in runs.items() if seed in of[name]}
            said.append(f"{name}: differences are to {first} of {_seeds(of[name])}, as it has no other")
        else:
            said.append(
                f"{name} has {_seeds(of[name])}; its differences are to the mean of {first} over {_seeds(of[first])}"
            )
    return beside, said


def _seeds(seeds: list[Any]) -> str:
    words = ", ".join("unknown" if seed is None else str(seed) for seed in seeds)
    return f"seed{'s' if len(seeds) > 1 else ''} {words}"


def read_judged(file: Path) -> dict[str, Any]:
    """What `alignkit evaluate --output` wrote."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{file} is not what `alignkit evaluate --output` writes: {error}") from error
    rows = content.get("rows") if isinstance(content, dict) else None
    if not rows or not all(isinstance(row, dict) and {"prompt", "rewards"} <= set(row) for row in rows):
        raise DataError(f"{file} has no `rows` of completions; give a file that `alignkit evaluate --output` wrote")
    return content


def _rows_after(run: Path) -> list[Row]:
    if run.is_file():
        return list(read_judged(run)["rows"])
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
        return read_judged(run).get("recipe") or {}
    file = run / RUN_RECIPE
    recipe = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}) if file.is_file() else {}
    return with_origins(recipe, run)


def _differing(recipes: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Names that stand for different measures, whose figures do not compare, and remarks on them."""
    measures: dict[str, dict[str, Any]] = {"what completed the prompts": {r: _completer(o) for r, o in recipes.items()}}
    for run, recipe in recipes.items():
        for name, spec in (recipe.get("rewards") or {}).items():
            own = {key: value for key, value in (spec or {}).items() if key != "weight"}
            if "learned in" in own:  # all else of it is how that began
                own = {"learned in": str(Path(own["learned in"]).resolve())}
            measures.setdefault(f"rewards/{name}", {})[run] = own
        for name, spec in ((recipe.get("evaluation") or {}).get("metrics") or {}).items():
            measures.setdefault(name, {})[run] = spec
    remarks: dict[str, list[str]] = {}
    for name, of_runs in measures.items():
        first, *others = of_runs
        differ = [run for run in others if of_runs[run] != of_runs[first]]
        if not differ:
            continue
        shown = differ if len(differ) <= _MOST_REMARKS else differ[:1]
        remarks[name] = [
            f"{name} is not the same in {first} ({of_runs[first]}) and {run} ({of_runs[run]})" for run in shown
        ]
        if len(shown) < len(differ):
            remarks[name].append(f"{name} is not that of {first} in {len(differ) - 1} more")
    return remarks


def _completer(recipe: dict[str, Any]) -> str:
    """How held-out prompts were completed."""
    evaluation, training = recipe.get("evaluation") or {}, recipe.get("training") or {}
    decoder = evaluation.get("decoder")
    if decoder:
        asked = decoder["reward"] if isinstance(decoder["reward"], str) else decoder["reward"]["use"]
        return f"{decoder['use']} by {asked}"
    given = (evaluation.get("temperature"), training.get("eval_temperature"), training.get("temperature"), 1.0)
    temperature = next(one for one in given if one is not None)
    return f"temperature {temperature:g}" if temperature else "greedy"


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
