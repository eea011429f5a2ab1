"""Scores of beginnings, by any reward: token by token where it can, as text where it cannot."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from alignkit.decoding.prompts import decode_completions
from alignkit.models.tree import Nodes
from alignkit.reward import PrefixReward, PrefixScorer, call_reward, scalar_score
from alignkit.text import Text, is_conversational

NO_OPINION = float("nan")


class TextScorer:
    """A `PrefixScorer` for any reward: calls it on each prompt and the text of the tokens so far, n texts at a time.

    A reward that has no opinion on a text (None) gives NaN here. Scores for each turn or token are summed. The caller
    puts rewards that learn into evaluation mode; see `alignkit.reward.in_evaluation`.

    Args:
        reward: any reward.
        prompts: B prompts as the reward reads them.
        processing_class: the tokenizer that wrote the tokens.
        columns: further columns, B values each.
    """

    def __init__(
        self,
        reward: Any,
        prompts: list[Text],
        processing_class: PreTrainedTokenizerBase,
        columns: Mapping[str, list[Any]],
    ):
        self.reward, self.prompts, self.processing_class, self.columns = reward, prompts, processing_class, columns
        self.nodes = Nodes(len(prompts), np.zeros((len(prompts), 0)))

    def extend(self, parents: Sequence[int], tokens: Sequence[int]) -> list[float]:
        """Scores of the texts that end with `tokens`, each behind one of `parents`."""
        before = self.nodes.slots(parents)
        first = self.nodes.made
        slots = self.nodes.add(before, tokens)
        ids = self.nodes.tokens_of(range(first, self.nodes.made))
        return self.scores(self.nodes.row[slots].tolist(), ids)

    def keep(self, nodes: Sequence[int]) -> None:
        """Forgets every other node."""
        self.nodes.keep(nodes)

    def scores(self, rows: Sequence[int], completion_ids: list[list[int]]) -> list[float]:
        """Scores of completions, given as token ids, of the prompts `rows`."""
        prompts = [self.prompts[row] for row in rows]
        columns = {name: [values[row] for row in rows] for name, values in self.columns.items()}
        texts = decode_completions(self.processing_class, completion_ids, is_conversational(self.prompts[0]))
        found = call_reward(self.reward, prompts, texts, columns=columns, completion_ids=completion_ids)
        scores = [scalar_score(score) for score in found]
        return [NO_OPINION if score is None else score for score in scores]


def prefix_scorer(
    reward: Any, prompts: list[Text], processing_class: PreTrainedTokenizerBase, columns: Mapping[str, list[Any]]
) -> PrefixScorer:
    """The reward's own scorer of beginnings where it has one for this tokenizer, else a `TextScorer`."""
    own = reward.begin(prompts, processing_class, columns) if isinstance(reward, PrefixReward) else None
    return TextScorer(reward, prompts, processing_class, columns) if own is None else own
