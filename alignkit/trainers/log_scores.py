"""Scores of a rollout as the logarithms of probabilities, without rounding where a probability is all but 0."""

import torch

from alignkit.errors import RewardError
from alignkit.text import excerpt
from alignkit.trainers.rollout import Rollout


def log_probabilities(
    rollout: Rollout, reward_funcs: list, names: list[str], reward_weights: torch.Tensor
) -> torch.Tensor:
    """`sum of weight * log score` over the rewards, so that several make a product: (B,), NaN where none has a score.

    A score of 0 is asked again of a reward with a method `log_scores(prompts, completions, **columns)`, which knows
    how small it was; else its logarithm is -inf.

    Args:
        rollout: with its (B, F) `rewards`.
        reward_funcs: the F rewards.
        names: their log names.
        reward_weights: (F,) of 0 or more; a reward of weight 0 only has a say in which completions are known.

    Raises:
        RewardError: a score outside of [0, 1], with the completion that got it.
    """
    scores = rollout.rewards
    wrong = (scores < 0) | (scores > 1)  # not where it is NaN
    if bool(wrong.any()):
        row, place = wrong.nonzero()[0].tolist()
        raise RewardError(
            f"reward {names[place]!r} gave {float(scores[row, place]):.4g} to {excerpt(rollout.completions[row])!r}; "
            "reward_as='probability' takes numbers from 0 to 1: set reward_as='exponential' (and reward_temperature) "
            "for other rewards"
        )
    logs = scores.log()
    for place, reward in enumerate(reward_funcs):
        exact = getattr(reward, "log_scores", None)
        rows = (scores[:, place] == 0).nonzero().flatten().tolist()
        if callable(exact) and rows:
            columns = {key: [values[row] for row in rows] for key, values in rollout.columns.items()}
            found = exact([rollout.prompts[r] for r in rows], [rollout.completions[r] for r in rows], **columns)
            for row, value in zip(rows, found, strict=True):
                logs[row, place] = torch.nan if value is None else value
    weights = reward_weights.to(logs.device, logs.dtype)
    counted = ~logs.isnan() & (weights > 0)
    total = torch.where(counted, logs * weights, torch.zeros_like(logs)).sum(1)
    return torch.where((~scores.isnan()).any(1), total, torch.nan)
