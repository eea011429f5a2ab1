"""What a study has to do: docs/results/<study>/runs.yaml, read and checked before anything runs (see run_study.py)."""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from string import Template
from typing import Any

import yaml

from alignkit.recipe.extending import read_extended

FIELDS = {"recipe", "of", "with", "judge", "method"}


@dataclass(frozen=True)
class Job:
    """One step with one seed: the words for `alignkit` that are its own, and the jobs before it.

    Attributes:
        step, seed: which.
        needs: names of the jobs that come first.
        run: the folder of the run that it trains or judges.
        trains, judges: words behind `alignkit`, or None.
        judged: the file that `judges` writes.
        method: the row of the table, or None.
    """

    step: str
    seed: int
    needs: tuple[str, ...]
    run: Path
    trains: list[str] | None
    judges: list[str] | None
    judged: Path
    method: str | None

    @property
    def name(self) -> str:
        """Such as `mle-1`."""
        return f"{self.step}-{self.seed}"

    def commands(self) -> list[list[str]]:
        """What is left to do of it."""
        left = [self.trains] if self.trains and not (self.run / "results.json").exists() else []
        return left + ([self.judges] if self.judges and (left or not self.judged.exists()) else [])


def read_plan(file: Path) -> dict[str, Any]:
    """The file's content, checked; exits with all that is wrong."""
    if not file.exists():
        there = sorted(path.parent.name for path in file.parents[1].glob("*/runs.yaml"))
        raise SystemExit(f"there is no {file}; studies that can be run: {', '.join(there) or 'none'}")
    plan = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(plan, dict):
        raise SystemExit(f"{file}: expected keys seeds, judge and steps; got {type(plan).__name__}")
    faults = [f"unknown {key}" for key in sorted(set(plan) - {"seeds", "judge", "steps", "shared"})]
    seeds, steps = plan.get("seeds"), plan.get("steps")
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        faults.append(f"seeds: expected a list of whole numbers, such as [1, 2, 3]; got {seeds!r}")
    if not isinstance(steps, dict) or not steps:
        faults.append("no steps")
        steps = {}
    for name, step in steps.items():
        faults += [f"{name}: {fault}" for fault in _faults(step, plan, steps)]
    shown = [str(step["method"]) for step in steps.values() if isinstance(step, dict) and "method" in step]
    faults += [f"method {method!r}: of two steps" for method in sorted(set(shown)) if shown.count(method) > 1]
    if faults:
        raise SystemExit(f"{file}: {'; '.join(faults)}")
    return plan


def _faults(step: Any, plan: dict[str, Any], steps: dict[str, Any]) -> Iterable[str]:
    """What is wrong with one step."""
    if not isinstance(step, dict):
        yield f"expected recipe or of, and what belongs to them; got {step!r}"
        return
    yield from (f"unknown {key}" for key in sorted(set(step) - FIELDS))
    if ("recipe" in step) == ("of" in step):
        yield "either recipe or of"
    if "recipe" in step and not Path(step["recipe"]).is_file():
        yield f"there is no {step['recipe']}"
    if "of" in step and not (isinstance(steps.get(step["of"]), dict) and "recipe" in steps[step["of"]]):
        yield "of names no step that has a recipe"
    if "of" in step and "with" in step:
        yield "with belongs to recipe: what a judgement takes stands in judge"
    if "method" not in step and ("of" in step or "judge" in step):
        yield "a judgement needs a method, its row of the table"
    if "method" in step and not (step.get("judge") or plan.get("judge")):
        yield "judge says how it is judged, here or for all"


def jobs_of(plan: dict[str, Any], folder: Path, seeds: Iterable[int]) -> list[Job]:
    """All jobs of a plan whose runs lie in `folder`, seed after seed; exits where they wait for each other."""
    found = []
    for seed in seeds:
        runs = {step: str(folder / f"{step}-{seed}") for step in plan["steps"]}
        for step, about in plan["steps"].items():
            run, judged = Path(runs[about.get("of", step)]), folder / "judged" / f"{step}-{seed}.json"
            overrides = _flat(about.get("with", []))
            options = shlex.split(about.get("judge", plan.get("judge", ""))) if "method" in about else []
            named = {name for word in (*overrides, *options) for name in Template(word).get_identifiers()} - {"seed"}
            named |= {about["of"]} if "of" in about else set()
            trained = [name for name in runs if "recipe" in plan["steps"][name]]
            if unknown := named - set(trained):
                raise SystemExit(f"{step} names {', '.join(sorted(unknown))}; runs there are of: {', '.join(trained)}")
            overrides, options = (
                [Template(word).substitute(runs, seed=seed) for word in words] for words in (overrides, options)
            )
            trains = judges = None
            if "recipe" in about:
                own = [f"training.seed={seed}", f"training.output_dir={run}"]
                trains = ["train", about["recipe"], "--resume", *own, *overrides]
            if options:
                judges = ["evaluate", str(run), *options, "--output", str(judged)]
            needs = tuple(f"{name}-{seed}" for name in sorted(named))
            found.append(Job(step, seed, needs, run, trains, judges, judged, about.get("method")))
    try:
        TopologicalSorter({job.name: job.needs for job in found}).prepare()
    except CycleError as error:
        raise SystemExit(f"these wait for each other: {', '.join(error.args[1])}") from error
    return found


def _flat(words: Any) -> list[str]:
    """Overrides as one list: YAML's anchors put lists into lists."""
    return [inner for word in words for inner in (_flat(word) if isinstance(word, list) else [word])]


def with_needs(jobs: list[Job], steps: Iterable[str]) -> list[Job]:
    """The jobs of these steps and all that they start from."""
    by_name = {job.name: job for job in jobs}
    wanted, left = set(), [job.name for job in jobs if job.step in set(steps)]
    while left:
        name = left.pop()
        wanted.add(name)
        left += [need for need in by_name[name].needs if need not in wanted]
    return [job for job in jobs if job.name in wanted]


def recipes_named(words: list[str]) -> dict[str, Any]:
    """What the recipes say that a command names, and those that they extend: file -> content, without comments."""
    files = [word for word in words if word.endswith((".yaml", ".yml")) and Path(word).is_file()]
    return {str(path): content for file in files for path, content in read_extended(file)}
