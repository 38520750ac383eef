import numpy as np
import pytest
from clouds import ACCURACY, ALL, FLOPS, PLANE, clouds, make_point, make_points, objectives_in_any_order
from hypothesis import given, settings
from hypothesis import strategies as st

from hscc_search.errors import StudyError
from hscc_search.pareto.front import front, knee
from hscc_search.pareto.objectives import Objective
from hscc_search.pareto.points import Point


def dominates(winner, loser, objectives):
    signs = [(-1 if objective.maximise else 1, objective.metric) for objective in objectives]
    pairs = [(sign * winner[metric], sign * loser[metric]) for sign, metric in signs]
    return all(better <= worse for better, worse in pairs) and any(better < worse for better, worse in pairs)


@given(data=st.data(), cloud=clouds, objectives=objectives_in_any_order)
@settings(max_examples=400, deadline=None)
def test_the_front_is_what_no_feasible_point_dominates_with_the_first_of_equals(data, cloud, objectives):
    feasible = [point for point in cloud if point.violations["latency"] == 0]
    nondominated = [point for point in feasible if not any(dominates(other, point, objectives) for other in feasible)]
    first = {}
    for point in nondominated:
        first.setdefault(tuple(point[objective.metric] for objective in objectives), point.trial)
    members = front(data.draw(st.permutations(cloud)), objectives)
    assert sorted(member.trial for member in members) == sorted(first.values())
    leading = [member[objectives[0].metric] for member in members]
    assert leading == sorted(leading)


@given(data=st.data(), cloud=clouds, objectives=objectives_in_any_order)
@settings(max_examples=100, deadline=None)
def test_the_front_does_not_depend_on_the_order_of_the_points_and_is_its_own_front(data, cloud, objectives):
    members = front(cloud, objectives)
    assert front(data.draw(st.permutations(cloud)), objectives) == members
    assert front(members, objectives) == members


def test_a_plane_front_rises():
    members = front(make_points((3, 0.5), (1, 0.2), (2, 0.1), (2, 0.4), (3, 0.4)), PLANE)
    assert [member.trial for member in members] == [1, 3, 0]
    assert [member.trial for member in front(members, PLANE[::-1])] == [1, 3, 0]  # by ascending accuracy


@pytest.mark.parametrize("objectives", [PLANE, ALL[:3], ALL], ids=["2", "3", "4"])
def test_ten_thousand_trials(objectives):
    generator = np.random.default_rng(0)
    metrics = [objective.metric for objective in objectives]
    rows = generator.integers(0, 1000, size=(10000, len(objectives))).astype(float)
    cloud = [
        Point(dict(zip(metrics, values, strict=True)), {}, b"", trial, {}) for trial, values in enumerate(rows.tolist())
    ]
    members = [member.trial for member in front(cloud, objectives)]
    signs = np.array([-1 if objective.maximise else 1 for objective in objectives])
    low = rows * signs
    chosen = low[members]
    for trial in generator.choice(10000, size=300, replace=False).tolist() + members[:300]:
        dominated = ((low <= low[trial]).all(axis=1) & (low < low[trial]).any(axis=1)).any()
        assert dominated == (not (chosen == low[trial]).all(axis=1).any())


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(0, 0.0), (1, 0.8), (10, 1.0)], 1),
        ([(0, 0.0), (2, 0.5), (3, 0.9), (10, 1.0)], 2),
        ([(100, 0.5), (110, 0.70), (120, 0.75), (200, 0.80)], 2),
        ([(10, 0.3)], 0),
        ([(10, 0.3), (20, 0.4)], 1),
    ],
    ids=["a corner", "two corners", "off the origin", "one point", "two points"],
)
def test_the_knee_is_where_the_front_bends(pairs, expected):
    assert knee(make_points(*pairs), PLANE).trial == expected


def test_two_points_have_no_bend_and_the_last_objective_decides():
    pair = make_points((10, 0.3), (20, 0.4))
    assert knee(pair, (ACCURACY, FLOPS)).trial == 0


rising = st.lists(
    st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)),
    min_size=3,
    max_size=12,
    unique_by=(lambda p: p[0], lambda p: p[1]),
).map(lambda pairs: list(zip(sorted(p[0] for p in pairs), sorted(p[1] for p in pairs), strict=True)))


@given(pairs=rising)
@settings(max_examples=100, deadline=None)
def test_the_knee_lies_furthest_from_the_line_between_the_ends(pairs):
    members = make_points(*((flops, accuracy / 10**6) for flops, accuracy in pairs))
    (x0, y0), (x1, y1) = pairs[0], pairs[-1]

    def above(flops, accuracy):  # in whole numbers, free of rounding
        return (accuracy - y0) * (x1 - x0) - (flops - x0) * (y1 - y0)

    best = max(above(*pair) for pair in pairs)
    chosen = above(*pairs[knee(members, PLANE).trial])
    assert chosen >= best - 1e-9 * (x1 - x0) * (y1 - y0)


@given(
    pairs=rising,
    factor=st.sampled_from([2, 4, 64]),
    shift=st.integers(0, 2**20),
    steepness=st.sampled_from([0.5, 0.25]),
)
@settings(max_examples=100, deadline=None)
def test_the_units_of_the_axes_do_not_move_the_knee(pairs, factor, shift, steepness):
    # Powers of two, so that the scaled values are exact.
    members = make_points(*((flops, accuracy / 2**20) for flops, accuracy in pairs))
    scaled = make_points(*((flops * factor + shift, accuracy / 2**20 * steepness) for flops, accuracy in pairs))
    assert knee(scaled, PLANE).trial == knee(members, PLANE).trial


@given(cloud=clouds, objectives=objectives_in_any_order)
@settings(max_examples=100, deadline=None)
def test_the_knee_has_the_largest_sum_of_scaled_goodness(cloud, objectives):
    members = front(cloud, objectives)
    if len(members) < 3:
        return

    def goodness(member):
        total = 0.0
        for objective in objectives:
            column = [other[objective.metric] for other in members]
            low, high = min(column), max(column)
            if high > low:
                share = (member[objective.metric] - low) / (high - low)
                total += share if objective.maximise else 1 - share
        return total

    assert goodness(knee(members, objectives)) >= max(goodness(member) for member in members) - 1e-12


def test_an_empty_front_has_no_knee():
    with pytest.raises(StudyError, match="empty"):
        knee([], PLANE)


def test_a_metric_that_was_not_measured_is_named():
    with pytest.raises(StudyError, match=r"trial 3 has no recall:cat: measured are flops, accuracy, latency, macro_f1"):
        front([make_point(3, 1, 0.5)], (FLOPS, Objective("recall:cat", True)))
