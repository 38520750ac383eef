import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from hscc_search.evaluation.quality import measure_quality


@st.composite
def predictions(draw):
    classes = draw(st.integers(1, 6))
    positions = st.integers(0, classes - 1)
    pairs = draw(st.lists(st.tuples(positions, positions), min_size=1, max_size=60))
    predicted, labels = np.array(pairs, np.int64).T
    return predicted, labels, classes


@given(case=predictions())
@settings(max_examples=80, deadline=None)
def test_measures_are_scikit_learns(case):
    predicted, labels, classes = case
    quality = measure_quality(predicted, labels, classes)
    _, recall, f1, _ = metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(classes), zero_division=0
    )
    assert quality.accuracy == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert quality.recall == pytest.approx(recall.tolist())
    assert quality.f1 == pytest.approx(f1.tolist())
    assert quality.macro_f1 == pytest.approx(
        metrics.f1_score(labels, predicted, labels=range(classes), average="macro", zero_division=0)
    )


@pytest.mark.parametrize("share", [0.5, 0.8, 0.97])
@pytest.mark.parametrize("count", [100, 490])
def test_the_error_of_accuracy_is_the_binomial_one(share, count):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, count)
    predicted = np.where(np.arange(count) < round(share * count), labels, (labels + 1) % 4)
    quality = measure_quality(predicted, labels, 4)
    p = quality.accuracy
    # 1000 draws know a standard deviation to about 2 %.
    assert quality.accuracy_se == pytest.approx((p * (1 - p) / count) ** 0.5, rel=0.1)


def test_errors_are_those_of_drawing_images_again():
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 3, 120)
    predicted = np.where(generator.random(120) < 0.7, labels, generator.integers(0, 3, 120))
    quality = measure_quality(predicted, labels, 3)
    drawn = [generator.integers(0, 120, 120) for _ in range(400)]
    macro = [metrics.f1_score(labels[chosen], predicted[chosen], average="macro") for chosen in drawn]
    assert quality.macro_f1_se == pytest.approx(np.std(macro), rel=0.15)
    recall = [metrics.recall_score(labels[chosen], predicted[chosen], average=None) for chosen in drawn]
    assert quality.recall_se == pytest.approx(np.std(recall, axis=0).tolist(), rel=0.2)


def test_a_class_that_never_occurs_counts_as_zero_and_surely_so():
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 0])
    quality = measure_quality(predicted, labels, 3)
    assert quality.recall[2] == quality.f1[2] == quality.recall_se[2] == quality.f1_se[2] == 0
    assert quality.macro_f1 == pytest.approx((4 / 5 + 2 / 3 + 0) / 3)


def test_a_network_that_is_always_right_is_surely_so():
    labels = np.arange(30) % 3
    quality = measure_quality(labels, labels, 3)
    assert quality.accuracy == quality.macro_f1 == 1
    assert quality.accuracy_se == 0


def test_the_seed_alone_decides_the_errors():
    labels, predicted = np.arange(60) % 3, np.arange(60) // 2 % 3
    assert measure_quality(predicted, labels, 3, seed=5) == measure_quality(predicted, labels, 3, seed=5)
    assert measure_quality(predicted, labels, 3, seed=5) != measure_quality(predicted, labels, 3, seed=6)
