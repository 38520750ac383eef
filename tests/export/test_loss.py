import numpy as np
import pytest

from hscc_search.errors import ExportError
from hscc_search.export.loss import Loss

LABELS = np.arange(400) % 10


def scores_that_are_right(right):
    """Scores of 400 images, the first so many of which are right."""
    predicted = np.where(np.arange(400) < right, LABELS, (LABELS + 1) % 10)
    return np.eye(10, dtype=np.float32)[predicted]


def check(given, before, labels, accept=False):
    Loss.of(given, before, labels).check("in 8-bit integers", "in float", "export another trial", accept)


@pytest.mark.parametrize(("given", "before"), [(380, 380), (390, 380), (374, 380), (0, 0)])
def test_rounded_numbers_may_lose_a_point_and_its_error(given, before):
    check(scores_that_are_right(given), scores_that_are_right(before), LABELS)


def test_what_loses_more_is_refused_with_the_loss_named_unless_it_is_accepted():
    said = (
        r"in 8-bit integers the test accuracy is 0\.9000 and in float 0\.9500, a loss of 5\.0 ± 1\.1 points: "
        r"export another trial, or accept it with --accept-loss \(in Python accept_loss=True\)$"
    )
    given, before = scores_that_are_right(360), scores_that_are_right(380)
    with pytest.raises(ExportError, match=said):
        check(given, before, LABELS)
    check(given, before, LABELS, accept=True)


def test_the_loss_of_maps_is_of_the_images():
    right, wrong = (np.zeros((40, 2, 3, 3), np.float32) for _ in range(2))
    right[:, 1], wrong[:, 0] = 1, 1
    labels = np.ones((40, 3, 3), np.uint8)
    check(right, right, labels)
    with pytest.raises(ExportError, match=r"a loss of 100\.0 ± 0\.0 points"):
        check(wrong, right, labels)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("accept", [False, True])
def test_an_answer_that_is_not_finite_is_no_answer_and_accepted_by_nobody(wrong, accept):
    """NaN is the largest of some scores, so that it would be the first class's."""
    before = scores_that_are_right(400)
    given = before.copy()
    given[LABELS == 0, 0] = wrong
    loss = Loss.of(given, before, LABELS)
    assert (loss.accuracy, loss.before, loss.without) == (0.9, 1, 40)
    with pytest.raises(ExportError, match=r"^in 8-bit integers 40 test images are answered with NaN or infinity: "):
        check(given, before, LABELS, accept)
    maps = np.stack([before, before], axis=2)[..., None]
    maps[0, :, 1] = wrong
    with pytest.raises(ExportError, match=r" 1 test images are answered "):
        check(
            maps, np.stack([before, before], axis=2)[..., None], np.stack([LABELS, LABELS], axis=1)[..., None], accept
        )
