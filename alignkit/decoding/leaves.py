"""What a tree search learns of a new node: the policy's likeliest next tokens, and a value by the reward."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from alignkit.compose import WeightedSum
from alignkit.decoding.policy_tree import NextTokens, PolicyTree, Search
from alignkit.decoding.prefix_scores import TextScorer, prefix_scorer
from alignkit.decoding.sampling import draw
from alignkit.decoding.search_tree import SearchTree
from alignkit.decoding.warn_once import Once
from alignkit.reward import reward_name

logger = logging.getLogger(__name__)
_once = Once(logger)


def _say_that_values_are_out_of_range(reward: Any, values: np.ndarray) -> None:
    """Once for each reward and side."""
    name, low, high = reward_name(reward), float(np.nanmin(values)), float(np.nanmax(values))
    advice = f"Bend the reward into 0 to 1, by {{use: squash, reward: {name}, kind: sigmoid}}"
    if isinstance(reward, WeightedSum):
        parts = ", ".join(map(reward_name, reward.rewards))
        advice = (
            f"Bend those of its rewards ({parts}) that leave 0 to 1, by {{use: squash, reward: ..., kind: sigmoid}}"
        )
    advice += " or alignkit.compose.Squash(reward, 'sigmoid')"
    if low < 0:
        _once.warn(
            (name, "low"),
            "reward %r gave %.4g, and a child that was never visited counts 0: below 0 the search turns away from what "
            "it knows. %s",
            name, low, advice,
        )  # fmt: skip
    if high > 1:
        _once.warn(
            (name, "high"),
            "reward %r gave %.4g: above 1 values outweigh the policy's prior, and the first good child is never left. "
            "%s, or raise exploration as far",
            name, high, advice,
        )  # fmt: skip


@dataclass
class Leaves:
    """n nodes to learn about, each behind the node of another number in the readers of policy and reward.

    Attributes:
        nodes: (n,) in the search tree.
        policy_parents, scorer_parents: (n,) numbers of the nodes before them.
        tokens: (n,) their last tokens.
    """

    nodes: np.ndarray
    policy_parents: np.ndarray
    scorer_parents: np.ndarray
    tokens: np.ndarray

    def and_more(self, other: "Leaves") -> "Leaves":
        """Both together."""
        return Leaves(*(np.concatenate([getattr(self, key), getattr(other, key)]) for key in vars(self)))


class Evaluation:
    """Evaluates nodes of a `SearchTree`, those of all prompts in one forward of the policy and one call of the reward.

    Args:
        search: what is searched for.
        tree: where what is learnt is written.
        policy: reads the policy.
        reward: any reward.
        processing_class: the tokenizer.
        rollouts: whether a node's value is the reward of its completion by the policy, not of its own text.
        rollout_temperature: of these completions; 0 takes the likeliest token.
        uniform: (B, T) numbers in [0, 1) by which a token of the policy is drawn at every node, one for each depth;
            None where no such token is wanted.
    """

    def __init__(
        self,
        search: Search,
        tree: SearchTree,
        policy: PolicyTree,
        reward: Any,
        processing_class: Any,
        rollouts: bool,
        rollout_temperature: float,
        uniform: np.ndarray | None,
    ):
        self.search, self.tree, self.policy, self.uniform = search, tree, policy, uniform
        self.rollout_temperature = rollout_temperature
        self.reward = reward
        asked = (reward, search.prompts, processing_class, search.columns, search.behind is not None)
        self.whole = TextScorer(*asked) if rollouts else None
        self.scorer = None if rollouts else prefix_scorer(*asked, search.ends)
        self.scored = len(search.prompts)  # nodes of the scorer
        self.calls = 0

    def begin(self) -> None:
        """Make and expand the roots: the empty completions."""
        rows = np.arange(len(self.search.prompts))
        roots = self.tree.make(rows, np.zeros_like(rows), np.full_like(rows, -1))
        self.tree.root[rows] = roots
        self.tree.policy_id[roots] = self.tree.scorer_id[roots] = rows
        self._expand(roots, self.policy.begin())

    def learn(self, leaves: Leaves) -> np.ndarray:
        """The values (n,) of new nodes; those that do not end their text get children.

        No opinion of the reward (NaN) becomes 0, the value that a child has before it is visited.
        """
        self.calls += 1
        tree = self.tree
        values = np.zeros(len(leaves.nodes))
        if self.scorer is not None:
            read = self.scorer.extend(leaves.scorer_parents.tolist(), leaves.tokens.tolist())
            values = np.asarray(read, dtype=np.float64)
            tree.scorer_id[leaves.nodes] = np.arange(self.scored, self.scored + len(values))
            self.scored += len(values)
        on = ~tree.terminal[leaves.nodes]
        begun = self.policy.made
        tree.policy_id[leaves.nodes[on]] = np.arange(begun, begun + on.sum())
        scores = torch.empty(0)
        if on.any():
            found = self.policy.extend(leaves.policy_parents[on], leaves.tokens[on])
            scores = found.scores
            self._expand(leaves.nodes[on], found)
        if self.whole is not None:
            values = self._rollouts(leaves, on, scores)
        if ((values < 0) | (values > 1)).any():
            _say_that_values_are_out_of_range(self.reward, values)
        values = np.where(np.isnan(values), 0.0, values)
        tree.value[leaves.nodes[~on]] = values[~on]  # only an end of a text is ever come to again
        return values

    def keep(self, policy_parents: np.ndarray, scorer_parents: np.ndarray) -> None:
        """Forget, in both readers, all but the search tree's growing nodes and these."""
        alive = self.tree.growing()
        self.policy.keep(np.union1d(self.tree.policy_id[alive], policy_parents))
        if self.scorer is not None:
            self.scorer.keep(np.union1d(self.tree.scorer_id[alive], scorer_parents).tolist())

    def _expand(self, nodes: np.ndarray, following: NextTokens) -> None:
        tree, (logits, scores, allowed) = self.tree, following
        width = min(tree.tokens.shape[1], scores.shape[1])
        top, tokens = scores.softmax(-1).topk(width)
        log_prob = logits.gather(1, tokens) - logits.logsumexp(-1, keepdim=True)
        prior = np.zeros((len(nodes), tree.tokens.shape[1]))
        prior[:, :width] = top.double().cpu().numpy()
        prior /= prior.sum(1, keepdims=True)
        more = prior.shape[1] - width
        tree.expand(
            nodes,
            np.pad(tokens.cpu().numpy(), ((0, 0), (0, more))),
            prior,
            np.pad(log_prob.double().cpu().numpy(), ((0, 0), (0, more))),
        )
        if self.uniform is not None:
            luck = torch.from_numpy(self.uniform[tree.owner[nodes], tree.depth[nodes]]).to(logits.device)
            drawn = draw(allowed.softmax(-1), luck)
            all_tokens = logits.logsumexp(-1)
            tree.drawn[nodes] = drawn.cpu().numpy()
            plain = logits.gather(1, drawn[:, None])[:, 0] - all_tokens
            tree.drawn_log_prob[nodes] = plain.double().cpu().numpy()
            tree.log_allowed[nodes] = (allowed.logsumexp(-1) - all_tokens).double().cpu().numpy()

    def _rollouts(self, leaves: Leaves, on: np.ndarray, scores: torch.Tensor) -> np.ndarray:
        """Rewards of the leaves' texts, those that have not ended completed by the policy."""
        assert self.whole is not None
        tree = self.tree
        rows, depths = tree.owner[leaves.nodes], tree.depth[leaves.nodes]
        before = self.policy.reader.nodes.tokens_of(leaves.policy_parents)
        texts = [[*text, int(token)] for text, token in zip(before, leaves.tokens, strict=True)]
        alive, at = np.flatnonzero(on), tree.policy_id[leaves.nodes[on]]
        while len(alive):
            if self.rollout_temperature:
                tokens = draw((scores / self.rollout_temperature).softmax(-1)).cpu().numpy()
            else:
                tokens = scores.argmax(-1).cpu().numpy()
            for place, token in zip(alive, tokens, strict=True):
                texts[place].append(int(token))
            depths[alive] += 1
            ends = np.isin(tokens, tree.ends) | (depths[alive] >= tree.length)
            alive, at, tokens = alive[~ends], at[~ends], tokens[~ends]
            if len(alive):
                begun = self.policy.made
                scores = self.policy.extend(at, tokens).scores
                at = np.arange(begun, begun + len(alive))
        if on.any():
            self.policy.keep(np.union1d(tree.policy_id[tree.growing()], leaves.policy_parents))
        return np.asarray(self.whole.scores(rows.tolist(), texts), dtype=np.float64)
