import numpy as np
import pytest

from hscc_search.config import StudyConfig
from hscc_search.errors import ConfigError, StudyError
from hscc_search.evaluation.draws import draw_counts
from hscc_search.evaluation.own import check_own_metrics, own_metrics, own_on_draws, own_value

SCORES = np.log(np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]], np.float16))
LABELS = np.array([0, 1, 1, 0], np.uint16)


def right(scores, targets):
    assert (scores.dtype, targets.dtype) == (np.float32, np.int64)
    return (scores.argmax(axis=1) == targets).mean()


def both_classes(scores, targets):
    if len(np.unique(targets)) < 2:
        raise ValueError("only one class")
    return 1


def test_a_function_sees_the_images_that_are_drawn():
    assert own_value("right", right, SCORES, LABELS) == 0.75
    counts = draw_counts(4, 20, 0)
    values = own_on_draws("right", right, SCORES, LABELS, counts)
    assert values == pytest.approx((counts * np.array([1, 0, 1, 1])).sum(axis=1) / 4)


@pytest.mark.parametrize(
    ("returned", "shown"),
    [(float("nan"), "nan"), (None, "None"), ("0.5", "'0.5'"), (True, "True"), (1j, "1j"), (float("inf"), "inf")],
)
def test_what_is_no_number_is_refused_as_it_is(returned, shown):
    with pytest.raises(StudyError) as refused:
        own_value("mine", lambda scores, targets: returned, SCORES, LABELS)
    assert str(refused.value) == f"metric mine must return a finite number, not {shown}"


@pytest.mark.parametrize("returned", [1e101, -1e200, 10**400])
def test_a_number_whose_square_is_none_is_refused(returned):
    with pytest.raises(StudyError, match="metric mine must return a number of 1e100 at most: divide it by what makes"):
        own_value("mine", lambda scores, targets: returned, SCORES, LABELS)


@pytest.mark.parametrize("returned", [np.float32(0.5), np.array(0.5), 1, np.int64(1)])
def test_numbers_of_numpy_are_numbers(returned):
    assert own_value("mine", lambda scores, targets: returned, SCORES, LABELS) == float(returned)


def test_an_array_of_several_numbers_is_refused():
    with pytest.raises(StudyError, match="metric mine fails on 4 images: ValueError"):
        own_value("mine", lambda scores, targets: scores[:, 0], SCORES, LABELS)


def test_a_draw_on_which_it_fails_is_left_out_and_many_are_an_error():
    labels = np.array([0] * 10 + [1] * 4)
    scores = np.zeros((14, 2), np.float16)
    counts = draw_counts(14, 300, 0)
    values = own_on_draws("both", both_classes, scores, labels, counts)
    assert 0 < np.isnan(values).sum() == (counts[:, 10:].sum(axis=1) == 0).sum() < 30
    with pytest.raises(StudyError, match=r"metric both fails on 14 images: ValueError: only one class \(on [0-9]+ of"):
        own_on_draws("both", both_classes, scores[:14], np.arange(14) // 13, draw_counts(14, 300, 0))


def test_it_is_tried_on_all_images_and_on_a_draw():
    def of_different(scores, targets):
        if len(np.unique(scores[:, 0])) < len(scores):
            raise ValueError("an image twice")
        return 1

    with pytest.raises(StudyError, match="an image twice: these are a bootstrap draw, in which images occur several"):
        check_own_metrics({"mine": of_different}, SCORES, LABELS, draw_counts(4, 1, 0))


@pytest.mark.parametrize("code", [None, 0, "leave"])
def test_one_that_would_leave_the_program_fails(code):
    def leave(scores, targets):
        raise SystemExit(code)

    with pytest.raises(StudyError, match=f"metric mine fails on .* images: SystemExit: {code}"):
        check_own_metrics({"mine": leave}, SCORES, LABELS, draw_counts(4, 1, 0))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("no_such_module:f", "metrics.mine: cannot import no_such_module:f: ModuleNotFoundError"),
        ("math:no_such", "metrics.mine: cannot import math:no_such: AttributeError"),
        ("math:pi", "metrics.mine: math:pi is no function"),
    ],
)
def test_what_cannot_be_called_is_refused(function, said):
    config = StudyConfig.from_file("digits", metrics={"mine": function})
    with pytest.raises(ConfigError, match=said):
        own_metrics(config)
