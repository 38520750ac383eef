"""Accuracy, recall and F1 of predicted classes, each with its standard error over images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BOOTSTRAP_DRAWS = 1000


@dataclass(frozen=True)
class Quality:
    """Metrics of predictions on one part of the data, by name.

    Attributes:
        metrics: ``accuracy``, ``macro_f1``, and for each class ``recall:CLASS`` and ``f1:CLASS``; 0 to 1.
        errors: the bootstrap standard error over images of each of them.
    """

    metrics: dict[str, float]
    errors: dict[str, float]


def measure_quality(predicted: np.ndarray, labels: np.ndarray, classes: Sequence[str], seed: int = 0) -> Quality:
    """Measure accuracy, macro F1, recall and F1 per class, each with its bootstrap standard error over images.

    Args:
        predicted: predicted classes as positions in ``classes``, integers of shape (images,).
        labels: true classes, likewise.
        classes: class names.
        seed: of the bootstrap's :data:`BOOTSTRAP_DRAWS` draws.
    """
    count = len(classes)
    confusion = np.bincount(labels.astype(np.int64) * count + predicted, minlength=count * count)
    # Drawing images with replacement draws confusion cells from a multinomial.
    draws = np.random.default_rng(seed).multinomial(len(labels), confusion / len(labels), BOOTSTRAP_DRAWS)
    on_all, on_draws = (_measures(cells.reshape(-1, count, count)) for cells in (confusion, draws))
    return Quality(
        metrics=_named({measure: values[0] for measure, values in on_all.items()}, classes),
        errors=_named({measure: values.std(axis=0) for measure, values in on_draws.items()}, classes),
    )


def _measures(confusions: np.ndarray) -> dict[str, np.ndarray]:
    """Compute the measures of confusion matrices; those of a class that does not occur are 0.

    Args:
        confusions: number of images, shape (draws, true classes, predicted classes).

    Returns:
        Accuracy and macro F1, shape (draws,), and recall and F1 of each class, shape (draws, classes).
    """
    right = np.diagonal(confusions, axis1=1, axis2=2).astype(np.float64)
    true, guessed = confusions.sum(axis=2), confusions.sum(axis=1)
    f1 = 2 * right / np.maximum(true + guessed, 1)
    return {
        "accuracy": right.sum(axis=1) / confusions.sum(axis=(1, 2)),
        "macro_f1": f1.mean(axis=1),
        "recall": right / np.maximum(true, 1),
        "f1": f1,
    }


def _named(measures: dict[str, np.ndarray], classes: Sequence[str]) -> dict[str, float]:
    """Name the values of a measure: ``measure:CLASS`` where it has a value for each class."""
    named: dict[str, float] = {}
    for measure, values in measures.items():
        if values.ndim:
            named |= {f"{measure}:{name}": float(value) for name, value in zip(classes, values, strict=True)}
        else:
            named[measure] = float(values)
    return named
