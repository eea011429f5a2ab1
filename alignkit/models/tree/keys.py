"""Keys and values of a tree: one slot a token, gathered along each path in front of the token that is read.

The keys and values of a prompt are kept once. They are copied into the room in which attention reads when the rows
that are read belong to other prompts than last time; a search that reads one leaf of every prompt copies them once.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache

from alignkit.models.faster import attention_for
from alignkit.models.scoring import accepts_position_ids
from alignkit.models.tree.nodes import Nodes
from alignkit.models.tree.others import Prompts

_MORE_ROOM = 32  # tokens behind those that are needed now


@dataclass
class _Step:
    """One forward: n rows with paths of up to w tokens behind prompts of P."""

    rows: int
    past: int  # P + w
    path: torch.Tensor  # (n * w,) slots, the path's last token on the right
    new: torch.Tensor  # (n,) slots


class _TreeLayer(DynamicLayer):
    """Keys and values of one layer: the prompts' (U, P, H, D), and a pool (slots, H, D) for all other tokens."""

    keys: Any  # not used: a path's are put together for each forward
    values: Any

    def __init__(self, prompts: list[torch.Tensor], pools: list[torch.Tensor]):
        super().__init__()
        self.prompts, self.pools = prompts, pools
        self.rooms: list[torch.Tensor] = []  # (R, L, H, D) in which attention reads
        self.step: _Step | None = None
        self.is_initialized = True

    @property
    def prompt_length(self) -> int:
        """P."""
        return self.prompts[0].shape[1]

    def grow(self, capacity: int) -> None:
        """Make the pool longer."""
        self.pools = [torch.cat([pool, pool.new_zeros((capacity - len(pool), *pool.shape[1:]))]) for pool in self.pools]

    def arrange(self, owners: torch.Tensor, length: int, copied: bool) -> None:
        """Make room for n rows of `length` tokens, with the prompts `owners` (n,) in front unless they are `copied`."""
        if not self.rooms or self.rooms[0].shape[0] < len(owners) or self.rooms[0].shape[1] < length:
            old = self.rooms[0].shape if self.rooms else (0, 0)
            size = (max(len(owners), old[0]), max(length + _MORE_ROOM, old[1]))
            self.rooms = [pool.new_zeros((*size, *pool.shape[1:])) for pool in self.pools]
            copied = False
        if not copied:
            for room, prompt in zip(self.rooms, self.prompts, strict=True):
                room[: len(owners), : self.prompt_length] = prompt.index_select(0, owners)

    def get_seq_length(self) -> int:
        """Tokens in front of the one that is read, padding included."""
        return 0 if self.step is None else self.step.past

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep (n, H, 1, D) in the new slots, and give (n, H, P + w + 1, D)."""
        step = self.step
        assert step is not None, "a tree's layer is read within a step only"
        given = []
        for pool, room, states in zip(self.pools, self.rooms, (key_states, value_states), strict=True):
            new = states[:, :, 0].to(pool.dtype)  # under autocast keys and values may have two precisions
            pool.index_copy_(0, step.new, new)
            if len(step.path):
                behind = pool.index_select(0, step.path)
                room[: step.rows, self.prompt_length : step.past] = behind.view(step.rows, -1, *pool.shape[1:])
            room[: step.rows, step.past] = new
            given.append(room[: step.rows, : step.past + 1].transpose(1, 2))
        return given[0], given[1]


def holds_keys_and_values(cache: Any) -> bool:
    """Whether a cache is each token's keys and values and nothing else (no window, no recurrent state)."""
    if isinstance(cache, EncoderDecoderCache):
        return holds_keys_and_values(cache.self_attention_cache) and holds_keys_and_values(cache.cross_attention_cache)
    return (
        isinstance(cache, DynamicCache)
        and bool(cache.layers)
        and all(type(layer) is DynamicLayer and layer.is_initialized for layer in cache.layers)
    )


class KeysAndValues:
    """The keys and values of B prompts and of the tree behind them.

    Args:
        prompts: what was read.
        nodes: the tree.
        cache: what the model kept of U different prompts; of an encoder-decoder, of its B rows' start tokens.
        copies: (B,) the prompt of each row among the U.
    """

    def __init__(self, prompts: Prompts, nodes: Nodes, cache: Any, copies: torch.Tensor):
        self.prompts, self.nodes, self.copies = prompts, nodes, copies
        self.device = copies.device
        self.cross: Any = None
        self._cross: Any = None
        own = cache
        if isinstance(cache, EncoderDecoderCache):
            own, self.cross = cache.self_attention_cache, cache.cross_attention_cache
        self.cache = DynamicCache(config=prompts.model.config)
        self.cache.layers = [self._layer(layer) for layer in own.layers]
        self.takes_positions = accepts_position_ids(prompts.model)
        self._hooked = [m for m in prompts.model.modules() if _counts_places(m)] if prompts.encoded else []
        self._arranged = np.zeros(0, dtype=np.int64)
        nodes.on_growth.append(self._grow)

    def _layer(self, layer: Any) -> _TreeLayer:
        kept, pools = [], []
        for tensor in (layer.keys, layer.values):
            by_token = tensor.transpose(1, 2)  # (U, P, H, D)
            pool = by_token.new_zeros((self.nodes.capacity, *by_token.shape[2:]))
            if self.prompts.encoded:  # start tokens stand right before the path, wherever that begins
                pool[: by_token.shape[0] * by_token.shape[1]] = by_token.flatten(0, 1)
                by_token = by_token[:, :0]
            kept.append(by_token.contiguous())
            pools.append(pool)
        return _TreeLayer(kept, pools)

    def _grow(self, capacity: int) -> None:
        for layer in self.cache.layers:
            layer.grow(capacity)

    @property
    def bytes(self) -> int:
        """What pool, prompts and the room for attention take now."""
        tensors = [t for layer in self.cache.layers for t in (*layer.pools, *layer.prompts, *layer.rooms)]
        crossing = [t for layer in (self.cross.layers if self.cross else []) for t in (layer.keys, layer.values)]
        return sum(t.numel() * t.element_size() for t in tensors + crossing)

    @property
    def bytes_per_token(self) -> int:
        """What one more slot takes: layers x 2 x heads x head size."""
        return sum(pool[0].numel() * pool.element_size() for layer in self.cache.layers for pool in layer.pools)

    def read(self, parents: np.ndarray, new: np.ndarray) -> torch.Tensor:
        """The outputs (n, ...) at the new slots, whose tokens follow the slots `parents`."""
        nodes, count = self.nodes, len(new)
        row, depth = nodes.row[new], nodes.depth[parents]
        width = int(depth.max())
        places = np.arange(width) - (width - depth)[:, None]
        real = places >= 0
        path = np.where(real, nodes.path[parents[:, None], places.clip(0)], 0)
        length = self.cache.layers[0].prompt_length
        step = _Step(count, length + width, self._put(path.reshape(-1)), self._put(new))
        same = np.array_equal(self._arranged[:count], row)
        owners = self.copies.index_select(0, self._put(row))
        for layer in self.cache.layers:
            layer.arrange(owners, step.past + 1, same)
            layer.step = step
        if not same:
            self._arranged = row.copy()
        seen = self._put(np.pad(real, ((0, 0), (0, 1)), constant_values=True))
        tokens = self._put(nodes.token[new])[:, None]
        inputs: dict[str, Any] = {"past_key_values": self.cache, "use_cache": True}
        at = self._put(depth)[:, None]
        if self.prompts.encoded:
            cache = EncoderDecoderCache(self.cache, self._crossing(row, same))
            inputs |= {"past_key_values": cache, "decoder_input_ids": tokens, "decoder_attention_mask": seen.long()}
        else:
            mask = torch.cat([self.prompts.mask.index_select(0, self._put(row)), seen.long()], 1)
            at = at + self._put(self.prompts.lengths[row])[:, None]
            inputs |= {"input_ids": tokens, "attention_mask": mask}
            if self.takes_positions:
                inputs["position_ids"] = at
        with attention_for(self.prompts.model, 1), _places(self._hooked, at):
            return self.prompts.model(**inputs, **self.prompts.of_rows(row)).logits[:, -1]

    def _put(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

    def _crossing(self, row: np.ndarray, same: bool) -> Any:
        if self._cross is None or len(row) != len(self._cross.layers[0].keys) or not same:
            at = self._put(row)
            self._cross = DynamicCache(config=self.prompts.model.config)
            for index, layer in enumerate(self.cross.layers):
                self._cross.update(layer.keys.index_select(0, at), layer.values.index_select(0, at), index)
        return self._cross


def _counts_places(module: nn.Module) -> bool:
    """Whether a module embeds positions that it counts from the cache's length, which is one for all rows (BART)."""
    if type(module).forward is nn.Module.forward:
        return False
    return {"position_ids", "past_key_values_length"} <= set(inspect.signature(type(module).forward).parameters)


@contextmanager
def _places(modules: list[nn.Module], at: torch.Tensor) -> Iterator[None]:
    """Inside, these modules embed the positions `at` (n, 1): asked for those of one row of n, which are then n rows."""

    def put(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "position_ids": at[:, 0]}

    def turn(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output.reshape(len(at), 1, -1)

    hooks = [module.register_forward_pre_hook(put, with_kwargs=True) for module in modules]
    hooks += [module.register_forward_hook(turn) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
