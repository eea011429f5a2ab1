"""Figures from completions of held-out prompts: metrics, confidence intervals, and the run's results.json.

The rows come from `alignkit.held_out.generate_rows` (or `trainer.generate_eval()`), so that every trainer is judged by
the same code, before and after.
"""

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alignkit.errors import ConfigError, DataError, MissingColumnError
from alignkit.text import completion_text, is_conversational
from alignkit.whole_files import write_text

Row = dict[str, Any]


def evaluate_rows(rows: Sequence[Row], metrics: Mapping[str, Any]) -> dict[str, float]:
    """All metrics on completions of held-out prompts.

    A metric of alignkit gets `predictions` and what else its `_compute` names (`prompts`, `completions`, `columns`);
    any other `evaluate.Metric` gets the features it declares, among them `references` from the rows' reference. Values
    that are not single numbers (such as BLEU's list of precisions) are left out.

    Args:
        rows: with `prompt`, `completion`, `reference` and `columns`, see `alignkit.held_out.generate_rows`. What
            metrics find of each row is put into its `metrics`: key -> score or None.
        metrics: a name for messages -> `evaluate.Metric`.

    Raises:
        DataError: there are no rows.
        MissingColumnError: a metric needs a column that the rows do not have.
        ConfigError: two metrics report one key.
    """
    if metrics and not rows:
        raise DataError("there are no completions to evaluate; the held-out data is empty")
    figures: dict[str, float] = {}
    origin: dict[str, str] = {}
    for name, metric in metrics.items():
        result = metric.compute(**_arguments(rows, name, metric)) or {}
        for key, value in result.items():
            if not isinstance(value, bool | int | float | np.number):
                continue
            if key in origin:
                raise ConfigError(
                    f"the metrics {origin[key]!r} and {name!r} both report {key!r}; give one of them another name "
                    f"(name=...), or leave it out"
                )
            origin[key], figures[key] = name, float(value)
        for key, scores in getattr(metric, "row_scores", {}).items() if getattr(metric, "per_row", True) else ():
            for row, score in zip(rows, scores, strict=True):
                row["metrics"] = {**row.get("metrics", {}), key: score}
    return figures


def _arguments(rows: Sequence[Row], name: str, metric: Any) -> dict[str, Any]:
    features = metric.features[0] if isinstance(metric.features, list) else metric.features
    wanted = inspect.signature(metric._compute).parameters
    columns = _columns(rows)
    offered: dict[str, Any] = {
        "prompts": [row["prompt"] for row in rows],
        "completions": [row["completion"] for row in rows],
        "columns": columns,
    }
    arguments: dict[str, Any] = {"predictions": [completion_text(row["completion"]) for row in rows]}
    arguments.update({key: value for key, value in offered.items() if key in wanted or key in features})
    for feature in features:
        if feature in arguments:
            continue
        column = "reference" if feature == "references" else feature
        if any(value is None for value in columns.get(column, [None])):
            raise MissingColumnError(
                f"the metric {name!r} needs the column {column!r} in every row; "
                f"the rows have: {', '.join(columns) or 'no further columns'}"
            )
        arguments[feature] = [completion_text(v) if is_conversational(v) and v else v for v in columns[column]]
    return arguments


def _columns(rows: Sequence[Row]) -> dict[str, list]:
    """Columns of the rows; `reference` is always there when any row has one."""
    names = list(dict.fromkeys(name for row in rows for name in row.get("columns") or {}))
    columns = {name: [(row.get("columns") or {}).get(name) for row in rows] for name in names}
    references = [row.get("reference") for row in rows]
    if any(reference is not None for reference in references):
        columns["reference"] = references
    return columns


def real_text_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows' references in the place of their completions: what diversity and repetition are in real text.

    Each reference is cut to the number of words of the completion beside it, because distinct-n falls and self-BLEU
    rises with the amount of text. Rows without a reference are left out.
    """
    real = []
    for row in rows:
        if row.get("reference") is None:
            continue
        length = len(completion_text(row["completion"]).split())
        text = " ".join(completion_text(row["reference"]).split()[:length])
        real.append({**row, "completion": text})
    return real


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Confidence interval of the mean by the bootstrap, bias-corrected and accelerated (Efron 1987).

    Args:
        values: one figure a prompt, such as its reward; for a change, the difference on each prompt.
        confidence: share of intervals that would hold the true mean.
        resamples: number of resamples.
        seed: of the resampling.

    Returns:
        lower and upper bound; both the mean itself where the values differ by rounding at most.

    Raises:
        DataError: there are no values, or some are not finite.
    """
    array = np.asarray(list(values), dtype=float)
    if not len(array) or not np.isfinite(array).all():
        raise DataError(f"a confidence interval needs finite values, got {len(array)} of which not all are finite")
    # differences of equal figures differ by rounding, which the bootstrap would divide by
    if len(array) == 1 or np.ptp(array) <= 1e-12 * np.abs(array).max() + 1e-15:
        return float(array.mean()), float(array.mean())
    from scipy import stats  # 20 MiB that training does not need

    interval = stats.bootstrap(
        (array,), np.mean, confidence_level=confidence, n_resamples=resamples, rng=np.random.default_rng(seed)
    ).confidence_interval
    return float(interval.low), float(interval.high)


def intervals(before: Sequence[Row], after: Sequence[Row], confidence: float = 0.95) -> dict[str, dict[str, list]]:
    """Confidence intervals of reward, KL and length before and after, and of the change on the same prompts.

    Returns:
        figure -> {"before": [low, high], "after": [low, high], "change": [low, high]}; the change is there where the
        two sets hold the same prompts in the same order.
    """
    names = list(dict.fromkeys(name for row in [*before, *after] for name in row["rewards"]))
    figures = {key: lambda row, key=key: row.get(key) for key in ("reward", "kl", "length")}
    figures.update({f"rewards/{name}/mean": lambda row, name=name: row["rewards"].get(name) for name in names})
    paired = [row["prompt"] for row in before] == [row["prompt"] for row in after]
    found: dict[str, dict[str, list]] = {}
    for figure, read in figures.items():
        first, second = [read(row) for row in before], [read(row) for row in after]
        sides: dict[str, list[float]] = {"before": _known(first), "after": _known(second)}
        if paired:
            both = zip(first, second, strict=True)
            sides["change"] = [b - a for a, b in both if a is not None and b is not None]
        found[figure] = {side: list(bootstrap_interval(values, confidence)) for side, values in sides.items() if values}
    return {figure: sides for figure, sides in found.items() if sides}


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def write_results(
    folder: str | Path,
    before: Mapping[str, float],
    after: Mapping[str, float],
    *,
    before_rows: Sequence[Row] | None = None,
    after_rows: Sequence[Row] | None = None,
    **more: Any,
) -> Path:
    """Write results.json: `{"before": {...}, "after": {...}, ...}` on held-out data.

    Args:
        folder: of the run; made where it is missing.
        before: figures of the model that training started from.
        after: the same figures of the trained model.
        before_rows: with `after_rows`, adds `intervals` (95% bootstrap intervals, see `intervals`).
        after_rows: completions of the trained model.
        more: further entries, such as `real_text` (the metrics on the data's own continuations).

    Values that are not finite are written as null, which every JSON reader understands.
    """
    content: dict[str, Any] = {"before": dict(before), "after": dict(after), **more}
    if before_rows is not None and after_rows is not None:
        content["intervals"] = intervals(before_rows, after_rows)
    path = Path(folder) / "results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_text(path, json.dumps(finite(content), indent=2, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """The same structure for JSON: numbers that are not finite become None, numpy's and torch's become Python's."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if hasattr(value, "tolist"):
        return finite(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
