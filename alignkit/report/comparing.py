"""The parts of the page that come from completions: side by side, reward against length, diversity."""

from dataclasses import dataclass
from typing import Any

from scipy import stats

from alignkit.evaluation import real_text_rows
from alignkit.metrics.diversity import distinct, self_bleu
from alignkit.metrics.repetition import repetition
from alignkit.report.plots import Plot, scatter_plot
from alignkit.report.reading import Row, RunFiles
from alignkit.report.sections import is_finite_number
from alignkit.report.words import Figure, figure_of, signed, written
from alignkit.text import completion_text, prompt_text

SHOWN = 8
_EXTREMES = 5
_FOLDED = 30
_LONGEST = 700
_MOST_DOTS = 400
# Longer texts are measured by their beginning: self-BLEU of a hundred books would take hours.
_MEASURED = 4000
_CONTROL = {code: "�" for code in range(32) if chr(code) not in "\n\t\r"} | {ord("\r"): None}


@dataclass(frozen=True)
class Side:
    """One completion, ready to show."""

    text: str
    rest: str
    reward: str
    facts: str
    scores: list[tuple[str, str]]


@dataclass(frozen=True)
class Pair:
    """A prompt with what the model wrote before and after training; either side may be missing."""

    prompt: str
    before: Side | None
    after: Side | None
    reference: str
    change: str
    rise: float | None


def readable(text: str) -> str:
    """Text that a page can hold: no control characters, no broken surrogates."""
    return text.encode("utf-8", "replace").decode("utf-8").translate(_CONTROL)


def cut(text: str, length: int = _LONGEST) -> tuple[str, str]:
    """A text's beginning, and what is left of it up to twenty times that."""
    if len(text) <= length:
        return text, ""
    rest = text[length : 20 * length]
    dropped = len(text) - 20 * length
    return text[:length], rest + (f" … ({dropped:,} more characters)" if dropped > 0 else "")


def _text_of(value: Any) -> str:
    try:
        return readable(completion_text(value))
    except TypeError:
        return readable(str(value))


def _prompt_of(value: Any) -> str:
    try:
        return readable(prompt_text(value))
    except TypeError:
        return readable(str(value))


def _side(row: Row | None) -> Side | None:
    if row is None:
        return None
    text, rest = cut(_text_of(row.get("completion")).strip())
    facts = []
    if is_finite_number(row.get("length")):
        facts.append(f"{row['length']:.0f} tokens")
    if is_finite_number(row.get("kl")):
        facts.append(f"KL {written(round(row['kl'], 2))}")
    scores = row.get("rewards") or {}
    shown = [(readable(str(name)), written(score)) for name, score in scores.items()] if len(scores) > 1 else []
    reward = written(row["reward"]) if is_finite_number(row.get("reward")) else ""
    return Side(text, rest, reward, ", ".join(facts), shown)


def pairs(run: RunFiles) -> dict[str, list[Pair]]:
    """Before and after on the same prompts: the first ones as they come, the largest rises and falls, and more."""
    before, after = run.samples.get("before", []), run.samples.get("after", [])
    if not before and not after:
        newest = run.samples.get("train", [])[-SHOWN:]
        return {"shown": [_pair(None, row) for row in newest], "rises": [], "falls": [], "more": []}
    together = _matched(before, after)
    made = [_pair(first, second) for first, second in together]
    changed = sorted((pair for pair in made if pair.rise is not None), key=lambda pair: pair.rise or 0.0)
    many = len(changed) > SHOWN
    return {
        "shown": made[:SHOWN],
        "rises": [pair for pair in changed[::-1][:_EXTREMES] if (pair.rise or 0) > 0] if many else [],
        "falls": [pair for pair in changed[:_EXTREMES] if (pair.rise or 0) < 0] if many else [],
        "more": made[SHOWN : SHOWN + _FOLDED],
    }


def _matched(before: list[Row], after: list[Row]) -> list[tuple[Row | None, Row | None]]:
    """Row by row where the prompts are the same in the same order, else by prompt."""
    if len(before) == len(after) and all(
        a.get("prompt") == b.get("prompt") for a, b in zip(before, after, strict=True)
    ):
        return list(zip(before, after, strict=True))
    waiting: dict[str, list[Row]] = {}
    for row in after:
        waiting.setdefault(str(row.get("prompt")), []).append(row)
    together: list[tuple[Row | None, Row | None]] = []
    for row in before:
        same = waiting.get(str(row.get("prompt")), [])
        together.append((row, same.pop(0) if same else None))
    return together + [(None, row) for rows in waiting.values() for row in rows]


def _pair(before: Row | None, after: Row | None) -> Pair:
    either = after or before or {}
    rise = None
    rewards = [row.get("reward") if row else None for row in (before, after)]
    if all(is_finite_number(reward) for reward in rewards):
        rise = rewards[1] - rewards[0]  # type: ignore[operator]
    reference = either.get("reference")
    return Pair(
        cut(_prompt_of(either.get("prompt")), 500)[0],
        _side(before),
        _side(after),
        cut(_text_of(reference))[0] if reference is not None else "",
        signed(rise) if rise is not None else "",
        rise,
    )


def _length_of(row: Row) -> float:
    return row["length"] if is_finite_number(row.get("length")) else len(_text_of(row.get("completion")).split())


def reward_against_length(run: RunFiles) -> tuple[Plot | None, str]:
    """A cloud of completions before and after, and what it means in a sentence."""
    in_tokens = any(is_finite_number(row.get("length")) for rows in run.samples.values() for row in rows)
    clouds, said = [], []
    for phase, label in (("before", "before"), ("after", "after")):
        rows = [row for row in run.samples.get(phase, []) if is_finite_number(row.get("reward"))]
        points = [(float(_length_of(row)), float(row["reward"])) for row in rows]
        clouds.append((label, phase, points[:_MOST_DOTS]))
        said.append((label, points))
    plot = scatter_plot(
        "Reward against length", Figure("Length", "tokens" if in_tokens else "words"), figure_of("reward"), clouds
    )
    return plot, " ".join(filter(None, (_correlation(label, points) for label, points in said)))


def _correlation(label: str, points: list[tuple[float, float]]) -> str:
    lengths, rewards = [x for x, _ in points], [y for _, y in points]
    if len(points) < 8 or len(set(lengths)) < 3 or len(set(rewards)) < 3:
        return ""
    rho = float(stats.spearmanr(lengths, rewards).statistic)
    when = f"{label.capitalize()} training, "
    if abs(rho) < 0.3:
        return f"{when}length says little about the reward (rank correlation {signed(rho)})."
    kind = "longer" if rho > 0 else "shorter"
    warning = f" The reward may be paying for {'length' if rho > 0 else 'brevity'}." if abs(rho) >= 0.6 else ""
    return f"{when}{kind} completions score higher (rank correlation {signed(rho)}).{warning}"


_DIVERSITY = ("distinct_1", "distinct_2", "distinct_3", "distinct_2_of_1000", "self_bleu", "repetition")


def diversity(run: RunFiles) -> list[dict[str, Any]]:
    """Distinct-n, self-BLEU and repetition before, after, and in the data's own continuations.

    Figures of results.json where it has them; otherwise computed from the samples. Real text is cut to the length of
    the completion beside it.
    """
    before, after = run.samples.get("before", []), run.samples.get("after", [])
    real = [row for row in real_text_rows(_texts(before or after)) if row["completion"]]
    sides = {
        "before": (run.before, [row["completion"] for row in _texts(before)]),
        "after": (run.after, [row["completion"] for row in _texts(after)]),
        "real": (run.real_text, [row["completion"] for row in real]),
    }
    columns = {name: _diversity_of(figures, texts) for name, (figures, texts) in sides.items()}
    rows = []
    for key in _DIVERSITY:
        values = {name: value for name, column in columns.items() if (value := column.get(key)) is not None}
        if "after" not in values and "before" not in values:
            continue
        figure = figure_of(key)
        rows.append(
            {
                "label": figure.label,
                "better": ", ".join(
                    filter(None, [figure.unit, "higher is better" if figure.better > 0 else "lower is better"])
                ),
                "values": [
                    {"style": name, "text": f"{value:.3f}", "share": 100 * min(max(value, 0.0), 1.0)}
                    for name, value in values.items()
                ],
            }
        )
    return rows


def _texts(rows: list[Row]) -> list[Row]:
    return [
        {
            **row,
            "completion": _text_of(row.get("completion"))[:_MEASURED],
            "reference": None if row.get("reference") is None else _text_of(row["reference"])[:_MEASURED],
        }
        for row in rows
    ]


def _diversity_of(figures: dict[str, float], texts: list[str]) -> dict[str, float | None]:
    found: dict[str, float | None] = {key: figures.get(key) for key in _DIVERSITY}
    if len(texts) < 2:
        return found
    for n in (1, 2, 3):
        if found[f"distinct_{n}"] is None:
            found[f"distinct_{n}"] = distinct(texts, n)
    if found["self_bleu"] is None:
        found["self_bleu"] = self_bleu(texts)
    if found["repetition"] is None:
        shares = [share for share in map(repetition, texts) if share is not None]
        found["repetition"] = sum(shares) / len(shares) if shares else None
    return found
