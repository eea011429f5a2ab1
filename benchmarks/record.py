"""Where figures are kept: one folder a bench, one file of JSON lines a part, one `about.json`.

A bench is named by a digest of the code that it measures, so that a bench that was killed goes on where it stopped, and
figures of two versions never mix.
"""

import hashlib
import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from environments import CONSTRAINTS, HOME, PINS, ROOT
from plan import PARTS, Measurement

from alignkit.json_lines import append_json_lines, read_json_lines, replace_json_lines

PUBLISHED = ROOT / "docs" / "results" / "speed"
NOT_MEASURING = {"page.py", "tables.py", "growth.py"}  # they change how figures look, not what they are
Rows = dict[str, list[dict[str, Any]]]


def digest() -> str:
    """Of everything that figures depend on: our package, these scripts, the pins."""
    files = sorted((ROOT / "alignkit").rglob("*.py")) + sorted((ROOT / "benchmarks").glob("*.py"))
    total = hashlib.sha256()
    for file in [*(f for f in files if f.name not in NOT_MEASURING), CONSTRAINTS, *PINS.values()]:
        total.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return total.hexdigest()[:12]


def folder(name: str) -> Path:
    """The folder of a bench."""
    return HOME / "results" / name


def read(home: Path) -> Rows:
    """All rows of a bench; a part that has no file yet has none. A line that a killed process left torn is left out."""
    return {
        part: read_json_lines(home / f"{part}.jsonl") if (home / f"{part}.jsonl").exists() else [] for part in PARTS
    }


def mend(home: Path) -> None:
    """Take away a line that a killed process left torn, before others are added after it."""
    for part, rows in read(home).items():
        if rows:
            replace_json_lines(home / f"{part}.jsonl", rows)


def has(rows: Rows, measurement: Measurement) -> bool:
    """Whether this was measured already."""
    wanted = measurement.row.items()
    return any(
        wanted <= {k: v for k, v in row.items() if not isinstance(v, dict)}.items() for row in rows[measurement.part]
    )


def add(home: Path, measurement: Measurement, figures: dict[str, Any]) -> None:
    """Append a row."""
    append_json_lines(home / f"{measurement.part}.jsonl", [{**measurement.row, **rounded(figures)}])


def rounded(value: Any) -> Any:
    """Five significant digits: more is noise, and the files are read in reviews."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value


def about(name: str, threads: int, quick: bool) -> dict[str, Any]:
    """Machine, versions, commit: what a figure is worth nothing without."""
    commit = subprocess.run(
        ["git", "log", "-1", "--format=%h", "--", "alignkit"], cwd=ROOT, capture_output=True, text=True
    )
    changes = subprocess.run(["git", "status", "--porcelain", "alignkit"], cwd=ROOT, capture_output=True, text=True)
    return {
        "bench": name,
        "quick": quick,
        "commit": commit.stdout.strip() + (" and uncommitted changes" if changes.stdout.strip() else ""),
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "threads": threads,
        "python": platform.python_version(),
        "packages": {package: version(package) for package in ("torch", "transformers", "trl", "accelerate")},
    }


def processor() -> str:
    """Its name, as the system tells it."""
    file = Path("/proc/cpuinfo")
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def publish(home: Path) -> None:
    """Copy a bench's figures to docs/results/speed, in place of those that are there."""
    PUBLISHED.mkdir(parents=True, exist_ok=True)
    for name in ("about.json", *(f"{part}.jsonl" for part in PARTS)):
        source, target = home / name, PUBLISHED / name
        target.unlink(missing_ok=True)
        if source.exists():
            target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")


def read_about(home: Path) -> dict[str, Any]:
    """What `about` wrote."""
    return json.loads((home / "about.json").read_text(encoding="utf-8"))
