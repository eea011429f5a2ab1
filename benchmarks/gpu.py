"""A step of training at the scale of a billion weights on a GPU: speed, memory and use of the card, case by case.

    make gpu
    python benchmarks/gpu.py --only ppo-qlora gcn-sized

Every case runs in a fresh process, and its line in `docs/results/gpu/results.jsonl` takes the place of an earlier one
for the same card, so that a machine lent for minutes can be used case by case. What is counted stands in `gpu_case.py`.
Without a GPU there is nothing to measure: one line says so, and the exit status is 2. `--device cpu --scale tiny` tries
the script itself.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "docs" / "results" / "gpu" / "results.jsonl"
NAMES = ("ppo-lora", "ppo-lora-8bit", "ppo-qlora", "ppo-full", "gcn-sized")
NO_GPU = 2
COLUMNS = {
    "samples_per_s": "samples/s",
    "tokens_per_s": "tokens/s",
    "peak_cuda_mib": "peak CUDA MiB",
    "mfu": "MFU",
    "mfu_update": "MFU of update",
    "step_s": "s/step",
}
PHASES = ("sample", "reward", "reference", "update")


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """One case in a fresh process; what went wrong, if it did, under `failed`."""
    command = [sys.executable, str(HERE / "gpu_case.py"), name, "--scale", given.scale, "--device", given.device]
    command += ["--models", str(given.models), "--steps", str(given.steps), "--warmup", str(given.warmup)]
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=os.environ | quiet, stdout=subprocess.PIPE, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"scale": given.scale, "case": name, "failed": f"exit status {done.returncode}, see above"}
    return json.loads(lines[-1])


def keep(figures: dict[str, Any], file: Path) -> None:
    """Write a case's line, in place of an earlier one of the same case, scale and device."""
    same = ("case", "scale", "device")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    rows = [row for row in map(json.loads, lines) if any(row.get(key) != figures.get(key) for key in same)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, figures]), encoding="utf-8")


def table(rows: list[dict[str, Any]]) -> str:
    """The figures as a Markdown table; a dash where something is not known."""
    titles = ["case", *COLUMNS.values(), *(f"{phase} s" for phase in PHASES)]
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    for row in rows:
        if "failed" in row:
            lines.append([row["case"], row["failed"], *[""] * (len(titles) - 2)])
            continue
        values = [row[key] for key in COLUMNS] + [row["phase_s"][phase] for phase in PHASES]
        lines.append([row["case"], *("–" if value is None else _figure(value) for value in values)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def main() -> int:
    """Measures every case, or those asked for; returns the exit status: 0, 1 where a case failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), metavar="CASE", help=", ".join(NAMES))
    parser.add_argument("--scale", choices=["1b", "tiny"], default="1b")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--steps", type=int, default=3, help="measured steps, after the warm-up")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()), help="where the policy is kept")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            print("no CUDA GPU at hand: nothing is measured (try the script with --device cpu --scale tiny)")
            return NO_GPU
    rows = []
    for name in given.only:
        print(f"{name} ...", flush=True)
        rows.append(measure(name, given))
        if "device" in rows[-1]:
            keep(rows[-1], given.output)
    print(table(rows))
    for row in rows:
        if "note" in row:
            print(f"{row['case']}: {row['note']}")
    return 1 if any("failed" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
