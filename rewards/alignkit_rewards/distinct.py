"""A reward for saying what the policy does not say to everybody."""

from collections import Counter, deque
from typing import Any

from alignkit.errors import RewardError
from alignkit.metrics.words import ngrams, words
from alignkit.reward import LearnedReward
from alignkit.text import completion_text

_Gram = tuple[str, ...]


class Distinct(LearnedReward):
    """How much of a completion's word n-grams is its own, among what the policy wrote of late.

    Range: [0, 1]. With the completion put among the latest ones, an n-gram that then occurs c times there counts 1/c,
    and the score is the mean over the completion's n-grams: near 0 for what the policy tells everybody, 1 for what it
    said to nobody else. Where each of a set of texts is scored among all the others, and none is shorter than n words,
    the mean of the scores, each text weighted by its number of n-grams, is exactly distinct-n (Li et al. 2016,
    arXiv:1510.03055). Words and punctuation marks are those of the metric `diversity`.

    It learns in training: after each step it takes the step's completions, those of all processes in their order, among
    the latest and forgets the oldest. Before, nothing is known of the policy, and only what a completion says twice
    counts against it: a mean reward before training does not compare with one after it. A completion of fewer than n
    words counts as one n-gram, an empty one has 0.

    `update` logs `distinct`, distinct-n of the latest completions.

    Args:
        n: words in a row.
        window: so many completions are remembered.

    Raises:
        RewardError: n or window is no whole number of 1 or more.

    >>> reward = Distinct(n=2, window=2)
    >>> _ = reward.update(["", ""], ["that is nice", "that is new"], [None, None])
    >>> reward(prompts=["", ""], completions=["that is nice", "oh no"])
    [0.41666666666666663, 1.0]
    """

    __name__ = "distinct"

    def __init__(self, n: int = 2, window: int = 512):
        for name, value in (("n", n), ("window", window)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise RewardError(f"distinct: {name} is a whole number of 1 or more, got {value!r}")
        self.n, self.window = n, window
        self._latest: deque[str] = deque()
        self._counts: Counter[_Gram] = Counter()

    def __call__(self, prompts: list, completions: list, **columns: Any) -> list[float | None]:
        """One score for each completion, whatever stands beside it."""
        return [self._score(Counter(self._grams(completion_text(completion)))) for completion in completions]

    def update(self, prompts: list, completions: list, references: list) -> dict[str, float]:
        """Take completions among the latest; returns `distinct` of these."""
        for completion in completions:
            self._latest.append(completion_text(completion))
            self._counts.update(self._grams(self._latest[-1]))
            if len(self._latest) > self.window:
                self._forget(self._latest.popleft())
        total = self._counts.total()
        return {"distinct": len(self._counts) / total if total else 0.0}

    def state_dict(self) -> dict[str, Any]:
        """The latest completions, oldest first."""
        return {"latest": list(self._latest)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._latest, self._counts = deque(), Counter()
        self.update([], state["latest"], [])

    def _grams(self, text: str) -> list[_Gram]:
        said = words(text)
        return ngrams(said, min(self.n, len(said))) if said else []

    def _score(self, own: Counter[_Gram]) -> float:
        shares = sum(times / (times + self._counts[gram]) for gram, times in own.items())
        return shares / own.total() if own else 0.0

    def _forget(self, text: str) -> None:
        for gram in self._grams(text):
            self._counts[gram] -= 1
            if not self._counts[gram]:
                del self._counts[gram]
