"""A penalty for saying the same again."""

from typing import Any

from alignkit.errors import RewardError
from alignkit.metrics.words import repeated_share
from alignkit.text import completion_text
from alignkit_rewards.words import words


class Repetition:
    """Minus the share of a completion's word n-grams that occurred in it before.

    Range: (-1, 0]; 0 when nothing repeats, and for completions shorter than n words. It is the repetition penalty of
    "Demystifying Long Chain-of-Thought Reasoning in LLMs" (Yeo et al., 2025, appendix C.2), on words instead of tokens.

    Args:
        n: words that must repeat in a row.

    >>> Repetition(n=2)(prompts=["", ""], completions=["so good so good so good", "fine"])
    [-0.6, 0.0]
    """

    __name__ = "repetition"

    def __init__(self, n: int = 3):
        if n < 1:
            raise RewardError(f"repetition: n is at least 1, got {n}")
        self.n = n

    def __call__(self, prompts: list, completions: list, **columns: Any) -> list[float]:
        """One penalty for each completion."""
        return [self._penalty(words(completion_text(completion))) for completion in completions]

    def _penalty(self, text: list[str]) -> float:
        return 0.0 - (repeated_share(text, self.n) or 0.0)
