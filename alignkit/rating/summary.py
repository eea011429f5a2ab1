"""What a study found so far: its ratings through the statistics, as tables, JSON and markdown."""

import itertools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

import alignkit
from alignkit.console import standard_output
from alignkit.errors import DataError
from alignkit.rating.statistics import agreement, compare, estimate, holm, item_means
from alignkit.rating.store import RATINGS, latest
from alignkit.rating.study import Study, read_study
from alignkit.whole_files import write_text

CONFIDENCE = 0.95


def summarise(folder: str | Path) -> dict[str, Any]:
    """Writes summary.json and summary.md into a study's folder and prints the tables. Also while people rate.

    Returns:
        what summary.json holds: `raters` (how many answers each gave, without names), `systems` (system -> question ->
        mean, interval, counts), `agreement` (question -> alpha), `pairs` (a comparison each) and `remarks`.

    Raises:
        DataError: no study is there, nobody has rated, or a line is damaged.
    """
    folder = Path(folder)
    study = read_study(folder)
    summary = summary_of(study, ratings_of(study, folder / RATINGS))
    write_text(folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / "summary.md", markdown(summary))
    console = standard_output()
    for title, header, rows in tables(summary):
        table = Table(title=title, title_justify="left")
        for number, name in enumerate(header):
            table.add_column(escape(name), justify="left" if number == 0 else "right")
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)
    for remark in summary["remarks"]:
        console.print(f"- {remark}", markup=False, highlight=False)
    console.print(f"written to {folder / 'summary.json'} and summary.md", markup=False, highlight=False, soft_wrap=True)
    return summary


def ratings_of(study: Study, file: str | Path) -> np.ndarray:
    """The answers that count, as (R, questions, systems, N) with NaN where there is none; R may be 0."""
    found = latest(file, study)
    names = study.questionnaire.names
    values = np.full((len(found), len(names), len(study.systems), len(study.items)), np.nan)
    for rater, answers in enumerate(found.values()):
        for (item, system, question), value in answers.items():
            values[rater, names.index(question), study.systems.index(system), item] = value
    return values


def summary_of(study: Study, values: np.ndarray) -> dict[str, Any]:
    """The figures of a study.

    Args:
        study: that was rated.
        values: (R, questions, systems, N).

    Raises:
        DataError: there are no ratings.
    """
    if not (~np.isnan(values)).any():
        raise DataError("nobody has rated anything yet: there is nothing to summarise")
    raters = [int(count) for count in (~np.isnan(values)).sum(axis=(1, 2, 3)) if count]
    asked = int(np.prod(values.shape[1:]))
    reasons: dict[str, list[str]] = {}
    systems: dict[str, dict[str, Any]] = {system: {} for system in study.systems}
    agreements, pairs = {}, []
    for number, question in enumerate(study.questionnaire.names):
        ratings = values[:, number]
        for place, system in enumerate(study.systems):
            mean = estimate(ratings[:, place], confidence=CONFIDENCE, seed=study.seed)
            systems[system][question] = asdict(mean)
            _note(reasons, mean.reason, f"{system} ({question})")
        units = ratings.reshape(len(ratings), -1)
        ordinal, interval = agreement(units, "ordinal"), agreement(units, "interval")
        agreements[question] = {**asdict(ordinal), "alpha_interval": interval.alpha}
        _note(reasons, ordinal.reason, f"agreement ({question})")
        means = [item_means(ratings[:, place]) for place in range(len(study.systems))]
        found = [(a, b, compare(means[a], means[b])) for a, b in itertools.combinations(range(len(means)), 2)]
        for (a, b, figures), adjusted in zip(found, holm([figures.p for *_, figures in found]), strict=True):
            first, second = study.systems[a], study.systems[b]
            pairs.append(
                {"question": question, "first": first, "second": second, **asdict(figures), "p_holm": adjusted}
            )
            _note(reasons, figures.reason, f"{first} - {second} ({question})")
    return {
        "alignkit": alignkit.__version__,
        "items": len(study.items),
        "points": study.questionnaire.points,
        "confidence": CONFIDENCE,
        "seed": study.seed,
        "raters": [{"answers": count, "of": asked} for count in raters],
        "systems": systems,
        "agreement": agreements,
        "pairs": pairs,
        "remarks": [*_unfinished(raters, asked), *(f"{reason}: {', '.join(of)}" for reason, of in reasons.items())],
    }


def tables(summary: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows of each table, for the terminal and for markdown."""
    questions = list(summary["agreement"])
    percent = f"{summary['confidence']:.0%}"
    means = [
        [system, *(_mean(figures[question]) for question in questions)]
        for system, figures in summary["systems"].items()
    ]
    counts = [
        [system, *(f"{figures[q]['ratings']} on {figures[q]['items']}" for q in questions)]
        for system, figures in summary["systems"].items()
    ]
    alphas = [
        ["ordinal", *(_number(summary["agreement"][question]["alpha"]) for question in questions)],
        ["interval", *(_number(summary["agreement"][question]["alpha_interval"]) for question in questions)],
        ["responses with two ratings", *(str(summary["agreement"][question]["pairable"]) for question in questions)],
    ]
    tests = [
        [
            f"{pair['first']} - {pair['second']}", pair["question"], _number(pair["difference"], "+.2f"),
            f"{pair['higher']} / {pair['equal']} / {pair['items'] - pair['higher'] - pair['equal']}",
            _number(pair["p"], ".3g"), _number(pair["p_holm"], ".3g"),
        ]
        for pair in summary["pairs"]
    ]  # fmt: skip
    return [
        (f"Mean and {percent} interval, 1 to {summary['points']}", ["system", *questions], means),
        ("Ratings, and the items that have any", ["system", *questions], counts),
        ("Agreement of the raters: Krippendorff's alpha", ["level", *questions], alphas),
        (
            "Wilcoxon's signed-rank test on the items' means; p after Holm within a question",
            ["systems", "question", "difference", "items higher / equal / lower", "p", "p (Holm)"],
            tests,
        ),
    ]


def markdown(summary: dict[str, Any]) -> str:
    """The tables and remarks as a page."""
    raters, items = len(summary["raters"]), summary["items"]
    lines = ["# Ratings", "", f"{raters} {_plural('rater', raters)}, {items} {_plural('context', items)}.", ""]
    for title, header, rows in tables(summary):
        lines += [f"## {title}", "", _line(header), _line(["---", *(["---:"] * (len(header) - 1))])]
        lines += [*(_line(row) for row in rows), ""]
    if summary["remarks"]:
        lines += ["## Remarks", "", *(f"- {remark}" for remark in summary["remarks"]), ""]
    return "\n".join(lines)


def _unfinished(raters: list[int], asked: int) -> list[str]:
    unfinished = sum(count < asked for count in raters)
    if not unfinished:
        return []
    return [
        f"{unfinished} of {len(raters)} {_plural('rater', len(raters))} did not answer everything: an item's mean is "
        "over those who rated it, so a strict rater weighs on some items and not on others"
    ]


def _note(reasons: dict[str, list[str]], reason: str | None, what: str) -> None:
    if reason is not None:
        reasons.setdefault(reason, []).append(what)


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _mean(figures: dict[str, Any]) -> str:
    if figures["mean"] is None:
        return "-"
    if figures["low"] is None:
        return f"{figures['mean']:.2f}"
    return f"{figures['mean']:.2f} [{figures['low']:.2f}, {figures['high']:.2f}]"


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)
