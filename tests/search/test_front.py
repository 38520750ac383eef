import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hscc_search.errors import ConfigError, StudyError
from hscc_search.search.front import Point, front, knee, select


def point(flops, accuracy, trial=0):
    return Point(trial, {"energy": 0.9}, flops, flops // 2, 100, 0.4, accuracy, 0.01, accuracy, 0.01)


def points(*pairs):
    return [point(flops, accuracy, trial) for trial, (flops, accuracy) in enumerate(pairs)]


# Few values, so that ties and duplicates are common.
clouds = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12).map(lambda n: n / 12)), max_size=25).map(
    lambda pairs: points(*pairs)
)


def beats(one, other):
    as_good = one.flops <= other.flops and one.accuracy >= other.accuracy
    return as_good and (one.flops, one.accuracy) != (other.flops, other.accuracy)


@given(data=st.data(), cloud=clouds)
@settings(max_examples=200, deadline=None)
def test_the_front_is_what_no_point_beats_with_the_first_of_equals(data, cloud):
    unbeaten = [member for member in cloud if not any(beats(other, member) for other in cloud)]
    first = {}
    for member in unbeaten:
        first.setdefault((member.flops, member.accuracy), member)
    shuffled = data.draw(st.permutations(cloud))
    assert front(shuffled) == sorted(first.values(), key=lambda member: member.flops)


@given(cloud=clouds)
@settings(max_examples=60, deadline=None)
def test_a_front_rises_and_is_its_own_front(cloud):
    members = front(cloud)
    assert front(members) == members
    accuracies = [member.accuracy for member in members]
    assert accuracies == sorted(set(accuracies))


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
    assert knee(points(*pairs)).trial == expected


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
    chosen = above(*pairs[knee(members).trial])
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
    assert knee(scaled).trial == knee(members).trial


def test_an_empty_front_has_no_knee():
    with pytest.raises(StudyError, match="empty"):
        knee([])


# Trial 1 is beaten by trial 2.
CLOUD = points((100, 0.60), (300, 0.70), (200, 0.75), (400, 0.90), (1000, 0.95))


@pytest.mark.parametrize(
    ("rule", "trial"),
    [
        ("knee", 3),
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
    assert select(rule, CLOUD).trial == trial


@given(cloud=clouds, bound=st.integers(0, 12).map(lambda n: n / 12))
@settings(max_examples=100, deadline=None)
def test_min_accuracy_takes_the_fewest_flops_that_reach_it(cloud, bound):
    fitting = [member.flops for member in cloud if member.accuracy >= bound]
    if not fitting:
        with pytest.raises(StudyError):
            select(f"min-accuracy:{bound}", cloud)
        return
    chosen = select(f"min-accuracy:{bound}", cloud)
    assert chosen.accuracy >= bound
    assert chosen.flops == min(fitting)


@given(cloud=clouds, bound=st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_max_flops_takes_the_most_accurate_that_it_affords(cloud, bound):
    fitting = [member.accuracy for member in cloud if member.flops <= bound]
    if not fitting:
        with pytest.raises(StudyError):
            select(f"max-flops:{bound}", cloud)
        return
    chosen = select(f"max-flops:{bound}", cloud)
    assert chosen.flops <= bound
    assert chosen.accuracy == max(fitting)


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
def test_a_malformed_rule_is_quoted_with_the_rules_that_exist(rule):
    with pytest.raises(ConfigError, match="use knee, trial:N") as caught:
        select(rule, CLOUD)
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
        select(rule, CLOUD)


@pytest.mark.parametrize("rule", ["knee", "trial:0", "min-accuracy:0.5", "max-flops:10"])
def test_without_trials_nothing_can_be_selected(rule):
    with pytest.raises(StudyError):
        select(rule, [])


def test_the_dense_network_is_stored_without_a_trial():
    dense = Point(None, {}, 10, 5, 100, 0.4, 0.9, 0.01, 0.9, 0.01)
    assert dense.stored().keys() == point(10, 0.9).stored().keys() - {"trial", "settings"}
