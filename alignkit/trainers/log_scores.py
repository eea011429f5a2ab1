"""Scores of a rollout as the logarithms of probabilities or odds, exact where a probability is all but 0 or 1."""

import torch

from alignkit.errors import RewardError
from alignkit.text import excerpt
from alignkit.trainers.rollout import Rollout

# above it 1 - score has lost digits: scores are kept in single precision
_NEAR_ONE = 1 - 1e-4


def log_probabilities(
    rollout: Rollout, reward_funcs: list, names: list[str], reward_weights: torch.Tensor, odds: bool = False
) -> torch.Tensor:
    """`sum of weight * log score` over the rewards, so that several make a product: (B,), NaN where none has a score.

    A score of 0 is asked again of a reward with a method `log_scores(prompts, completions, **columns)`, which knows
    how small it was; else its logarithm is -inf. For odds the scores near 1 are asked again, too.

    Args:
        rollout: with its (B, F) `rewards`.
        reward_funcs: the F rewards.
        names: their log names.
        reward_weights: (F,) of 0 or more; a reward of weight 0 only has a say in which completions are known.
        odds: log(score / (1 - score)) in place of log score.

    Raises:
        RewardError: a score outside of [0, 1], or of 1 where odds are asked for, with the completion that got it.
    """
    scores = rollout.rewards
    wanted = "reward_as='odds'" if odds else "reward_as='probability'"
    wrong = (scores < 0) | (scores > 1)  # not where it is NaN
    if bool(wrong.any()):
        row, place = wrong.nonzero()[0].tolist()
        raise RewardError(
            f"reward {names[place]!r} gave {float(scores[row, place]):.4g} to {excerpt(rollout.completions[row])!r}; "
            f"{wanted} takes numbers from 0 to 1: set reward_as='exponential' (and reward_temperature) for other "
            "rewards"
        )
    logs = scores.log()
    for place, reward in enumerate(reward_funcs):
        exact = getattr(reward, "log_scores", None)
        unclear = (scores[:, place] == 0) | (odds & (scores[:, place] > _NEAR_ONE))
        rows = unclear.nonzero().flatten().tolist()
        if callable(exact) and rows:
            columns = {key: [values[row] for row in rows] for key, values in rollout.columns.items()}
            found = exact([rollout.prompts[r] for r in rows], [rollout.completions[r] for r in rows], **columns)
            for row, value in zip(rows, found, strict=True):
                logs[row, place] = torch.nan if value is None else value
    if odds:
        certain = logs == 0
        if bool(certain.any()):
            row, place = certain.nonzero()[0].tolist()
            raise RewardError(
                f"reward {names[place]!r} gave 1 to {excerpt(rollout.completions[row])!r}, which has no odds "
                "(1 / 0); give it a method log_scores(prompts, completions, **columns) with the exact logarithms, or "
                "set reward_as='probability'"
            )
        logs = logs - torch.log(-torch.expm1(logs))
    weights = reward_weights.to(logs.device, logs.dtype)
    counted = ~logs.isnan() & (weights > 0)
    total = torch.where(counted, logs * weights, torch.zeros_like(logs)).sum(1)
    return torch.where((~scores.isnan()).any(1), total, torch.nan)
