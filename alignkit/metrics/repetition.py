"""How much a text repeats itself: loops are what a language model falls into when a reward pushes too hard."""

from collections.abc import Sequence

from alignkit.metrics.text_metric import TextMetric
from alignkit.metrics.words import repeated_share, words


def repetition(text: str, n: int = 3) -> float | None:
    """Share of a text's n-grams that occurred in it before (seq-rep-n of Welleck et al. 2020, arXiv:1908.04319).

    None for a text with fewer than n words.

    >>> repetition("so so so so", 2), repetition("one two three", 2)
    (0.6666666666666667, 0.0)
    """
    return repeated_share(words(text), n)


class RepetitionMetric(TextMetric):
    """Repetition within each completion.

    Keys: `repetition`, the mean share of repeated n-grams, and `looping`, the share of completions of which more than
    half is repetition. Completions with fewer than n words are left out of both.

    Args:
        n: length of the n-grams in words.
    """

    def __init__(self, n: int = 3):
        super().__init__()
        self.n = n

    def _compute(self, predictions: Sequence[str]) -> dict[str, float]:  # type: ignore[override]
        shares = [share for share in (repetition(text, self.n) for text in predictions) if share is not None]
        count = max(len(shares), 1)
        return {"repetition": sum(shares) / count, "looping": sum(share > 0.5 for share in shares) / count}
