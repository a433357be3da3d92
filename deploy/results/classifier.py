"""A trained model as whoever uses it sees it: images in, scores and probabilities out, as in training."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.training import logits
from common.models import registry
from common.models.centred import centre_length
from common.models.flat import share_parameters
from common.models.frozen import extract
from common.task import TaskKind
from deploy.results.model_file import ModelCard


class Classifier:
    """A model with its frozen features, ready to score images.

    Args:
        flat: the parameters, float32, shape (d,).
        card: what the model is.
    """

    def __init__(self, flat: NDArray[np.float32], card: ModelCard) -> None:
        self._network = registry.build(card.architecture, len(card.classes), card.channels, card.image_size, seed=0)
        share_parameters(self._network, torch.from_numpy(_with_centre(self._network, flat)))
        self._features = registry.frozen_features(card.architecture)

    def scores(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the logits of each class, shape (n, classes).

        Args:
            images: (n, channels, image_size, image_size).
        """
        inputs = images if self._features is None else np.concatenate(list(extract(self._features, images)))
        return np.asarray(logits(self._network, torch.from_numpy(inputs)).double().numpy())


def _with_centre(network: nn.Module, flat: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a copy of the parameters; a model stored before models on features had a centre gets one of zeros."""
    whole = sum(parameter.numel() for parameter in network.parameters())
    lacks_centre = len(flat) == whole - centre_length(network)
    return np.concatenate([flat, np.zeros(whole - len(flat), np.float32)]) if lacks_centre else flat.copy()


UNCERTAIN = 0.5
"""The threshold of a label for which none was measured."""

BETWEEN_LABELS = "|"
NO_LABEL = "none of the labels"


def probabilities_of(scores: NDArray[np.float64], card: ModelCard) -> NDArray[np.float64]:
    """Return each class's probability, shape (n, classes), at the card's temperature; of labels, each one's own."""
    tempered = scores / card.temperature
    if card.kind is TaskKind.MULTILABEL:
        return np.asarray(torch.sigmoid(torch.from_numpy(tempered)).numpy())
    return softmax(tempered)


def decided(probabilities: NDArray[np.float64], card: ModelCard) -> str:
    """Return the class in words: of two the second from the threshold on; without one, the most probable; labels by |.

    Args:
        probabilities: of one image, shape (classes,).
        card: of the model.
    """
    if card.kind is TaskKind.MULTILABEL:
        named = [name for name, value, least in zip(card.classes, probabilities, thresholds_of(card), strict=True)
                 if value >= least]  # fmt: skip
        return BETWEEN_LABELS.join(named) or NO_LABEL
    return card.classes[decide(probabilities, card.threshold)]


def thresholds_of(card: ModelCard) -> tuple[float, ...]:
    """Return for each label of a multi-label model the probability from which it is said to be there."""
    return card.thresholds or (UNCERTAIN,) * len(card.classes)


def decide(probabilities: NDArray[np.float64], threshold: float | None) -> int:
    """Return the class: of two the second from ``threshold`` on; without a threshold the most probable one.

    >>> decide(np.array([0.7, 0.3]), 0.25), decide(np.array([0.7, 0.3]), None)
    (1, 0)
    """
    if threshold is None:
        return int(probabilities.argmax())
    return int(probabilities[1] >= threshold)


@dataclass(frozen=True)
class Mix:
    """How often the second of two classes is where a model's probabilities hold, and where a reader wants them.

    Attributes:
        fixed_at: its prevalence for which the model gives probabilities, between 0 and 1.
        prevalence: the reader's own, between 0 and 1.
    """

    fixed_at: float
    prevalence: float

    def change(self, probability: float) -> float:
        """Return a probability of the second class as it is at the reader's prevalence, by Bayes' rule.

        It is right if the images of each class look alike in both places (Saerens, Latinne and Decaestecker 2002).

        >>> round(Mix(0.75, 0.5).change(0.5), 4), Mix(0.75, 0.5).change(1.0)
        (0.25, 1.0)
        """
        own = probability * self.prevalence / self.fixed_at
        others = (1 - probability) * (1 - self.prevalence) / (1 - self.fixed_at)
        return own / (own + others)


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each class's probability, shape (n, classes), from logits; a row sums to 1."""
    return np.asarray(torch.softmax(torch.from_numpy(scores), dim=1).numpy())


def log_odds(scores: NDArray[np.float64], chosen: int) -> NDArray[np.float64]:
    """Return the log-odds of one class against all others, shape (n,), from logits of shape (n, classes).

    >>> log_odds(np.array([[0.0, 2.0], [3.0, 2.0]]), 1).tolist()
    [2.0, -1.0]
    """
    others = np.delete(scores, chosen, axis=1)
    largest = others.max(axis=1)
    return np.asarray(scores[:, chosen] - largest - np.log(np.exp(others - largest[:, None]).sum(axis=1)))
