"""From rewards to advantages: pure functions on tensors, no trainer, no model.

Everything here masks before it multiplies, so that whatever stands at a padded position, NaN and infinity included,
cannot reach a sum.

Notation:
    B: number of completions, T: tokens of the longest completion, G: completions of one prompt (a group).
    Groups are consecutive rows: rows 0..G-1 answer the first prompt.
"""

import math
from dataclasses import dataclass

import torch

from alignkit.errors import ConfigError

KL_ESTIMATORS = ("k1", "k2", "k3")
_MAX_LOG_RATIO = 20.0


def masked_sum(values: torch.Tensor, mask: torch.Tensor, dim: int | None = None) -> torch.Tensor:
    """Sum over the positions where `mask` (same shape, bool or 0/1) holds."""
    kept = torch.where(mask.bool(), values, torch.zeros((), dtype=values.dtype, device=values.device))
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(values: torch.Tensor, mask: torch.Tensor, dim: int | None = None) -> torch.Tensor:
    """Mean over the positions where `mask` holds; 0 where there are none."""
    count = mask.bool().sum() if dim is None else mask.bool().sum(dim)
    return masked_sum(values, mask, dim) / count.clamp(min=1)


def moments(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`[count, sum, sum of squares]` of the masked values, as (3,) float64: add those of several processes, then
    pass the total to `whiten`."""
    kept = values[mask.bool()].double()
    return torch.stack([torch.tensor(float(kept.numel()), device=values.device).double(), kept.sum(), (kept**2).sum()])


def whiten(
    values: torch.Tensor, mask: torch.Tensor, total: torch.Tensor | None = None, shift_mean: bool = True
) -> torch.Tensor:
    """Values with variance 1 and, unless `shift_mean` is False, mean 0 over the masked positions; 0 elsewhere.

    Args:
        values: (B, T).
        mask: (B, T).
        total: `moments` summed over all processes; those of `values` when None.
        shift_mean: False keeps the mean, as PPO does for rewards, where the sign carries meaning.
    """
    total = moments(values, mask) if total is None else total
    count = total[0].clamp(min=1)
    mean = total[1] / count
    variance = ((total[2] / count - mean**2) * count / (count - 1).clamp(min=1)).clamp(min=0)
    whitened = (values.double() - mean) * torch.rsqrt(variance + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(mask.bool(), whitened, torch.zeros_like(whitened)).to(values.dtype)


def kl_estimate(log_probs: torch.Tensor, ref_log_probs: torch.Tensor, estimator: str = "k1") -> torch.Tensor:
    """Per-token estimate of KL(policy || reference) from samples of the policy, in nats.

    `k1 = log p - log q` is unbiased and can be negative; `k2 = (log p - log q)^2 / 2` has little variance and a small
    bias; `k3 = q/p - 1 - log(q/p)` is unbiased and never negative (Schulman 2020, "Approximating KL divergence").
    Log-ratios are clamped to +-20 nats before they are exponentiated.

    Args:
        log_probs: (B, T) log-probabilities of the sampled tokens under the policy.
        ref_log_probs: (B, T) the same under the reference.
        estimator: `k1`, `k2` or `k3`.

    Returns:
        (B, T).

    Raises:
        ConfigError: an unknown estimator.
    """
    difference = log_probs - ref_log_probs
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference**2
    if estimator == "k3":
        log_ratio = (-difference).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
        return torch.expm1(log_ratio) - log_ratio
    raise ConfigError(f"unknown KL estimator {estimator!r}; expected one of {', '.join(KL_ESTIMATORS)}")


def last_positions(mask: torch.Tensor) -> torch.Tensor:
    """(B,) index of each row's last kept token; 0 for a row that keeps none."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask.bool(), positions, torch.zeros_like(positions)).amax(dim=1)


def token_rewards(
    scores: torch.Tensor, mask: torch.Tensor, kl: torch.Tensor | None, kl_coef: float, dense: torch.Tensor | None = None
) -> torch.Tensor:
    """(B, T) reward of each token: the score at the last token, dense scores where they belong, minus the KL penalty.

    `r_t = -kl_coef * kl_t + dense_t + [t = last] * score` (Ziegler et al. 2019, Eq. 2, spread over the tokens).

    Args:
        scores: (B,) one score per completion.
        mask: (B, T) tokens of the completion, its end-of-sequence token included.
        kl: (B, T) per-token KL, or None for no penalty.
        kl_coef: weight of the penalty.
        dense: (B, T) scores that a per-token reward gave, or None.
    """
    rewards = torch.zeros_like(mask, dtype=torch.float32) if dense is None else dense.float().clone()
    if kl is not None and kl_coef:
        rewards = rewards - kl_coef * kl
    rewards = torch.where(mask.bool(), rewards, torch.zeros_like(rewards))
    rows = torch.arange(len(scores), device=scores.device)
    at_end = torch.where(mask.bool().any(1), scores.float(), torch.zeros_like(scores, dtype=torch.float32))
    return rewards.index_put((rows, last_positions(mask)), at_end, accumulate=True)


def returns_to_go(rewards: torch.Tensor, mask: torch.Tensor, gamma: float = 1.0) -> torch.Tensor:
    """Discounted sum of the rewards from each token on, `G_t = r_t + gamma * G_{t+1}`.

    Takes rewards and mask (B, T), the discount per token in [0, 1]; returns (B, T), 0 outside the mask.
    """
    rewards = torch.where(mask.bool(), rewards, torch.zeros_like(rewards))
    returns = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        running = rewards[:, t] + gamma * running
        returns[:, t] = running
    return torch.where(mask.bool(), returns, torch.zeros_like(returns))


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, Eq. 16).

    `delta_t = r_t + gamma * V_{t+1} - V_t` and `A_t = delta_t + gamma * lam * A_{t+1}`, where nothing follows a
    completion's last token.

    Args:
        rewards: (B, T) per-token rewards.
        values: (B, T) value of the state in which each token was chosen.
        mask: (B, T) contiguous from the left in each row.
        gamma: discount.
        lam: 0 gives one-step temporal differences, 1 the return minus the value.

    Returns:
        advantages and returns (`advantages + values`), both (B, T) and 0 outside the mask.
    """
    keep = mask.bool()
    zero = torch.zeros((), dtype=values.dtype, device=values.device)
    rewards, values = torch.where(keep, rewards, zero), torch.where(keep, values, zero)
    advantages = torch.zeros_like(values)
    following = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        next_value = values[:, t + 1] if t + 1 < values.shape[1] else zero
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = torch.where(keep[:, t], delta + gamma * lam * following, zero)
        advantages[:, t] = following
    return advantages, torch.where(keep, advantages + values, zero)


def leave_one_out(scores: torch.Tensor, group_size: int) -> torch.Tensor:
    """Baseline of each completion: the mean score of the *other* completions of its prompt (Kool et al. 2019).

    A score of NaN is "no opinion": it is left out of the others' means. A completion without a scored companion has
    itself as baseline, so that its advantage is 0 rather than raw.

    Args:
        scores: (B,) or (B, T) with B a multiple of `group_size`.
        group_size: completions of one prompt, at least 2.

    Returns:
        the shape of `scores`; NaN where neither the completion nor another of its prompt has a score.

    Raises:
        ConfigError: groups of one, or groups that do not fill the batch.
    """
    if group_size < 2 or len(scores) % group_size:
        raise ConfigError(
            f"leave-one-out needs groups of at least 2 completions that fill the batch; got {len(scores)} completions "
            f"in groups of {group_size}: raise num_generations"
        )
    grouped = scores.view(-1, group_size, *scores.shape[1:])
    known = ~torch.isnan(grouped)
    filled = torch.where(known, grouped, torch.zeros_like(grouped))
    others = known.sum(1, keepdim=True) - known.long()
    mean = (filled.sum(1, keepdim=True) - filled) / others.clamp(min=1)
    return torch.where(others > 0, mean, grouped).view_as(scores)


def explained_variance(returns: torch.Tensor, errors: torch.Tensor) -> torch.Tensor:
    """`1 - Var(returns - values) / Var(returns)`: 1 is a perfect critic, 0 a constant one.

    Args:
        returns: (3,) `moments` of what the critic should have said, summed over all processes.
        errors: (3,) `moments` of returns less the critic's values, over the same positions.

    Returns:
        a scalar; 0 for fewer than two positions.
    """
    if returns[0] < 2:
        return torch.zeros_like(returns[0])
    spread, left = (sums[2] - sums[1] ** 2 / sums[0] for sums in (returns, errors))
    return 1 - left / spread.clamp(min=1e-8 * (returns[0] - 1))


@dataclass
class KLController:
    """The KL coefficient, fixed or adaptive (Ziegler et al. 2019, section 2.2).

    With a target the coefficient is multiplied, after each rollout of n completions, by
    `1 + clip(kl / target - 1, -0.2, 0.2) * n / horizon`.

    Args:
        coef: the coefficient now.
        target: KL per response to hold, in nats; None keeps the coefficient fixed.
        horizon: completions over which it adapts.
    """

    coef: float
    target: float | None = None
    horizon: float = 10_000

    def update(self, kl_per_response: float, completions: int) -> None:
        """Take note of the mean KL of `completions` responses, in nats."""
        if self.target is None or not math.isfinite(kl_per_response):
            return
        error = min(max(kl_per_response / self.target - 1, -0.2), 0.2)
        self.coef *= max(1 + error * completions / self.horizon, 0.5)  # a huge rollout must not turn the sign

    def state_dict(self) -> dict[str, float]:
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.coef = float(state["coef"])
