import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from hscc_search.evaluation.quality import measure_quality

CLASSES = ("cat", "dog", "eel", "fox", "gnu", "hen")


@st.composite
def predictions(draw):
    """Predicted classes and labels as positions, and the class names."""
    count = draw(st.integers(1, 6))
    positions = st.integers(0, count - 1)
    pairs = draw(st.lists(st.tuples(positions, positions), min_size=1, max_size=60))
    predicted, labels = np.array(pairs, np.int64).T
    return predicted, labels, CLASSES[:count]


def of_classes(values, measure, classes):
    """The values of a measure in the order of the classes."""
    return [values[f"{measure}:{name}"] for name in classes]


@given(case=predictions())
@settings(max_examples=80, deadline=None)
def test_measures_are_scikit_learns(case):
    predicted, labels, classes = case
    quality = measure_quality(predicted, labels, classes)
    _, recall, f1, _ = metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(len(classes)), zero_division=0
    )
    assert quality.metrics["accuracy"] == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert of_classes(quality.metrics, "recall", classes) == pytest.approx(recall.tolist())
    assert of_classes(quality.metrics, "f1", classes) == pytest.approx(f1.tolist())
    assert quality.metrics["macro_f1"] == pytest.approx(
        metrics.f1_score(labels, predicted, labels=range(len(classes)), average="macro", zero_division=0)
    )


@given(case=predictions())
@settings(max_examples=20, deadline=None)
def test_each_metric_has_an_error_of_the_same_name(case):
    predicted, labels, classes = case
    quality = measure_quality(predicted, labels, classes)
    names = {"accuracy", "macro_f1", *(f"{measure}:{name}" for measure in ("recall", "f1") for name in classes)}
    assert quality.metrics.keys() == quality.errors.keys() == names
    assert all(type(value) is float for value in (*quality.metrics.values(), *quality.errors.values()))


@pytest.mark.parametrize("share", [0.5, 0.8, 0.97])
@pytest.mark.parametrize("count", [100, 490])
def test_the_error_of_accuracy_is_the_binomial_one(share, count):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, count)
    predicted = np.where(np.arange(count) < round(share * count), labels, (labels + 1) % 4)
    quality = measure_quality(predicted, labels, CLASSES[:4])
    p = quality.metrics["accuracy"]
    # 1000 draws give a standard deviation to about 2 %.
    assert quality.errors["accuracy"] == pytest.approx((p * (1 - p) / count) ** 0.5, rel=0.1)


def test_errors_are_those_of_drawing_images_again():
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 3, 120)
    predicted = np.where(generator.random(120) < 0.7, labels, generator.integers(0, 3, 120))
    quality = measure_quality(predicted, labels, CLASSES[:3])
    draws = [generator.integers(0, 120, 120) for _ in range(400)]
    macro_f1 = [metrics.f1_score(labels[chosen], predicted[chosen], average="macro") for chosen in draws]
    assert quality.errors["macro_f1"] == pytest.approx(np.std(macro_f1), rel=0.15)
    recall = [metrics.recall_score(labels[chosen], predicted[chosen], average=None) for chosen in draws]
    errors = of_classes(quality.errors, "recall", CLASSES[:3])
    assert errors == pytest.approx(np.std(recall, axis=0).tolist(), rel=0.2)


def test_a_class_that_never_occurs_counts_as_zero_and_surely_so():
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 0])
    quality = measure_quality(predicted, labels, CLASSES[:3])
    for measure in ("recall:eel", "f1:eel"):
        assert quality.metrics[measure] == quality.errors[measure] == 0
    assert quality.metrics["macro_f1"] == pytest.approx((4 / 5 + 2 / 3 + 0) / 3)


def test_a_network_that_is_always_right_may_still_be_wrong():
    """The errors are the standard deviations of Jeffreys' posterior, of all images or of those of the class."""
    labels = np.arange(30) % 3
    quality = measure_quality(labels, labels, CLASSES[:3], asked=["balanced_accuracy", "specificity:cat"])
    assert quality.metrics["accuracy"] == quality.metrics["macro_f1"] == 1
    assert quality.errors["accuracy"] == pytest.approx(stats.beta(30.5, 0.5).std())
    assert quality.errors["recall:cat"] == pytest.approx(stats.beta(10.5, 0.5).std())
    assert quality.errors["specificity:cat"] == pytest.approx(stats.beta(20.5, 0.5).std())
    for mean in ("macro_f1", "balanced_accuracy"):
        assert quality.errors[mean] == pytest.approx(stats.beta(10.5, 0.5).std() / 3**0.5)
    patients = measure_quality(labels, labels, CLASSES[:3], groups=np.arange(30) // 3)
    assert patients.errors["accuracy"] == pytest.approx(stats.beta(10.5, 0.5).std())


def test_one_wrong_answer_is_less_sure_than_none():
    labels = np.zeros(50, np.int64)
    none, one = (measure_quality(np.arange(50) < wrong, labels, CLASSES[:2]).errors for wrong in (0, 1))
    assert 0 < none["accuracy"] < one["accuracy"]


def test_labels_of_few_bits_are_counted_like_any_others():
    labels, predicted = np.arange(600) % 6, np.arange(600) // 2 % 6
    expected = measure_quality(predicted, labels, CLASSES)
    assert measure_quality(predicted, labels.astype(np.uint8), CLASSES) == expected


def test_the_seed_alone_decides_the_errors():
    labels, predicted = np.arange(60) % 3, np.arange(60) // 2 % 3
    first, again, another = (measure_quality(predicted, labels, CLASSES[:3], seed=seed) for seed in (5, 5, 6))
    assert first == again
    assert first.metrics == another.metrics
    assert first.errors != another.errors
