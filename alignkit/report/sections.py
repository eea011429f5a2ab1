"""The parts of the page that come from figures: headline, cards, curves, phase times, the table of all figures."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from alignkit.diagnostics import CHECKS, Finding
from alignkit.report.plots import Plot, line_plot, scatter_plot, spark, thinned
from alignkit.report.reading import Row, RunFiles
from alignkit.report.words import figure_of, signed, span, written
from alignkit.trainers.ended_rewards import is_two_measures

# The most telling figures first; the page's cards are the first six that the run has.
_HEADLINE = (
    *("reward", "*_positive_share", "accuracy", "kl", "eval_loss", "loss", "nll", "perplexity", "*_perplexity"),
    *("oracle_nll", "rouge_l", "bleu_4", "self_bleu_4"),
    *("distinct_2", "completions/mean_length", "f1", "bleu", "self_bleu", "repetition"),
)
# Curves that the page opens with, in this order; the others are folded away.
_CURVES = (
    *("reward", "kl", "entropy", "ess/share", "completions/mean_length", "value_loss", "value/explained_variance"),
    *("loss", "accuracy", "*_positive_share"),
)
_CARDS = 6
# Without an interval, a change by less than this share of the figure is not called better or worse.
_TELLING = 0.1
# Learning from text makes a model less random, and that is what it is for; only a reward can push it too far.
_NEUTRAL = {"distinct_1", "distinct_2", "distinct_3", "distinct_2_of_1000"}
_NEUTRAL |= {"self_bleu", "repetition", "looping", "duplicates"}
_NEUTRAL |= {f"self_bleu_{n}" for n in (2, 3, 4, 5)}
_NO_CURVE = {"step", "epoch", "time", "total_flos", "train_runtime", "train_loss", "num_input_tokens_seen"}
_NO_CURVE |= {"train_samples_per_second", "train_steps_per_second", "train_tokens_per_second"}
_NO_CURVE |= {"runtime", "samples_per_second", "steps_per_second", "model_preparation_time"}
PHASES = ("sample", "reward", "reference", "update", "other")


@dataclass(frozen=True)
class Card:
    """One figure before and after: texts ready to show, `verdict` is `better`, `worse` or empty."""

    label: str
    unit: str
    before: str
    after: str
    change: str
    interval: str
    verdict: str
    spark: str


def is_per_token_kl(run: RunFiles) -> bool:
    """Whether `kl` in the log is per token, as TRL's own trainers have it."""
    return not any("kl_per_token" in row for row in run.rows)


def points_of(rows: Iterable[Row], key: str) -> list[tuple[float, float]]:
    """(step, value) of a key, finite values only."""
    return [(float(row.get("step") or 0), float(row[key])) for row in rows if is_finite_number(row.get(key))]


def is_finite_number(value: Any) -> bool:
    """Whether a value is one finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _matching(patterns: Iterable[str], keys: Iterable[str]) -> list[str]:
    """Keys in the order of the patterns; a pattern may begin with a star."""
    keys = list(keys)
    found: dict[str, None] = {}
    for pattern in patterns:
        hits = [key for key in keys if key == pattern or (pattern[0] == "*" and key.endswith(pattern[1:]))]
        found.update(dict.fromkeys(hits))
    return list(found)


def cards(run: RunFiles) -> list[Card]:
    """The headline figures before and after training."""
    made = []
    known = [key for key, value in run.after.items() if is_finite_number(value)]
    if "loss" in known and "nll" in known:
        known.remove("nll")  # a classifier's loss under another name
    for key in _matching(_HEADLINE, known)[:_CARDS]:
        figure = figure_of(key)
        before, after = run.before.get(key), run.after[key]
        if before is not None and abs(before) < 1e-5 * abs(after):
            before = 0.0  # a KL of 5e-7 before training is rounding, and would read as a figure
        change = interval = verdict = ""
        if before is not None and not is_two_measures(key, run.learned):
            change = signed(after - before, figure.percent)
            bounds = run.intervals.get(key, {}).get("change")
            if bounds:
                interval = f"95%: {signed(bounds[0], figure.percent)} to {signed(bounds[1], figure.percent)}"
            told = bounds or abs(after - before) > _TELLING * abs(before)
            if told and not (key in _NEUTRAL and "reward" not in run.after):
                verdict = _verdict(figure.better * (after - before), bounds)
        curve = points_of(run.rows, key) or points_of(run.rows, f"eval_{key}")
        made.append(
            Card(
                figure.label,
                figure.unit,
                written(before, figure.percent),
                written(after, figure.percent),
                change,
                interval,
                verdict,
                spark(curve),
            )
        )
    return made


def _verdict(gain: float, bounds: list[float] | None) -> str:
    if gain == 0 or (bounds and bounds[0] <= 0 <= bounds[1]):
        return ""
    return "better" if gain > 0 else "worse"


def headline(run: RunFiles) -> list[str]:
    """What happened, in one to three sentences."""
    said = []
    before, after = run.before, run.after
    prompts = len(run.samples.get("after", []))
    held_out = f" on {prompts:,} held-out prompts" if prompts else " on held-out data"
    if is_finite_number(after.get("reward")) and is_finite_number(before.get("reward")):
        kl = f", at a KL of {written(after['kl'])} nats per response" if is_finite_number(after.get("kl")) else ""
        figures = f"from {written(before['reward'])} to {written(after['reward'])}{held_out}{kl}"
        if run.learned:
            said.append(
                f"The reward, which changed with training ({', '.join(run.learned)}), went {figures}: what it says at "
                "the end does not compare with what it said before."
            )
        else:
            said.append(f"{_went('The reward', before['reward'], after['reward'])} {figures}.")
    elif "accuracy" in after and "accuracy" in before:
        said.append(
            f"{_went('Accuracy', before['accuracy'], after['accuracy'])} from {written(before['accuracy'], True)} to "
            f"{written(after['accuracy'], True)} on held-out texts."
        )
    elif "loss" in after and "loss" in before:
        said.append(
            f"{_went('The held-out loss', before['loss'], after['loss'])} from {written(before['loss'])} to "
            f"{written(after['loss'])} nats per token."
        )
    else:
        said.append(_unfinished(run))
    shares = [key for key in after if key.endswith("_positive_share") and is_finite_number(after[key])]
    for key in shares[:1]:
        name = key.removesuffix("_positive_share")
        rest = f", {written(before[key], True)} before" if is_finite_number(before.get(key)) else ""
        said.append(
            f"A judge that training does not see ({name}) finds {written(after[key], True)} of them good{rest}."
        )
    return said


def _went(what: str, before: float, after: float) -> str:
    return f"{what} {'rose' if after > before else 'fell' if after < before else 'stayed, going'}"


def _unfinished(run: RunFiles) -> str:
    for key in ("reward", "loss"):
        points = points_of(run.rows, key)
        if len(points) > 1:
            return (
                f"In training the {key} went from {written(points[0][1])} to {written(points[-1][1])}; "
                "there is no held-out comparison of before and after."
            )
    return "There is no held-out comparison of before and after, and too little is logged to tell more."


def curves(run: RunFiles) -> tuple[list[Plot], list[Plot]]:
    """The curves the page opens with, and all others."""
    keys = list(dict.fromkeys(key for row in run.rows for key in row))
    trained = [key for key in keys if not key.startswith("eval_")]
    evaluated = [key.removeprefix("eval_") for key in keys if key.startswith("eval_")]
    names = [key for key in dict.fromkeys([*trained, *evaluated]) if key not in _NO_CURVE]
    first = _matching(_CURVES, names)
    if "kl" in first and "reward" in first:
        first = [key for key in first if key not in ("loss",)]
    rest = sorted(key for key in names if key not in first and not key.startswith("phase/"))
    opening = [plot for key in first if (plot := _curve(run, key)) is not None]
    opening += [plot for plot in [_reward_against_kl(run)] if plot is not None]
    folded = [plot for key in rest if (plot := _curve(run, key)) is not None]
    return opening, folded


def _curve(run: RunFiles, key: str) -> Plot | None:
    held_out = points_of(run.rows, f"eval_{key}")
    last = max((float(row.get("step") or 0) for row in run.rows), default=0.0)
    # the comparison before and after is an evaluation too, and often the only one
    for step, figures in ((0.0, run.before), (last, run.after)):
        if is_finite_number(figures.get(key)) and not any(at == step for at, _ in held_out):
            held_out.append((step, figures[key]))
    train = points_of(run.rows, key)
    missing = sum(name in row and not is_finite_number(row[name]) for row in run.rows for name in (key, f"eval_{key}"))
    curves = [("training", "train", train), ("held out", "held-out", held_out)]
    return line_plot(figure_of(key, is_per_token_kl(run) and key == "kl"), curves, missing)


def _reward_against_kl(run: RunFiles) -> Plot | None:
    """What each nat of distance bought: runs are fairly compared at equal KL, not at equal steps."""
    both = [row for row in run.rows if is_finite_number(row.get("reward")) and is_finite_number(row.get("kl"))]
    if len(both) < 8:
        return None
    xs = thinned(list(enumerate(float(row["kl"]) for row in both)), 80)
    ys = thinned(list(enumerate(float(row["reward"]) for row in both)), 80)
    points = [(x, y) for (_, x), (_, y) in zip(xs, ys, strict=True)]
    plot = scatter_plot(
        "Reward against KL", figure_of("kl", is_per_token_kl(run)), figure_of("reward"), [("training", "train", points)]
    )
    if plot is not None:
        plot.legend = False
    return plot


def phases(run: RunFiles) -> dict[str, Any] | None:
    """Mean seconds of an optimiser step in each phase; None where no time is logged."""
    means = {}
    for phase in PHASES:
        values = [value for _, value in points_of(run.rows, f"phase/{phase}")]
        if values:
            means[phase] = sum(values) / len(values)
    steps = [value for _, value in points_of(run.rows, "step_time")]
    whole = sum(steps) / len(steps) if steps else 0.0
    known = sum(means.values())
    if known and "other" not in means and whole > 1.02 * known:
        means["other"] = whole - known
    total = sum(means.values()) or whole
    if not total:
        return None
    parts = [
        {
            "style": phase,
            "label": figure_of(f"phase/{phase}").label,
            "share": 100 * seconds / total,
            "seconds": span(seconds),
            "percent": written(seconds / total, True),
        }
        for phase, seconds in means.items()
        if seconds > 0
    ]
    tokens = points_of(run.rows, "num_tokens")
    times = [float(row["time"]) for row in run.rows if "num_tokens" in row and is_finite_number(row.get("time"))]
    speed = ""
    if len(tokens) > 1 and len(times) == len(tokens) and times[-1] > times[0]:
        speed = f"{(tokens[-1][1] - tokens[0][1]) / (times[-1] - times[0]):,.0f} tokens per second"
    return {"parts": parts, "step": span(total), "speed": speed}


def health(run: RunFiles) -> dict[str, Any]:
    """Findings, the failed ones first, and the checks that had nothing to judge."""
    order = {"stop": 0, "rollback": 1, "warn": 2, "ok": 3}
    findings = sorted(run.findings, key=lambda finding: order.get(finding.status, 2))
    bad = [_entry(finding) for finding in findings if finding.status != "ok"]
    seen = {finding.check for finding in findings}
    return {
        "bad": bad,
        "good": [_entry(finding) for finding in findings if finding.status == "ok"],
        "unseen": [(check.title, check.needs) for name, check in CHECKS.items() if name not in seen],
        "badge": _badge(findings),
        "status": findings[0].status if findings else "unknown",
    }


def _entry(finding: Finding) -> dict[str, Any]:
    title = CHECKS[finding.check].title if finding.check in CHECKS else finding.check
    return {"title": title, "status": finding.status, "message": finding.message, "step": finding.step}


def _badge(findings: list[Finding]) -> str:
    if not findings:
        return "not checked"
    statuses = [finding.status for finding in findings]
    if "stop" in statuses:
        return "stopped by a check"
    count = sum(status != "ok" for status in statuses)
    if not count:
        return f"healthy, {len(findings)} checks"
    return f"{count} {'thing needs' if count == 1 else 'things need'} a look"


def figures_table(run: RunFiles) -> list[dict[str, str]]:
    """Every held-out figure before, after, and in real text where that is known."""
    rows = []
    for key in dict.fromkeys([*run.after, *run.before]):
        figure = figure_of(key)
        before, after = run.before.get(key), run.after.get(key)
        change = ""
        if before is not None and after is not None and not is_two_measures(key, run.learned):
            change = signed(after - before, figure.percent)
        rows.append(
            {
                "key": key,
                "label": figure.label,
                "before": written(before, figure.percent),
                "after": written(after, figure.percent),
                "change": change,
            }
        )
    return rows


def facts(run: RunFiles) -> list[str]:
    """What ran, in a few short facts under the title."""
    environment = run.environment
    told = []
    if environment.get("trainer"):
        told.append(str(environment["trainer"]))
    if environment.get("parameters"):
        told.append(f"{_count(environment['parameters'])} parameters")
    steps = max((int(row.get("step") or 0) for row in run.rows), default=0)
    told.append(f"{steps:,} step{'s' if steps != 1 else ''}")
    times = [float(row["time"]) for row in run.rows if is_finite_number(row.get("time"))]
    if times:
        told.append(span(times[-1]))
    if environment.get("recipe"):
        told.append(str(environment["recipe"]))
    if environment.get("seed") is not None:
        told.append(f"seed {environment['seed']}")
    if (environment.get("num_processes") or 1) > 1:
        told.append(f"{environment['num_processes']} processes")
    return told


def _count(number: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return str(number)
