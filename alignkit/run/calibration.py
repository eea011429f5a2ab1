"""Probabilities that can be believed: temperature scaling of a trained classifier (Guo et al. 2017, section 4.2)."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from torch import nn

from alignkit.errors import ModelError

BINS = 10
_HEADS = ("classifier.out_proj", "classifier", "score")


@dataclass(frozen=True)
class Bin:
    """Texts of which a classifier is about equally sure.

    Attributes:
        low, high: bounds of the probability of the class that it named; the lower one is inside, and so is 1.
        count: how many texts.
        right: of how many of them it named the class rightly.
        confidence: mean probability of the class that it named.
    """

    low: float
    high: float
    count: int
    right: int
    confidence: float

    @property
    def accuracy(self) -> float:
        """Share of the texts that it named rightly."""
        return self.right / self.count


def reliability(logits: numpy.ndarray, labels: numpy.ndarray) -> list[Bin]:
    """Bins of equal width in the confidence, empty ones left out (DeGroot and Fienberg 1983).

    Args:
        logits: (N, C).
        labels: (N,) classes.
    """
    confidence = softmax(logits, axis=-1).max(-1)
    right = logits.argmax(-1) == labels
    places = numpy.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = []
    for place in range(BINS):
        own = places == place
        if own.any():
            bounds = place / BINS, (place + 1) / BINS
            bins.append(Bin(*bounds, int(own.sum()), int(right[own].sum()), float(confidence[own].mean())))
    return bins


def calibration_error(bins: list[Bin]) -> float:
    """Expected calibration error: the mean distance of confidence and accuracy, weighted by count."""
    return sum(abs(one.confidence - one.accuracy) * one.count for one in bins) / sum(one.count for one in bins)


def brier_score(logits: numpy.ndarray, labels: numpy.ndarray) -> float:
    """Half the squared distance of the probabilities to the label, in [0, 1] (Brier 1950, who did not halve it).

    Args:
        logits: (N, C).
        labels: (N,) classes.
    """
    away = softmax(logits, axis=-1)
    away[numpy.arange(len(labels)), labels] -= 1
    return float((away**2).sum(-1).mean() / 2)


def calibration_figures(logits: numpy.ndarray, labels: numpy.ndarray) -> dict[str, Any]:
    """How far probabilities can be believed: `nll` (nats), `brier`, `calibration_error`, and its `bins` as mappings.

    Args:
        logits: (N, C).
        labels: (N,) classes.
    """
    bins = reliability(logits, labels)
    return {
        "nll": float(-log_softmax(logits, axis=-1)[numpy.arange(len(labels)), labels].mean()),
        "brier": brier_score(logits, labels),
        "calibration_error": calibration_error(bins),
        "bins": [asdict(one) for one in bins],
    }


def fitted_temperature(logits: numpy.ndarray, labels: numpy.ndarray) -> float:
    """The number that logits must be divided by for the smallest negative log-likelihood of the labels.

    Args:
        logits: (N, C) of texts that the classifier did not learn from.
        labels: (N,) classes.
    """
    rows = numpy.arange(len(labels))

    def nll(log_temperature: float) -> float:
        return float(-log_softmax(logits / numpy.exp(log_temperature), axis=-1)[rows, labels].mean())

    return float(numpy.exp(minimize_scalar(nll, bounds=(-3.0, 3.0), method="bounded").x))


@torch.no_grad()
def divide_logits(model: Any, temperature: float) -> None:
    """Divide a sequence classifier's logits by a number, in its last layer, so that the saved model needs no note.

    Raises:
        ModelError: its last layer is none that gives logits by a linear map.
    """
    for name in _HEADS:
        head = _module(model, name)
        if isinstance(head, nn.Linear) and head.out_features == model.config.num_labels:
            head.weight.div_(temperature)
            if head.bias is not None:
                head.bias.div_(temperature)
            return
    raise ModelError(
        f"{type(model).__name__} has no linear layer {' or '.join(_HEADS)} that gives its "
        f"{model.config.num_labels} logits, so its probabilities cannot be calibrated; leave `calibrate` out"
    )


def _module(model: Any, path: str) -> Any:
    for part in path.split("."):
        model = getattr(model, part, None)
    return model
