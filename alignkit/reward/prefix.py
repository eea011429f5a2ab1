"""Rewards that score beginnings, for decoders that search: each new token is read once, not its whole text again.

Any reward serves a search, because a beginning is text too. A reward that can remember what it has read says so with
`begin`, and is then asked token by token.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable


class PrefixScorer(Protocol):
    """Scores the nodes of a tree of tokens below B prompts.

    Nodes 0 to B - 1 are the empty completions of the prompts. Every further node is a completion that has one token
    more than its parent.
    """

    def extend(self, parents: Sequence[int], tokens: Sequence[int]) -> list[float]:
        """Adds a node below each of `parents` (one may stand there several times), numbered on from the last.

        Args:
            parents: n nodes that are still kept.
            tokens: n token ids, the end-of-sequence token among them.

        Returns:
            n scores: of the text up to this token; NaN where the reward has no opinion.
        """
        ...

    def keep(self, nodes: Sequence[int]) -> None:
        """Forgets every other node. Numbers stay what they are, and none is used twice."""
        ...


@runtime_checkable
class PrefixReward(Protocol):
    """A reward that also scores beginnings of a completion, and remembers what it has read.

    It is an ordinary reward too: `__call__` scores whole texts. For a finished completion, its end-of-sequence token
    read, the scorer's `extend` gives what `__call__` gives.

    >>> isinstance(len, PrefixReward)
    False
    """

    def begin(self, prompts: list, processing_class: Any, columns: Mapping[str, list]) -> PrefixScorer | None:
        """A scorer for completions of `prompts`.

        Args:
            prompts: B strings or message lists, as `__call__` reads them.
            processing_class: the tokenizer whose tokens the scorer will be given.
            columns: further columns of the data, B values each.

        Returns:
            None where the reward cannot read that tokenizer's tokens one at a time; the caller then scores text with
            `__call__`.
        """
        ...

    def __call__(self, prompts: list, completions: list, **columns: Any) -> list[float | None]:
        """Scores whole completions; see `alignkit.reward.Reward`."""
        ...
