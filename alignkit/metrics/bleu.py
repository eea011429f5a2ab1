"""BLEU against many references, and of generated texts against each other, as Texygen has them (arXiv:1802.01886).

Both are means over texts of the smoothed BLEU of one text (Papineni et al. 2002; Chen and Cherry 2014, method 1: where
no n-gram matches, 0.1 of one does). N-grams of the references are counted once, whatever the number of texts.
"""

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence

from alignkit.errors import MissingColumnError
from alignkit.metrics.text_metric import TextMetric
from alignkit.metrics.words import ngrams, words
from alignkit.text import completion_text

ORDERS = (2, 3, 4, 5)
_LONGEST = max(ORDERS)
_EPSILON = 0.1


class References:
    """Texts that others are held against; counted when made, so that a text costs no more than its own length.

    Args:
        texts: as words.
    """

    def __init__(self, texts: Sequence[Sequence[str]]):
        self.lengths = Counter(len(text) for text in texts)
        # n-gram -> the highest count that a text has, that text, and the highest count among the others
        self.counts: dict[tuple[str, ...], tuple[int, int, int]] = {}
        for place, text in enumerate(texts):
            for n in range(1, _LONGEST + 1):
                for gram, count in Counter(ngrams(text, n)).items():
                    best, holder, second = self.counts.get(gram, (0, -1, 0))
                    known = (count, place, best) if count > best else (best, holder, max(second, count))
                    self.counts[gram] = known

    def bleu(self, text: Sequence[str], own: int | None = None) -> list[float]:
        """BLEU-2 to BLEU-5 of a text, each in [0, 1].

        Args:
            text: as words.
            own: the text's place among the references, where it is one of them: it is not held against itself.
        """
        logs = []
        for n in range(1, _LONGEST + 1):
            counts = Counter(ngrams(text, n))
            matched = sum(min(count, self._limit(gram, own)) for gram, count in counts.items())
            if n == 1 and not matched:
                return [0.0] * len(ORDERS)
            logs.append(math.log((matched or _EPSILON) / max(counts.total(), 1)))
        penalty = min(0.0, 1 - self._nearest(len(text), own) / len(text))
        return [math.exp(penalty + sum(logs[:order]) / order) for order in ORDERS]

    def _limit(self, gram: tuple[str, ...], own: int | None) -> int:
        best, holder, second = self.counts.get(gram, (0, -1, 0))
        return second if holder == own else best

    def _nearest(self, length: int, own: int | None) -> int:
        """The length of a reference that is nearest; of two, the shorter one."""
        others = (other for other, count in self.lengths.items() if count > (own is not None and other == length))
        return min(others, key=lambda other: (abs(other - length), other))


def _means(scores: Sequence[Sequence[float]], name: str) -> dict[str, float]:
    columns = list(zip(*scores, strict=True))
    return {f"{name}_{order}": sum(column) / len(column) for order, column in zip(ORDERS, columns, strict=True)}


class BleuMetric(TextMetric):
    """How much of the completions' n-grams real texts have: fluency, where any real text is as good as another.

    Each completion is held against the references of all rows. Keys: `bleu_2` to `bleu_5`, means over completions, in
    [0, 1]. They grow with the number of references, so compare figures of one held-out set. For completions that have a
    reference of their own there is `overlap`.

    Args:
        column: the data column with the references.
    """

    def __init__(self, column: str = "reference"):
        super().__init__()
        self.column = column

    def _compute(  # type: ignore[override]
        self, predictions: Sequence[str], columns: Mapping[str, list] | None = None
    ) -> dict[str, float]:
        given = columns or {}
        texts = {completion_text(value) for value in given.get(self.column, []) if value is not None}
        if not texts:
            raise MissingColumnError(
                f"the metric 'bleu' needs a column {self.column!r} with text in it; the data has: "
                f"{', '.join(given) or 'no further columns'}. Map the column in the data, or leave the metric out"
            )
        references = References([words(text) for text in sorted(texts)])
        scores = [references.bleu(words(text)) for text in predictions]
        self.row_scores = {
            f"bleu_{order}": list(each) for order, each in zip(ORDERS, zip(*scores, strict=True), strict=True)
        }
        return _means(scores, "bleu")


class SelfBleuMetric(TextMetric):
    """How alike completions are: each is held against the others, by the BLEU of `bleu`.

    Keys: `self_bleu_2` to `self_bleu_5`, in [0, 1]; 1 means that all say the same. They grow with the number of texts,
    so compare sets of one size. (`self_bleu` of `diversity` is sacrebleu's BLEU-4 on fewer texts.)

    Args:
        samples: a random choice of at most this many completions is used, each held against the others in it.
        seed: of that choice.
    """

    def __init__(self, samples: int = 500, seed: int = 0):
        super().__init__()
        self.samples = samples
        self.choice_seed = seed

    def _compute(self, predictions: Sequence[str]) -> dict[str, float]:  # type: ignore[override]
        texts = [words(text) for text in predictions]
        if len(texts) > self.samples:
            texts = random.Random(self.choice_seed).sample(texts, self.samples)
        if len(texts) < 2:
            return {f"self_bleu_{order}": 0.0 for order in ORDERS}
        references = References(texts)
        return _means([references.bleu(text, own=place) for place, text in enumerate(texts)], "self_bleu")
