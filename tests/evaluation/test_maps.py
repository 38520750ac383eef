import numpy as np
import pytest
from sklearn.metrics import accuracy_score, jaccard_score

from hscc_search.errors import StudyError
from hscc_search.evaluation.draws import draw_counts
from hscc_search.evaluation.maps import measure_maps
from hscc_search.evaluation.own import OWN_DRAWS, measure_own
from hscc_search.evaluation.quality import jeffreys

IMAGES, CLASSES, HEIGHT, WIDTH = 12, 3, 5, 7


def jaccard(scores, targets):
    return jaccard_score(targets.ravel(), scores.argmax(axis=1).ravel(), average="macro")


@pytest.fixture
def answers():
    """Scores and labels; images differ in how often they are right."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, CLASSES, (IMAGES, HEIGHT, WIDTH)).astype(np.uint8)
    noise = generator.normal(size=(IMAGES, CLASSES, HEIGHT, WIDTH)) * np.linspace(0.2, 2, IMAGES)[:, None, None, None]
    return (np.eye(CLASSES)[labels].transpose(0, 3, 1, 2) + noise).astype(np.float32), labels


@pytest.mark.parametrize("groups", [None, np.arange(IMAGES) // 3])
def test_metrics_on_all_images_and_on_each_draw(answers, groups):
    scores, labels = answers
    kept = scores.astype(np.float16)
    own = measure_own({"jaccard": jaccard}, kept, labels, 3, groups)
    measured = measure_maps(scores, labels, 3, groups, ("flops", "jaccard", "accuracy"), own)
    assert measured.quality.metrics.keys() == measured.quality.errors.keys() == {"accuracy", "jaccard"}
    right = accuracy_score(labels.ravel(), scores.argmax(axis=1).ravel())
    expected = {"accuracy": right, "jaccard": jaccard(kept, labels)}
    assert measured.quality.metrics == pytest.approx(expected)
    assert {name: values.shape for name, values in measured.draws.items()} == dict.fromkeys(expected, (OWN_DRAWS,))
    for name, values in measured.draws.items():
        assert measured.quality.errors[name] == pytest.approx(values.std(), rel=1e-4)
    for draw, count in enumerate(draw_counts(IMAGES, OWN_DRAWS, 3, groups)[:5]):
        rows = np.repeat(np.arange(IMAGES), count)
        right = accuracy_score(labels[rows].ravel(), scores[rows].argmax(axis=1).ravel())
        assert measured.draws["accuracy"][draw] == pytest.approx(right, rel=1e-6)
        assert measured.draws["jaccard"][draw] == pytest.approx(jaccard(kept[rows], labels[rows]), rel=1e-6)


def test_the_error_is_that_of_images_and_not_of_positions(answers):
    scores, labels = answers
    of_images = (scores.argmax(axis=1) == labels).mean(axis=(1, 2))
    error = measure_maps(scores, labels).quality.errors["accuracy"]
    assert error == pytest.approx(of_images.std() / np.sqrt(IMAGES), rel=0.15)


def test_an_accuracy_of_one_has_an_error(answers):
    _, labels = answers
    scores = np.eye(CLASSES, dtype=np.float32)[labels].transpose(0, 3, 1, 2)
    quality = measure_maps(scores, labels).quality
    assert quality.metrics["accuracy"] == 1
    assert quality.errors["accuracy"] == jeffreys(IMAGES) > 0


def test_a_metric_that_fails_on_many_draws_is_refused(answers):
    def of_the_first(scores, targets):
        first = (targets == labels[0]).all(axis=(1, 2))
        return (scores.argmax(axis=1) == targets)[first][0].mean()  # which a third of the draws lacks

    scores, labels = answers
    with pytest.raises(StudyError, match=r"first fails on 12 images: .* bootstrap draws"):
        measure_own({"first": of_the_first}, scores, labels)


def test_metrics_of_classes_are_refused(answers):
    with pytest.raises(StudyError, match="macro_f1 needs one class for each image"):
        measure_maps(*answers, asked=("macro_f1",))
