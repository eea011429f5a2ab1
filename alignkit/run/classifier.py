"""A classifier, trained by transformers' own Trainer: what a reward can be made of."""

from typing import Any

import numpy
from datasets import Dataset, DatasetDict
from scipy.special import log_softmax, softmax
from sklearn.metrics import f1_score
from transformers import DataCollatorWithPadding, EvalPrediction, Trainer, TrainingArguments

from alignkit.errors import DataError
from alignkit.models.from_scratch import build_classifier
from alignkit.models.loading import load_classifier
from alignkit.recipe import Recipe
from alignkit.run.models import loading_options
from alignkit.trainers.whole_checkpoints import with_whole_checkpoints

# As many held-out texts are kept in samples.jsonl.
_SHOWN = 64


class ClassifierJob:
    """Fine-tunes an encoder, or trains a small one from nothing, on the columns `text` and `label`.

    Args:
        recipe: with trainer `classifier`.
        args: its config.
        data: splits `train` and `validation`.
        callbacks: for the Trainer.
    """

    def __init__(self, recipe: Recipe, args: TrainingArguments, data: DatasetDict, callbacks: list[Any]):
        classes = _check_labels(data, recipe.model.get("labels"))
        self.data = data
        self.model, self.tokenizer = _load(recipe, data, classes)
        encoded = {name: self._encode(part) for name, part in data.items()}
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
        encoded = self.tokenizer(list(part["text"]), truncation=True, return_token_type_ids=False)
        return Dataset.from_dict({**encoded, "label": list(part["label"])})

    def evaluate(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Figures on the whole validation split, and rows that show what it says of single texts."""
        predicted = self.trainer.predict(self.trainer.eval_dataset, metric_key_prefix="eval")
        keep = ("eval_loss", *(f"eval_{name}" for name in ("accuracy", "f1", "nll", "calibration_error")))
        figures = {key.removeprefix("eval_"): float(v) for key, v in predicted.metrics.items() if key in keep}
        probabilities = softmax(_logits(predicted.predictions)[:_SHOWN].astype(numpy.float64), axis=-1)
        names = self.model.config.id2label
        rows = []
        shown = self.data["validation"][:_SHOWN]
        for text, label, shares in zip(shown["text"], shown["label"], probabilities, strict=True):
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


def classification_figures(predicted: EvalPrediction) -> dict[str, float]:
    """Accuracy, macro F1, negative log-likelihood (nats) and expected calibration error (10 equal bins)."""
    logits = _logits(predicted.predictions).astype(numpy.float64)
    labels = numpy.asarray(predicted.label_ids)
    said, confidence = logits.argmax(-1), softmax(logits, axis=-1).max(-1)
    bins = numpy.minimum((confidence * 10).astype(int), 9)
    right = said == labels
    gaps = [abs(right[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean() for b in set(bins)]
    return {
        "accuracy": float(right.mean()),
        "f1": float(f1_score(labels, said, average="macro")),
        "nll": float(-log_softmax(logits, axis=-1)[numpy.arange(len(labels)), labels].mean()),
        "calibration_error": float(sum(gaps)),
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
        model, tokenizer = build_classifier(spec["scratch"], list(data["train"]["text"]), id2label)
    else:
        model, tokenizer = load_classifier(spec["name"], new_head=True, id2label=id2label, **loading_options(recipe))
    # saved with the tokenizer, so that a reward made of this model cuts texts where training did
    tokenizer.model_max_length = min(spec.get("max_length", 128), tokenizer.model_max_length)
    return model, tokenizer
