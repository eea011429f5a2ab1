"""Scores of beginnings, by any reward: token by token where it can, as text where it cannot."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from alignkit.compose import WeightedSum
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
        continues: whether the tokens go on from the prompts, as a causal model's do and an encoder-decoder's do not.
    """

    def __init__(
        self,
        reward: Any,
        prompts: list[Text],
        processing_class: PreTrainedTokenizerBase,
        columns: Mapping[str, list[Any]],
        continues: bool = True,
    ):
        self.continues = continues
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
        texts = self.texts(prompts, completion_ids)
        found = call_reward(self.reward, prompts, texts, columns=columns, completion_ids=completion_ids)
        scores = [scalar_score(score) for score in found]
        return [NO_OPINION if score is None else score for score in scores]

    def texts(self, prompts: list[Text], completion_ids: list[list[int]]) -> list[Text]:
        """Completions of as many prompts as text, as the reward reads them."""
        conversational = is_conversational(self.prompts[0])
        return decode_completions(
            self.processing_class, completion_ids, conversational, prompts if self.continues else None
        )


class PartsScorer:
    """A `PrefixScorer` for a sum or product of rewards, some of which read token by token.

    Args:
        reward: what combines.
        parts: a scorer for each of its rewards.
    """

    def __init__(self, reward: WeightedSum, parts: list[PrefixScorer]):
        self.reward, self.parts = reward, parts

    def extend(self, parents: Sequence[int], tokens: Sequence[int]) -> list[float]:
        """As `TextScorer.extend`."""
        found = [part.extend(parents, tokens) for part in self.parts]
        known: list[list[Any]] = [[None if score != score else score for score in scores] for scores in found]
        return [NO_OPINION if (value := scalar_score(each)) is None else value for each in self.reward.combine(known)]

    def keep(self, nodes: Sequence[int]) -> None:
        """Forgets every other node."""
        for part in self.parts:
            part.keep(nodes)


class OneEnd:
    """A `PrefixScorer` that knows one end token, for a policy that may end with others: the text is the same.

    Args:
        scorer: which knows `end`.
        ends: what ends a completion.
        end: the tokenizer's own.
    """

    def __init__(self, scorer: PrefixScorer, ends: Collection[int], end: int):
        self.scorer, self.ends, self.end = scorer, ends, end

    def extend(self, parents: Sequence[int], tokens: Sequence[int]) -> list[float]:
        """As `TextScorer.extend`."""
        return self.scorer.extend(parents, [self.end if token in self.ends else token for token in tokens])

    def keep(self, nodes: Sequence[int]) -> None:
        """Forgets every other node."""
        self.scorer.keep(nodes)


def prefix_scorer(
    reward: Any,
    prompts: list[Text],
    processing_class: PreTrainedTokenizerBase,
    columns: Mapping[str, list[Any]],
    continues: bool = True,
    ends: Collection[int] = (),
) -> PrefixScorer:
    """The reward's own scorer of beginnings where it has one for this tokenizer, else a `TextScorer`; of a weighted sum
    or product one that asks each part in its own way. `continues` as there; `ends` are the tokens that end a
    completion."""
    asked = (prompts, processing_class, columns)
    own: PrefixScorer | None = reward.begin(*asked) if isinstance(reward, PrefixReward) else None
    end = processing_class.eos_token_id
    if own is not None and end is not None and set(ends) - {end}:
        own = OneEnd(own, frozenset(ends), end)
    if own is None and isinstance(reward, WeightedSum):
        parts = [prefix_scorer(part, *asked, continues, ends) for part in reward.rewards]
        own = None if all(type(part) is TextScorer for part in parts) else PartsScorer(reward, parts)
    return TextScorer(reward, *asked, continues) if own is None else own
