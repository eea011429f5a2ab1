"""ROUGE (Lin 2004) of completions against the data's references, by Google's rouge-score."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from alignkit.errors import MissingColumnError
from alignkit.metrics.text_metric import TextMetric
from alignkit.text import completion_text

_KINDS = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}


class RougeMetric(TextMetric):
    """Words, word pairs and the longest common subsequence that completions share with references.

    Keys: `rouge_1`, `rouge_2` and `rouge_l`, the F-measure of each, mean over completions, in [0, 1]. Of several
    references the best one counts, for each figure apart. Rows without a reference are left out.

    Args:
        column: the data column with a reference (a string, or a list of messages), or with a list of several strings,
            such as `references` of the data set scitldr.
        stemmer: whether words count as equal by their stem (Porter 1980), as papers on summarisation have it.
    """

    def __init__(self, column: str = "reference", stemmer: bool = True):
        super().__init__()
        self.column = column
        self.stemmer = stemmer

    def _compute(  # type: ignore[override]
        self, predictions: Sequence[str], columns: Mapping[str, list] | None = None
    ) -> dict[str, float]:
        from rouge_score.rouge_scorer import RougeScorer  # imports nltk, which takes seconds

        given = columns or {}
        references = [_texts(value) for value in given.get(self.column, [])]
        if not any(references):
            raise MissingColumnError(
                f"the metric 'rouge' needs a column {self.column!r} with text in it; the data has: "
                f"{', '.join(given) or 'no further columns'}. Map the column in the data, or leave the metric out"
            )
        scorer = RougeScorer(list(_KINDS.values()), use_stemmer=self.stemmer)
        found: dict[str, list[float | None]] = {key: [] for key in _KINDS}
        for text, own in zip(predictions, references, strict=True):
            best = scorer.score_multi(own, text) if own else None
            for key, kind in _KINDS.items():
                found[key].append(best[kind].fmeasure if best else None)
        self.row_scores = found
        return {key: statistics.fmean(score for score in own if score is not None) for key, own in found.items()}


def _texts(value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return value
    return [completion_text(value)]
