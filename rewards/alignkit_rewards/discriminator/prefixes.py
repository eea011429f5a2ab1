"""A causal discriminator as a scorer of beginnings: every token is read once, whatever branches off behind it."""

from collections.abc import Sequence
from typing import Any

import torch

from alignkit.decoding.prefix_scores import NO_OPINION, TextScorer
from alignkit.decoding.prompts import pad_left
from alignkit_rewards.discriminator.texts import Reader


class DiscriminatorPrefixes:
    """Scores the nodes of a tree of tokens; see `alignkit.reward.PrefixScorer`.

    A completion that has more tokens than the discriminator reads keeps the score of what it has read, which is what
    the whole text gets too.

    Args:
        reader: of a causal discriminator.
        prompts: B prompts as token ids.
        tree: makes a reader of trees from a model, (B, P) prompts padded on the left, and their mask;
            `alignkit.models.tree.TreeReader.of` or another with its methods.
    """

    def __init__(self, reader: Reader, prompts: Sequence[list[int]], tree: Any):
        self.reader = reader
        self._rooms = [reader.room(len(prompt)) for prompt in prompts]
        self._depth = dict.fromkeys(range(len(prompts)), 0)
        self._row = dict(enumerate(range(len(prompts))))
        self._place = dict(enumerate(range(len(prompts))))  # of a node in the tree; several share one behind the limit
        self._score: dict[int, float] = {}
        self._made = self._read = len(prompts)
        ids, mask = pad_left(list(prompts), reader.tokenizer.pad_token_id, reader.model.device)
        with torch.inference_mode(), reader.precision():
            self.tree = tree(reader.model, ids, mask)

    def extend(self, parents: Sequence[int], tokens: Sequence[int]) -> list[float]:
        """Reads `tokens[i]` behind node `parents[i]`; the probability at it that a person wrote the text so far."""
        parents = [int(parent) for parent in parents]
        first = self._made
        self._made += len(parents)
        fresh = []
        for node, parent in enumerate(parents, first):
            self._depth[node], self._row[node] = self._depth[parent] + 1, self._row[parent]
            if self._depth[node] <= self._rooms[self._row[node]]:
                fresh.append(node)
            else:
                self._place[node], self._score[node] = self._place[parent], self._score[parent]
        if fresh:
            behind = [self._place[parents[node - first]] for node in fresh]
            with torch.inference_mode(), self.reader.precision():
                logits = self.tree.extend(behind, [int(tokens[node - first]) for node in fresh])
            scores = probabilities(logits[:, 0].cpu().double())
            for node, score in zip(fresh, scores, strict=True):
                self._place[node], self._score[node] = self._read, score
                self._read += 1
        return [self._score[node] for node in range(first, self._made)]

    def keep(self, nodes: Sequence[int]) -> None:
        """Forgets every other node."""
        kept = [int(node) for node in nodes]
        for known in (self._depth, self._row, self._place, self._score):
            values = {node: known[node] for node in kept if node in known}
            known.clear()
            known.update(values)  # type: ignore[arg-type]
        self.tree.keep(sorted(set(self._place.values())))


class TextBeginnings(TextScorer):
    """A causal discriminator as a scorer of beginnings that a policy with other tokens writes: each is tokenised and
    read anew, without an end token before the policy has written its own.

    Args:
        reward: the `Discriminator`.
        prompts, processing_class, columns: see `alignkit.decoding.prefix_scores.TextScorer`.
    """

    def scores(self, rows: Sequence[int], completion_ids: list[list[int]]) -> list[float]:
        """Probabilities for completions, given as the policy's token ids, of the prompts `rows`."""
        end = self.processing_class.eos_token_id
        prompts = [self.prompts[row] for row in rows]
        texts = self.texts(prompts, completion_ids)
        reader = self.reward.learner().reader
        ended = [bool(ids) and ids[-1] == end for ids in completion_ids]
        odds = reader.log_odds(reader.encode(prompts, texts, ended))
        return [NO_OPINION if value != value else score for value, score in zip(odds, probabilities(odds), strict=True)]


def probabilities(log_odds: torch.Tensor) -> list[float]:
    """Of (B,) log-odds in float64; never 0 or 1, so that their logarithms exist.

    >>> probabilities(torch.tensor([0.0, 800.0], dtype=torch.float64))
    [0.5, 0.9999999999999999]
    """
    limits = torch.finfo(torch.float64)
    return log_odds.sigmoid().clamp(limits.tiny, 1 - limits.eps / 2).tolist()
