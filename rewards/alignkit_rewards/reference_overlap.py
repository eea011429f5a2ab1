"""How many of a completion's words the reference has too."""

from typing import Any

from alignkit.errors import RewardError
from alignkit.metrics.words import shared_f1
from alignkit.text import completion_text
from alignkit_rewards.words import references, words

MEASURES = ("f1", "bleu")


class ReferenceOverlap:
    """Overlap of a completion with the reference: F1 of the words, or sentence BLEU.

    Range: [0, 1]. With several references F1 takes the best, BLEU all together. Rows without a reference have None.
    F1 is that of SQuAD (Rajpurkar et al., 2016, section 6.1), words being what `words` says; BLEU is sacrebleu's
    sentence BLEU, as a share instead of a percentage.

    Args:
        measure: "f1" or "bleu".
        column: the column of the data that has the reference: a text, messages, or a list of either.

    >>> ReferenceOverlap()(prompts=["Who?"], completions=["the old man"], reference=["an old man"])
    [0.6666666666666666]
    """

    __name__ = "reference_overlap"

    def __init__(self, measure: str = "f1", column: str = "reference"):
        if measure not in MEASURES:
            raise RewardError(f"reference_overlap: measure is one of {', '.join(MEASURES)}; got {measure!r}")
        self.measure, self.column = measure, column

    @property
    def required_columns(self) -> list[str]:
        """The column with the references."""
        return [self.column]

    def __call__(self, prompts: list, completions: list, **columns: Any) -> list[float | None]:
        """One share for each completion."""
        score = _f1 if self.measure == "f1" else _bleu
        scores: list[float | None] = []
        for completion, value in zip(completions, columns[self.column], strict=True):
            texts = references(value)
            scores.append(score(completion_text(completion), texts) if texts else None)
        return scores


def _f1(text: str, texts: list[str]) -> float:
    own = words(text)
    return max(shared_f1(own, words(other)) for other in texts)


def _bleu(text: str, texts: list[str]) -> float:
    import sacrebleu

    return min(1.0, sacrebleu.sentence_bleu(text, texts).score / 100)
