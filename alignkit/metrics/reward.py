"""Any reward as a metric: the measure that training never saw, such as a second classifier."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from alignkit.metrics.text_metric import TextMetric
from alignkit.reward import call_reward, in_evaluation, reward_name, scalar_score
from alignkit.text import Text


class RewardMetric(TextMetric):
    """Mean score of a reward over the completions, and how many it finds good.

    Keys: `<name>` (mean over the completions that the reward has an opinion on), `<name>_std` and
    `<name>_positive_share` (share of them that score above `positive_above`). Rewards that learn or keep running
    statistics are told that this is evaluation.

    Args:
        reward: a reward, or a name for `load_reward`.
        name: for the keys; the reward's own name by default.
        positive_above: what counts as good; by default the reward's attribute `positive_above` where it has one,
            else 0.5, which suits probabilities.
    """

    def __init__(self, reward: Any, name: str | None = None, positive_above: float | None = None):
        if isinstance(reward, str):
            from alignkit.registry import load_reward

            reward = load_reward(reward)
        super().__init__()
        self.reward = reward
        self.reward_name = name or reward_name(reward)
        default = getattr(reward, "positive_above", 0.5)
        self.positive_above = default if positive_above is None else positive_above

    def _compute(  # type: ignore[override]
        self,
        predictions: Sequence[str],
        prompts: Sequence[Text] | None = None,
        completions: Sequence[Text] | None = None,
        columns: Mapping[str, list] | None = None,
    ) -> dict[str, float]:
        texts = list(predictions if completions is None else completions)
        found = self._scores(list(prompts) if prompts is not None else [""] * len(texts), texts, columns)
        scores = [score for score in found if score is not None]
        name = self.reward_name
        self.row_scores = {name: found}
        if not scores:
            # no opinion on anything is no figure, and no zero either
            return {name: float("nan"), f"{name}_std": float("nan"), f"{name}_positive_share": float("nan")}
        return {
            name: statistics.fmean(scores),
            f"{name}_std": statistics.stdev(scores) if len(scores) > 1 else 0.0,
            f"{name}_positive_share": sum(score > self.positive_above for score in scores) / len(scores),
        }

    def _scores(self, prompts: list[Text], texts: list[Text], columns: Mapping[str, list] | None) -> list[float | None]:
        with in_evaluation([self.reward]):
            scores = call_reward(self.reward, prompts, texts, columns=columns, name=self.reward_name)
        return [scalar_score(score) for score in scores]
