"""How long completions are, in words: rewards that grow with length are the oldest way to be fooled."""

import statistics
from collections.abc import Sequence

from alignkit.metrics.text_metric import TextMetric


class LengthMetric(TextMetric):
    """Words per completion, and how many completions are empty.

    Keys: `words_mean`, `words_std` (words between spaces) and `empty`, the share of completions without a word.
    """

    def __init__(self) -> None:
        super().__init__()

    def _compute(self, predictions: Sequence[str]) -> dict[str, float]:  # type: ignore[override]
        counts = [len(text.split()) for text in predictions]
        return {
            "words_mean": statistics.fmean(counts),
            "words_std": statistics.stdev(counts) if len(counts) > 1 else 0.0,
            "empty": counts.count(0) / len(counts),
        }
