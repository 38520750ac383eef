"""Notices on the predictions of a dense network that a search should not begin with. Needs no torch."""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

# Accuracy that another order of the classes must bring, at least, and its gain in accuracy and in standard errors. With
# ten classes and 75 images the best of all orders brings guesses to 0.3.
_BY_ORDER, _GAIN, _GAIN_ERRORS = 0.6, 0.2, 4


def notices(predicted: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> tuple[str, ...]:
    """Say what is wrong with the predictions of a dense network, as far as they show it.

    Args:
        predicted: class of each validation image, integers, shape (images,).
        labels: true classes, integers, shape (images,).
        classes: class names.

    Returns:
        Lines: that it names one class for all images, that it is no better than always naming the commonest class, and
        that its classes seem to stand in another order. None where nothing is wrong.
    """
    return tuple(_lines(np.asarray(predicted, np.int64), np.asarray(labels, np.int64), classes))


def notices_on_maps(accuracy: float, error: float, labels: np.ndarray, classes: Sequence[str]) -> tuple[str, ...]:
    """Say whether a dense network that answers with maps is no better than one class everywhere.

    Args:
        accuracy: the share of positions whose class is right, on the validation images.
        error: its standard error.
        labels: true classes, integers, shape (images, height, width).
        classes: class names.
    """
    counts = np.bincount(labels.ravel(), minlength=len(classes))
    share = float(counts.max() / labels.size)
    if accuracy - error > share:
        return ()
    return (
        f"the dense network (right at {accuracy:.4f} ± {error:.4f} of the positions, {len(labels)} validation images) "
        f"is no better than answering {classes[int(counts.argmax())]!r} everywhere ({share:.4f}): check its weights, "
        "and how its images are normalised",
    )


def _lines(predicted: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Iterator[str]:
    if not len(labels):
        return
    accuracy = float((predicted == labels).mean())
    error = float(np.sqrt(accuracy * (1 - accuracy) / len(labels)))
    counts = np.bincount(labels, minlength=len(classes))
    commonest, share = int(counts.argmax()), float(counts.max() / len(labels))
    order, accuracy_by_order = _best_order(predicted, labels, len(classes))
    named = np.unique(predicted)
    if len(named) == 1 and len(classes) > 1:
        yield (
            f"the dense network answers {classes[named[0]]!r} for all {len(labels)} validation images: "
            "it has learnt nothing that could be kept"
        )
    elif accuracy - error <= share:
        yield (
            f"the dense network (accuracy {accuracy:.4f} ± {error:.4f} on {len(labels)} validation images) is no "
            f"better than always answering {classes[commonest]!r} ({share:.4f}): check its weights, and how its images "
            "are normalised"
        )
    gain = accuracy_by_order - accuracy
    if accuracy_by_order >= _BY_ORDER and gain >= max(_GAIN, _GAIN_ERRORS * error):
        wrong = [f"{classes[output]!r} for {classes[true]!r}" for output, true in enumerate(order) if output != true]
        more = f" and {len(wrong) - 6} more" if len(wrong) > 6 else ""
        yield (
            "the classes of the dense network seem to stand in another order: "
            f"it answers {', '.join(wrong[:6])}{more}, and read so its accuracy would be {accuracy_by_order:.4f} "
            f"rather than {accuracy:.4f}; the study's order is {', '.join(classes[:6])}"
            f"{', ...' if len(classes) > 6 else ''}"
        )


def _best_order(predicted: np.ndarray, labels: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """Find the true class that each output stands for most likely, each once, and the accuracy with it."""
    confusion = np.zeros((count, count), np.int64)
    np.add.at(confusion, (predicted, labels), 1)
    # Where an order is no better than that of the outputs, the outputs keep theirs.
    outputs, true = linear_sum_assignment(confusion * (count + 1) + np.eye(count, dtype=np.int64), maximize=True)
    return true, float(confusion[outputs, true].sum() / len(labels))
