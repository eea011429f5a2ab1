"""Measures every contestant in a fresh process, round after round in turn, and says where we stand.

    make bench                            three rounds of everything
    make bench ROUNDS=1                   one round
    make bench OPTIONS="--models S"       the small model only
    make bench ROUNDS=1 OPTIONS=--quick   a first look
Without OPTIONS the figures go into docs/results/speed and docs/performance.md too.

A bench that was killed goes on where it stopped; more rounds are added to those that are there. On a machine that
others use too, read the CPU seconds.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import environments
import page
import record
import tables
from plan import CONTESTANTS, ENVIRONMENTS, LABELS, PARTS, Measurement, measurements
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

HERE = Path(__file__).resolve().parent


def measure(measurement: Measurement, threads: int) -> dict:
    """One process, in the contestant's environment.

    Raises:
        SystemExit: it failed; its last words are given.
    """
    variables = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONWARNINGS": "ignore",
    }
    python = sys.executable
    if measurement.name in ENVIRONMENTS:
        python = str(environments.python(ENVIRONMENTS[measurement.name]))
        variables.pop("PYTHONPATH", None)  # it may lead to our packages
    if measurement.precision == "bf16" and measurement.name == "trl112-ppo":
        variables["ACCELERATE_MIXED_PRECISION"] = "bf16"  # without it, bf16=True computes in fp32
    script, *arguments = measurement.arguments()
    command = [python, str(HERE / script), *arguments, "--threads", str(threads)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{measurement.title} failed:\n{done.stdout[-1000:]}{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def figure(measurement: Measurement, figures: dict) -> str:
    """The line that stays on the screen."""
    if measurement.name == "floor":
        return f"{measurement.title}: {figures['floor_s']:.2f} s"
    return f"{measurement.title}: {figures['step_cpu_s']:.2f} CPU s/step, {figures['peak_rss_mib']:.0f} MiB"


def bench(todo: list[Measurement], home: Path, threads: int, console: Console) -> None:
    """Measures what is not measured yet, and writes each row as soon as it is there."""
    record.mend(home)
    rows = record.read(home)
    left = [measurement for measurement in todo if not record.has(rows, measurement)]
    if len(left) < len(todo):
        console.print(f"{len(todo) - len(left)} of {len(todo)} were measured before: going on")
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("", total=len(todo), completed=len(todo) - len(left))
        for measurement in left:
            progress.update(task, description=measurement.title)
            figures = measure(measurement, threads)
            record.add(home, measurement, figures)
            console.print(figure(measurement, figures))
            progress.advance(task)


def main() -> None:
    """Reads the command line, makes environments, measures, shows tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--only", nargs="+", choices=LABELS, default=None, help="these contestants")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="two measured steps a process: a first look, no record")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured of this version before")
    parser.add_argument("--publish", action="store_true", help="write docs/results/speed and docs/performance.md too")
    arguments = parser.parse_args()
    console = Console()
    console.width = max(console.width, 110)
    name = f"{record.digest()}-{arguments.threads}" + ("-quick" if arguments.quick else "")
    home = record.folder(name)
    if arguments.fresh and home.exists():
        shutil.rmtree(home)
    home.mkdir(parents=True, exist_ok=True)
    (home / "about.json").write_text(
        json.dumps(record.about(name, arguments.threads, arguments.quick), indent=1) + "\n", "utf-8"
    )
    todo = measurements(arguments.rounds, arguments.models, arguments.parts, arguments.only, arguments.quick)
    for environment in {ENVIRONMENTS[m.name] for m in todo if m.name in ENVIRONMENTS}:
        environments.make(environment)
    bench(todo, home, arguments.threads, console)
    rows = record.read(home)
    for title, table in (("Figures", tables.contestants(rows)), ("Against each rival", tables.ratios(rows))):
        console.print(tables.for_terminal(title, table))
    console.print(f"raw figures: {home.relative_to(record.ROOT)}")
    if arguments.publish:
        record.publish(home)
        page.write()


if __name__ == "__main__":
    main()
