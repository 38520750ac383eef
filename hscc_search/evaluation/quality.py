"""How often a network is right, and how surely that is known."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

BOOTSTRAP_DRAWS = 1000


@dataclass(frozen=True)
class Quality:
    """Measures on one part of the data; each ``_se`` is the bootstrap standard error of its neighbour.

    Attributes:
        accuracy: share of images that are classified right, 0 to 1.
        macro_f1: mean of the classes' F1.
        recall: per class, in the order of the classes.
        f1: per class.
    """

    accuracy: float
    accuracy_se: float
    macro_f1: float
    macro_f1_se: float
    recall: tuple[float, ...]
    recall_se: tuple[float, ...]
    f1: tuple[float, ...]
    f1_se: tuple[float, ...]

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values."""
        return asdict(self)


def measure_quality(predicted: np.ndarray, labels: np.ndarray, classes: int, seed: int = 0) -> Quality:
    """Accuracy, macro F1, recall and F1 per class, each with its bootstrap standard error over images.

    Args:
        predicted: int64, shape (images,), class positions.
        labels: int64, shape (images,).
        classes: number of classes.
        seed: of the bootstrap.
    """
    cells = labels * classes + predicted
    confusion = np.bincount(cells, minlength=classes * classes)
    # Drawing images with replacement draws confusion cells from a multinomial.
    draws = np.random.default_rng(seed).multinomial(len(labels), confusion / len(labels), BOOTSTRAP_DRAWS)
    point = _measures(confusion.reshape(1, classes, classes))
    error = {key: values.std(axis=0) for key, values in _measures(draws.reshape(-1, classes, classes)).items()}
    return Quality(
        accuracy=float(point["accuracy"][0]),
        accuracy_se=float(error["accuracy"]),
        macro_f1=float(point["macro_f1"][0]),
        macro_f1_se=float(error["macro_f1"]),
        recall=tuple(point["recall"][0].tolist()),
        recall_se=tuple(error["recall"].tolist()),
        f1=tuple(point["f1"][0].tolist()),
        f1_se=tuple(error["f1"].tolist()),
    )


def _measures(confusions: np.ndarray) -> dict[str, np.ndarray]:
    """Measures of confusion matrices (draws, true class, predicted class); 0 where a class does not occur."""
    right = np.diagonal(confusions, axis1=1, axis2=2).astype(np.float64)
    true, guessed = confusions.sum(axis=2), confusions.sum(axis=1)
    f1 = 2 * right / np.maximum(true + guessed, 1)
    return {
        "accuracy": right.sum(axis=1) / confusions.sum(axis=(1, 2)),
        "macro_f1": f1.mean(axis=1),
        "recall": right / np.maximum(true, 1),
        "f1": f1,
    }
