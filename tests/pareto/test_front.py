import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hscc_search.errors import ConfigError, StudyError
from hscc_search.pareto.front import front, knee
from hscc_search.pareto.objectives import Objective
from hscc_search.pareto.points import Point, oriented, predictions_of
from hscc_search.pareto.selection import select

FLOPS, ACCURACY = Objective("flops", False), Objective("accuracy", True)
PLANE = (FLOPS, ACCURACY)
ALL = (FLOPS, ACCURACY, Objective("latency", False), Objective("macro_f1", True))
LABELS = np.zeros(10, dtype=np.int64)


def point(trial, flops, accuracy, latency=1.0, macro_f1=0.5, violation=0.0):
    right = round(accuracy * len(LABELS))
    return Point(
        trial,
        {"energy": 0.9},
        {"flops": flops, "accuracy": accuracy, "latency": latency, "macro_f1": macro_f1},
        {"accuracy": 0.01},
        np.repeat([0, 1], [right, len(LABELS) - right]).astype("<u2").tobytes(),
        {"latency": violation, "megabytes": violation - 1},
    )


def points(*pairs):
    return [point(trial, flops, accuracy) for trial, (flops, accuracy) in enumerate(pairs)]


def choose(rule, cloud, objectives=PLANE):
    return select(rule, cloud, objectives, LABELS, ("a", "b"))


# Few values, so that ties and duplicates are common.
values = st.tuples(
    st.integers(1, 6),
    st.integers(0, 6).map(lambda n: n / 6),
    st.integers(1, 4).map(float),
    st.integers(0, 3).map(lambda n: n / 3),
    st.sampled_from([-0.5, 0.0, 0.0, 0.0, 0.1]),
)
clouds = st.lists(values, max_size=25).map(lambda rows: [point(trial, *row) for trial, row in enumerate(rows)])
choices = st.integers(2, 4).flatmap(lambda size: st.permutations(ALL).map(lambda order: tuple(order[:size])))


def beats(one, other, objectives):
    signs = [(-1 if objective.maximise else 1, objective.metric) for objective in objectives]
    pairs = [(sign * one[metric], sign * other[metric]) for sign, metric in signs]
    return all(mine <= yours for mine, yours in pairs) and any(mine < yours for mine, yours in pairs)


@given(data=st.data(), cloud=clouds, objectives=choices)
@settings(max_examples=400, deadline=None)
def test_the_front_is_what_no_feasible_point_beats_with_the_first_of_equals(data, cloud, objectives):
    kept = [one for one in cloud if one.constraints["latency"] <= 0]
    unbeaten = [one for one in kept if not any(beats(other, one, objectives) for other in kept)]
    first = {}
    for one in unbeaten:
        first.setdefault(tuple(one[objective.metric] for objective in objectives), one.trial)
    members = front(data.draw(st.permutations(cloud)), objectives)
    assert sorted(member.trial for member in members) == sorted(first.values())
    leading = [member[objectives[0].metric] for member in members]
    assert leading == sorted(leading)


@given(data=st.data(), cloud=clouds, objectives=choices)
@settings(max_examples=100, deadline=None)
def test_the_front_does_not_depend_on_the_order_of_the_points_and_is_its_own_front(data, cloud, objectives):
    members = front(cloud, objectives)
    assert front(data.draw(st.permutations(cloud)), objectives) == members
    assert front(members, objectives) == members


def test_a_plane_front_rises():
    members = front(points((3, 0.5), (1, 0.2), (2, 0.1), (2, 0.4), (3, 0.4)), PLANE)
    assert [member.trial for member in members] == [1, 3, 0]
    assert [member.trial for member in front(members, PLANE[::-1])] == [1, 3, 0]  # by ascending accuracy


@pytest.mark.parametrize("objectives", [PLANE, ALL[:3], ALL], ids=["2", "3", "4"])
def test_ten_thousand_trials(objectives):
    generator = np.random.default_rng(0)
    metrics = [objective.metric for objective in objectives]
    rows = generator.integers(0, 1000, size=(10000, len(objectives))).astype(float)
    cloud = [Point(trial, {}, dict(zip(metrics, row, strict=True)), {}, b"") for trial, row in enumerate(rows.tolist())]
    members = [member.trial for member in front(cloud, objectives)]
    signs = np.array([-1 if objective.maximise else 1 for objective in objectives])
    low = rows * signs
    chosen = low[members]
    for trial in generator.choice(10000, size=300, replace=False).tolist() + members[:300]:
        beaten = ((low <= low[trial]).all(axis=1) & (low < low[trial]).any(axis=1)).any()
        assert beaten == (not (chosen == low[trial]).all(axis=1).any())


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
    assert knee(points(*pairs), PLANE).trial == expected


def test_two_points_have_no_bend_and_the_last_objective_decides():
    pair = points((10, 0.3), (20, 0.4))
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
    members = points(*((flops, accuracy / 10**6) for flops, accuracy in pairs))
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
    members = points(*((flops, accuracy / 2**20) for flops, accuracy in pairs))
    scaled = points(*((flops * factor + shift, accuracy / 2**20 * steepness) for flops, accuracy in pairs))
    assert knee(scaled, PLANE).trial == knee(members, PLANE).trial


@given(cloud=clouds, objectives=choices)
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


# Trial 1 is beaten by trial 2.
CLOUD = points((100, 0.60), (300, 0.70), (200, 0.75), (400, 0.90), (1000, 0.95))


@pytest.mark.parametrize(
    ("rule", "trial"),
    [
        ("trial:1", 1),
        ("trial:4", 4),
        ("min-accuracy:0.65", 2),
        ("min-accuracy:0.75", 2),
        ("min-accuracy:0", 0),
        ("max-flops:399", 2),
        ("max-flops:400", 3),
        ("max-flops:1e12", 4),
    ],
)
def test_each_rule_selects_its_trial(rule, trial):
    assert choose(rule, CLOUD).trial == trial


def test_the_selected_knee_is_the_knee_of_most_draws():
    labels = np.zeros(400, dtype=np.int64)

    def network(trial, flops, right):
        predictions = (np.arange(400) >= right).astype("<u2").tobytes()
        return Point(trial, {}, {"flops": flops, "accuracy": right / 400}, {}, predictions)

    # The bend is at trial 1; that of the images as they are drawn is so in nearly every draw.
    cloud = [network(0, 10, 200), network(1, 20, 350), network(2, 100, 380), network(3, 200, 390)]
    assert select("knee", cloud, PLANE, labels, ("a", "b"), 0).trial == 1


@given(cloud=clouds, bound=st.integers(0, 6).map(lambda n: n / 6), objectives=choices)
@settings(max_examples=100, deadline=None)
def test_min_accuracy_takes_the_fewest_flops_that_reach_it(cloud, bound, objectives):
    fitting = [one["flops"] for one in cloud if one.feasible and one["accuracy"] >= bound]
    if not fitting:
        with pytest.raises(StudyError):
            choose(f"min-accuracy:{bound}", cloud, objectives)
        return
    chosen = choose(f"min-accuracy:{bound}", cloud, objectives)
    assert chosen.feasible
    assert chosen["accuracy"] >= bound
    assert chosen["flops"] == min(fitting)


@given(cloud=clouds, bound=st.integers(1, 6), objectives=choices)
@settings(max_examples=100, deadline=None)
def test_max_flops_takes_the_most_accurate_that_it_affords(cloud, bound, objectives):
    fitting = [one["accuracy"] for one in cloud if one.feasible and one["flops"] <= bound]
    if not fitting:
        with pytest.raises(StudyError):
            choose(f"max-flops:{bound}", cloud, objectives)
        return
    chosen = choose(f"max-flops:{bound}", cloud, objectives)
    assert chosen.feasible
    assert chosen["flops"] <= bound
    assert chosen["accuracy"] == max(fitting)


@given(cloud=clouds, bound=st.integers(0, 6))
@settings(max_examples=100, deadline=None)
def test_in_the_plane_both_bounds_select_from_the_front(cloud, bound):
    if any(one.feasible for one in cloud):
        members = front(cloud, PLANE)
        for rule in (f"min-accuracy:{bound / 6}", f"max-flops:{bound + 1}"):
            try:
                assert choose(rule, cloud) in members
            except StudyError:
                continue


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "best",
        "Knee",
        "knee:1",
        "trial",
        "trial:",
        "trial:one",
        "trial:-1",
        "trial:1.5",
        "min-accuracy",
        "min-accuracy:",
        "min-accuracy:high",
        "min-accuracy:1.2",
        "min-accuracy:-0.1",
        "min-accuracy:nan",
        "max-flops:",
        "max-flops:0",
        "max-flops:-5",
        "max-flops:many",
        "max-flops:nan",
    ],
)
@pytest.mark.parametrize("cloud", [CLOUD, []], ids=["trials", "no trials"])
def test_a_malformed_rule_is_quoted_with_the_rules_that_exist(rule, cloud):
    with pytest.raises(ConfigError, match="use knee, trial:N") as caught:
        choose(rule, cloud)
    assert repr(rule) in str(caught.value)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("trial:9", "no finished trial 9: the front holds 0, 2, 3, 4"),
        ("min-accuracy:0.99", "the highest is 0.9500"),
        ("max-flops:50", "the fewest are 100"),
    ],
)
def test_a_rule_that_no_trial_fits_says_what_there_is(rule, message):
    with pytest.raises(StudyError, match=message):
        choose(rule, CLOUD)


@pytest.mark.parametrize("rule", ["knee", "trial:0", "min-accuracy:0.5", "max-flops:10"])
def test_without_trials_nothing_can_be_selected(rule):
    with pytest.raises(StudyError):
        choose(rule, [])


@pytest.mark.parametrize("rule", ["knee", "min-accuracy:0", "max-flops:1e12"])
def test_without_feasible_trials_the_constraint_that_is_violated_least_is_named(rule):
    cloud = [point(0, 10, 0.5, violation=0.4), point(1, 10, 0.6, violation=0.25), point(2, 10, 0.7, violation=3)]
    with pytest.raises(StudyError, match=r"trial 1 comes nearest, it violates latency by 0\.25"):
        choose(rule, cloud)
    assert choose("trial:2", cloud).trial == 2
    with pytest.raises(StudyError, match="the front holds none"):
        choose("trial:9", cloud)


def test_a_metric_that_was_not_measured_is_named():
    with pytest.raises(StudyError, match=r"trial 3 has no recall:cat: measured are flops, accuracy, latency, macro_f1"):
        front([point(3, 1, 0.5)], (FLOPS, Objective("recall:cat", True)))


def test_oriented_values_are_the_lower_the_better():
    assert oriented(points((10, 0.25), (20, 0.5)), PLANE).tolist() == [[10, -0.25], [20, -0.5]]
    assert oriented([], PLANE).shape == (0, 2)


def test_predictions_are_read_as_they_were_stored():
    rows = np.array([[0, 1, 65535], [2, 0, 256]], dtype=np.uint16)
    stored = [Point(trial, {}, {}, {}, row.astype("<u2").tobytes()) for trial, row in enumerate(rows)]
    read = predictions_of(stored)
    assert read.dtype == np.uint16
    assert (read == rows).all()
    assert predictions_of([]).shape == (0, 0)


def test_predictions_for_different_images_cannot_be_compared():
    with pytest.raises(StudyError, match="trial 1 has predictions for 2 images, trial 0 for 3"):
        predictions_of([Point(0, {}, {}, {}, bytes(6)), Point(1, {}, {}, {}, bytes(4))])


@pytest.mark.parametrize(("violation", "feasible"), [(0, True), (-1, True), (1e-9, False), (float("nan"), False)])
def test_a_constraint_is_kept_up_to_its_bound(violation, feasible):
    assert Point(0, {}, {}, {}, b"", {"latency": violation, "megabytes": -1}).feasible is feasible


def test_points_are_stored_without_predictions_and_the_dense_network_without_a_trial():
    trial = point(4, 10, 0.9)
    assert trial.stored() == {
        "trial": 4,
        "settings": {"energy": 0.9},
        "metrics": {"flops": 10, "accuracy": 0.9, "latency": 1.0, "macro_f1": 0.5},
        "errors": {"accuracy": 0.01},
        "constraints": {"latency": 0.0, "megabytes": -1.0},
    }
    dense = Point(None, {}, trial.metrics, trial.errors, trial.predictions)
    assert dense.stored().keys() == trial.stored().keys() - {"trial", "settings"}
