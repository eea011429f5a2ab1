"""The nodes of a tree of tokens below B prompts, and the slots in which something about each is kept."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from alignkit.errors import ModelError

_FIRST_ROOM = 64  # slots beside those of the prompts
_FIRST_WIDTH = 16


class Nodes:
    """Numbers nodes, gives each a slot, and frees the slots of those that are forgotten.

    Nodes 0 to B - 1 are the empty completions. A slot is kept as long as a node that is kept has it on its path, so
    that a node may be kept without its ancestors. Slots come back into use, numbers of nodes do not.

    Args:
        rows: B.
        start: tokens with which each completion begins of itself, as a decoder's start token does: they have slots.
        limit: most slots that may ever be in use.

    Attributes:
        made: how many nodes there ever were: the number of the next one.
        depth: (slots,) tokens on the path, start tokens and the slot's own included.
        row: (slots,) the prompt.
        token: (slots,) the token's id.
        path: (slots, width) the slots of the path's tokens, its own last.
    """

    def __init__(self, rows: int, start: Any, limit: int | None = None):
        start = np.asarray(start, dtype=np.int64).reshape(rows, -1)
        self.rows, self.limit = rows, limit
        self.start_length = start.shape[1]
        first = max(start.size, rows)
        self.capacity = first + _FIRST_ROOM if limit is None else min(first + _FIRST_ROOM, max(limit, first))
        self.depth = np.zeros(self.capacity, dtype=np.int64)
        self.row = np.zeros(self.capacity, dtype=np.int64)
        self.token = np.zeros(self.capacity, dtype=np.int64)
        self.path = np.zeros((self.capacity, max(_FIRST_WIDTH, self.start_length)), dtype=np.int64)
        self.peak = first
        own = np.arange(start.size).reshape(rows, -1)
        for place in range(self.start_length):
            slots = own[:, place]
            self.path[slots, : place + 1] = own[:, : place + 1]
            self.depth[slots], self.token[slots], self.row[slots] = place + 1, start[:, place], np.arange(rows)
        roots = own[:, -1] if self.start_length else np.arange(rows)
        self.row[roots] = np.arange(rows)
        self.made = len(roots)
        self._slot_of = roots.copy()  # of each node ever made, and room for more; -1 where it was forgotten
        self._free = list(range(self.capacity - 1, first - 1, -1))
        self.on_growth: list[Callable[[int], None]] = []  # told the new capacity

    def slots(self, nodes: Sequence[int] | np.ndarray) -> np.ndarray:
        """The slots of nodes.

        Raises:
            ModelError: a node that never was, or was forgotten.
        """
        asked = np.asarray(nodes, dtype=np.int64).reshape(-1)
        if asked.size and (asked.min() < 0 or asked.max() >= self.made):
            raise ModelError(f"the tree has nodes 0 to {self.made - 1}, got {asked.tolist()[:20]}")
        slots = self._slot_of[asked]
        if (slots < 0).any():
            raise ModelError(f"nodes {asked[slots < 0].tolist()[:20]} were forgotten by keep(); keep what you extend")
        return slots

    def add(self, parents: np.ndarray, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """Make a node below each of the slots `parents` (n,); gives their slots.

        Raises:
            ModelError: there would be more slots in use than `limit`.
        """
        count = len(parents)
        while len(self._free) < count:
            self._grow(count - len(self._free))
        new = np.array([self._free.pop() for _ in range(count)], dtype=np.int64)
        self.peak = max(self.peak, self.capacity - len(self._free))
        depth = self.depth[parents]
        if count and depth.max() >= self.path.shape[1]:
            self.path = np.pad(self.path, ((0, 0), (0, self.path.shape[1])))
        self.path[new] = self.path[parents]
        self.path[new, depth] = new
        self.depth[new], self.row[new], self.token[new] = depth + 1, self.row[parents], tokens
        if self.made + count > len(self._slot_of):  # twice as much: a copy for every node would cost their square
            self._slot_of = np.pad(self._slot_of, (0, self.made + 2 * count), constant_values=-1)
        self._slot_of[self.made : self.made + count] = new
        self.made += count
        return new

    def keep(self, nodes: Sequence[int] | np.ndarray) -> None:
        """Forget every other node."""
        nodes = np.asarray(nodes, dtype=np.int64).reshape(-1)
        kept = self.slots(nodes)
        self._slot_of[:] = -1
        self._slot_of[nodes] = kept
        used = np.zeros(self.capacity, dtype=bool)
        paths, depth = self.path[kept], self.depth[kept]
        used[paths[np.arange(paths.shape[1]) < depth[:, None]]] = True
        used[kept] = True
        self._free = np.flatnonzero(~used)[::-1].tolist()

    def tokens_of(self, nodes: Sequence[int] | np.ndarray) -> list[list[int]]:
        """The tokens on each node's path, start tokens left out."""
        slots = self.slots(nodes)
        return [self.token[self.path[slot, self.start_length : self.depth[slot]]].tolist() for slot in slots]

    def _grow(self, missing: int) -> None:
        wanted = max(2 * self.capacity, self.capacity + missing)
        if self.limit is not None:
            wanted = min(wanted, self.limit)
            if wanted < self.capacity + missing:
                raise ModelError(
                    f"{self.capacity - len(self._free)} tokens of the tree are kept and {missing + len(self._free)} "
                    f"come, but limit={self.limit}; keep() fewer nodes, or give a higher limit"
                )
        more = wanted - self.capacity
        self.depth, self.row, self.token = (np.pad(a, (0, more)) for a in (self.depth, self.row, self.token))
        self.path = np.pad(self.path, ((0, more), (0, 0)))
        self._free = list(range(wanted - 1, self.capacity - 1, -1)) + self._free
        self.capacity = wanted
        for tell in self.on_growth:
            tell(wanted)
