"""Metrics that work offline: `evaluate.Metric` subclasses, constructed directly, never fetched.

    metric = load_metric("diversity")
    metric.compute(predictions=["a fine film", "a dull film"])   # {"distinct_1": ..., "self_bleu": ...}

Every metric is called as `metric.compute(predictions=[str], prompts=[...], columns={name: list})`. Trainers and
`alignkit.evaluation.evaluate_rows` do that, and pass any other `evaluate.Metric` what it declares.
"""

import inspect
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from alignkit.errors import ConfigError
from alignkit.settings import suggestion

__all__ = ["METRICS", "MetricEntry", "judges_by_reward", "load_metric", "metric_parameters"]


@dataclass(frozen=True)
class MetricEntry:
    """One metric that can be named.

    Attributes:
        target: where its class is, `module:Class`; imported when it is asked for.
        summary: one line for listings.
    """

    target: str
    summary: str

    def load(self) -> type:
        """The metric's class."""
        module, name = self.target.split(":")
        return getattr(import_module(module), name)


METRICS = {
    "diversity": MetricEntry(
        "alignkit.metrics.diversity:DiversityMetric", "distinct n-grams, self-BLEU and duplicates among completions"
    ),
    "repetition": MetricEntry(
        "alignkit.metrics.repetition:RepetitionMetric", "how much of a completion repeats itself"
    ),
    "length": MetricEntry("alignkit.metrics.length:LengthMetric", "words per completion, empty completions"),
    "overlap": MetricEntry("alignkit.metrics.overlap:OverlapMetric", "BLEU and word F1 against the reference text"),
    "bleu": MetricEntry("alignkit.metrics.bleu:BleuMetric", "BLEU-2 to BLEU-5 against all references of the data"),
    "self_bleu": MetricEntry(
        "alignkit.metrics.bleu:SelfBleuMetric", "BLEU-2 to BLEU-5 of completions among themselves"
    ),
    "rouge": MetricEntry("alignkit.metrics.rouge:RougeMetric", "ROUGE-1, ROUGE-2 and ROUGE-L against the references"),
    "two_sample": MetricEntry(
        "alignkit.metrics.two_sample:TwoSampleMetric", "how well a fresh classifier tells completions from references"
    ),
    "oracle_nll": MetricEntry(
        "alignkit.metrics.oracle_nll:OracleNLLMetric", "how likely the synthetic oracle finds the completions"
    ),
    "perplexity": MetricEntry(
        "alignkit.metrics.perplexity:PerplexityMetric", "how likely a given language model finds the completions"
    ),
    "win_rate": MetricEntry(
        "alignkit.metrics.win_rate:WinRateMetric", "how often a reward prefers completions to the references"
    ),
    "next_turn": MetricEntry(
        "alignkit.metrics.next_turn:NextTurnMetric", "what a reward thinks of a simulated user's answer to a completion"
    ),
}
# Not in the table: what `reward` means in a list of metrics (the rewards being trained on) is the trainer's business.
_REWARD = MetricEntry("alignkit.metrics.reward:RewardMetric", "any reward as a metric, such as a judge")


def _entry(name: str) -> MetricEntry:
    entries = {**METRICS, "reward": _REWARD}
    if name in entries:
        return entries[name]
    raise ConfigError(f"there is no metric {name!r}.{suggestion(name, entries)} There are: {', '.join(entries)}")


def metric_parameters(name: str) -> dict[str, inspect.Parameter]:
    """The settings that a metric takes, by name.

    Raises:
        ConfigError: no metric has that name.
    """
    return dict(inspect.signature(_entry(name).load()).parameters)


def judges_by_reward(name: str) -> bool:
    """Whether a metric of the table has a reward among its settings, as `next_turn` does."""
    return name in METRICS and "reward" in metric_parameters(name)


def load_metric(name: str, /, **settings: Any) -> Any:
    """A metric by its name: a key of `METRICS`, or `reward`.

    >>> load_metric("repetition", n=2).compute(predictions=["so so so so"])["repetition"]
    0.6666666666666667

    Raises:
        ConfigError: no metric has that name, or it does not take one of the settings.
    """
    metric_class, known = _entry(name).load(), metric_parameters(name)
    for setting in settings:
        if setting not in known:
            raise ConfigError(
                f"the metric {name!r} has no setting {setting!r}.{suggestion(setting, known)} It takes: "
                f"{', '.join(known) or 'none'}"
            )
    return metric_class(**settings)
