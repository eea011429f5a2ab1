"""GPT-2 as a function of its weights: what a step costs without modules, hooks, autocast and padding of logits.

Shapes: B answers, L columns (prompt padded on the left, then answer), D width, H heads. `gelu_new` is computed by
torch's one fused operator for it, `gelu(approximate="tanh")`: the same formula.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

EPSILON = 1e-5
LINEARS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


@dataclass
class Weights:
    """A GPT-2's tensors by their names in transformers, without `transformer.`; the head is tied to `wte`."""

    tensors: dict[str, torch.Tensor]
    layers: int
    heads: int
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, model: Any) -> "Weights":
        """The weights of a `GPT2LMHeadModel`: its own parameters, not copies."""
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in model.named_parameters()}
        return cls(tensors, model.config.n_layer, model.config.n_head)

    def frozen_copy(self) -> "Weights":
        """A reference."""
        copies = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        return Weights(copies, self.layers, self.heads)

    def cast(self, dtype: torch.dtype) -> "Weights":
        """The same with the linear maps in `dtype`, inside the graph where gradients are recorded. Norms, positions and
        the residual stream stay in fp32, as under autocast."""
        if dtype is torch.float32:
            return self
        cast = {n: t.to(dtype) if _is_linear(n) else t for n, t in self.tensors.items()}
        return Weights(cast, self.layers, self.heads, dtype)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]


def _is_linear(name: str) -> bool:
    return name == "wte.weight" or any(f"{linear}." in name for linear in LINEARS)


def empty_cache(weights: Weights, rows: int, columns: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of every layer, each (B, H, columns, D / H), allocated once for a whole rollout."""
    width = weights["wpe.weight"].shape[1]
    shape = (rows, weights.heads, columns, width // weights.heads)
    return [
        (torch.empty(shape, dtype=weights.dtype), torch.empty(shape, dtype=weights.dtype))
        for _ in range(weights.layers)
    ]


def trunk(
    weights: Weights,
    ids: torch.Tensor,
    positions: torch.Tensor,
    mask: torch.Tensor,
    first: int = 0,
    cache: list[tuple[torch.Tensor, torch.Tensor]] | None = None,
    start: int = 0,
) -> torch.Tensor:
    """Last hidden states, after the final norm, of the columns from `first` on: (B, L - first, D) fp32.

    Args:
        weights: `Weights.cast` to the precision of the computation.
        ids: (B, L).
        positions: (B, L).
        mask: (B, 1, L, columns seen) added to the attention scores, in the weights' dtype.
        first: the last block asks, and its MLP runs, for these columns only: nobody reads the others.
        cache: written at `start` and read up to there; None where there is no past and no future.
        start: column of the first id in the cache.
    """
    x = weights["wte.weight"][ids].float() + weights["wpe.weight"][positions]
    length = ids.shape[1]
    for layer in range(weights.layers):
        name = f"h.{layer}."
        projected = _linear(weights, name + "attn.c_attn", _norm(weights, name + "ln_1", x))
        query, key, value = (_split_heads(part, weights.heads) for part in projected.chunk(3, -1))
        if cache is not None:
            keys, values = cache[layer]
            keys[:, :, start : start + length], values[:, :, start : start + length] = key, value
            key, value = keys[:, :, : start + length], values[:, :, : start + length]
        seen = mask
        if first and layer == weights.layers - 1:
            query, x, seen = query[:, :, first:], x[:, first:], mask[:, :, first:]
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        x = x + _linear(weights, name + "attn.c_proj", read.transpose(1, 2).flatten(2))
        inner = F.gelu(_linear(weights, name + "mlp.c_fc", _norm(weights, name + "ln_2", x)), approximate="tanh")
        x = x + _linear(weights, name + "mlp.c_proj", inner)
    return _norm(weights, "ln_f", x)


def _norm(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[name + ".weight"], weights[name + ".bias"], EPSILON)


def _linear(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    flat = x.to(weights.dtype).flatten(0, 1)
    return torch.addmm(weights[name + ".bias"], flat, weights[name + ".weight"]).view(*x.shape[:2], -1)


def _split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attention_mask(real: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(B, L) real columns -> (B, 1, L, L) to add to scores: causal, blind to padding. Padding sees itself, so that no
    row of a softmax is empty."""
    columns = real.shape[1]
    allowed = torch.ones(columns, columns, dtype=torch.bool).tril() & real.bool()[:, None]
    allowed = allowed | torch.eye(columns, dtype=torch.bool)
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]
