"""Log-probabilities and entropies from hidden states, in chunks, without keeping (tokens x vocabulary) logits.

The gradient with respect to a logit z_j is, for the log-probability of token y, `[j = y] - p_j`, and for the entropy
H, `-p_j (log p_j + H)`. Both are recomputed chunk by chunk in the backward pass; a test holds them against autograd.
"""

from typing import Any

import torch
from torch import nn

CHUNK_TOKENS = 1024


def _compute_dtype(hidden: torch.Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


class _ChunkedLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        inverse_temperature: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = _compute_dtype(hidden)
        log_probs = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        entropies = torch.empty_like(log_probs)
        normalisers = torch.empty_like(log_probs)
        with torch.autocast(hidden.device.type, enabled=False):
            head = weight.to(dtype)
            for start in range(0, len(hidden), CHUNK_TOKENS):
                rows = slice(start, start + CHUNK_TOKENS)
                logits = _logits(hidden[rows].to(dtype), head, bias, inverse_temperature[rows])
                normaliser = logits.logsumexp(-1)
                log_probs[rows] = logits.gather(-1, labels[rows, None]).squeeze(-1) - normaliser
                # H = logsumexp(z) - sum_j p_j z_j
                probabilities = torch.exp(logits - normaliser[:, None])
                entropies[rows] = normaliser - (probabilities * logits).sum(-1)
                normalisers[rows] = normaliser
        ctx.save_for_backward(hidden, weight, bias, labels, inverse_temperature, normalisers, entropies)
        ctx.dtype = dtype
        return log_probs, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, labels, inverse_temperature, normalisers, entropies = ctx.saved_tensors
        d_log_probs, d_entropies = gradients
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        with_entropy = bool(d_entropies.count_nonzero())
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needs_bias else None
        head = weight.to(ctx.dtype)
        for start in range(0, len(hidden), CHUNK_TOKENS):
            rows = slice(start, start + CHUNK_TOKENS)
            states = hidden[rows].to(ctx.dtype)
            log_p = _logits(states, head, bias, inverse_temperature[rows]) - normalisers[rows, None]
            d_logits = torch.exp(log_p)
            scale = -d_log_probs[rows, None]
            if with_entropy:
                scale = scale - d_entropies[rows, None] * (log_p + entropies[rows, None])
            d_logits.mul_(scale)
            d_logits.scatter_add_(-1, labels[rows, None], d_log_probs[rows, None].to(d_logits.dtype))
            d_logits.mul_(inverse_temperature[rows, None])
            narrow = d_logits.to(ctx.dtype)
            if d_hidden is not None:
                d_hidden[rows] = (narrow @ head).to(d_hidden.dtype)
            if d_weight is not None:
                d_weight += (narrow.T @ states).float()
            if d_bias is not None:
                d_bias += d_logits.sum(0)
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None or bias is None else d_bias.to(bias.dtype),
            None,
            None,
        )


def _logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, inverse_temperature: torch.Tensor
) -> torch.Tensor:
    logits = (hidden @ weight.T).float()
    if bias is not None:
        logits = logits + bias.float()
    return logits * inverse_temperature[:, None]


def chunked_log_probs(
    hidden: torch.Tensor, head: nn.Linear, labels: torch.Tensor, inverse_temperature: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of `labels` and entropies, computed from hidden states through a plain linear head.

    Args:
        hidden: (N, D) states that predict the labels.
        head: linear map to the vocabulary.
        labels: (N,) token ids.
        inverse_temperature: (N,) factor on the logits, `1 / temperature`.

    Returns:
        log-probabilities and entropies in nats, both (N,) float32.
    """
    log_probs, entropies = _ChunkedLogProbs.apply(hidden, head.weight, head.bias, labels, inverse_temperature.float())
    return log_probs, entropies


def log_probs_from_logits(
    logits: torch.Tensor, labels: torch.Tensor, inverse_temperature: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same from logits that a model computed itself; for heads that are more than a linear map.

    Args:
        logits: (N, V).
        labels: (N,) token ids.
        inverse_temperature: (N,) factor on the logits.

    Returns:
        log-probabilities and entropies in nats, both (N,) float32.
    """
    log_p = (logits.float() * inverse_temperature[:, None].float()).log_softmax(-1)
    return log_p.gather(-1, labels[:, None]).squeeze(-1), -(log_p.exp() * log_p).sum(-1)
