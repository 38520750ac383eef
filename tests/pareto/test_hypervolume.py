import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hscc_search.errors import StudyError
from hscc_search.pareto.hypervolume import hypervolume, hypervolume_history, reference_point, stagnant
from hscc_search.pareto.objectives import Objective
from hscc_search.pareto.points import Measured, Point

ALL = (Objective("flops", False), Objective("accuracy", True), Objective("latency", False), Objective("macro_f1", True))
SIDE = 5


def point(trial, row, feasible=True):
    metrics = dict(zip([objective.metric for objective in ALL], row, strict=False))
    return Point(metrics, {}, b"", trial, {}, {"latency": 0.0 if feasible else 1.0})


def corners(size):
    """Whole numbers: costs from SIDE down to 0, shares from 0 up to SIDE."""
    ends = [(0, SIDE) if objective.maximise else (SIDE, 0) for objective in ALL[:size]]
    return tuple(float(end[0]) for end in ends), tuple(float(end[1]) for end in ends)


sizes = st.shared(st.integers(2, 4), key="objectives")
# Some points lie on the reference and beyond.
clouds = sizes.flatmap(
    lambda size: st.lists(st.tuples(st.tuples(*[st.integers(0, SIDE + 1)] * size), st.booleans()), max_size=12)
).map(lambda rows: [point(trial, row, feasible) for trial, (row, feasible) in enumerate(rows)])


def counted(cloud, size):
    """Share of the unit cells of the box that some feasible point dominates."""
    dominated = 0
    for cell in itertools.product(range(SIDE), repeat=size):

        def covers(point, cell=cell):
            # A cell reaches from its number to the next; costs cover what lies above, shares what lies below.
            return all(
                point[objective.metric] >= number + 1 if objective.maximise else point[objective.metric] <= number
                for objective, number in zip(ALL, cell, strict=False)
            )

        dominated += any(point.feasible and covers(point) for point in cloud)
    return dominated / SIDE**size


def inside(point, size):
    """Tell whether a point is better than the reference in every objective."""
    return all(
        point[objective.metric] > 0 if objective.maximise else point[objective.metric] < SIDE
        for objective in ALL[:size]
    )


@given(cloud=clouds, size=sizes)
@settings(max_examples=200, deadline=None)
def test_the_hypervolume_is_the_share_of_cells_that_are_dominated(cloud, size):
    reference, ideal = corners(size)
    # A point beyond the reference in one objective adds nothing, however good it is in the others.
    expected = counted([point for point in cloud if inside(point, size)], size)
    assert hypervolume(cloud, ALL[:size], reference, ideal) == pytest.approx(expected, abs=1e-12)


@given(
    rows=st.integers(2, 4).flatmap(
        lambda size: st.lists(st.tuples(*[st.floats(0, 1).map(lambda x: round(x, 3))] * size), min_size=1, max_size=6)
    )
)
@settings(max_examples=100, deadline=None)
def test_the_hypervolume_equals_inclusion_and_exclusion(rows):
    size = len(rows[0])
    objectives = tuple(Objective(objective.metric, False) for objective in ALL[:size])
    expected = 0.0
    for count in range(1, len(rows) + 1):
        for some in itertools.combinations(rows, count):
            expected += (-1) ** (count + 1) * math.prod(1 - max(column) for column in zip(*some, strict=True))
    cloud = [point(trial, row) for trial, row in enumerate(rows)]
    assert hypervolume(cloud, objectives, (1.0,) * size, (0.0,) * size) == pytest.approx(expected, abs=1e-9)


def test_the_units_of_the_objectives_do_not_matter():
    plane = ALL[:2]
    cloud = [point(0, (3e9, 0.7)), point(1, (1e9, 0.5))]
    # Over the box 4e9 x 0.6: 1/4 x 1/2 and beside it 1/2 x 1/6.
    expected = 1 / 4 * 1 / 2 + 1 / 2 * 1 / 6
    assert hypervolume(cloud, plane, (4e9, 0.4), (0.0, 1.0)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("cloud", [[], [point(0, (1, 1), feasible=False)], [point(0, (5, 5))], [point(0, (1, 0))]])
def test_nothing_beyond_the_reference_gives_nothing(cloud):
    assert hypervolume(cloud, ALL[:2], *corners(2)) == 0


def test_the_ideal_corner_gives_everything():
    assert hypervolume([point(0, (0, SIDE))], ALL[:2], *corners(2)) == 1


def test_a_box_without_room_holds_nothing():
    # All images are of one class: guessing is always right.
    assert hypervolume([point(0, (1, 1.0))], ALL[:2], (2.0, 1.0), (0.0, 1.0)) == 0


@given(data=st.data(), cloud=clouds, size=sizes)
@settings(max_examples=100, deadline=None)
def test_the_history_is_the_hypervolume_after_each_trial(data, cloud, size):
    reference, ideal = corners(size)
    history = hypervolume_history(data.draw(st.permutations(cloud)), ALL[:size], reference, ideal)
    expected = [hypervolume(cloud[: end + 1], ALL[:size], reference, ideal) for end in range(len(cloud))]
    assert history == pytest.approx(expected, abs=1e-12)
    assert history == sorted(history)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_history_of_ten_thousand_trials(size):
    rows = np.random.default_rng(0).uniform(0, SIDE, size=(10000, size)).tolist()
    cloud = [point(trial, row) for trial, row in enumerate(rows)]
    history = hypervolume_history(cloud, ALL[:size], *corners(size))
    assert len(history) == 10000
    assert history[-1] == pytest.approx(hypervolume(cloud, ALL[:size], *corners(size)), rel=1e-12)


def test_the_reference_is_the_dense_network_and_guessing():
    dense = Measured({"flops": 2e9, "latency": 10.0, "accuracy": 0.9, "macro_f1": 0.8}, {}, b"")
    objectives = (*ALL, Objective("recall:cat", True))
    reference, ideal = reference_point(dense, objectives, np.array([0, 1, 1, 2, 1]))
    assert reference == (2e9, 0.6, 10.0, 0.0, 0.0)
    assert ideal == (0.0, 1.0, 0.0, 1.0, 1.0)
    with pytest.raises(StudyError, match="the dense network has no parameters"):
        reference_point(dense, (Objective("parameters", False),), np.array([0]))


def test_the_reference_of_scores_is_guessing_and_that_of_own_metrics_their_worst_value():
    objectives = (
        Objective("auroc:cat", True),
        Objective("log_loss", False),
        Objective("calibration_error", False),
        Objective("mine", False, (3.0, -1.0)),
    )
    dense = Measured({}, {}, b"")
    reference, ideal = reference_point(dense, objectives, np.array([0, 1, 1, 0]))
    assert reference == pytest.approx((0.5, np.log(2), 1.0, 3.0))
    assert ideal == (1.0, 0.0, 0.0, -1.0)


@pytest.mark.parametrize(
    ("history", "patience", "expected"),
    [
        ([], 3, False),
        ([0.5, 0.5, 0.5], 3, False),
        ([0.5, 0.5, 0.5, 0.5], 3, True),
        ([0.5, 0.5, 0.5, 0.5004], 3, True),
        ([0.5, 0.5, 0.5, 0.501], 3, False),
        ([0.1, 0.5, 0.5, 0.5], 3, False),
        ([0.1, 0.5, 0.5, 0.5], 2, True),
        ([0.0, 0.0, 0.0, 0.0], 3, False),
        ([0.0, 0.0, 0.0, 0.1], 3, False),
    ],
)
def test_a_study_stagnates_when_its_last_trials_hardly_raise_the_hypervolume(history, patience, expected):
    assert stagnant(history, patience) is expected


def test_the_tolerance_is_relative_to_the_hypervolume_before():
    assert stagnant([0.01, 0.0100009], 1, 1e-4)
    assert not stagnant([0.01, 0.010002], 1, 1e-4)


def test_the_reference_of_an_accuracy_of_maps_is_one_class_everywhere():
    points = np.array([[10, 6], [14, 2], [9, 7]])  # of each class in each map
    dense = Measured({"flops": 7.0, "accuracy": 0.9}, {}, b"")
    assert reference_point(dense, ALL[:2], points)[0] == (7.0, pytest.approx(33 / 48))
