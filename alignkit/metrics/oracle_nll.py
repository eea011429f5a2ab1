"""How likely the synthetic oracle finds what a generator wrote: the one task where that is known."""

import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from alignkit.errors import ConfigError
from alignkit.metrics.text_metric import TextMetric
from alignkit.models.oracle import OracleLSTM
from alignkit.text import completion_text


class OracleNLLMetric(TextMetric):
    """Negative log-likelihood of completions under the oracle whose samples the data set `oracle` has (NLL_oracle).

    Keys: `oracle_nll`, in nats per word, mean over completions; `oracle_nll_short`, the share of completions with fewer
    words than the oracle writes, which are scored as beginnings; `oracle_nll_invalid`, the share of those that it
    cannot have written (no words, too many, or others than its own), which have no likelihood and are left out. If all
    are, the figure is nan.

    It says how real each text is, not how varied they are: a generator that repeats one likely text has the lowest
    figure of all. Read it beside the perplexity of the held-out texts under the generator (NLL_gen), and self-BLEU.

    Args:
        vocabulary: words of the oracle, as the data have it.
        length: words of its texts, as the data have it.
        oracle_seed: of its weights, as the data have it.
    """

    def __init__(self, vocabulary: int = 200, length: int = 20, oracle_seed: int = 0):
        super().__init__()
        self.oracle = OracleLSTM(vocabulary, length, oracle_seed)

    def _compute(  # type: ignore[override]
        self, predictions: Sequence[str], columns: Mapping[str, list] | None = None
    ) -> dict[str, float]:
        references = [text for text in (columns or {}).get("reference", []) if text is not None]
        self._check([completion_text(text) for text in references])
        found = self.nll(predictions)
        self.row_scores = {"oracle_nll": found}
        known = [score for score in found if score is not None]
        short = [len(text.split()) < self.oracle.length for text in predictions]
        invalid = [score is None for score in found]
        return {
            "oracle_nll": statistics.fmean(known) if known else math.nan,
            "oracle_nll_short": statistics.fmean(a and not b for a, b in zip(short, invalid, strict=True)),
            "oracle_nll_invalid": statistics.fmean(invalid),
        }

    def nll(self, texts: Sequence[str]) -> list[float | None]:
        """Nats per word of each text; None where it is none of the oracle's."""
        found: list[float | None] = [None] * len(texts)
        by_length: dict[int, list[tuple[int, list[int]]]] = {}
        for place, text in enumerate(texts):
            words = self.oracle.words(text)
            if words is not None:
                by_length.setdefault(len(words), []).append((place, words))
        for own in by_length.values():
            scores = -self.oracle.log_probs(np.array([words for _, words in own])).mean(axis=1)
            for (place, _), score in zip(own, scores.tolist(), strict=True):
                found[place] = score
        return found

    def _check(self, references: list[str]) -> None:
        """Another oracle finds these texts less likely than random words are."""
        scores = self.nll(references)
        known = [score for score in scores if score is not None]
        if len(known) == len(scores) and (not known or statistics.fmean(known) < math.log(self.oracle.vocabulary)):
            return
        raise ConfigError(
            "the metric 'oracle_nll' asks an oracle that did not write the references of the data (vocabulary="
            f"{self.oracle.vocabulary}, length={self.oracle.length}, oracle_seed={self.oracle.seed}); give it the "
            "settings that the data set 'oracle' has"
        )
