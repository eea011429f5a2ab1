"""The trees of a Monte Carlo tree search, one a prompt, side by side in arrays: one step of all of them is one call.

Notation: B prompts, K children a node at most. A child is first an edge of its parent (token, prior, N, Q) and becomes
a node when the search comes to it.
"""

from dataclasses import dataclass, field

import numpy as np

_NONE = -1


@dataclass
class Descent:
    """How n searches went down from their roots.

    Attributes:
        rows: (n,) the prompts.
        nodes: (n,) where each ended: at a node that is known, or at one that was just made.
        known: (n,) whether that node has a value already (an end of the text).
        blocked: (n,) whether it waits for its value since an earlier descent.
        levels: (which of the n, node, edge) of each step down, three arrays a level.
    """

    rows: np.ndarray
    nodes: np.ndarray
    known: np.ndarray
    blocked: np.ndarray
    levels: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)

    def part(self, which: np.ndarray) -> "Descent":
        """Those of the n descents that `which` (n,) names, a mask."""
        place = np.cumsum(which) - 1
        levels = []
        for at, nodes, edges in self.levels:
            kept = which[at]
            if kept.any():
                levels.append((place[at[kept]], nodes[kept], edges[kept]))
        return Descent(self.rows[which], self.nodes[which], self.known[which], self.blocked[which], levels)


class SearchTree:
    """B trees with the statistics of PUCT.

    Args:
        rows: B.
        children: K.
        capacity: most nodes of all trees together.
        length: depth at which a text ends.
        ends: tokens that end one.
        exploration: c of `Q + c * prior * sqrt(sum of the children's N) / (1 + N)`.
        backup: `max` or `mean`: what Q is of the values below an edge.
        virtual: whether several descents may wait for their values at a time.

    Attributes:
        root: (B,) the node from which each search goes down.
        expanded, terminal, fresh: (capacity,) whether a node has children, ends the text, was made by the last descent.
        value: (capacity,) of a node that ends the text, once it is known.
        policy_id, scorer_id: (capacity,) its number in the reader of the policy, and of the reward.
        tokens, prior, log_prob: (capacity, K) of its edges; the last under the policy itself.
        visits, quality: (capacity, K) N and Q of its edges.
        visit_sum: (capacity,) the sum of its edges' N.
    """

    def __init__(
        self,
        rows: int,
        children: int,
        capacity: int,
        length: int,
        ends: frozenset[int],
        exploration: float,
        backup: str,
        virtual: bool,
    ):
        shape = (capacity, children)
        self.length, self.exploration, self.maximum, self.virtual = length, exploration, backup == "max", virtual
        self.ends = np.array(sorted(ends), dtype=np.int64)
        self.root = np.full(rows, _NONE)
        self.owner = np.full(capacity, _NONE)  # the prompt; none where a node is free
        self.depth, self.visit_sum, self.policy_id, self.scorer_id = np.zeros((4, capacity), dtype=np.int64)
        self.expanded, self.terminal, self.fresh = np.zeros((3, capacity), dtype=bool)
        self.value = np.full(capacity, np.nan)
        self.tokens, self.visits = np.zeros((2, *shape), dtype=np.int64)
        self.child = np.full(shape, _NONE)
        self.prior, self.log_prob, self.quality, self.total = np.zeros((4, *shape))
        self.drawn = np.zeros(capacity, dtype=np.int64)
        self.drawn_log_prob, self.log_allowed = np.zeros((2, capacity))
        self._free = list(range(capacity - 1, -1, -1))

    def make(self, rows: np.ndarray, depths: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """New nodes (n,) of prompts `rows`, at `depths`, whose last tokens are `tokens`."""
        new = np.array([self._free.pop() for _ in rows], dtype=np.int64)
        self.owner[new], self.depth[new], self.visit_sum[new] = rows, depths, 0
        self.terminal[new] = (depths >= self.length) | np.isin(tokens, self.ends)
        self.expanded[new], self.fresh[new], self.value[new] = False, True, np.nan
        return new

    def expand(self, nodes: np.ndarray, tokens: np.ndarray, prior: np.ndarray, log_prob: np.ndarray) -> None:
        """Give nodes (n,) their edges (n, K): the likeliest first, prior 0 where there are fewer."""
        self.tokens[nodes], self.prior[nodes], self.log_prob[nodes] = tokens, prior, log_prob
        self.expanded[nodes] = True
        self.clear(nodes)

    def clear(self, nodes: np.ndarray) -> None:
        """Forget all visits below nodes (n,)."""
        self.visits[nodes], self.visit_sum[nodes], self.child[nodes] = 0, 0, _NONE
        self.total[nodes] = -np.inf if self.maximum else 0.0
        self.quality[nodes] = np.where(self.prior[nodes] > 0, 0.0, -np.inf)

    def descend(self, rows: np.ndarray) -> Descent:
        """Go down from the roots of `rows` (n,), one edge of the highest score after the other, to a node that has no
        children; N of these edges grows at once. A child that was no node yet becomes one."""
        at = self.root[rows]
        which = np.arange(len(rows))
        found = Descent(rows, at.copy(), np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool))
        while len(which):
            scores = self.prior[at]
            scores *= self.exploration
            scores *= np.sqrt(self.visit_sum[at])[:, None]
            scores /= 1 + self.visits[at]
            scores += self.quality[at]
            edges = scores.argmax(1)
            found.levels.append((which, at, edges))
            self.visit_sum[at] += 1
            self.visits[at, edges] += 1
            if self.virtual and not self.maximum:
                self.quality[at, edges] = self.total[at, edges] / self.visits[at, edges]
            below = self.child[at, edges]
            unmade = below < 0
            if unmade.any():
                parents, chosen = at[unmade], edges[unmade]
                new = self.make(rows[which[unmade]], self.depth[parents] + 1, self.tokens[parents, chosen])
                self.child[parents, chosen] = below[unmade] = new
            found.nodes[which] = below
            on = self.expanded[below]
            which, at = which[on], below[on]
        ended = found.nodes
        found.known = ~np.isnan(self.value[ended])
        found.blocked = ~found.known & ~self.fresh[ended]  # what was made just now waits for nobody
        self.fresh[ended] = False
        return found

    def back_up(self, found: Descent, values: np.ndarray) -> None:
        """Let each value (n,) be known on the way that led to it."""
        for which, nodes, edges in found.levels:
            if self.maximum:
                total = np.maximum(self.total[nodes, edges], values[which])
                self.total[nodes, edges] = self.quality[nodes, edges] = total
            else:
                total = self.total[nodes, edges] + values[which]
                self.total[nodes, edges] = total
                self.quality[nodes, edges] = total / self.visits[nodes, edges]

    def take_back(self, found: Descent) -> None:
        """As if these descents had not been made."""
        for _, nodes, edges in found.levels:
            self.visit_sum[nodes] -= 1
            self.visits[nodes, edges] -= 1
            if not self.maximum:
                seen = np.maximum(self.visits[nodes, edges], 1)
                self.quality[nodes, edges] = self.total[nodes, edges] / seen

    def move(self, row: int, root: int, keep_subtree: bool) -> None:
        """Make the node `root` the one to search below; the rest of its prompt's tree is forgotten."""
        kept = np.zeros(len(self.owner), dtype=bool)
        kept[root] = True
        if not keep_subtree:
            self.clear(np.array([root]))
        frontier = np.array([root])
        while len(frontier):
            below = self.child[frontier[self.expanded[frontier]]]
            frontier = below[below >= 0]
            kept[frontier] = True
        self._release(np.flatnonzero((self.owner == row) & ~kept))
        self.root[row] = root

    def finish(self, row: int) -> None:
        """Forget a prompt's tree."""
        self._release(np.flatnonzero(self.owner == row))
        self.root[row] = _NONE

    def growing(self) -> np.ndarray:
        """The nodes below which more may come."""
        return np.flatnonzero((self.owner >= 0) & self.expanded)

    def _release(self, nodes: np.ndarray) -> None:
        self.owner[nodes] = _NONE
        self.expanded[nodes] = False
        self._free.extend(nodes.tolist())
