"""What the metrics here share: an `evaluate.Metric` that takes text, stays in memory and needs no network."""

import re
from typing import Any

import evaluate
from datasets import Features, Value

_WORDS = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


def words(text: str) -> list[str]:
    """Lower-case words and punctuation marks, which is what n-grams are made of here.

    >>> words("It's good. Good!")
    ["it's", 'good', '.', 'good', '!']
    """
    return _WORDS.findall(text.lower())


def ngrams(tokens: list[str], n: int) -> list[tuple[str, ...]]:
    """All n-grams in order, repeats included.

    >>> ngrams(["a", "b", "c"], 2)
    [('a', 'b'), ('b', 'c')]
    """
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


class TextMetric(evaluate.Metric):
    """An `evaluate.Metric` over texts: `metric.compute(predictions=[...], prompts=[...], columns={...})`.

    A subclass writes `_compute(self, predictions, **)` and names there what else it wants: `prompts` (strings or
    message lists), `completions` (the predictions as the trainer has them: strings or message lists), `columns`
    (further columns of the data, a list each). It returns floats under keys that say what they are.

    Unlike `evaluate.load`, constructing it fetches no script, so it works offline; and it writes no cache file.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**{"keep_in_memory": True, **kwargs})

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=(type(self).__doc__ or "").strip(),
            citation="",
            inputs_description="",
            features=Features({"predictions": Value("string")}),
        )
