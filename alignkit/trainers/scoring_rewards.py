"""From reward functions to the scores of a rollout."""

from typing import Any

import torch
from transformers import TrainerState

from alignkit.reward import call_reward, granularity
from alignkit.trainers.rollout import Rollout


def call_rewards(
    rollout: Rollout,
    reward_funcs: list[Any],
    names: list[str],
    weights: torch.Tensor,
    trainer_state: TrainerState,
    dtype: torch.dtype = torch.float32,
    **extras: Any,
) -> None:
    """Fill in `rollout.rewards`, `rollout.scores` and `rollout.dense`.

    `None` stays "no opinion": it is left out of the weighted sum, and a completion on which no reward has an opinion
    has the score NaN and is not learned from.

    Args:
        rollout: completions to score.
        reward_funcs: F rewards.
        names: their log names.
        weights: (F,) weights.
        trainer_state: passed on to the rewards, as TRL does.
        dtype: of the scores.
        extras: `log_extra` and `log_metric`, passed on too.
    """
    mask = rollout.made.completion_mask
    weights = weights.to(mask.device, dtype)
    shape = (len(rollout.prompts), len(reward_funcs))
    per_func = torch.full(shape, torch.nan, dtype=dtype, device=mask.device)
    dense = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    per_token = [granularity(func) == "token" for func in reward_funcs]
    completion_ids = rollout.made.ids()
    for index, (name, func) in enumerate(zip(names, reward_funcs, strict=True)):
        scores = call_reward(
            func,
            rollout.prompts,
            rollout.completions,
            columns=rollout.columns,
            completion_ids=completion_ids,
            trainer_state=trainer_state,
            name=name,
            **extras,
        )
        for row, score in enumerate(scores):
            if isinstance(score, list):
                dense[row, : len(score)] += weights[index] * torch.tensor(score, dtype=dtype, device=mask.device)
                per_func[row, index] = float(sum(score))
            elif score is not None:
                per_func[row, index] = score
    known = ~torch.isnan(per_func)
    at_end = known & ~torch.tensor(per_token, device=mask.device)
    weighted = torch.where(at_end, per_func * weights, torch.zeros_like(per_func)).sum(1)
    rollout.scores = torch.where(known.any(1), weighted, torch.full_like(weighted, torch.nan))
    rollout.rewards = per_func
    rollout.dense = dense if any(per_token) else None
