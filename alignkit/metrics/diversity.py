"""How varied a set of texts is: a policy that found one good answer repeats it, and these figures show it."""

import math
import random
from collections import Counter
from collections.abc import Sequence

from sacrebleu.metrics import BLEU

from alignkit.metrics.text_metric import TextMetric
from alignkit.metrics.words import ngrams, words


def distinct(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams as a share of all n-grams in the texts together (Li et al. 2016, arXiv:1510.03055).

    The share falls as text gets longer, so compare sets of like size. 0.0 where no text has n words.

    >>> distinct(["a b", "a b"], 1), distinct(["a b", "a b"], 2)
    (0.5, 0.5)
    """
    grams = [gram for text in texts for gram in ngrams(words(text), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def distinct_of(texts: Sequence[str], n: int, draws: int = 1000) -> float:
    """Distinct n-grams as a share of so many n-grams, drawn at random from all of the texts together.

    The expectation of such a draw without replacement, exactly (rarefaction: Hurlbert 1971), so that sets of texts of
    unequal length compare. With fewer n-grams than `draws` it is the share among all, as `distinct`.

    >>> distinct_of(["a a a b"], 1, draws=2), distinct_of(["a b c"], 1, draws=2)
    (0.75, 1.0)
    """
    counts = Counter(gram for text in texts for gram in ngrams(words(text), n))
    total = counts.total()
    if not total:
        return 0.0
    drawn = min(draws, total)
    found = 0.0
    for count, kinds in Counter(counts.values()).items():
        few, many = sorted((count, drawn))
        # the chance that no draw is this n-gram, C(total - count, drawn) / C(total, drawn), as a product of few factors
        missed = sum(math.log1p(-many / (total - i)) for i in range(few)) if count + drawn <= total else -math.inf
        found -= kinds * math.expm1(missed)
    return found / drawn


def self_bleu(texts: Sequence[str], samples: int = 100, seed: int = 0) -> float:
    """Mean BLEU-4 of each text with all the others as its references, in [0, 1] (Zhu et al. 2018, arXiv:1802.01886).

    1 means that all texts are the same. It grows with the number of texts, so compare sets of one size.

    Args:
        texts: at least two; of fewer, 0.0.
        samples: a random choice of this many texts is used, because the cost grows with the square.
        seed: of that choice.
    """
    chosen = list(texts)
    if len(chosen) > samples:
        chosen = random.Random(seed).sample(chosen, samples)
    if len(chosen) < 2:
        return 0.0
    bleu = BLEU(lowercase=True, effective_order=True)
    scores = [bleu.sentence_score(text, chosen[:i] + chosen[i + 1 :]).score for i, text in enumerate(chosen)]
    # sacrebleu's 100 may be a hair above 100
    return min(sum(scores) / len(scores) / 100, 1.0)


def duplicates(texts: Sequence[str]) -> float:
    """Share of texts that repeat an earlier one, word for word but for case and spaces.

    >>> duplicates(["Good film.", "good  film."])
    0.5
    """
    different = {" ".join(text.lower().split()) for text in texts}
    return (len(texts) - len(different)) / len(texts) if texts else 0.0


class DiversityMetric(TextMetric):
    """Distinct 1-, 2- and 3-grams, self-BLEU and duplicates among the completions.

    Keys: `distinct_1`, `distinct_2`, `distinct_3`, `distinct_2_of_1000`, `self_bleu`, `duplicates`, all in [0, 1].

    Args:
        samples: self-BLEU is computed on a random choice of at most this many completions.
        seed: of that choice.
    """

    def __init__(self, samples: int = 100, seed: int = 0):
        super().__init__()
        self.samples = samples
        self.choice_seed = seed

    def _compute(self, predictions: Sequence[str]) -> dict[str, float]:  # type: ignore[override]
        texts = list(predictions)
        return {
            **{f"distinct_{n}": distinct(texts, n) for n in (1, 2, 3)},
            "distinct_2_of_1000": distinct_of(texts, 2),
            "self_bleu": self_bleu(texts, self.samples, self.choice_seed),
            "duplicates": duplicates(texts),
        }
