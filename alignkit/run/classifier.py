"""A classifier of texts or pairs of texts, trained by transformers' own Trainer: what a reward can be made of."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
from datasets import Dataset, DatasetDict
from scipy.special import softmax
from sklearn.metrics import f1_score
from transformers import DataCollatorWithPadding, EvalPrediction, Trainer, TrainingArguments

from alignkit.data.splitting import held_out
from alignkit.errors import DataError
from alignkit.models.from_scratch import build_classifier
from alignkit.models.loading import load_classifier
from alignkit.recipe import Recipe
from alignkit.run.calibration import calibration_figures, divide_logits, fitted_temperature
from alignkit.run.models import loading_options
from alignkit.trainers.whole_checkpoints import with_whole_checkpoints

# As many held-out texts are kept in samples.jsonl.
_SHOWN = 64
# of train, that calibration learns from and the weights do not
_CALIBRATION_SHARE = 0.05
_PAIR, _BASELINE = "text_pair", "baseline"


class ClassifierJob:
    """Fine-tunes an encoder, or trains a small one from nothing, on the columns `text`, maybe `text_pair`, and `label`.

    A column `baseline` holds a guess for each row that needs no model; its accuracy is reported beside the model's.

    Args:
        recipe: with trainer `classifier`.
        args: its config.
        data: splits `train` and `validation`.
        callbacks: for the Trainer.

    Attributes:
        reliability: of the last evaluation, see `alignkit.report.reliability`; empty before the first.
    """

    def __init__(self, recipe: Recipe, args: TrainingArguments, data: DatasetDict, callbacks: list[Any]):
        classes = _check_labels(data, recipe.model.get("labels"))
        self.data = dict(data)
        self.temperature: float | None = None
        self.reliability: dict[str, Any] = {}
        if recipe.model.get("calibrate"):
            named = [name for name in ("text", _PAIR) if name in data["train"].column_names]
            kept = held_out(list(zip(*(data["train"][name] for name in named), strict=True)), _CALIBRATION_SHARE)
            for name, wanted in (("calibration", True), ("train", False)):
                self.data[name] = data["train"].select([row for row, out in enumerate(kept) if out is wanted])
        self.model, self.tokenizer = _load(recipe, data, classes)
        encoded = {name: self._encode(part) for name, part in self.data.items()}
        self._calibration = encoded.get("calibration")
        self.trainer = with_whole_checkpoints(Trainer)(
            model=self.model,
            args=args,
            train_dataset=encoded["train"],
            eval_dataset=encoded["validation"],
            data_collator=DataCollatorWithPadding(self.tokenizer),
            processing_class=self.tokenizer,
            compute_metrics=classification_figures,
            callbacks=callbacks,
        )

    def _encode(self, part: Dataset) -> Dataset:
        pairs = [list(part[_PAIR])] if _PAIR in part.column_names else []
        encoded = self.tokenizer(list(part["text"]), *pairs, truncation=True, return_token_type_ids=bool(pairs))
        return Dataset.from_dict({**encoded, "label": list(part["label"])})

    def finish(self) -> None:
        """After training: make the probabilities fit the texts that were held out for it, where that was asked for."""
        if self._calibration is None:
            return
        predicted = self.trainer.predict(self._calibration)
        logits = _logits(predicted.predictions).astype(numpy.float64)
        self.temperature = fitted_temperature(logits, numpy.asarray(predicted.label_ids))
        divide_logits(self.trainer.accelerator.unwrap_model(self.trainer.model), self.temperature)

    def evaluate(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Figures on the whole validation split, and rows that show what it says of single texts."""
        with _in_order(self.trainer.args):
            predicted = self.trainer.predict(self.trainer.eval_dataset, metric_key_prefix="eval")
        keep = ("eval_loss", *(f"eval_{name}" for name in ("accuracy", "f1", "nll", "brier", "calibration_error")))
        figures = {key.removeprefix("eval_"): float(v) for key, v in predicted.metrics.items() if key in keep}
        validation = self.data["validation"]
        labels = numpy.asarray(validation["label"])
        figures["majority"] = float(numpy.bincount(labels).max() / len(labels))
        if _BASELINE in validation.column_names:
            figures["baseline"] = float((numpy.asarray(validation[_BASELINE]) == labels).mean())
        if self.temperature is not None:
            figures["temperature"] = self.temperature
        logits = _logits(predicted.predictions).astype(numpy.float64)
        self.reliability = self._reliability(logits, labels)
        probabilities = softmax(logits[:_SHOWN], axis=-1)
        names = self.model.config.id2label
        rows = []
        shown = validation[:_SHOWN]
        texts = shown["text"]
        if _PAIR in validation.column_names:
            texts = [f"{text}\n{pair}" for text, pair in zip(texts, shown[_PAIR], strict=True)]
        for text, label, shares in zip(texts, shown["label"], probabilities, strict=True):
            said = int(shares.argmax())
            right = float(shares[label])
            rows.append(
                {
                    "prompt": text,
                    "completion": f"{names[said]} ({shares[said]:.2f})",
                    "rewards": {"probability_of_label": right},
                    "reward": right,
                    "reference": names[label],
                }
            )
        return figures, rows

    def _reliability(self, logits: numpy.ndarray, labels: numpy.ndarray) -> dict[str, Any]:
        """What results.json keeps of the held-out probabilities, enough to draw the reliability diagram again."""
        names = self.model.config.id2label
        found: dict[str, Any] = {"rows": len(labels), "labels": [names[place] for place in sorted(names)]}
        if self.temperature is None:
            return {**found, "as_trained": calibration_figures(logits, labels)}
        return {
            **found,
            "temperature": self.temperature,
            "fitted_on_rows": len(self.data["calibration"]),
            # the saved weights hold the division already
            "as_trained": calibration_figures(logits * self.temperature, labels),
            "scaled": calibration_figures(logits, labels),
        }


@contextmanager
def _in_order(args: TrainingArguments) -> Iterator[None]:
    """Has the host predict in the order of the data: with `group_by_length` it would group evaluation's texts too, and
    predictions would lie beside other texts' labels."""
    strategy, args.train_sampling_strategy = args.train_sampling_strategy, "random"
    try:
        yield
    finally:
        args.train_sampling_strategy = strategy


def classification_figures(predicted: EvalPrediction) -> dict[str, float]:
    """Accuracy, macro F1, negative log-likelihood (nats), Brier score, expected calibration error (10 equal bins)."""
    logits = _logits(predicted.predictions).astype(numpy.float64)
    labels = numpy.asarray(predicted.label_ids)
    said = logits.argmax(-1)
    fit = calibration_figures(logits, labels)
    return {
        "accuracy": float((said == labels).mean()),
        "f1": float(f1_score(labels, said, average="macro")),
        **{name: fit[name] for name in ("nll", "brier", "calibration_error")},
    }


def _logits(predictions: Any) -> numpy.ndarray:
    return predictions[0] if isinstance(predictions, tuple) else predictions


def _check_labels(data: DatasetDict, labels: list[str] | None) -> int:
    """How many classes there are."""
    for name, part in data.items():
        missing = [column for column in ("text", "label") if column not in part.column_names]
        if missing:
            raise DataError(
                f"a classifier learns from the columns text and label; {name} has: {', '.join(part.column_names)}. "
                "Choose the data set's form for classification, or rename columns (data: {use: files, columns: ...})"
            )
    seen = sorted({label for part in data.values() for label in part["label"]})
    if not all(isinstance(label, int) for label in seen) or seen[0] < 0:
        raise DataError(f"labels are whole numbers from 0; the data have {seen[:5]}")
    classes = len(labels) if labels else max(seen[-1] + 1, 2)
    if seen[-1] >= classes:
        raise DataError(
            f"model.labels names {classes} classes ({', '.join(labels or [])}), the data have label {seen[-1]}"
        )
    return classes


def _load(recipe: Recipe, data: DatasetDict, classes: int) -> tuple[Any, Any]:
    spec = recipe.model
    id2label = dict(enumerate(spec.get("labels") or [f"LABEL_{i}" for i in range(classes)]))
    if "scratch" in spec:
        train = data["train"]
        texts = [text for name in ("text", _PAIR) if name in train.column_names for text in train[name]]
        model, tokenizer = build_classifier(spec["scratch"], texts, id2label)
    else:
        how = {"pooling": spec.get("pooling"), **loading_options(recipe)}
        model, tokenizer = load_classifier(spec["name"], new_head=True, id2label=id2label, **how)
    # saved with the tokenizer, so that a reward made of this model cuts texts where training did
    tokenizer.model_max_length = min(spec.get("max_length", 128), tokenizer.model_max_length)
    return model, tokenizer
