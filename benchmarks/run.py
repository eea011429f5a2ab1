"""Runs every contestant in a fresh process, round by round, and prints the medians with their spread.

    make bench
    python benchmarks/run.py --rounds 5 --epochs 1 --only alignkit-ppo trl-rloo

Rounds are interleaved, so that a busy minute of the machine falls on all contestants. On a machine that others use too,
read the CPU seconds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
# (contestant, epochs of updates on each batch)
DEFAULT = [
    ("alignkit-ppo", 4),
    ("alignkit-ppo-separate-critic", 4),
    ("alignkit-ppo", 1),
    ("trl-rloo", 4),
    ("trl-rloo", 1),
]
COLUMNS = {
    "samples_per_s": "samples/s",
    "step_cpu_s": "CPU s/step",
    "step_wall_s": "wall s/step",
    "peak_rss_mib": "peak MiB",
}


def measure(name: str, epochs: int, steps: int, threads: int) -> dict[str, float]:
    """One contestant in a fresh process."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, str(HERE / "contestant.py"), name]
    command += ["--epochs", str(epochs), "--steps", str(steps), "--threads", str(threads)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def spread(values: list[float]) -> str:
    """Median, and the range below it."""
    digits = 0 if statistics.median(values) >= 100 else 2
    text = f"{statistics.median(values):.{digits}f}"
    return text if len(values) == 1 else f"{text}\n{min(values):.{digits}f}–{max(values):.{digits}f}"


def main() -> None:
    """Reads the command line, measures, prints a table and writes the raw figures where asked."""
    parser = argparse.ArgumentParser(description="Speed and memory of our PPO beside TRL's RLOO, on one small job.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="measured steps a process, after two of warm-up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=None, help="measure this number of epochs only")
    parser.add_argument("--only", nargs="+", choices=sorted({name for name, _ in DEFAULT}), default=None)
    parser.add_argument("--output", type=Path, default=None, help="write the raw figures there, one JSON object a line")
    arguments = parser.parse_args()
    jobs = [
        (name, epochs)
        for name, epochs in DEFAULT
        if arguments.epochs in (None, epochs) and (arguments.only is None or name in arguments.only)
    ]
    console = Console()
    console.width = max(console.width, 100)
    found: dict[tuple[str, int], list[dict[str, float]]] = {job: [] for job in jobs}
    for turn in range(1, arguments.rounds + 1):
        for name, epochs in jobs:
            figures = measure(name, epochs, arguments.steps, arguments.threads)
            found[name, epochs].append(figures)
            console.print(
                f"round {turn}/{arguments.rounds}  {name}, {epochs} epochs: {figures['step_cpu_s']:.2f} CPU s/step"
            )
            if arguments.output:
                with arguments.output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"round": turn, **figures}) + "\n")
    table = Table(
        show_lines=True, title=f"32 prompts, 32 new tokens, fp32, {arguments.threads} thread(s): median, range"
    )
    table.add_column("contestant", no_wrap=True)
    for title in COLUMNS.values():
        table.add_column(title, justify="right", no_wrap=True)
    for (name, epochs), rows in found.items():
        table.add_row(f"{name}, K={epochs}", *(spread([row[key] for row in rows]) for key in COLUMNS))
    console.print(table)


if __name__ == "__main__":
    main()
