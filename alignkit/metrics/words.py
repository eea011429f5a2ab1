"""Words, n-grams and what is counted of them: for metrics and rewards alike, standard library only.

What a word is, each caller says for itself: metrics count punctuation marks, as does the reward `distinct`, which is a
share of a metric; the other rewards of alignkit-rewards do not.
"""

import re
from collections import Counter
from collections.abc import Sequence

_WORDS = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


def words(text: str) -> list[str]:
    """Lower-case words and punctuation marks, which is what n-grams are made of in metrics.

    >>> words("It's good. Good!")
    ["it's", 'good', '.', 'good', '!']
    """
    return _WORDS.findall(text.lower())


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All n-grams in order, repeats included.

    >>> ngrams(["a", "b", "c"], 2)
    [('a', 'b'), ('b', 'c')]
    """
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


def repeated_share(tokens: Sequence[str], n: int) -> float | None:
    """Share of the n-grams that occurred before (seq-rep-n of Welleck et al. 2020, arXiv:1908.04319), in [0, 1).

    None for fewer than n tokens.

    >>> repeated_share(["so"] * 4, 2), repeated_share(["one", "two"], 2)
    (0.6666666666666667, 0.0)
    """
    grams = ngrams(tokens, n)
    return 1 - len(set(grams)) / len(grams) if grams else None


def shared_f1(tokens: Sequence[str], others: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over tokens, with their counts (SQuAD, Rajpurkar et al. 2016, section 6.1).

    In [0, 1]. Two empty texts agree; an empty one agrees with nothing else.

    >>> shared_f1(["the", "cat", "sat"], ["the", "cat", "lay", "down"])
    0.5714285714285714
    """
    ours, theirs = Counter(tokens), Counter(others)
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())
