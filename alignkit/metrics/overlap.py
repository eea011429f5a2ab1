"""How much completions share with the reference texts of the data."""

from collections.abc import Mapping, Sequence

from sacrebleu.metrics import BLEU

from alignkit.errors import MissingColumnError
from alignkit.metrics.text_metric import TextMetric
from alignkit.metrics.words import shared_f1, words
from alignkit.text import completion_text


def token_f1(text: str, reference: str) -> float:
    """Harmonic mean of precision and recall over words, with their counts (as in SQuAD, arXiv:1606.05250).

    >>> token_f1("the cat sat", "the cat lay down")
    0.5714285714285714
    """
    return shared_f1(words(text), words(reference))


class OverlapMetric(TextMetric):
    """BLEU and word F1 of each completion against the reference in the data.

    Keys: `bleu` (corpus BLEU-4 of sacrebleu) and `f1` (mean over completions), both in [0, 1]. Rows without a
    reference are left out.

    Args:
        column: the data column with the reference, a string or a list of messages.
    """

    def __init__(self, column: str = "reference"):
        super().__init__()
        self.column = column

    def _compute(  # type: ignore[override]
        self, predictions: Sequence[str], columns: Mapping[str, list] | None = None
    ) -> dict[str, float]:
        given = columns or {}
        pairs = [
            (text, completion_text(reference))
            for text, reference in zip(predictions, given.get(self.column, []), strict=self.column in given)
            if reference is not None
        ]
        if not pairs:
            raise MissingColumnError(
                f"the metric 'overlap' needs a column {self.column!r} with text in it; the data has: "
                f"{', '.join(given) or 'no further columns'}. Map the column in the data, or leave the metric out"
            )
        texts, references = [text for text, _ in pairs], [reference for _, reference in pairs]
        return {
            # sacrebleu's 100 may be a hair above 100
            "bleu": min(BLEU().corpus_score(texts, [references]).score / 100, 1.0),
            "f1": sum(token_f1(text, reference) for text, reference in pairs) / len(pairs),
        }
