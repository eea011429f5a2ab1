"""How often a reward prefers completions to what people wrote, and what it knows of data that it never learned from."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from alignkit.decoding.log_scores import ScoredTexts, log_probabilities
from alignkit.errors import MissingColumnError
from alignkit.metrics.text_metric import TextMetric
from alignkit.registry import load_reward
from alignkit.reward import call_reward, in_evaluation, reward_name, scalar_score
from alignkit.text import Text, is_conversational

Scores = list[float | None]


class WinRateMetric(TextMetric):
    """Share of completions that a reward scores above the reference of their prompt; a tie counts half.

    Keys: `<name>` (the share; with several references the mean over them), `<name>_margin` (mean score of the
    completions less that of the references, in units of the reward) and, of a reward with a method `log_scores`, as a
    discriminator's, `<name>_gain`: E_references[log D] - log E_completions[D], in nats a text. This is by how much
    q proportional to p D finds people's texts likelier than the policy p does, on texts that the discriminator need not
    have seen ("Generative Cooperative Networks", Lamprier et al. 2022; on several prompts it is at least that).

    Rows without a reference, or with a text of which the reward has no opinion, are left out; without any row the
    figures are nan.

    Args:
        reward: a reward, a name for `load_reward`, or a mapping of `use` and settings as in a recipe. In a recipe also
            the name of one of its own rewards; it is then asked as it stands, also while it learns.
        name: for the keys.
        column: the data column with a reference (a string, or a list of messages), or with a list of several strings.
    """

    def __init__(self, reward: Any, name: str = "win_rate", column: str = "reference"):
        if isinstance(reward, Mapping):
            reward = load_reward(reward["use"], **{key: value for key, value in reward.items() if key != "use"})
        elif isinstance(reward, str):
            reward = load_reward(reward)
        super().__init__()
        self.reward, self.key, self.column = reward, name, column

    def _compute(  # type: ignore[override]
        self,
        predictions: Sequence[str],
        prompts: Sequence[Text] | None = None,
        completions: Sequence[Text] | None = None,
        columns: Mapping[str, list] | None = None,
    ) -> dict[str, float]:
        given = dict(columns or {})
        texts = list(predictions if completions is None else completions)
        asked: list[Text] = list(prompts) if prompts is not None else [""] * len(texts)
        references = [_several(value) for value in given.get(self.column, [])]
        if not any(references):
            raise MissingColumnError(
                f"the metric 'win_rate' needs a column {self.column!r} with text in it; the data has: "
                f"{', '.join(given) or 'no further columns'}. Map the column in the data, or leave the metric out"
            )
        pairs = [(row, _like(texts[row], one)) for row, own in enumerate(references) for one in own]
        rows = list(dict.fromkeys(row for row, _ in pairs))
        policy = self._scored(rows, [texts[row] for row in rows], asked, given)
        people = self._scored([row for row, _ in pairs], [text for _, text in pairs], asked, given)
        rivals: dict[int, list[float]] = {row: [] for row in rows}
        for (row, _), score in zip(pairs, _scores(people), strict=True):
            rivals[row] += [] if score is None else [score]
        wins: Scores = [None] * len(texts)
        margins: list[float] = []
        for row, score in zip(rows, _scores(policy), strict=True):
            if score is not None and rivals[row]:
                wins[row] = statistics.fmean((score > other) + 0.5 * (score == other) for other in rivals[row])
                margins.append(score - statistics.fmean(rivals[row]))
        self.row_scores = {self.key: wins}
        figures = {
            # no opinion on anything is no figure, and no zero either
            self.key: statistics.fmean(win for win in wins if win is not None) if margins else math.nan,
            f"{self.key}_margin": statistics.fmean(margins) if margins else math.nan,
        }
        if callable(getattr(self.reward, "log_scores", None)):
            figures[f"{self.key}_gain"] = self._gain(policy, people)
        return figures

    def _scored(
        self, rows: list[int], texts: list[Text], prompts: list[Text], columns: Mapping[str, list]
    ) -> ScoredTexts:
        own = {name: [values[row] for row in rows] for name, values in columns.items()}
        asked = [prompts[row] for row in rows]
        with in_evaluation([self.reward]):
            found = call_reward(self.reward, asked, texts, columns=own, name=f"{self.key} ({reward_name(self.reward)})")
        scores = [scalar_score(score) for score in found]
        numbers = torch.tensor([[math.nan if score is None else score] for score in scores], dtype=torch.float64)
        return ScoredTexts(asked, texts, own, numbers)

    def _gain(self, policy: ScoredTexts, people: ScoredTexts) -> float:
        """E_people[log D] - log E_policy[D]; nan where one of them has no scores."""
        logs = []
        for texts in (people, policy):
            with in_evaluation([self.reward]):
                found = log_probabilities(texts, [self.reward], [reward_name(self.reward)], torch.ones(1))
            logs.append(found[~found.isnan()])
        if not all(len(own) for own in logs):
            return math.nan
        mean_of_policy = logs[1].logsumexp(0) - math.log(len(logs[1]))
        return float(logs[0].mean() - mean_of_policy)


def _scores(texts: ScoredTexts) -> Scores:
    return [None if math.isnan(score) else score for score in texts.rewards[:, 0].tolist()]


def _several(value: Any) -> list[Text]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) and all(isinstance(one, str) for one in value) else [value]


def _like(completion: Text, reference: Text) -> Text:
    """The reference in the form that the completion has: a string, or a message of the assistant."""
    if is_conversational(completion) and isinstance(reference, str):
        return [{"role": "assistant", "content": reference}]
    return reference
