"""Log-probabilities and entropies from hidden states, in chunks, without keeping (tokens x vocabulary) logits.

The gradient with respect to a logit z_j is, for the log-probability of token y, `[j = y] - p_j`, and for the entropy
H, `-p_j (log p_j + H)`. Both are recomputed chunk by chunk in the backward pass; a test holds them against autograd.
"""

from typing import Any

import torch
from torch import nn

# Logits of one chunk. On a CPU they should stay in its cache from the product to the last elementwise step (4 MiB, the
# fastest of 1 to 32 MiB); a GPU wants enough of them to be busy. Below 128 rows the product itself becomes slow, for it
# reads all of a large head for few tokens.
CHUNK_LOGITS = {"cpu": 2**20}
CHUNK_LOGITS_ELSEWHERE = 2**26
LEAST_ROWS = 128


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """How many tokens' logits are computed at once."""
    return max(CHUNK_LOGITS.get(device.type, CHUNK_LOGITS_ELSEWHERE) // vocabulary, LEAST_ROWS)


def _compute_dtype(hidden: torch.Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


class _ChunkedLogProbs(torch.autograd.Function):
    """From (N, D) states that are already divided by the temperature."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        inverse_temperature: torch.Tensor,
        with_entropy: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        dtype = _compute_dtype(hidden)
        log_probs = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        normalisers = torch.empty_like(log_probs)
        entropies = torch.empty_like(log_probs) if with_entropy else None
        with torch.autocast(hidden.device.type, enabled=False):
            head = weight.to(dtype)
            for rows in _chunks(hidden, weight):
                logits = _logits(hidden[rows].to(dtype), head, bias, inverse_temperature[rows])
                if entropies is None:
                    normaliser = logits.logsumexp(-1)
                else:
                    # the likeliest token's probability is at least 1 / V, so its logarithm is exact
                    largest, likeliest = logits.max(-1, keepdim=True)
                    probabilities = logits.softmax(-1)
                    normaliser = (largest - probabilities.gather(-1, likeliest).log()).squeeze(-1)
                    # H = logsumexp(z) - sum_j p_j z_j
                    entropies[rows] = normaliser - torch.linalg.vecdot(probabilities, logits)
                log_probs[rows] = logits.gather(-1, labels[rows, None]).squeeze(-1) - normaliser
                normalisers[rows] = normaliser
        ctx.save_for_backward(hidden, weight, bias, labels, inverse_temperature, normalisers, entropies)
        ctx.dtype = dtype
        ctx.set_materialize_grads(False)  # an entropy that is only logged costs nothing here
        return log_probs, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, labels, inverse_temperature, normalisers, entropies = ctx.saved_tensors
        d_log_probs, d_entropies = gradients
        if d_log_probs is None:
            d_log_probs = torch.zeros_like(normalisers)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needs_bias else None
        head = weight.to(ctx.dtype)
        for rows in _chunks(hidden, weight):
            states = hidden[rows].to(ctx.dtype)
            d_logits = _logits(states, head, bias, inverse_temperature[rows]).sub_(normalisers[rows, None])
            if d_entropies is None:
                d_logits.exp_().mul_(-d_log_probs[rows, None])
            else:
                log_p = d_logits
                scale = (log_p + entropies[rows, None]).mul_(-d_entropies[rows, None]).sub_(d_log_probs[rows, None])
                d_logits = log_p.exp_().mul_(scale)
            d_logits.scatter_add_(-1, labels[rows, None], d_log_probs[rows, None])
            narrow = d_logits.to(ctx.dtype)
            if d_hidden is not None:
                d_hidden[rows] = (narrow @ head).to(d_hidden.dtype)
            if d_weight is not None and narrow.dtype == d_weight.dtype:
                d_weight.addmm_(narrow.T, states)
            elif d_weight is not None:
                d_weight += narrow.T @ states
            if d_bias is not None:
                d_bias.addmv_(d_logits.T, inverse_temperature[rows])
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None or bias is None else d_bias.to(bias.dtype),
            None,
            None,
            None,
        )


def _chunks(hidden: torch.Tensor, weight: torch.Tensor) -> list[slice]:
    size = chunk_rows(len(weight), hidden.device)
    return [slice(start, start + size) for start in range(0, len(hidden), size)]


def _logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, inverse_temperature: torch.Tensor
) -> torch.Tensor:
    logits = (hidden @ weight.T).float()
    return logits if bias is None else logits.addcmul_(bias.float(), inverse_temperature[:, None])


def chunked_log_probs(
    hidden: torch.Tensor,
    head: nn.Linear,
    labels: torch.Tensor,
    inverse_temperature: torch.Tensor,
    with_entropy: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities of `labels` and entropies, computed from hidden states through a plain linear head.

    Args:
        hidden: (N, D) states that predict the labels.
        head: linear map to the vocabulary.
        labels: (N,) token ids.
        inverse_temperature: (N,) factor on the logits, `1 / temperature`.
        with_entropy: leave the entropies out where nobody asks for them.

    Returns:
        log-probabilities and entropies (or None) in nats, both (N,) float32.
    """
    inverse_temperature = inverse_temperature.float()
    # the head is linear: its states are divided instead of its many more logits
    # in float32, for 1/0.9 in bf16 would be another temperature than the one that sampled
    states = (hidden.float() * inverse_temperature[:, None]).to(hidden.dtype)
    log_probs, entropies = _ChunkedLogProbs.apply(
        states, head.weight, head.bias, labels, inverse_temperature, with_entropy
    )
    return log_probs, entropies


@torch.no_grad()
def top_log_probs(
    hidden: torch.Tensor, head: nn.Linear, inverse_temperature: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest tokens and their log-probabilities, chunk by chunk.

    Args:
        hidden, head, inverse_temperature: as of `chunked_log_probs`.
        count: K.

    Returns:
        token ids and log-probabilities, both (N, K), the likeliest first.
    """
    inverse_temperature = inverse_temperature.float()
    dtype = _compute_dtype(hidden)
    states = (hidden.float() * inverse_temperature[:, None]).to(dtype)
    count = min(count, len(head.weight))
    ids = torch.empty((len(hidden), count), dtype=torch.long, device=hidden.device)
    found = torch.empty((len(hidden), count), dtype=torch.float32, device=hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        for rows in _chunks(hidden, head.weight):
            logits = _logits(states[rows], head.weight.to(dtype), head.bias, inverse_temperature[rows])
            top, ids[rows] = logits.topk(count)
            found[rows] = top - logits.logsumexp(-1, keepdim=True)
    return ids, found


def log_probs_at(
    hidden: torch.Tensor,
    head: nn.Linear,
    labels: torch.Tensor,
    log_probs: torch.Tensor,
    at: torch.Tensor,
    inverse_temperature: torch.Tensor,
) -> torch.Tensor:
    """Log-probabilities of tokens beside the labels: (N, K), with their gradient.

    The normaliser is what lies between a label's logit and its log-probability, which is known already.

    Args:
        hidden, head, labels, inverse_temperature: as of `chunked_log_probs`.
        log_probs: (N,) what it found.
        at: (N, K) token ids.
    """
    inverse_temperature = inverse_temperature.float()
    dtype = _compute_dtype(hidden)
    states = (hidden.float() * inverse_temperature[:, None]).to(dtype)
    asked = torch.cat([labels[:, None], at], 1)
    with torch.autocast(hidden.device.type, enabled=False):
        weights = head.weight.to(dtype)[asked]
        logits = torch.matmul(weights, states[:, :, None]).squeeze(-1).float()
        if head.bias is not None:
            logits = logits + head.bias.float()[asked] * inverse_temperature[:, None]
    return logits[:, 1:] - (logits[:, :1] - log_probs[:, None])


def log_probs_from_logits(
    logits: torch.Tensor, labels: torch.Tensor, inverse_temperature: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same from logits that a model computed itself; for heads that are more than a linear map.

    Args:
        logits: (N, V).
        labels: (N,) token ids.
        inverse_temperature: (N,) factor on the logits.

    Returns:
        log-probabilities and entropies in nats, both (N,) float32, or float64 of such logits.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    log_p = (logits.to(wide) * inverse_temperature[:, None].to(wide)).log_softmax(-1)
    return log_p.gather(-1, labels[:, None]).squeeze(-1), -(log_p.exp() * log_p).sum(-1)
