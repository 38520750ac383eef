import numpy as np
import pytest
from clouds import PLANE, make_points

from hscc_search.errors import StudyError
from hscc_search.pareto.points import Measured, Point, oriented, predictions_of


def predicting(trial, predictions):
    return Point({}, {}, predictions, trial, {})


def test_oriented_values_are_the_lower_the_better():
    assert oriented(make_points((10, 0.25), (20, 0.5)), PLANE).tolist() == [[10, -0.25], [20, -0.5]]
    assert oriented([], PLANE).shape == (0, 2)


def test_predictions_are_read_as_they_were_stored():
    predictions = np.array([[0, 1, 65535], [2, 0, 256]], dtype=np.uint16)
    stored = [predicting(trial, row.astype("<u2").tobytes()) for trial, row in enumerate(predictions)]
    read = predictions_of(stored)
    assert read.dtype == np.uint16
    assert (read == predictions).all()
    assert predictions_of([]).shape == (0, 0)


def test_predictions_for_different_images_cannot_be_compared():
    with pytest.raises(StudyError, match="trial 1 has predictions for 2 images, trial 0 for 3"):
        predictions_of([predicting(0, bytes(6)), predicting(1, bytes(4))])


@pytest.mark.parametrize(("violation", "feasible"), [(0.0, True), (1e-9, False), (float("nan"), False)])
def test_a_trial_without_violations_is_feasible(violation, feasible):
    assert Point({}, {}, b"", 0, {}, {"latency": violation, "megabytes": 0.0}).feasible is feasible
    assert Point({}, {}, b"", 0, {}).feasible


def test_networks_are_named_where_a_metric_is_missing():
    with pytest.raises(StudyError, match="trial 3 has no latency: measured are flops"):
        Point({"flops": 1}, {}, b"", 3, {})["latency"]
    with pytest.raises(StudyError, match="the dense network has no latency: measured are flops, accuracy"):
        Measured({"flops": 1, "accuracy": 0.9}, {}, b"")["latency"]
