"""The accuracy that rounding numbers has cost."""

from typing import NamedTuple

import numpy as np

from hscc_search.errors import ExportError

# Largest loss of accuracy beyond its standard error.
_MOST_LOST = 0.01


class Loss(NamedTuple):
    """The accuracy that rounding numbers has cost.

    Attributes:
        accuracy: share of the images, or of the positions of maps, that are right.
        before: the same before rounding.
        error: standard error of their difference.
        without: number of images with an answer that is not finite, which is none, and so not right.
    """

    accuracy: float
    before: float
    error: float
    without: int

    @classmethod
    def of(cls, given: np.ndarray, before: np.ndarray, labels: np.ndarray) -> "Loss":
        """Compare scores of the same images."""
        finite, right = _answered(given, labels)
        _, right_before = _answered(before, labels)
        error = (right_before - right).std() / np.sqrt(len(labels))
        return cls(float(right.mean()), float(right_before.mean()), float(error), int((finite < 1).sum()))

    def check(self, rounded: str, exact: str, remedy: str, accept: bool) -> None:
        """Check that it is no more than a point and its standard error, or accepted.

        Args:
            rounded: words on what was rounded, with which the message begins.
            exact: words on what it was before.
            remedy: what to do without accepting it.
            accept: whether any loss is.

        Raises:
            ExportError: it is more, or an answer is not finite, which nobody can accept.
        """
        if self.without:
            raise ExportError(f"{rounded} {self.without} test images are answered with NaN or infinity: {remedy}")
        if not accept and self.before - self.accuracy > _MOST_LOST + self.error:
            raise ExportError(
                f"{rounded} the test accuracy is {self.accuracy:.4f} and {exact} {self.before:.4f}, a loss of "
                f"{100 * (self.before - self.accuracy):.1f} ± {100 * self.error:.1f} points: {remedy}, or accept it "
                "with --accept-loss (in Python accept_loss=True)"
            )


def _answered(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The share of each image's positions whose scores are finite, and of those that are right besides."""
    finite = np.isfinite(scores).all(axis=1)
    right = finite & (scores.argmax(axis=1) == labels)
    return finite.reshape(len(labels), -1).mean(axis=1), right.reshape(len(labels), -1).mean(axis=1)
