"""The files of a run's folder, as far as they are there."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkit.diagnostics import Finding, review
from alignkit.errors import DataError
from alignkit.json_lines import Row, read_json_lines
from alignkit.trainers.ended_rewards import read_ended

# What stands in front of the slash in figures of the trainers themselves.
_OF_TRAINERS = {"completions", "ess", "log_weights", "phase", "rewards", "sampling", "value", "weights"}


@dataclass
class RunFiles:
    """What a report is made of; every part but `rows` may be empty.

    Attributes:
        name: of the run, its folder's.
        rows: of metrics.jsonl, in order.
        samples: phase (`before`, `train`, `after`) -> rows of samples.jsonl.
        before: held-out figures of the model that training started from.
        after: the same of the trained model.
        intervals: figure -> {"before" | "after" | "change": [low, high]}.
        real_text: the metrics on the data's own continuations.
        reliability: of a classifier's probabilities, see `alignkit.report.reliability`.
        environment: versions, machine, seed.
        recipe: recipe.yaml, as text.
        findings: of health.json, or of the monitors on `rows` where there is no such file.
        changed: rewards that training changed, of rewards/index.json; None where there is none.
    """

    name: str
    rows: list[Row]
    samples: dict[str, list[Row]] = field(default_factory=dict)
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    real_text: dict[str, float] = field(default_factory=dict)
    reliability: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    recipe: str = ""
    findings: list[Finding] = field(default_factory=list)
    changed: list[str] | None = None

    @property
    def learned(self) -> list[str]:
        """The rewards that changed with training: of a finished run, else those that logged figures of
        their own beside what they said."""
        named = [key.split("/")[1] for key in self.after if key.startswith("rewards/") and key.endswith("/mean")]
        if self.changed is not None:
            return sorted(set(self.changed).intersection(named))
        logged = {key.split("/")[0] for row in self.rows for key in row if "/" in key} - _OF_TRAINERS
        return sorted(logged.intersection(named))


def read_run(folder: str | Path) -> RunFiles:
    """Reads a run's folder.

    Raises:
        DataError: there is no metrics.jsonl, or a file is not what it should be.
    """
    folder = Path(folder)
    if not (folder / "metrics.jsonl").is_file():
        inside = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) if folder.is_dir() else None
        there = "there is no such folder" if inside is None else f"it holds: {inside or 'nothing'}"
        raise DataError(f"no metrics.jsonl in {folder}: {there}. Give the folder of a run (its training.output_dir)")
    rows = read_json_lines(folder / "metrics.jsonl")
    results = _json(folder / "results.json", dict)
    samples: dict[str, list[Row]] = {}
    shown = folder / "samples.jsonl"
    for row in read_json_lines(shown) if shown.is_file() else ():
        samples.setdefault(str(row.get("phase", "train")), []).append(row)
    recipe = folder / "recipe.yaml"
    health = folder / "health.json"
    ended = read_ended(folder)
    return RunFiles(
        name=folder.resolve().name,
        rows=rows,
        samples=samples,
        before=_numbers(results.get("before")),
        after=_numbers(results.get("after")),
        intervals=results.get("intervals") or {},
        real_text=_numbers(results.get("real_text")),
        reliability=results.get("reliability") or {},
        environment=_json(folder / "environment.json", dict),
        recipe=recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else "",
        findings=_findings(health) if health.is_file() else review(rows),
        changed=ended.learned if ended else None,
    )


def _findings(path: Path) -> list[Finding]:
    try:
        return [Finding(e["check"], e["status"], e["message"], int(e["step"])) for e in _json(path, list)]
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: each entry needs check, status, message and step ({error!r})") from error


def _numbers(figures: Any) -> dict[str, float]:
    return {k: float(v) for k, v in (figures or {}).items() if isinstance(v, int | float) and not isinstance(v, bool)}


def _json(path: Path, kind: type) -> Any:
    if not path.is_file():
        return kind()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); delete it, or write it again") from error
    if not isinstance(content, kind):
        raise DataError(f"{path} holds a {type(content).__name__}; expected a {kind.__name__}")
    return content
