"""The runs in docs/results/ and how each study shows them, read for scripts/make_results.py."""

import hashlib
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from alignkit.json_lines import read_json_lines


@dataclass(frozen=True)
class Run:
    """One run: a method, a seed, its held-out figures before and after training, and what it ran on."""

    method: str
    seed: int
    before: dict[str, float]
    after: dict[str, float]
    curve: list[dict[str, float]]
    environment: dict[str, Any]
    temperatures: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Study:
    """Runs that answer one question, and how to show them; all but folder and runs stand in study.yaml.

    Attributes:
        folder: of the study.
        title, text: what the page says of it.
        columns: figure -> its title, of the table; see `make_results.value`.
        plot: two or more figures to draw a run's way by.
        runs: in the order of `order`.
        differences: figure -> its title, of `comparison`.
        comparison: what `alignkit compare` found.
        replies: prompts, and what each system said to them.
        curves: figures `x` and `y` of runs that were judged with --temperatures, and values of x `at` which systems
            compare.
        steps: figure -> its title, of what is drawn over the steps of training.
        verdicts: whether the words of `comparison` on the rewards stand on the page (not where systems had their own).
        seed_differences: `columns` of each run less those of the run of the method `to` with the same seed.
    """

    folder: Path
    title: str
    text: str
    columns: dict[str, str]
    plot: dict[str, Any] | None
    runs: list[Run]
    differences: dict[str, str] = field(default_factory=dict)
    comparison: dict[str, Any] = field(default_factory=dict)
    replies: list[dict[str, Any]] = field(default_factory=list)
    curves: dict[str, Any] | None = None
    steps: dict[str, str] = field(default_factory=dict)
    verdicts: bool = True
    seed_differences: dict[str, Any] = field(default_factory=dict)

    def methods(self) -> list[str]:
        """The methods, in the order of their folders' names unless study.yaml gives one."""
        return list(dict.fromkeys(run.method for run in self.runs))

    def digest(self) -> str:
        """Changes with anything that a picture shows."""
        runs = [(r.method, r.seed, r.before, r.after, r.curve, r.temperatures) for r in self.runs]
        asked = [self.plot, self.curves, self.steps, *([self.differences, self.comparison] if self.differences else [])]
        shown = json.dumps([*asked, runs], sort_keys=True)
        return "from " + hashlib.sha256(shown.encode()).hexdigest()[:16]


def read_run(folder: Path) -> Run:
    """Reads `<method>/seed-<n>/`."""
    seed = int(folder.name.removeprefix("seed-"))
    curve_file = folder / "metrics.jsonl"
    curve = read_json_lines(curve_file, drop_torn=False) if curve_file.exists() else []
    if (folder / "judged.json").is_file():
        judged = json.loads((folder / "judged.json").read_text(encoding="utf-8"))
        sweep = judged.get("temperatures", [])
        return Run(folder.parent.name, seed, {}, judged["figures"], curve, judged["environment"], sweep)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    for part in ("before", "after"):
        if part not in results:
            raise SystemExit(f"{folder / 'results.json'} has no {part!r}; it has: {', '.join(results)}")
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    return Run(folder.parent.name, seed, results["before"], results["after"], curve, environment)


def read_study(folder: Path) -> Study:
    """Reads one study and all its runs."""
    about = yaml.safe_load((folder / "study.yaml").read_text(encoding="utf-8"))
    known = {one.name for one in fields(Study)} - {"folder", "runs", "comparison", "replies"} | {"order"}
    if unknown := set(about) - known:
        raise SystemExit(f"{folder / 'study.yaml'}: unknown keys {', '.join(sorted(unknown))}")
    found = [*folder.glob("*/seed-*/results.json"), *folder.glob("*/seed-*/judged.json")]
    runs = [read_run(path.parent) for path in sorted(found)]
    if not runs:
        raise SystemExit(f"{folder} has a study.yaml but no <method>/seed-<n>/results.json or judged.json")
    order = about.get("order", sorted({run.method for run in runs}))
    if set(order) != {run.method for run in runs}:
        raise SystemExit(
            f"{folder / 'study.yaml'}: order names {order}, the runs are {sorted({r.method for r in runs})}"
        )
    runs.sort(key=lambda run: (order.index(run.method), run.seed))
    more = {
        name: json.loads(file.read_text(encoding="utf-8"))
        for name in ("comparison", "replies")
        if (file := folder / f"{name}.json").is_file()
    }
    sampled = [key for key in about["columns"] if "@" in key]
    if sampled and not any(run.temperatures for run in runs):
        raise SystemExit(f"{folder}: no run has {', '.join(sampled)}; judge with alignkit evaluate --temperatures")
    shown = about.get("differences", {})
    unfound = [name for name in shown if name not in more.get("comparison", {}).get("figures", {})]
    if unfound:
        raise SystemExit(f"{folder}: comparison.json is not there or lacks {', '.join(unfound)} of study.yaml")
    curves = about.get("curves")
    if curves is not None and (set(curves) | {"at"} != {"x", "y", "at"} or not any(run.temperatures for run in runs)):
        raise SystemExit(f"{folder}: curves takes x, y and at, and runs judged with alignkit evaluate --temperatures")
    return Study(
        *(folder, about["title"], about.get("text", ""), about["columns"], about.get("plot"), runs, shown),
        **more,
        curves=curves,
        steps=about.get("steps", {}),
        verdicts=about.get("verdicts", True),
        seed_differences=_seed_differences(about.get("seed_differences"), order, folder),
    )


def _seed_differences(given: Any, methods: list[str], folder: Path) -> dict[str, Any]:
    """The setting, if it is one."""
    form = isinstance(given, dict) and set(given) == {"to", "columns"} and isinstance(given["columns"], dict)
    if given is not None and not form:
        raise SystemExit(f"{folder}: seed_differences takes `to`, a method, and `columns`, key: title; got {given!r}")
    if given is not None and given["to"] not in methods:
        raise SystemExit(f"{folder}: seed_differences to {given['to']!r}; the methods are {', '.join(methods)}")
    return given or {}


def read_all(folder: Path) -> list[Study]:
    """All studies in a folder; exits where runs have no study.yaml to show them by."""
    shown = {path.parent for path in folder.glob("*/study.yaml")}
    hidden = {
        path.parents[2] for name in ("results", "judged") for path in folder.glob(f"*/*/seed-*/{name}.json")
    } - shown
    if hidden:
        names = ", ".join(str(path) for path in sorted(hidden))
        raise SystemExit(
            f"no study.yaml in {names}: published runs that no table would show; write one, or take them out"
        )
    return [read_study(path) for path in sorted(shown)]
