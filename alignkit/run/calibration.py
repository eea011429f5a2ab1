"""Probabilities that can be believed: temperature scaling of a trained classifier (Guo et al. 2017, section 4.2)."""

from dataclasses import dataclass
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
        confidence: mean probability of the class that it named.
        accuracy: share of them that it named rightly.
        share: of all texts.
    """

    confidence: float
    accuracy: float
    share: float


def reliability(logits: numpy.ndarray, labels: numpy.ndarray) -> list[Bin]:
    """Bins of equal width in the confidence, empty ones left out.

    Args:
        logits: (N, C).
        labels: (N,) classes.
    """
    confidence = softmax(logits, axis=-1).max(-1)
    right = logits.argmax(-1) == labels
    places = numpy.minimum((confidence * BINS).astype(int), BINS - 1)
    found = [places == place for place in range(BINS) if (places == place).any()]
    return [Bin(float(confidence[own].mean()), float(right[own].mean()), float(own.mean())) for own in found]


def calibration_error(bins: list[Bin]) -> float:
    """Expected calibration error: the mean distance of confidence and accuracy, weighted by share."""
    return sum(abs(one.confidence - one.accuracy) * one.share for one in bins)


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
