"""Can a fresh classifier tell completions from what people wrote? A classifier two-sample test."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from alignkit.errors import ConfigError, MissingColumnError
from alignkit.metrics.text_metric import TextMetric
from alignkit.models.loading import load_classifier
from alignkit.models.pooled_classifier import mean_of_tokens
from alignkit.text import completion_text


class TwoSampleMetric(TextMetric):
    """How well a new classifier tells the completions from the references of the data ("Revisiting classifier
    two-sample tests", Lopez-Paz and Oquab 2017, arXiv:1610.06545).

    Key: `<name>`, the area under the ROC curve of a logistic regression on the mean states of an encoder that stays as
    it is, every text judged by one of `folds` regressions that have not seen it: 0.5 where nobody could tell, 1 where
    anybody can. Unlike BLEU against self-BLEU it does not fall with the temperature alone, and unlike the score of a
    discriminator that was trained along it owes nothing to the training. It needs as many texts as references, some
    hundred of each, and figures compare at one number of texts.

    Args:
        model: an encoder, as a folder or hub id; best another one than the discriminator's.
        name: for the key.
        column: the data column with the references.
        folds: parts of the texts; each is judged by a regression on the others.
        strength: inverse of the regression's L2 penalty, on states of unit variance.
        batch_size: texts read at a time.
        max_length: tokens of a text.
        seed: of the folds.
    """

    def __init__(
        self,
        model: str | os.PathLike | None = None,
        name: str = "two_sample",
        column: str = "reference",
        folds: int = 5,
        strength: float = 0.01,
        batch_size: int = 64,
        max_length: int = 128,
        seed: int = 0,
    ):
        super().__init__()
        self.model, self.key, self.column = model, name, column
        self.folds, self.strength, self.fold_seed = folds, strength, seed
        self.batch_size, self.max_length = batch_size, max_length
        self._reader: Any = None
        self._read: dict[tuple[str, ...], np.ndarray] = {}

    def _compute(  # type: ignore[override]
        self, predictions: Sequence[str], columns: Mapping[str, list] | None = None
    ) -> dict[str, float]:
        given = columns or {}
        people = [completion_text(text) for text in given.get(self.column, []) if text is not None]
        if not people:
            raise MissingColumnError(
                f"the metric 'two_sample' needs a column {self.column!r} with text in it; the data has: "
                f"{', '.join(given) or 'no further columns'}. Map the column in the data, or leave the metric out"
            )
        fewest = min(len(predictions), len(people))
        if fewest < self.folds:
            raise ConfigError(
                f"the metric 'two_sample' has {len(predictions)} completions and {len(people)} references for "
                f"{self.folds} folds; give it at least that many of each (evaluation.prompts), better some hundred"
            )
        states = np.concatenate([self._states(predictions), self._of_people(tuple(people))])
        labels = np.repeat([0, 1], [len(predictions), len(people)])
        regression = make_pipeline(StandardScaler(), LogisticRegression(C=self.strength, max_iter=1000))
        folds = StratifiedKFold(self.folds, shuffle=True, random_state=self.fold_seed)
        found = cross_val_predict(regression, states, labels, cv=folds, method="predict_proba")[:, 1]
        return {self.key: float(roc_auc_score(labels, found))}

    def _of_people(self, texts: tuple[str, ...]) -> np.ndarray:
        """Read once: they are the same at every evaluation."""
        if texts not in self._read:
            self._read = {texts: self._states(texts)}
        return self._read[texts]

    @torch.inference_mode()
    def _states(self, texts: Sequence[str]) -> np.ndarray:
        """(N, H) the encoder's mean states, in the order of the texts."""
        model, tokenizer = self._loaded()
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        states = np.zeros((len(texts), model.config.hidden_size))
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            read = tokenizer(
                [texts[place] for place in places], padding=True, truncation=True, max_length=self.max_length,
                return_tensors="pt",
            ).to(model.device)  # fmt: skip
            out = model.encoder(**{key: read[key] for key in read if key in ("input_ids", "attention_mask")})
            states[places] = mean_of_tokens(out.last_hidden_state, read["attention_mask"]).double().cpu().numpy()
        return states

    def _loaded(self) -> tuple[Any, Any]:
        if self.model is None:
            raise ConfigError(
                "the metric 'two_sample' has no encoder to read with; give it one: "
                "TwoSampleMetric(model='path/to/encoder'), or in a recipe "
                "`two_sample: {model: sentence-transformers/all-MiniLM-L6-v2}`"
            )
        if self._reader is None:
            with torch.random.fork_rng():  # the head, which nobody asks, begins with random numbers
                self._reader = load_classifier(self.model, new_head=True, num_labels=2, pooling="mean")
        return self._reader
