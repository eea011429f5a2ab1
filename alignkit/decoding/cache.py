"""A key-value cache with room to grow, for sampling token by token, filled once for prompts that are the same."""

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache

from alignkit.models.shared_prompts import SharedPrompts, equal_rows

_LEAST_ROOM = 256
# What a forward is given for each row. Anything else that holds tensors may mean something that rows cannot share.
BY_ROW = ("input_ids", "attention_mask", "position_ids")


class RoomyLayer(DynamicLayer):
    """`DynamicLayer` that writes a token's keys and values into spare room instead of copying all before them.

    The host's layer concatenates, so that T tokens copy T^2 / 2; this one doubles its room when it is full. Whoever
    reorders or crops the cache gets plain tensors, and the next token makes room again.

    Args:
        limit: there will be no more tokens than this.
    """

    keys: Any  # (B, H, length, D), as the host's class declares them: None before the first token
    values: Any

    def __init__(self, limit: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.limit = limit
        self._rooms: list[torch.Tensor] = []
        self._last: torch.Tensor | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep (B, H, new, D) keys and values, and give all so far, (B, H, length, D)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self._rooms or self.keys is not self._last or end > self._rooms[0].shape[-2]:
            kept = (self.keys, self.values) if start else (None, None)
            states = (key_states, value_states)
            length = max(min(max(2 * end, _LEAST_ROOM), self.limit), end)
            self._rooms = [_room(old, new, length) for old, new in zip(kept, states, strict=True)]
        keys, values = self._rooms
        keys[..., start:end, :] = key_states
        values[..., start:end, :] = value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        self._last = self.keys
        return self.keys, self.values


def _room(kept: torch.Tensor | None, new: torch.Tensor, length: int) -> torch.Tensor:
    room = new.new_empty((*new.shape[:-2], length, new.shape[-1]))
    if kept is not None:
        room[..., : kept.shape[-2], :] = kept
    return room


def make_roomy(cache: Any, limit: int) -> None:
    """Give the empty plain layers of a dynamic cache room to grow; sliding windows and states stay as they are.

    Args:
        cache: of the host's `generate`; other kinds than its dynamic ones are left alone.
        limit: most tokens, prompt included, that will be kept.
    """
    if type(cache) is EncoderDecoderCache:
        cache = cache.self_attention_cache  # the other one is filled once
    if type(cache) is DynamicCache and not cache.offloading:
        cache.layers = [
            RoomyLayer(limit) if type(layer) is DynamicLayer and not layer.is_initialized else layer
            for layer in cache.layers
        ]


def shared_prompts(inputs: dict[str, Any]) -> SharedPrompts | None:
    """How the first forward can read each of several equal prompts once; None where there are none, or where what the
    model keeps of a prompt is more than keys and values that can be copied.

    Args:
        inputs: of the first forward; `input_ids` (B, P), `attention_mask` (B, P) and the empty cache among them. The
            host leaves a mask out that holds nothing but ones.
    """
    cache, ids, mask = (inputs.get(key) for key in ("past_key_values", "input_ids", "attention_mask"))
    others = [key for key, value in inputs.items() if isinstance(value, torch.Tensor) and key not in BY_ROW]
    if not isinstance(cache, DynamicCache) or not all(type(layer) is RoomyLayer for layer in cache.layers) or others:
        return None
    by_row = [inputs[key] for key in BY_ROW if inputs.get(key) is not None]
    if ids is None or any(value.dim() != 2 or len(value) != len(ids) for value in by_row):
        return None
    return equal_rows(ids, torch.ones_like(ids) if mask is None else mask)
