import numpy as np
import pytest

from hscc_search.errors import ExportError
from hscc_search.export.checking import Answers, check_loss

LABELS = np.arange(400) % 10


def answers_that_are_right(onnx, torch):
    """Scores of 400 images, the first so many of which are right."""

    def scores(right):
        predicted = np.where(np.arange(400) < right, LABELS, (LABELS + 1) % 10)
        return np.eye(10, dtype=np.float32)[predicted]

    return Answers(scores(onnx), scores(torch))


@pytest.mark.parametrize(("onnx", "torch"), [(380, 380), (390, 380), (374, 380), (0, 0)])
def test_a_file_of_integers_may_lose_a_point_and_its_error(onnx, torch):
    check_loss(answers_that_are_right(onnx, torch), LABELS)


def test_a_file_of_integers_that_loses_more_is_refused_with_the_loss_named():
    said = r"test accuracy is 0\.9000 and in float 0\.9500, a loss of 5\.0 ± 1\.1 points: .*--accept-loss"
    with pytest.raises(ExportError, match=said):
        check_loss(answers_that_are_right(360, 380), LABELS)


def test_the_loss_of_maps_is_of_the_images():
    right, wrong = (np.zeros((40, 2, 3, 3), np.float32) for _ in range(2))
    right[:, 1], wrong[:, 0] = 1, 1
    labels = np.ones((40, 3, 3), np.uint8)
    check_loss(Answers(right, right), labels)
    with pytest.raises(ExportError, match=r"a loss of 100\.0 ± 0\.0 points"):
        check_loss(Answers(wrong, right), labels)
