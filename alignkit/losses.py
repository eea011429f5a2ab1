"""Losses as pure functions of tensors. Each returns per-token losses; the trainer masks, sums and normalises them.

Notation: B completions, T tokens of the longest one.
"""

import torch

_MAX_LOG_RATIO = 20.0


def probability_ratio(log_probs: torch.Tensor, old_log_probs: torch.Tensor) -> torch.Tensor:
    """`pi(a|s) / pi_old(a|s)`, (B, T); the log-ratio is clamped to +-20 nats so that nothing overflows."""
    return torch.exp((log_probs - old_log_probs).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO))


def clipped_policy_loss(
    log_probs: torch.Tensor, old_log_probs: torch.Tensor, advantages: torch.Tensor, cliprange: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's clipped surrogate, negated (Schulman et al. 2017, Eq. 7).

    Args:
        log_probs: (B, T) under the policy being trained.
        old_log_probs: (B, T) under the policy that sampled.
        advantages: (B, T).
        cliprange: the ratio is held within 1 +- cliprange.

    Returns:
        per-token loss (B, T), and where the clipped branch was taken (B, T, bool).
    """
    ratio = probability_ratio(log_probs, old_log_probs)
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.maximum(plain, clipped), clipped > plain


def clipped_value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, cliprange: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Half the squared error of the value, with the change since sampling clipped.

    Schulman et al. 2017 leave the clipping out of the paper; it is in the code that came with it (OpenAI Baselines,
    `ppo2/model.py`), and Engstrom et al. 2020, "Implementation matters in deep policy gradients", describe it.

    Args:
        values: (B, T) from the value head now.
        old_values: (B, T) seen while sampling.
        returns: (B, T) targets.
        cliprange: the value may move this far from the old one; None does not clip.

    Returns:
        per-token loss (B, T), and where the clipped branch was taken (B, T, bool).
    """
    plain = (values - returns) ** 2
    if cliprange is None:
        return 0.5 * plain, torch.zeros_like(plain, dtype=torch.bool)
    held = old_values + (values - old_values).clamp(-cliprange, cliprange)
    clipped = (held - returns) ** 2
    return 0.5 * torch.maximum(plain, clipped), clipped > plain


def reinforce_loss(log_probs: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """`-A_t log pi(a_t|s_t)`, whose gradient is the score-function estimator (Williams 1992); (B, T)."""
    return -advantages.detach() * log_probs


def approximate_kl(log_probs: torch.Tensor, old_log_probs: torch.Tensor) -> torch.Tensor:
    """Per-token KL(old || new) in nats, estimated as `(ratio - 1) - log ratio` from samples of the old policy.

    It is k3 of Schulman 2020, "Approximating KL divergence". Takes and returns (B, T); never negative.
    """
    log_ratio = (log_probs - old_log_probs).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    return torch.expm1(log_ratio) - log_ratio


def discriminator_loss(
    logits: torch.Tensor, mask: torch.Tensor, real: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Cross-entropy of telling people's texts from a model's, for each label (Goodfellow et al. 2014, Eq. 1, negated).

    Summed over labels and divided by their number in a batch that holds as many texts of one kind as of the other, its
    minimum is `p_data / (p_data + p_model)` at every beginning of a text: each text counts once at each of its tokens,
    so the mean is over tokens, not over texts.

    Args:
        logits: (B, L) log-odds that a person wrote the text.
        mask: (B, L) where there is a label.
        real: (B,) which texts people wrote.
        label_smoothing: taken off the target 1 of people's texts; the model's keep 0 (one-sided, Salimans et al. 2016).

    Returns:
        (B, L) losses in nats, 0 outside the mask.
    """
    targets = (real.to(logits.dtype) * (1 - label_smoothing))[:, None].expand_as(logits)
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return torch.where(mask, losses, torch.zeros_like(losses))
