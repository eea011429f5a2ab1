"""Self-normalised importance weights: from log-weights to the share of each completion. Pure functions on tensors.

What is estimated is an expectation under q(y) = p(y) D(y) / Z, from completions of a proposal q^ that are weighted by
q / q^. Z is not known, so a prompt's weights are divided by their sum (self-normalised: consistent, with a bias of the
order 1 / G).

Notation:
    B: number of completions, G: completions of one prompt (a group). Groups are consecutive rows.
    A log-weight is NaN where nobody had an opinion on the completion, and -inf where the target does not have it.
    Neither gets a share. Everything is in nats.
"""

import torch

from alignkit.errors import ConfigError


def log_weights(log_probs: torch.Tensor, log_scores: torch.Tensor, log_density: torch.Tensor) -> torch.Tensor:
    """`log p(y) + log D(y) - log q^(y)` of each completion, in float32 or better.

    Args:
        log_probs: (B,) of whole completions under the policy that is frozen for this step.
        log_scores: (B,) log D; NaN for no opinion, -inf for a score of 0.
        log_density: (B,) log q^, finite: a completion that was drawn had a density.
    """
    wide = torch.promote_types(log_probs.dtype, torch.float32)
    return log_probs.to(wide) - log_density.to(wide) + log_scores.to(wide)


def log_mean_exp(values: torch.Tensor, group_size: int) -> torch.Tensor:
    """`log mean exp` of each group's log-weights, an estimate of log Z: (B,) -> (B / G,).

    Without NaN; NaN for a group that has nothing else, -inf for one that has nothing but -inf.
    """
    grouped = _grouped(values, group_size)
    known = ~grouped.isnan()
    filled = torch.where(known, grouped, -torch.inf)
    mean = filled.logsumexp(1) - known.sum(1).clamp(min=1).to(values.dtype).log()
    return torch.where(known.any(1), mean, torch.nan)


def clip_log_weights(values: torch.Tensor, group_size: int, most: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Hold log-weights within `most` nats above their group's `log_mean_exp`, so that few completions cannot outweigh
    all others. It trades variance for a bias.

    Args:
        values: (B,) log-weights.
        group_size: completions of one prompt, consecutive rows.
        most: nats; None clips nothing.

    Returns:
        the log-weights (B,), and where they were clipped (B,), bool.
    """
    if most is None:
        return values, torch.zeros_like(values, dtype=torch.bool)
    limit = (log_mean_exp(values, group_size) + most).repeat_interleave(group_size)
    clipped = values > limit  # never, where one of them is NaN
    return torch.where(clipped, limit, values), clipped


def self_normalised(values: torch.Tensor, group_size: int) -> torch.Tensor:
    """Softmax over each group's log-weights: (B,) -> (B,) shares that sum to 1 in each group.

    0 for NaN and -inf, and in a group that has nothing else.
    """
    filled = torch.where(values.isnan(), -torch.inf, values)
    grouped = _grouped(filled, group_size)
    some = grouped.isfinite().any(1, keepdim=True)
    shares = torch.where(some, grouped, torch.zeros_like(grouped)).softmax(1)
    return torch.where(some, shares, torch.zeros_like(shares)).view_as(values)


def best_of_group(values: torch.Tensor, group_size: int) -> torch.Tensor:
    """1 for the highest log-weight of each group, the first of equal ones, 0 for all others: (B,) -> (B,).

    A group without a finite one gets zeros.
    """
    filled = torch.where(values.isnan(), -torch.inf, values)
    grouped = _grouped(filled, group_size)
    chosen = torch.zeros_like(grouped).scatter(1, grouped.argmax(1, keepdim=True), 1.0)
    return torch.where(grouped.isfinite().any(1, keepdim=True), chosen, torch.zeros_like(chosen)).view_as(values)


def effective_sample_size(weights: torch.Tensor, group_size: int) -> torch.Tensor:
    """`(sum w)^2 / sum w^2` of each group: how many equally weighted completions would say as much (Kish 1965).

    Takes (B,) weights of 0 or more, which need not sum to 1; returns (B / G,) between 1 and G, 0 for a group without
    weights.
    """
    grouped = _grouped(weights, group_size)
    squared = (grouped**2).sum(1)
    return torch.where(squared > 0, grouped.sum(1) ** 2 / torch.where(squared > 0, squared, 1.0), 0.0)


def spread(values: torch.Tensor, group_size: int) -> torch.Tensor:
    """Standard deviation of each group's finite log-weights, (B,) -> (B / G,); NaN where there are fewer than two."""
    grouped = _grouped(values, group_size)
    known = grouped.isfinite()
    count = known.sum(1)
    filled = torch.where(known, grouped, torch.zeros_like(grouped))
    mean = filled.sum(1) / count.clamp(min=1)
    squares = torch.where(known, (filled - mean[:, None]) ** 2, torch.zeros_like(filled)).sum(1)
    return torch.where(count > 1, (squares / (count - 1).clamp(min=1)).sqrt(), torch.nan)


def _grouped(values: torch.Tensor, group_size: int) -> torch.Tensor:
    if group_size < 1 or len(values) % group_size or values.dim() != 1:
        raise ConfigError(
            f"got values of shape {tuple(values.shape)} in groups of {group_size}; expected one value for each "
            "completion, and groups that fill them"
        )
    return values.view(-1, group_size)
