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
named at the end, and what needs it is left out. What was done with other settings than the plan and its recipes have
now, or from a run that was trained anew since, is refused: figures of two settings do not belong into one row.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import datetime
from pathlib import Path
from typing import Any

from add_result import ROOT, publish
from study_plan import Job, jobs_of, read_plan, recipes_named, with_needs

from alignkit.whole_files import write_text

RESULTS = ROOT / "docs" / "results"
ALIGNKIT = [sys.executable, "-m", "alignkit"]


class Asked:
    """What was asked of each job when it began, in `folder`/asked/: a finished one counts while it is asked the same.

    Args:
        folder: the study's, in runs/.
    """

    def __init__(self, folder: Path):
        self.folder = folder / "asked"

    def of(self, name: str) -> dict[str, Any]:
        """The record of one job: `train` and `judge`, where they were begun."""
        file = self.folder / f"{name}.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def now(self, job: Job, words: list[str]) -> dict[str, Any]:
        """What one of its commands is asked: its words, what the recipes say, when what it starts from was begun."""
        behind = {*job.needs, *([job.run.name] if words is job.judges else [])}
        begun = {
            name: self.of(name).get("train", {}).get("begun") if (self.folder.parent / name).exists() else None
            for name in sorted(behind)
        }
        asked = {"words": words, "recipes": recipes_named(words), "from": begun}
        return json.loads(json.dumps(asked, default=str))  # as it is read again

    def note(self, job: Job, words: list[str]) -> None:
        """Write it down, before the command begins; a training that goes on keeps its beginning."""
        kind = "train" if words is job.trains else "judge"
        record, asked = self.of(job.name), self.now(job, words)
        if kind == "train":
            asked["begun"] = record["train"]["begun"] if job.run.exists() else datetime.now().isoformat()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / f"{job.name}.json", json.dumps({**record, kind: asked}, indent=1) + "\n")

    def stale(self, jobs: Iterable[Job]) -> list[tuple[Path, str]]:
        """What lies there and was asked something else: where, and what differs."""
        found: list[tuple[Path, str]] = []
        for job in jobs:
            for kind, words, place in (("train", job.trains, job.run), ("judge", job.judges, job.judged)):
                if words is None or not place.exists():
                    continue
                was, now = self.of(job.name).get(kind), self.now(job, words)
                if was is None:
                    found.append((place, "what it was asked was not written down"))
                    continue
                stale = {path.name for path, _ in found}
                faults = [
                    f"comes from {name}, which " + ("is not there" if begun is None else "is another one now")
                    for name, begun in now["from"].items()
                    if name in stale or was["from"].get(name) != begun
                ]
                faults += _differences({key: was[key] for key in ("words", "recipes")}, now)
                if faults:
                    found.append((place, "; ".join(faults[:3]) + ("; ..." if len(faults) > 3 else "")))
        return found


def _differences(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What of `was` is not as it is in `now`."""
    old, new = ({**_words(asked["words"]), **dict(_leaves(asked["recipes"]))} for asked in (was, now))
    changed = [f"{key} was {old[key]!r} and is {new[key]!r}" for key in old if key in new and old[key] != new[key]]
    return [*changed, *(f"{key} is gone" for key in old.keys() - new), *(f"{key} is new" for key in new.keys() - old)]


def _words(words: list[str]) -> dict[str, str]:
    """Of overrides what each sets; any other word stands for itself."""
    return {name: given or name for name, _, given in (word.partition("=") for word in words)}


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Each value with its place."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{place}.{key}" if place else str(key))
    else:
        yield place, value


class Commands:
    """Runs commands, several at a time; once stopped it ends those that run, and begins no other."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running: set[subprocess.Popen] = set()
        self.stopped = False

    def call(self, command: list[str], log: Any) -> int | None:
        """The exit status; None where it was stopped before or on its way."""
        environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **os.environ}
        with self.lock:
            if self.stopped:
                return None
            # in a session of its own: a Ctrl-C reaches this script alone, which passes it on once
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
            self.running.add(process)
        code = process.wait()
        with self.lock:
            self.running.discard(process)
            return None if self.stopped else code

    def stop(self) -> None:
        """Let trainings save what they have, and end."""
        with self.lock:
            self.stopped = True
            for process in self.running:
                process.terminate()


def work_off(
    jobs: list[Job], workers: int, carry_out: Callable[[Job], str | None], stop: Callable[[], None] = lambda: None
) -> tuple[dict[str, str], bool]:
    """Runs jobs side by side, each behind what it needs.

    Args:
        jobs: none of them waits for itself.
        workers: how many at a time.
        carry_out: what to do with one; gives what went wrong.
        stop: makes all `carry_out` end; called at a KeyboardInterrupt.

    Returns:
        what happened to those that did not end well, and whether it was stopped.
    """
    waiting, done, failed = list(jobs), set[str](), dict[str, str]()
    going: dict[Future, Job] = {}
    with ThreadPoolExecutor(workers) as pool:
        try:
            while waiting or going:
                for job in list(waiting):
                    if lost := [need for need in job.needs if need in failed]:
                        failed[job.name] = f"left out, for want of {', '.join(lost)}"
                    elif len(going) == workers or not done.issuperset(job.needs):
                        continue
                    else:
                        going[pool.submit(carry_out, job)] = job
                    waiting.remove(job)
                for future in wait(going, return_when=FIRST_COMPLETED).done:
                    job = going.pop(future)
                    if error := future.result():
                        failed[job.name] = error
                    else:
                        done.add(job.name)
        except KeyboardInterrupt:
            stop()
            return failed, True
    return failed, False


def carry_out(job: Job, study: str, folder: Path, commands: Commands) -> str | None:
    """Trains, judges and publishes; gives what went wrong, in words."""
    start, log, asked = time.monotonic(), folder / "logs" / f"{job.name}.txt", Asked(folder)
    log.parent.mkdir(parents=True, exist_ok=True)
    job.judged.parent.mkdir(parents=True, exist_ok=True)
    left = job.commands()
    with log.open("a", encoding="utf-8") as written:
        for words in left:
            print(f"{time.strftime('%H:%M')}  {job.name}: {words[0]}, see {log}", flush=True)
            asked.note(job, words)
            code = commands.call([*ALIGNKIT, *words], written)
            if code is None:
                return "stopped"
            if code:
                return f"alignkit {words[0]} ended with status {code}; its words are in {log}"
    if missing := [words[0] for words in job.commands()]:
        return f"alignkit {missing[0]} ended well and left no result; its words are in {log}"
    if job.method is not None:
        try:
            publish(job.judged, study, job.method, RESULTS, job.run if job.trains else None)
        except (SystemExit, OSError, ValueError, KeyError) as error:  # the other systems go on
            return f"was not published: {error!r}"
    if left:
        print(f"{time.strftime('%H:%M')}  {job.name}: done in {(time.monotonic() - start) / 60:.0f} min", flush=True)
    return None


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line and does what is left; 1 if something failed, 130 if it was stopped."""
    parser = argparse.ArgumentParser(description="Run, judge and publish a study of docs/results/.")
    parser.add_argument("study", help="a folder of docs/results/ with a runs.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", help="by default those of runs.yaml")
    parser.add_argument("--steps", nargs="+", help="these, and what they start from; by default all")
    parser.add_argument("--workers", type=int, default=1, help="how many side by side, one thread each")
    parser.add_argument("--list", action="store_true", help="print the commands and end")
    given = parser.parse_args(arguments)
    if given.workers < 1:
        parser.error(f"--workers: expected 1 or more, got {given.workers}")
    os.chdir(ROOT)  # recipes and runs are named from here
    plan = read_plan(RESULTS / given.study / "runs.yaml")
    if unknown := set(given.steps or []) - set(plan["steps"]):
        raise SystemExit(f"--steps {' '.join(sorted(unknown))}: there are {', '.join(plan['steps'])}")
    folder = Path("runs") / given.study
    jobs = jobs_of(plan, folder, given.seeds or plan["seeds"])
    jobs = with_needs(jobs, given.steps) if given.steps else jobs
    if stale := Asked(folder).stale(jobs):
        told = "\n".join(f"  {place}: {why}" for place, why in stale)
        gone = shlex.join(str(place) for place, _ in stale)
        raise SystemExit(f"not as runs.yaml and its recipes say now:\n{told}\nto do it again: rm -r {gone}")
    if given.list:
        there = sorted((RESULTS / given.study).glob("*/seed-*"))
        seeds = sorted({int(place.name.removeprefix("seed-")) for place in there})
        shown = f"published: {len(there)} of seeds {', '.join(map(str, seeds))}" if there else "nothing is published"
        print(f"# {len(jobs)} jobs of seeds {', '.join(map(str, given.seeds or plan['seeds']))}; {shown}")
        for job in jobs:
            state = "done" if not job.commands() else f"after {', '.join(job.needs)}" if job.needs else "to do"
            print(f"# {job.name}: {state}")
            for words in job.commands():
                print("alignkit", shlex.join(words))
        return 0
    commands = Commands()
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        failed, stopped = work_off(
            jobs, given.workers, lambda job: carry_out(job, given.study, folder, commands), commands.stop
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    for name, why in failed.items():
        print(f"{name}: {why}", file=sys.stderr)
    if stopped:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    if failed:
        return 1
    shown = (RESULTS / given.study / "study.yaml").exists()
    needed = "" if shown else f"once {RESULTS / given.study / 'study.yaml'} says how to show it, "
    print(f"all is done; {needed}python scripts/make_results.py writes the page")
    return 0


if __name__ == "__main__":
    sys.exit(main())
