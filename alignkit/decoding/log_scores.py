"""Scores of completions as logarithms of probabilities or odds, exact near 0 and 1 where a reward has `log_scores`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from alignkit.errors import RewardError
from alignkit.settings import describe
from alignkit.text import Text, excerpt

# above it 1 - score has lost digits: scores are kept in single precision
_NEAR_ONE = 1 - 1e-4
# a network in half precision gives one text two scores so far apart, in other company
_ROUNDING = 0.01


class Scored(Protocol):
    """Completions that F rewards have scored, such as a trainer's rollout.

    Attributes:
        prompts, completions: B texts each.
        columns: further columns of the data, B values each.
        rewards: (B, F) scores, NaN where a reward had no opinion.
    """

    prompts: list[Text]
    completions: list[Text]
    columns: dict[str, list[Any]]
    rewards: torch.Tensor


@dataclass
class ScoredTexts:
    """The least that is `Scored`."""

    prompts: list[Text]
    completions: list[Text]
    columns: dict[str, list[Any]]
    rewards: torch.Tensor


def check_probabilities(scores: Sequence[Any], completions: Sequence[Text], name: str, reward_as: str) -> None:
    """Refuse scores that are no probabilities.

    Args:
        scores: of the completions; None and NaN are no opinion.
        completions: of equal number.
        name: of the reward.
        reward_as: what the scores were to be, for the message.

    Raises:
        RewardError: with the first completion whose score lies outside of [0, 1].
    """
    for score, completion in zip(scores, completions, strict=True):
        if score is not None and (score < 0 or score > 1):
            raise RewardError(
                f"reward {name!r} gave {score:.4g} to {excerpt(completion)!r}; reward_as={reward_as!r} takes numbers "
                "from 0 to 1: set reward_as='exponential' (--reward-as exponential) for other rewards"
            )


def log_probabilities(
    scored: Scored, reward_funcs: list, names: list[str], reward_weights: torch.Tensor, odds: bool = False
) -> torch.Tensor:
    """`sum of weight * log score` over the rewards, so that several make a product: (B,), NaN where none has a score.

    A score of 0 is asked again of a reward with a method `log_scores(prompts, completions, **columns)`, which knows
    how small it was; else its logarithm is -inf. For odds the scores near 1 are asked again, too.

    Args:
        scored: completions and their scores.
        reward_funcs: the F rewards.
        names: their log names.
        reward_weights: (F,) of 0 or more; a reward of weight 0 only has a say in which completions are known.
        odds: log(score / (1 - score)) in place of log score.

    Raises:
        RewardError: a score outside of [0, 1], or of 1 where odds are asked for, with the completion that got it; or an
            exact logarithm that is none.
    """
    scores = scored.rewards
    for place in reward_weights.nonzero().flatten().tolist():  # others only say which completions are known
        check_probabilities(
            scores[:, place].tolist(), scored.completions, names[place], "odds" if odds else "probability"
        )
    logs = torch.logit(scores) if odds else scores.log()
    for place, reward in enumerate(reward_funcs):
        if reward_weights[place] == 0:
            continue
        unclear = (scores[:, place] == 0) | (odds & (scores[:, place] > _NEAR_ONE))
        rows = unclear.nonzero().flatten().tolist()
        exact = getattr(reward, "log_scores", None)
        if rows and callable(exact):
            for row, value in zip(rows, _exactly(exact, names, place, scored, rows), strict=True):
                logs[row, place] = _log_odds(value) if odds else value
        certain = (logs[:, place] == torch.inf).nonzero().flatten().tolist()
        if certain:
            advice = "" if callable(exact) else "give it a method log_scores(prompts, completions, **columns), or "
            raise RewardError(
                f"reward {names[place]!r} gave 1 to {excerpt(scored.completions[certain[0]])!r}, which has no odds "
                f"(1 / 0); {advice}set reward_as='probability'"
            )
    weights = reward_weights.to(logs.device, logs.dtype)
    counted = ~logs.isnan() & (weights > 0)
    total = torch.where(counted, logs * weights, torch.zeros_like(logs)).sum(1)
    return torch.where((~scores.isnan()).any(1), total, torch.nan)


def _exactly(log_scores: Any, names: list[str], place: int, scored: Scored, rows: list[int]) -> list[float]:
    """What a reward's `log_scores` says of some rows; these have a score, so each has its logarithm."""
    columns = {key: [values[row] for row in rows] for key, values in scored.columns.items()}
    found = log_scores([scored.prompts[r] for r in rows], [scored.completions[r] for r in rows], **columns)
    name = names[place]
    if not isinstance(found, list | tuple) or len(found) != len(rows):
        given = f"a list of {len(found)}" if isinstance(found, list | tuple) else describe(found)
        raise RewardError(
            f"reward {name!r}: log_scores gave {given} for {len(rows)} completions; expected a list of one each"
        )
    for row, value in zip(rows, found, strict=True):
        score = float(scored.rewards[row, place])
        number = isinstance(value, int | float) and value <= 0
        if not number or abs(math.exp(value) - score) > _ROUNDING:
            raise RewardError(
                f"reward {name!r}: log_scores gave {describe(value)} to {excerpt(scored.completions[row])!r}, whose "
                f"score is {score:.6g}; expected the score's logarithm, a number of at most 0"
            )
    return [float(value) for value in found]


def _log_odds(log_probability: float) -> float:
    """log(p / (1 - p)), in double precision: near 1 a logarithm has digits that single precision has no place for.

    >>> round(_log_odds(-math.exp(-200)), 9), _log_odds(-math.inf), _log_odds(0.0)
    (200.0, -inf, inf)
    """
    rest = -math.expm1(log_probability)
    return log_probability - math.log(rest) if rest else math.inf
