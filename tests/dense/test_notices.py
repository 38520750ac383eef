import numpy as np
import pytest

from hscc_search.dense.notices import notices, notices_on_maps

CLASSES = ("cat", "cow", "dog", "hen")


def labelled(count=200, classes=4, seed=0):
    """Labels, and predictions that are right for five in six images."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    guesses = generator.integers(0, classes, count)
    return labels, np.where(generator.random(count) < 0.8, labels, guesses)


def test_a_network_that_has_learnt_gets_no_notice():
    labels, predicted = labelled()
    assert notices(predicted, labels, CLASSES) == ()
    assert notices(labels, labels, CLASSES) == ()
    assert notices(np.array([]), np.array([]), CLASSES) == ()


def test_one_answer_for_all_images_is_told():
    labels, _ = labelled()
    (line,) = notices(np.full(200, 2), labels, CLASSES)
    assert "answers 'dog' for all 200 validation images" in line


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("classes", [2, 4, 10])
def test_guesses_are_told_and_not_taken_for_another_order(seed, classes):
    generator = np.random.default_rng(seed)
    labels, predicted = generator.integers(0, classes, (2, 80))
    lines = notices(predicted, labels, [str(number) for number in range(classes)])
    assert len(lines) <= 1
    if (predicted == labels).mean() <= np.bincount(labels).max() / 80:
        assert "is no better than always answering" in lines[0]


def test_an_accuracy_that_the_commonest_class_explains_is_told():
    labels = np.repeat([0, 1], [90, 10])
    predicted = labels.copy()
    predicted[:8], predicted[95:] = 1, 0
    (line,) = notices(predicted, labels, ("cat", "cow"))
    assert "accuracy 0.8700 ± 0.0336 on 100 validation images" in line
    assert "always answering 'cat' (0.9000)" in line


@pytest.mark.parametrize(
    "order", [(1, 0, 2, 3), (3, 2, 1, 0), (1, 2, 3, 0)], ids=["two swapped", "reversed", "shifted"]
)
def test_another_order_of_the_classes_is_told_with_what_stands_for_what(order):
    labels, predicted = labelled()
    moved = np.array(order)[predicted]
    *others, line = notices(moved, labels, CLASSES)
    assert all("no better" in other for other in others)
    for true, output in enumerate(order):
        assert (f"{CLASSES[output]!r} for {CLASSES[true]!r}" in line) == (true != output)
    assert f"would be {(predicted == labels).mean():.4f} rather than {(moved == labels).mean():.4f}" in line
    assert "the study's order is cat, cow, dog, hen" in line


def test_many_classes_in_another_order_are_cut_with_a_count():
    labels, predicted = labelled(2000, 40)
    line = notices((predicted + 1) % 40, labels, [f"class {number}" for number in range(40)])[-1]
    assert "and 34 more" in line
    assert len(line) < 500


def test_maps_that_one_class_everywhere_explains_are_told():
    labels = np.zeros((10, 4, 4), np.uint8)
    labels[:, 0] = 2
    assert notices_on_maps(0.9, 0.02, labels, CLASSES) == ()
    (line,) = notices_on_maps(0.76, 0.02, labels, CLASSES)
    assert "no better than answering 'cat' everywhere (0.7500)" in line
