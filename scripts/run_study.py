"""Trains all systems of a study with all its seeds, judges them, and publishes what docs/results.md needs of them.

    python scripts/run_study.py oracle                                 everything that is not done yet
    python scripts/run_study.py oracle --seeds 1 --steps gcn_policy    one system, and what it starts from
    python scripts/run_study.py oracle --list                          the commands, and what is done

What there is to do stands in docs/results/oracle/runs.yaml:

    seeds: [1, 2, 3]
    judge: --temperatures 0.8 1.0 --evaluation recipes/cooperative/oracle_gcn_policy.yaml
    steps:
      mle:                                       a name, which others use for the folder of its run: $mle
        recipe: recipes/cooperative/oracle_mle.yaml
        with: [model.scratch.seed=$seed]         overrides, beside training.seed and training.output_dir
        method: MLE                              a row of the table; a step without one is not judged
      searched:
        of: gcn_policy                           in place of `recipe`: judge this run once more,
        judge: ...                               with options of its own
        method: GCN (policy), MCTS

A step waits for the runs that it names. Runs, logs and judged files lie in runs/<study>/. Stopped or killed, the same
command goes on: what is finished is not done again, and a training continues from its checkpoint. A step that fails is
named at the end, and what needs it is left out.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import yaml
from add_result import ROOT, publish

RESULTS = ROOT / "docs" / "results"
FIELDS = {"recipe", "of", "with", "judge", "method"}
ALIGNKIT = [sys.executable, "-m", "alignkit"]


@dataclass(frozen=True)
class Job:
    """One step with one seed: the commands that are its own, and the jobs before it."""

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
    """The file's content, checked; exits with what is wrong."""
    if not file.exists():
        there = sorted(path.parent.name for path in file.parents[1].glob("*/runs.yaml"))
        raise SystemExit(f"there is no {file}; studies that can be run: {', '.join(there) or 'none'}")
    plan = yaml.safe_load(file.read_text(encoding="utf-8"))
    faults = [f"unknown {key}" for key in sorted(set(plan) - {"seeds", "judge", "steps", "shared"})]
    faults += [f"no {key}" for key in ("seeds", "steps") if not plan.get(key)]
    for name, step in (plan.get("steps") or {}).items():
        faults += [f"{name}: unknown {key}" for key in sorted(set(step) - FIELDS)]
        if ("recipe" in step) == ("of" in step):
            faults.append(f"{name}: either recipe or of")
        if "of" in step and step["of"] not in plan["steps"]:
            faults.append(f"{name}: of names no step")
        if "recipe" in step and not Path(step["recipe"]).is_file():
            faults.append(f"{name}: there is no {step['recipe']}")
        if "method" in step and not (step.get("judge") or plan.get("judge")):
            faults.append(f"{name}: judge says how it is judged, here or for all")
    if faults:
        raise SystemExit(f"{file}: {'; '.join(faults)}")
    return plan


def jobs_of(plan: dict[str, Any], folder: Path, seeds: Iterable[int]) -> list[Job]:
    """All jobs of a plan whose runs lie in `folder`, seed after seed."""
    found = []
    for seed in seeds:
        runs = {step: str(folder / f"{step}-{seed}") for step in plan["steps"]}
        for step, about in plan["steps"].items():
            run, judged = Path(runs[about.get("of", step)]), folder / "judged" / f"{step}-{seed}.json"
            overrides = _flat(about.get("with", []))
            options = shlex.split(about.get("judge", plan.get("judge", ""))) if "method" in about else []
            named = {name for word in (*overrides, *options) for name in Template(word).get_identifiers()} - {"seed"}
            named |= {about["of"]} if "of" in about else set()
            if unknown := named - set(runs):
                raise SystemExit(f"{step} names {', '.join(sorted(unknown))}; there are: {', '.join(runs)}")
            overrides, options = (
                [Template(word).substitute(runs, seed=seed) for word in words] for words in (overrides, options)
            )
            trains = judges = None
            if "recipe" in about:
                own = [f"training.seed={seed}", f"training.output_dir={run}"]
                trains = [*ALIGNKIT, "train", about["recipe"], "--resume", *own, *overrides]
            if options:
                judges = [*ALIGNKIT, "evaluate", str(run), *options, "--output", str(judged)]
            needs = tuple(f"{name}-{seed}" for name in sorted(named))
            found.append(Job(step, seed, needs, run, trains, judges, judged, about.get("method")))
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


def work_off(jobs: list[Job], workers: int, carry_out: Any) -> dict[str, str]:
    """Runs jobs side by side, each behind what it needs; gives what happened to those that did not end well."""
    waiting, done, failed = list(jobs), set[str](), dict[str, str]()
    going: dict[Future, Job] = {}
    with ThreadPoolExecutor(workers) as pool:
        while waiting or going:
            for job in list(waiting):
                if lost := [need for need in job.needs if need in failed]:
                    failed[job.name] = f"left out, for want of {', '.join(lost)}"
                elif len(going) == workers or not done.issuperset(job.needs):
                    continue
                else:
                    going[pool.submit(carry_out, job)] = job
                waiting.remove(job)
            if waiting and not going and not failed.keys() & {need for job in waiting for need in job.needs}:
                raise SystemExit(f"these wait for each other: {', '.join(job.name for job in waiting)}")
            for future in wait(going, return_when=FIRST_COMPLETED).done:
                job = going.pop(future)
                if error := future.result():
                    failed[job.name] = error
                else:
                    done.add(job.name)
    return failed


def carry_out(job: Job, study: str, folder: Path) -> str | None:
    """Trains, judges and publishes; gives what went wrong, in words."""
    start, log = time.monotonic(), folder / "logs" / f"{job.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    job.judged.parent.mkdir(parents=True, exist_ok=True)
    commands = job.commands()
    with log.open("a", encoding="utf-8") as written:
        for command in commands:
            print(f"{time.strftime('%H:%M')}  {job.name}: {command[3]}, see {log}", flush=True)
            environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **os.environ}
            code = subprocess.call(command, stdout=written, stderr=subprocess.STDOUT, env=environment)
            if code:
                return f"alignkit {command[3]} ended with status {code}; its words are in {log}"
    if missing := [command[3] for command in job.commands()]:
        return f"alignkit {missing[0]} ended well and left no result; its words are in {log}"
    if job.method is not None:
        publish(job.judged, study, job.method, RESULTS, job.run if job.trains else None)
    if commands:
        print(f"{time.strftime('%H:%M')}  {job.name}: done in {(time.monotonic() - start) / 60:.0f} min", flush=True)
    return None


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line and does what is left; 1 if something failed."""
    parser = argparse.ArgumentParser(description="Run, judge and publish a study of docs/results/.")
    parser.add_argument("study", help="a folder of docs/results/ with a runs.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", help="by default those of runs.yaml")
    parser.add_argument("--steps", nargs="+", help="these, and what they start from; by default all")
    parser.add_argument("--workers", type=int, default=1, help="how many side by side, one thread each")
    parser.add_argument("--list", action="store_true", help="print the commands and end")
    given = parser.parse_args(arguments)
    os.chdir(ROOT)  # recipes and runs are named from here
    plan = read_plan(RESULTS / given.study / "runs.yaml")
    if unknown := set(given.steps or []) - set(plan["steps"]):
        raise SystemExit(f"--steps {' '.join(sorted(unknown))}: there are {', '.join(plan['steps'])}")
    folder = Path("runs") / given.study
    jobs = jobs_of(plan, folder, given.seeds or plan["seeds"])
    jobs = with_needs(jobs, given.steps) if given.steps else jobs
    if given.list:
        for job in jobs:
            state = "done" if not job.commands() else f"after {', '.join(job.needs)}" if job.needs else "to do"
            print(f"# {job.name}: {state}")
            for command in job.commands():
                print("alignkit", shlex.join(command[3:]))
        return 0
    try:
        failed = work_off(jobs, given.workers, lambda job: carry_out(job, given.study, folder))
    except KeyboardInterrupt:  # which the runs got as well: they saved what they had
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    for name, why in failed.items():
        print(f"{name}: {why}", file=sys.stderr)
    if not failed:
        print("all is done; python scripts/make_results.py writes the page")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
