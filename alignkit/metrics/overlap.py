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

    Keys: `bleu` (corpus BLEU-4 of sacrebleu), `sentence_bleu` and `f1` (means over completions, so that systems compare
    prompt by prompt), all in [0, 1]. Rows without a reference are left out.

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
        kept = [place for place, reference in enumerate(given.get(self.column, [])) if reference is not None]
        if not kept:
            raise MissingColumnError(
                f"the metric 'overlap' needs a column {self.column!r} with text in it; the data has: "
                f"{', '.join(given) or 'no further columns'}. Map the column in the data, or leave the metric out"
            )
        texts = [predictions[place] for place in kept]
        references = [completion_text(given[self.column][place]) for place in kept]
        one_text = BLEU(effective_order=True)
        each = {
            "sentence_bleu": [
                min(one_text.sentence_score(text, [reference]).score / 100, 1.0)
                for text, reference in zip(texts, references, strict=True)
            ],
            "f1": [token_f1(text, reference) for text, reference in zip(texts, references, strict=True)],
        }
        for key, scores in each.items():
            found: list[float | None] = [None] * len(predictions)
            for place, score in zip(kept, scores, strict=True):
                found[place] = score
            self.row_scores[key] = found
        return {
            # sacrebleu's 100 may be a hair above 100
            "bleu": min(BLEU().corpus_score(texts, [references]).score / 100, 1.0),
            **{key: sum(scores) / len(scores) for key, scores in each.items()},
        }
