"""Systems side by side on the same held-out prompts, and whether what one was trained on is all that rose.

Rows are those of `alignkit.held_out.generate_rows`, or of a run's samples.jsonl.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.errors import ConfigError, DataError
from alignkit.evaluation import bootstrap_interval
from alignkit.settings import did_you_mean

Row = dict[str, Any]

# They hold a text against references or an oracle, and have no opinion on what a reward asks for.
_NO_JUDGES = frozenset(
    [*(f"bleu_{n}" for n in (2, 3, 4, 5)), *(f"rouge_{n}" for n in (1, 2, "l")), "sentence_bleu", "f1", "oracle_nll"]
)


@dataclass(frozen=True)
class Standing:
    """How one system does by one figure.

    Attributes:
        mean: over the shared prompts on which it has the figure.
        prompts: their number.
        difference: mean of its difference to the first system over the prompts on which both have the figure; None for
            the first system itself, and where there is no such prompt.
        interval: bootstrap interval of that difference.
    """

    mean: float
    prompts: int
    difference: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def direction(self) -> int:
        """1 where the whole interval lies above 0, -1 where it lies below, else 0."""
        if self.interval is None:
            return 0
        low, high = self.interval
        return (low > 0) - (high < 0)


@dataclass(frozen=True)
class Comparison:
    """What `compare_rows` found.

    Attributes:
        systems: their names; the first is what the others are compared with.
        prompts: number of prompts that all systems answered.
        figures: figure -> system -> its standing; systems without the figure are not there.
        verdicts: a sentence on each system but the first.
    """

    systems: list[str]
    prompts: int
    figures: dict[str, dict[str, Standing]]
    verdicts: list[str]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        figures = {
            figure: {
                system: {
                    "mean": one.mean,
                    "prompts": one.prompts,
                    "difference": one.difference,
                    "interval": None if one.interval is None else list(one.interval),
                }
                for system, one in standings.items()
            }
            for figure, standings in self.figures.items()
        }
        return {"systems": self.systems, "prompts": self.prompts, "figures": figures, "verdicts": self.verdicts}


def compare_rows(
    systems: Mapping[str, Sequence[Row]],
    only: Sequence[str] = (),
    confidence: float = 0.95,
    unlike: Collection[str] = (),
    baselines: Mapping[str, Sequence[Row]] | None = None,
) -> Comparison:
    """Every figure that rows have, by system, with the paired difference to the first system.

    Figures are `reward`, `rewards/<name>`, what metrics found of each row (`judge`, `next_turn`), `kl` and `length`.

    A system was trained on the rewards that its rows name. A metric that is nobody's reward, and no comparison with
    references, is a judge. Where a reward is surely up (its interval lies above 0) and a judge is not, the verdict says
    so: reward hacking. If the first system was not trained on a reward, a metric of that reward's name stands in for
    it, in both systems.

    Args:
        systems: name -> rows; prompts are paired by their text, the n-th of equal ones with the n-th.
        only: figures to compare, and judges to ask; all when empty.
        confidence: of the intervals.
        unlike: rewards of one name that are not the same in all systems, such as discriminators that each learned along
            with a run. Their figures, and the sums with them, are shown without differences, and no verdict rests on
            them.
        baselines: system -> rows of the first system to take its differences to, instead of all of the first's: those
            of the same seeds, where the first has more of them.

    Raises:
        DataError: no prompt was answered by all.
        ConfigError: fewer than two systems, or a figure in `only` that none of them has.
    """
    if len(systems) < 2:
        raise ConfigError(
            f"a comparison needs at least two systems, got {len(systems)}: {', '.join(systems) or 'none'}"
        )
    first, *others = systems
    of_seeds = {(first, system): rows for system, rows in (baselines or {}).items()}
    together = _on_shared_prompts({**systems, **of_seeds})
    paired = {system: together[system] for system in systems}
    values = {system: [_figures(row) for row in rows] for system, rows in paired.items()}
    starts = {system: [_figures(row) for row in together.get((first, system), paired[first])] for system in others}
    names = list(dict.fromkeys(name for rows in values.values() for row in rows for name in row))
    unknown = [name for name in only if name not in names]
    if unknown:
        raise ConfigError(f"no system has the figure {unknown[0]!r}{did_you_mean(unknown[0], names, 99)}")
    apart = {*(f"rewards/{name}" for name in unlike), *(["reward"] if unlike else [])}
    figures = {
        name: {
            system: standing
            for system in paired
            if (standing := _standing(name, values[system], None if name in apart else starts.get(system), confidence))
        }
        for name in names
    }
    figures = {name: standings for name, standings in figures.items() if standings}
    rewards = {
        system: list(dict.fromkeys(n for row in rows for n in row["rewards"])) for system, rows in paired.items()
    }
    metrics = list(dict.fromkeys(name for rows in paired.values() for row in rows for name in row.get("metrics", {})))
    trained = {name for names in rewards.values() for name in names}
    judges = [name for name in metrics if name not in trained and name not in _NO_JUDGES]
    asked = [name for name in judges if name in only] or judges
    verdicts = [_verdict(system, first, rewards[system], asked, figures, unlike) for system in others]
    shown = {name: standings for name, standings in figures.items() if not only or name in only}
    return Comparison(list(paired), len(paired[first]), shown, verdicts)


def mean_of_seeds(seeds: Mapping[str, Sequence[Row]]) -> list[Row]:
    """Rows of one system from those of its seeds: every figure is its mean over the seeds that have it.

    Intervals of `compare_rows` are then over prompts, for these seeds; they say nothing of other seeds.

    Args:
        seeds: name -> rows of each seed; prompts that not all of them answered are left out.

    Raises:
        DataError: no prompt was answered by all seeds.

    >>> one, other = {"prompt": "a", "rewards": {}, "length": 2}, {"prompt": "a", "rewards": {}, "length": 5}
    >>> mean_of_seeds({"seed-1": [one], "seed-2": [other]})
    [{'prompt': 'a', 'rewards': {}, 'metrics': {}, 'reward': None, 'kl': None, 'length': 3.5}]
    """
    paired = _on_shared_prompts(seeds)
    return [_mean_row(rows) for rows in zip(*paired.values(), strict=True)]


def _mean_row(rows: Sequence[Row]) -> Row:
    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    def of_each(part: str) -> dict[str, float | None]:
        names = dict.fromkeys(name for row in rows for name in row.get(part, {}))
        return {name: mean([row.get(part, {}).get(name) for row in rows]) for name in names}

    alone = {name: mean([row.get(name) for row in rows]) for name in ("reward", "kl", "length")}
    return {"prompt": rows[0]["prompt"], "rewards": of_each("rewards"), "metrics": of_each("metrics"), **alone}


def _on_shared_prompts(systems: Mapping[Any, Sequence[Row]]) -> dict[Any, list[Row]]:
    """The rows of each system whose prompts all have, in the order of the first; only systems have plain names."""
    keyed: dict[Any, dict[tuple[str, int], Row]] = {}
    for system, rows in systems.items():
        times: dict[str, int] = {}
        keyed[system] = {}
        for row in rows:
            prompt = json.dumps(row["prompt"], sort_keys=True)
            keyed[system][prompt, times.get(prompt, 0)] = row
            times[prompt] = times.get(prompt, 0) + 1
    first, *others = keyed.values()
    shared = [key for key in first if all(key in other for other in others)]
    if not shared:
        sizes = ", ".join(f"{system} {len(rows)}" for system, rows in systems.items() if isinstance(system, str))
        raise DataError(
            f"no prompt was answered by all of them (rows: {sizes}); give their recipes the same `data` and "
            "`evaluation.prompts`"
        )
    return {system: [rows[key] for key in shared] for system, rows in keyed.items()}


def _figures(row: Row) -> dict[str, float | None]:
    return {
        "reward": row.get("reward"),
        **{f"rewards/{name}": score for name, score in row["rewards"].items()},
        **row.get("metrics", {}),
        "kl": row.get("kl"),
        "length": row.get("length"),
    }


def _standing(
    name: str, own: list[dict[str, float | None]], first: list[dict[str, float | None]] | None, confidence: float
) -> Standing | None:
    """None where the system does not have the figure; without a difference where the first does not."""
    known = [value for row in own if (value := row.get(name)) is not None]
    if not known:
        return None
    mean = sum(known) / len(known)
    both = [] if first is None else [(row.get(name), other.get(name)) for row, other in zip(own, first, strict=True)]
    differences = [one - other for one, other in both if one is not None and other is not None]
    if not differences:
        return Standing(mean, len(known))
    interval = bootstrap_interval(differences, confidence)
    return Standing(mean, len(known), sum(differences) / len(differences), interval)


def _verdict(
    system: str,
    first: str,
    rewards: list[str],
    judges: list[str],
    figures: dict[str, dict[str, Standing]],
    unlike: Collection[str],
) -> str:
    """What a system's training did to its rewards and to its judges, in a sentence."""

    def compared(name: str) -> Standing | None:
        standing = figures.get(name, {}).get(system)
        return None if standing is None or standing.interval is None else standing

    if not rewards:
        return f"{system}: was not trained on a reward"
    rewards, others = [n for n in rewards if n not in unlike], [n for n in rewards if n in unlike]
    if not rewards:
        return f"{system}: {', '.join(others)} is not the same in all systems; judge all by one metric to compare them"
    trained = {name: found for name in rewards if (found := compared(f"rewards/{name}") or compared(name))}
    if not trained:
        return (
            f"{system}: {first} has no figure for {', '.join(rewards)}; give it a metric of that name "
            f"({rewards[0]}: {{reward: ...}})"
        )
    up = [name for name, standing in trained.items() if standing.direction > 0]
    if not up:
        return f"{system}: reward not up ({', '.join(trained)})"
    asked = {name: found for name in judges if (found := compared(name))}
    if not asked:
        return f"{system}: reward up ({', '.join(up)}), and no judge to say whether rightly; add a metric"
    failed = [name for name, standing in asked.items() if standing.direction <= 0]
    if failed:
        return f"{system}: reward up ({', '.join(up)}), judge not up ({', '.join(failed)}): reward hacking"
    return f"{system}: reward up ({', '.join(up)}), judge up ({', '.join(asked)})"
