"""Writes docs/results.md and its plots from the published runs in docs/results/.

    python scripts/make_results.py            write the page and the plots
    python scripts/make_results.py --check    exit 1 where the page is not what the runs say

One folder a study:

    docs/results/sentiment/study.yaml                       title, text, columns, and more: see results_reading.Study
    docs/results/sentiment/ppo/seed-1/results.json          a run's results ("before" and "after"), one folder a seed
    docs/results/sentiment/ppo/seed-1/environment.json      its command, machine and versions
    docs/results/sentiment/ppo/seed-1/metrics.jsonl         optional: its held-out curve, and what it logged in training
    docs/results/look_ahead/ppo/seed-1/judged.json          in place of the first two: what `alignkit evaluate` found
    docs/results/look_ahead/comparison.json                 optional: what `alignkit compare` found
    docs/results/look_ahead/replies.json                    optional: prompts, and what each system said to them

`scripts/add_result.py` copies a finished run there. Nothing on the page is typed by hand: every figure is computed here
from those files.
"""

import argparse
import math
import re
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

import results_pictures
from results_reading import Run, Study, read_all
from scipy import stats

from alignkit.report.temperatures import axis_label, value_at
from alignkit.report.words import figure_of

ROOT = Path(__file__).resolve().parents[1]
INTRO = """# Results

<!-- Written by scripts/make_results.py from docs/results/. Edit the runs or study.yaml, not this page. -->

Every figure here is computed from what runs left in `docs/results/`: `results.json`, or `judged.json` where they were
judged afterwards. Cells are mean ± standard deviation over seeds; *before* is the same model, on the same held-out
prompts, before training. The commands below a study are those that gave its figures, with the folders of then.

What the words stand for ([in full](metrics.md)): *BLEU-4*, how many runs of one to four words a text shares with
people's, with its reference or, for texts from nothing, with any held-out text; *self-BLEU*, the same with the
system's other texts, so that low is varied; *ROUGE-1*, *ROUGE-L*, words and longest common subsequence shared with
the reference; *distinct-2*, share of different pairs of words; *perplexity*, of people's held-out texts under the
system, lower is better (with sentiment: of the system's texts under the model before training). A system trades
quality for variety by its sampling temperature alone, so some tables hold systems against each other *at equal
self-BLEU*, read off their curves over temperatures. In brackets behind GCN stands where the texts come from that it
is trained on: the policy, a *mixture* of the policy and its likeliest tokens, or a tree search (MCTS); *odds*:
weighted by D / (1 - D) in place of D.
"""


def figure(values: list[float]) -> str:
    """Mean ± standard deviation, to the precision that three significant digits of the mean have, or four decimals.

    >>> figure([0.91, 0.93, 0.95]), figure([12.31]), figure([104.0, 106.0]), figure([-1e-7]), figure([0.0162])
    ('0.930 ± 0.020', '12.3', '105 ± 1', '0.000', '0.0162')
    """
    mean = statistics.fmean(values)
    size = abs(mean)
    # of 0.0162 three digits are four decimals; what is smaller is noise
    digits = min(max(2 - math.floor(math.log10(size)), 0), 4) if size >= 0.001 else 3
    mean = round(mean, digits) + 0.0  # no minus in front of a zero
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{spread}"


def _at(run: Run, temperature: float, folder: Path) -> dict[str, float]:
    """The figures of texts sampled at a temperature."""
    sweep = {one["temperature"]: one["figures"] for one in run.temperatures}
    if temperature not in sweep:
        have = ", ".join(f"{known:g}" for known in sweep) or "none"
        raise SystemExit(
            f"{folder}: seed {run.seed} of {run.method} was not judged at temperature {temperature:g} (but at: "
            f"{have}); judge it with alignkit evaluate --temperatures {temperature:g}"
        )
    return sweep[temperature]


def value(study: Study, run: Run, part: str, key: str) -> float | None:
    """What a run has under the key of a column, or None; `part` is `before` or `after`.

    `name@T` is the figure of texts sampled at temperature T, of runs judged with --temperatures, `one|other` the first
    that the run has, `log name` the natural logarithm; `curve X` is y of the study's curves where x is X.
    """
    if study.curves and key.startswith("curve "):
        place = float(key.removeprefix("curve "))
        if part != "after" or not run.temperatures:
            return None
        return value_at(run.temperatures, study.curves["x"], study.curves["y"], place)
    names, _, temperature = key.removeprefix("log ").partition("@")
    figures = getattr(run, part)
    if temperature:
        known = run.temperatures and part == "after"
        figures = _at(run, float(temperature), study.folder) if known else {}
    found = next((figures[name] for name in names.split("|") if figures.get(name) is not None), None)
    if found is None and figures and part == "after":
        raise SystemExit(
            f"{study.folder}: {key!r} is missing from 'after' of seed {run.seed} of {run.method}, which has: "
            + ", ".join(sorted(figures))
        )
    if found is None or not key.startswith("log "):
        return found
    if found <= 0:
        raise SystemExit(
            f"{study.folder}: {key!r} of seed {run.seed} of {run.method}, which is {found:g}: no logarithm"
        )
    return math.log(found)


def column(study: Study, runs: list[Run], part: str, key: str) -> str:
    """One cell. A figure that only training yields (KL before training) may be missing from every `before`."""
    found = [value(study, run, part, key) for run in runs]
    present = [one for one in found if one is not None]
    if present and len(present) < len(runs):
        lacking = ", ".join(f"{r.method} {r.seed}" for r, one in zip(runs, found, strict=True) if one is None)
        raise SystemExit(f"{study.folder}: {key!r} is missing from '{part}' of {lacking}")
    return figure(present) if present else "–"


def table(study: Study) -> str:
    """One row for the start, then one a method."""
    keys = list(study.columns)
    lines = [
        "| | seeds | " + " | ".join(study.columns[key] for key in keys) + " |",
        "| --- | ---: |" + " ---: |" * len(keys),
    ]
    trained = [run for run in study.runs if run.before]  # what was only judged has no before
    if trained:
        lines.append("| before | | " + " | ".join(column(study, trained, "before", key) for key in keys) + " |")
    for method in study.methods():
        runs = [run for run in study.runs if run.method == method]
        cells = [column(study, runs, "after", key) for key in keys]
        lines.append(f"| {method} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def differences(study: Study) -> str:
    """Each system's mean paired difference to the first one, with its interval, and what the verdicts say."""
    found = study.comparison
    first, *others = found["systems"]
    same = f", and where {first} has more of them, the difference is to the same ones" if found.get("baselines") else ""
    lines = [
        f"Difference to {first} on the same {found['prompts']} prompts, with its 95% bootstrap interval over prompts; "
        f"a figure of several seeds is their mean{same}:\n",
        "| | " + " | ".join(study.differences.values()) + " |",
        "| --- |" + " ---: |" * len(study.differences),
    ]
    for system in others:
        cells = []
        for name in study.differences:
            one = found["figures"][name].get(system)
            known = one is not None and one["interval"] is not None
            cells.append(
                f"{one['difference']:+.3f} ({one['interval'][0]:+.3f} to {one['interval'][1]:+.3f})" if known else "–"
            )
        lines.append(f"| {system} | " + " | ".join(cells) + " |")
    lines += ["", "```text", *found["verdicts"], "```"] if study.verdicts else []
    return "\n".join(lines) + "\n"


def seed_differences(study: Study) -> str:
    """Each method's mean difference to another one's run of the same seed, with its interval."""
    other, keys = study.seed_differences["to"], study.seed_differences["columns"]
    base = {run.seed: run for run in study.runs if run.method == other}
    lines = [
        f"Difference to {other} of the same seed: the mean over seeds, and where there are several its 95% interval "
        "(Student's t); in brackets their number where not all have the figure:\n",
        "| | seeds | " + " | ".join(keys.values()) + " |",
        "| --- | ---: |" + " ---: |" * len(keys),
    ]
    for method in study.methods():
        pairs = [(run, base[run.seed]) for run in study.runs if run.method == method and run.seed in base]
        if method == other:
            continue
        cells = []
        for key in keys:
            sides = [[value(study, run, "after", key) for run in pair] for pair in pairs]
            known = [mine - theirs for mine, theirs in sides if mine is not None and theirs is not None]
            fewer = f" [{len(known)}]" if len(known) < len(pairs) else ""  # a curve need not reach everywhere
            cells.append(_with_interval(known) + fewer if known else "–")
        lines.append(f"| {method} | {len(pairs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _with_interval(values: list[float]) -> str:
    """A mean with Student's interval.

    >>> _with_interval([0.1, 0.2, 0.3]), _with_interval([-0.25])
    ('+0.2000 (-0.0484 to +0.4484)', '-0.2500')
    """
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:+.4f}"
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:+.4f} ({mean - half:+.4f} to {mean + half:+.4f})"


def at_equal(study: Study) -> str:
    """The figure y of each method's curve at the same values of x."""
    assert study.curves is not None
    x, y, places = study.curves["x"], study.curves["y"], study.curves["at"]
    lines = [
        f"{figure_of(y).label} where {figure_of(x).label} is the same, on the straight line between two temperatures; "
        "a dash where a seed's curve does not reach:\n",
        "| | " + " | ".join(f"{place:g}" for place in places) + " |",
        "| --- |" + " ---: |" * len(places),
    ]
    for method in study.methods():
        sweeps = [run.temperatures for run in study.runs if run.method == method and run.temperatures]
        found = [[value_at(sweep, x, y, place) for sweep in sweeps] for place in places]
        if sweeps:
            cells = ["–" if None in values else figure([v for v in values if v is not None]) for values in found]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def replies(study: Study) -> str:
    """A table for each prompt: who said what."""
    tables = []
    for one in study.replies:
        said = "<br>".join(_cell(turn) for turn in one["prompt"])
        body = [f"| {name} | {_cell(text)} |" for name, text in one["replies"].items()]
        tables.append("\n".join([f"| | {said} |", "| --- | --- |", *body]) + "\n")
    return "\n".join(tables)


def _cell(text: str) -> str:
    """Text as a cell of a Markdown table shows it as it is.

    >>> print(_cell(" a | b* "))
    a \\| b\\*
    """
    return re.sub(r"([|*_<`\\])", r"\\\1", " ".join(text.split()))


def origins(study: Study) -> str:
    """The command, data and machine of every run: what it takes to have the figures again."""
    again = f"python scripts/run_study.py {study.folder.name}"
    more = f" All of it, training included: `{again}`." if (study.folder / "runs.yaml").is_file() else ""
    machines = sorted({machine(run.environment) for run in study.runs})
    sizes = sorted({rows(run.environment["data"]) for run in study.runs})
    return (
        f"{len(study.runs)} runs on {'; '.join(machines)}. Data: {'; '.join(sizes)}.{more}\n\n"
        + "```text\n"
        + "".join(f"{line}\n" for line in commands(study))
        + "```\n"
    )


def commands(study: Study) -> list[str]:
    """The command of each run; of seeds whose commands differ in the seed alone the first, and which follow."""
    lines: list[str] = []
    for method in study.methods():
        first: tuple[int, str] | None = None
        for run in (run for run in study.runs if run.method == method):
            command = f"alignkit {shlex.join(run.environment['command'][1:])}"
            if first is not None and command == re.sub(rf"(?<=[-=]){first[0]}(?!\.?\d)", str(run.seed), first[1]):
                alike = f"# likewise with these seeds in the place of {first[0]}: "
                known = lines[-1].startswith(alike)
                lines[-1:] = [f"{lines[-1]}, {run.seed}"] if known else [lines[-1], f"{alike}{run.seed}"]
            else:
                first = (run.seed, command)
                lines.append(command)
    return lines


def machine(environment: dict[str, Any]) -> str:
    """Processor or accelerators, threads, and the versions that decide on figures."""
    hardware = ", ".join(environment["accelerators"]) or f"{environment['processor']} ({environment['threads']} thread"
    hardware += "" if environment["accelerators"] else "s)" if environment["threads"] > 1 else ")"
    packages = environment["packages"]
    versions = [f"{name} {packages[name]}" for name in ("torch", "transformers", "trl", "alignkit") if name in packages]
    return f"{hardware}, {', '.join(versions)}"


def rows(data: dict[str, dict[str, Any]]) -> str:
    """How many rows each split had."""
    return ", ".join(f"{part['rows']:,} {split} rows" for split, part in data.items())


def page(studies: list[Study]) -> str:
    """The whole page."""
    parts = [INTRO]
    for study in studies:
        parts.append(f"## {study.title}\n\n{study.text.strip()}\n")
        parts.append(table(study))
        if study.seed_differences:
            parts.append(seed_differences(study))
        if study.differences:
            parts.append(differences(study))
            first = study.comparison["systems"][0]
            parts.append(f"![Differences to {first}, with intervals](results/{study.folder.name}-differences.svg)\n")
            parts.append("Blue lies above and red below by more than the choice of prompts explains, grey does not.\n")
        if study.replies:
            parts.append(replies(study))
        if study.plot:
            alt = f"{' and '.join(study.plot['y'].values())} against {study.plot.get('x_label', study.plot['x'])}"
            parts.append(f"![{alt}](results/{study.folder.name}.svg)\n")
            parts.append("A dot is a run's end, a cross the mean over seeds, a thin line a run's held-out curve.\n")
        if study.curves:
            alt = f"{axis_label(study.curves['y'])} against {axis_label(study.curves['x'])} over temperatures"
            parts.append(f"![{alt}](results/{study.folder.name}-temperatures.svg)\n")
            parts.append(
                "A line is a system over sampling temperatures (T), the mean over its seeds, which are the thin lines; "
                "bars and bands are a standard deviation.\n"
            )
            if "at" in study.curves:
                parts.append(at_equal(study))
        if study.steps:
            parts.append(f"![{' and '.join(study.steps.values())} over steps](results/{study.folder.name}-steps.svg)\n")
            parts.append("A line is the mean over a system's seeds, which are the thin lines.\n")
        parts.append(origins(study))
    if not studies:
        parts.append("No run has been published yet.\n")
    return "\n".join(parts)


def main(arguments: list[str] | None = None, docs: Path = ROOT / "docs") -> int:
    """Writes or checks the page; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write docs/results.md and its plots from the runs in docs/results/.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the page is out of date")
    check = parser.parse_args(arguments).check
    studies = read_all(docs / "results")
    target, text = docs / "results.md", page(studies)
    if check:
        current = target.read_text(encoding="utf-8") if target.exists() else ""
        wrong = [target] if current != text else []
        wrong += [picture for study in studies for picture in results_pictures.stale(study)]
        for path in wrong:
            print(f"{path} is not what the runs say; run: python scripts/make_results.py", file=sys.stderr)
        return int(bool(wrong))
    target.write_text(text, encoding="utf-8")
    for study in studies:
        results_pictures.draw_all(study)
    print(f"{target}: {len(studies)} studies, {sum(len(study.runs) for study in studies)} runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
