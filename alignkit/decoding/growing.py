"""How the completions of a Monte Carlo tree search grow: simulations, then a token, prompt by prompt at its own pace.

No prompt waits for another: one whose simulations end at known ends of texts goes on until it needs the models, one
that has chosen its token begins the next search, and one whose completion has ended costs nothing. What all of them
need to know is asked in one forward of the policy and one call of the reward.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from alignkit.decoding.leaves import Evaluation, Leaves
from alignkit.decoding.policy_tree import PolicyTree, Search
from alignkit.decoding.search_tree import Descent, SearchTree

if TYPE_CHECKING:
    from alignkit.decoding.mcts import MCTS


@dataclass
class SearchStep:
    """What a search knew when it chose a token; k children were visited.

    Attributes:
        token: what was chosen.
        tokens: k token ids, likeliest first.
        visits, quality, prior: of each, N, Q and the policy's probability among the children.
    """

    token: int
    tokens: list[int]
    visits: list[int]
    quality: list[float]
    prior: list[float]


class Growth:
    """One call of an `MCTS`.

    Args:
        settings: the search's settings.
        search: what is searched for.
        uniform: (B, T, 3) numbers in [0, 1): whether a token is the policy's, which of the children it is, which of the
            policy's.

    Attributes:
        completion_ids: B lists of tokens.
        log_probs: of each token, under the policy.
        log_density: (B,) of what was drawn so far.
        steps: see `SearchStep`.
    """

    def __init__(self, settings: "MCTS", search: Search, uniform: torch.Tensor | None):
        rows = len(search.prompts)
        self.settings, self.search = settings, search
        self.uniform = None if uniform is None else uniform.double().cpu().numpy()
        nodes = settings.simulations + settings.leaves_per_wave + 2  # live ones of a prompt
        rollouts = settings.value == "rollout"
        paths = search.length * (1 + (settings.leaves_per_wave if rollouts else 0))
        self.tree = SearchTree(
            rows, settings.children, rows * nodes, search.length, search.ends, settings.exploration, settings.backup,
            virtual=settings.leaves_per_wave > 1,
        )  # fmt: skip
        self.policy = PolicyTree(search, rows * (nodes + paths), with_allowed=settings.policy_share > 0)
        drawn = self.uniform[:, :, 2] if self.uniform is not None and settings.policy_share else None
        self.evaluation = Evaluation(
            search, self.tree, self.policy, settings.reward, settings.processing_class, rollouts,
            settings.rollout_temperature, drawn,
        )  # fmt: skip
        self.completion_ids: list[list[int]] = [[] for _ in range(rows)]
        self.log_probs: list[list[float]] = [[] for _ in range(rows)]
        self.log_density = np.zeros(rows)
        self.steps: list[list[SearchStep]] = [[] for _ in range(rows)]
        self.active = np.ones(rows, dtype=bool)
        self.moved = False

    def run(self) -> None:
        """Grow all completions to their ends."""
        self.evaluation.begin()
        while self.active.any():
            descents, roots = self._until_models_are_needed()
            leaves = [self._leaves(descent) for descent in descents] + roots
            if not leaves:
                continue
            asked = leaves[0]
            for more in leaves[1:]:
                asked = asked.and_more(more)
            if self.moved:
                self.evaluation.keep(asked.policy_parents, asked.scorer_parents)
                self.moved = False
            values = self.evaluation.learn(asked)
            for descent in descents:
                self.tree.back_up(descent, values[: len(descent.rows)])
                values = values[len(descent.rows) :]

    def _until_models_are_needed(self) -> tuple[list[Descent], list[Leaves]]:
        """Simulate and choose tokens; gives the descents that wait for values, and new roots that wait for children."""
        tree, settings = self.tree, self.settings
        descents: list[Descent] = []
        roots: list[Leaves] = []
        waiting = np.zeros(len(self.active), dtype=np.int64)
        ready = np.flatnonzero(self.active)
        while len(ready):
            full = 1 + tree.visit_sum[tree.root[ready]] >= settings.simulations
            if full.any():
                stay = ~full
                for place in np.flatnonzero(full & (waiting[ready] == 0)):
                    root = self._choose(int(ready[place]))
                    if root is None:
                        stay[place] = self.active[ready[place]]
                    else:
                        roots.append(root)
                ready = ready[stay]
                if not len(ready):
                    break
            found = tree.descend(ready)
            if found.known.any():
                known = found if found.known.all() else found.part(found.known)
                tree.back_up(known, tree.value[known.nodes])
            if found.blocked.any():
                tree.take_back(found.part(found.blocked))
            new = ~found.known & ~found.blocked
            if new.any():
                descents.append(found if new.all() else found.part(new))
                waiting[ready[new]] += 1
            ready = ready[~found.blocked & (waiting[ready] < settings.leaves_per_wave)]
        return descents, roots

    def _leaves(self, descent: Descent) -> Leaves:
        tree = self.tree
        parents, edges = np.zeros((2, len(descent.rows)), dtype=np.int64)
        for which, nodes, chosen in descent.levels:  # the last level that a descent is in has its leaf's parent
            parents[which], edges[which] = nodes, chosen
        return Leaves(descent.nodes, tree.policy_id[parents], tree.scorer_id[parents], tree.tokens[parents, edges])

    def _choose(self, row: int) -> Leaves | None:
        """Take a prompt's next token; the new root, where the search has never been there."""
        tree = self.tree
        root = int(tree.root[row])
        token, edge, log_prob = self._drawn(row, root)
        visited = np.flatnonzero(tree.visits[root] > 0)
        self.steps[row].append(
            SearchStep(
                token,
                tree.tokens[root, visited].tolist(),
                tree.visits[root, visited].tolist(),
                tree.quality[root, visited].tolist(),
                tree.prior[root, visited].tolist(),
            )
        )
        self.completion_ids[row].append(token)
        self.log_probs[row].append(log_prob)
        self.moved = True
        depth = int(tree.depth[root]) + 1
        if depth >= self.search.length or token in self.search.ends:
            self.active[row] = False
            tree.finish(row)
            return None
        child = -1 if edge is None else int(tree.child[root, edge])
        if child >= 0:
            tree.move(row, child, self.settings.keep_subtree)
            return None
        behind = tree.policy_id[[root]].copy(), tree.scorer_id[[root]].copy()
        tokens = np.array([token])
        new = tree.make(np.array([row]), np.array([depth]), tokens)
        tree.move(row, int(new[0]), self.settings.keep_subtree)
        return Leaves(new, *behind, tokens)

    def _drawn(self, row: int, root: int) -> tuple[int, int | None, float]:
        """The next token, its edge where it has one, and its log-probability under the policy."""
        tree, settings = self.tree, self.settings
        visits = tree.visits[root]
        edge = int(visits.argmax())
        if not settings.samples:
            return int(tree.tokens[root, edge]), edge, float(tree.log_prob[root, edge])
        shares = np.zeros(len(visits))
        if settings.visit_temperature and visits.any():
            shares[:] = (visits / visits.max()) ** (1 / settings.visit_temperature)
            shares /= shares.sum()
        else:
            shares[edge] = 1.0
        assert self.uniform is not None
        by_policy, by_visits, _ = self.uniform[row, len(self.completion_ids[row])]
        share = settings.policy_share
        chosen: int | None
        if by_policy < share:
            token, log_prob = int(tree.drawn[root]), float(tree.drawn_log_prob[root])
            found = np.flatnonzero((tree.tokens[root] == token) & (tree.prior[root] > 0))
            chosen = int(found[0]) if len(found) else None
        else:
            chosen = _draw(shares, by_visits)
            token, log_prob = int(tree.tokens[root, chosen]), float(tree.log_prob[root, chosen])
        density = (1 - share) * (0.0 if chosen is None else shares[chosen]) + share * np.exp(
            log_prob - tree.log_allowed[root]
        )
        self.log_density[row] += np.log(density)
        return token, chosen, log_prob


def _draw(shares: np.ndarray, luck: float) -> int:
    """The index at `luck` in [0, 1) of the cumulative distribution; never one of share 0."""
    cumulative = shares.cumsum()
    below = min(luck * cumulative[-1], np.nextafter(cumulative[-1], 0.0))
    return int(np.searchsorted(cumulative, below, side="right"))
