import operator
import re
from dataclasses import replace

import numpy as np
import pytest
from clouds import LABELS, PLANE, clouds, make_point, make_points, objectives_in_any_order
from hypothesis import given, settings
from hypothesis import strategies as st

from hscc_search.errors import ConfigError, StudyError
from hscc_search.pareto.confidence import Confidence, Truth, confidence
from hscc_search.pareto.front import front
from hscc_search.pareto.points import Measured, Point
from hscc_search.pareto.rules import Bounds, ByTrial, Knee, WholeFront, parse_rule
from hscc_search.pareto.selection import choose, ranked, select

# Trial 1 is dominated by trial 2.
CLOUD = make_points((100, 0.60), (300, 0.70), (200, 0.75), (400, 0.90), (1000, 0.95))


def test_a_rule_may_be_given_as_text():
    given = (CLOUD, PLANE, Truth(LABELS, ("a", "b")))
    assert select("trial:3", *given) == select(ByTrial(3), *given)
    for wrong in ("garbage", None, 3):
        with pytest.raises(ConfigError, match="use knee, trial:N"):
            select(wrong, *given)


DENSE = Measured({"flops": 1000, "parameters": 9}, {}, b"")


def selected(rule, cloud, objectives=PLANE):
    return select(parse_rule(rule), cloud, objectives, Truth(LABELS, ("a", "b")), dense=DENSE)


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
        ("max-flops:0.4k", 3),
        ("budget:2", 3),
        ("budget:2.6", 2),
        ("accuracy>0.75", 3),
        ("accuracy>=0.7 and accuracy<0.8", 2),
        ("flops<400 and flops>=200", 2),
        ("flops>400", 4),
        ("budget>=2 and budget<3", 3),
        ("energy<=0.9", 4),
        ("energy<=0.9 and accuracy>=0.7", 2),
    ],
)
def test_each_rule_selects_its_trial(rule, trial):
    assert selected(rule, CLOUD).trial == trial


def test_the_selected_knee_is_the_knee_of_most_draws():
    labels = np.zeros(400, dtype=np.int64)

    def network(trial, flops, right):
        predictions = (np.arange(400) >= right).astype("<u2").tobytes()
        return Point({"flops": flops, "accuracy": right / 400}, {}, predictions, trial, {})

    # The front bends at trial 1, on all images and in nearly every draw.
    cloud = [network(0, 10, 200), network(1, 20, 350), network(2, 100, 380), network(3, 200, 390)]
    assert select(Knee(), cloud, PLANE, Truth(labels, ("a", "b")), 0).trial == 1


@given(cloud=clouds, bound=st.integers(0, 6).map(lambda n: n / 6), objectives=objectives_in_any_order)
@settings(max_examples=100, deadline=None)
def test_min_accuracy_takes_the_fewest_flops_that_reach_it(cloud, bound, objectives):
    fitting = [point["flops"] for point in cloud if point.feasible and point["accuracy"] >= bound]
    if not fitting:
        with pytest.raises(StudyError):
            selected(f"min-accuracy:{bound}", cloud, objectives)
        return
    chosen = selected(f"min-accuracy:{bound}", cloud, objectives)
    assert chosen.feasible
    assert chosen["accuracy"] >= bound
    assert chosen["flops"] == min(fitting)


@given(cloud=clouds, bound=st.integers(1, 6), objectives=objectives_in_any_order)
@settings(max_examples=100, deadline=None)
def test_max_flops_takes_the_most_accurate_that_it_affords(cloud, bound, objectives):
    fitting = [point["accuracy"] for point in cloud if point.feasible and point["flops"] <= bound]
    if not fitting:
        with pytest.raises(StudyError):
            selected(f"max-flops:{bound}", cloud, objectives)
        return
    chosen = selected(f"max-flops:{bound}", cloud, objectives)
    assert chosen.feasible
    assert chosen["flops"] <= bound
    assert chosen["accuracy"] == max(fitting)


def test_of_equal_costs_and_bounded_values_the_most_accurate_is_taken():
    """Trials whose bounded recalls and FLOPs are alike: the first one is dominated by the second."""
    values = ((0, 0.5), (1, 0.8), (2, 0.7))
    cloud = [
        Point({"flops": 10, "accuracy": accuracy, "recall:a": 0.9}, {}, b"", trial, {}) for trial, accuracy in values
    ]
    assert selected("recall:a>=0.9 and flops<=10", cloud).trial == 1


@given(cloud=clouds, bound=st.integers(0, 6))
@settings(max_examples=100, deadline=None)
def test_in_the_plane_both_bounds_select_from_the_front(cloud, bound):
    if any(point.feasible for point in cloud):
        members = front(cloud, PLANE)
        for rule in (f"min-accuracy:{bound / 6}", f"max-flops:{bound + 1}"):
            try:
                assert selected(rule, cloud) in members
            except StudyError:
                continue


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("trial:9", "no finished trial 9: the front holds 0, 2, 3, 4"),
        ("min-accuracy:0.99", "no trial keeps accuracy>=0.99: trial 4 misses accuracy>=0.99 by 0.04; trial 3 misses"),
        ("max-flops:50", "no trial keeps flops<=50: trial 0 misses flops<=50 by 50 FLOPs; trial 2 misses"),
        ("budget:20", "no trial keeps budget>=20: trial 0 misses budget>=20 by 10x; trial 2 misses"),
        ("accuracy>0.95", r"trial 4 misses accuracy>0\.95, which it equals; trial 3"),
        (
            "accuracy>=0.92 and flops<=350",
            r"trial 3 misses accuracy>=0\.92 by 0\.02, and flops<=350 by 50 FLOPs; trial 2 misses accuracy>=0\.92 by "
            r"0\.17; trial 1 misses accuracy>=0\.92 by 0\.22$",
        ),
        ("acuracy>=0.9", "trial 0 has no acuracy: did you mean accuracy"),
        ("regions<=4", "has no regions: measured are flops, .*, and energy were sampled"),
    ],
)
def test_a_rule_that_no_trial_fits_says_what_there_is(rule, message):
    with pytest.raises(StudyError, match=message):
        selected(rule, CLOUD)


@pytest.mark.parametrize("rule", ["knee", "trial:0", "min-accuracy:0.5", "max-flops:10"])
def test_without_trials_nothing_can_be_selected(rule):
    with pytest.raises(StudyError):
        selected(rule, [])


@pytest.mark.parametrize("rule", ["knee", "min-accuracy:0", "max-flops:1e12"])
def test_without_feasible_trials_the_one_that_comes_nearest_is_named(rule):
    violations = (0.4, 0.25, 3)
    cloud = [make_point(trial, 10, 0.5, violation=violation) for trial, violation in enumerate(violations)]
    with pytest.raises(StudyError, match=r"no trial is feasible: trial 1 comes nearest, it violates latency by 0\.25"):
        selected(rule, cloud)
    assert selected("trial:2", cloud).trial == 2
    with pytest.raises(StudyError, match="the front holds none"):
        selected("trial:9", cloud)


SIGNS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
# Values that the clouds have, and some between.
LIMITS = {
    "flops": st.integers(1, 12).map(lambda n: n / 2),
    "accuracy": st.integers(0, 12).map(lambda n: n / 12),
    "latency": st.integers(1, 9).map(lambda n: n / 2),
    "macro_f1": st.integers(0, 6).map(lambda n: n / 6),
    "energy": st.sampled_from([0.5, 0.9, 1.5]),
    "budget": st.sampled_from([100.0, 250.0, 999.0, 1000.0, 1500.0]),
}
wishes = st.lists(
    st.sampled_from(sorted(LIMITS)).flatmap(
        lambda name: st.tuples(st.just(name), st.sampled_from(sorted(SIGNS)), LIMITS[name])
    ),
    min_size=1,
    max_size=4,
)


def told(point, name):
    """What a bound is on, computed here."""
    return 1000 / point["flops"] if name == "budget" else {**point.sample, **point.metrics}[name]


@given(cloud=clouds, wish=wishes, objectives=objectives_in_any_order)
@settings(max_examples=200, deadline=None)
def test_an_expression_takes_the_best_of_those_that_a_plain_filter_keeps(cloud, wish, objectives):
    text = " and ".join(f"{name}{sign}{limit!r}" for name, sign, limit in wish)
    fitting = [
        point
        for point in cloud
        if not any(point.violations.values())
        and all(SIGNS[sign](told(point, name), limit) for name, sign, limit in wish)
    ]
    if not fitting:
        with pytest.raises(StudyError):
            selected(text, cloud, objectives)
        return
    chosen = selected(text, cloud, objectives)
    assert chosen in fitting
    of_answers = any(name in ("accuracy", "macro_f1") for name, _, _ in wish)
    if of_answers:
        assert chosen["flops"] == min(point["flops"] for point in fitting)
    else:
        assert chosen["accuracy"] == max(point["accuracy"] for point in fitting)
    choice = choose(parse_rule(text), cloud, objectives, lambda: Confidence({}, frozenset(), None), DENSE)
    assert choice.point == chosen
    said = re.match(
        r"(fewest FLOPs|highest accuracy) of (\d+) that keep (.*)|the only one that keeps (.*)", choice.reason
    )
    assert int(said[2] or 1) == len(fitting)
    assert said[1] in (None, "fewest FLOPs" if of_answers else "highest accuracy")
    assert isinstance(parse_rule(said[3] or said[4]), Bounds)


@given(cloud=clouds, wish=wishes)
@settings(max_examples=200, deadline=None)
def test_a_wish_that_none_fulfils_names_the_nearest_trials_and_each_bound_that_they_miss(cloud, wish):
    feasible = [point for point in cloud if point.feasible]
    wish = [(name, sign, limit + 100 * (1 if ">" in sign else -1) * (name == "latency")) for name, sign, limit in wish]
    wish = [row for row in wish if row[0] != "latency" or row[2] > 0]
    missed = {
        point.trial: [(name, sign, limit) for name, sign, limit in wish if not SIGNS[sign](told(point, name), limit)]
        for point in feasible
    }
    if not wish or not feasible or not all(missed.values()):
        return
    text = " and ".join(f"{name}{sign}{limit!r}" for name, sign, limit in wish)
    with pytest.raises(StudyError) as refused:
        selected(text, cloud)
    line = str(refused.value)
    named = [int(number) for number in re.findall(r"trial (\d+) misses", line)]
    assert len(named) == min(3, len(feasible))

    spans = [
        max(told(point, name) for point in feasible) - min(told(point, name) for point in feasible)
        for name, _, _ in wish
    ]

    def distance(trial):
        point = next(point for point in feasible if point.trial == trial)
        apart = [
            abs(told(point, name) - limit) if (name, sign, limit) in missed[trial] else 0 for name, sign, limit in wish
        ]
        return max(gap / (span or 1) for gap, span in zip(apart, spans, strict=True))

    assert [distance(trial) for trial in named] == sorted(distance(point.trial) for point in feasible)[:3]
    for part, trial in zip(line.split(": ", 1)[1].split("; "), named, strict=True):
        assert len(re.findall(r"(?:<=|>=|<|>)", part)) == len(missed[trial])
        for name, sign, limit in missed[trial]:
            point = next(point for point in feasible if point.trial == trial)
            gap = abs(told(point, name) - limit)
            units = {"flops": " FLOPs", "latency": " ms", "budget": "x"}
            assert (f"by {gap:.3g}{units.get(name, '')}" if gap else "which it equals") in part
            assert name + sign in part


def test_only_numbers_are_bounded_and_names_that_are_not_there_are_told():
    cloud = [replace(point, sample={"precision": "int8", "regions": 4}) for point in CLOUD]
    assert selected("regions>=4 and accuracy>=0.9", cloud).trial == 3
    with pytest.raises(StudyError, match="precision of trial 0 is 'int8', and only numbers are bounded"):
        selected("precision<=8", cloud)
    with pytest.raises(StudyError, match="a budget cannot be told, since the dense network is not given"):
        select("budget:3", cloud, PLANE, Truth(LABELS, ("a", "b")))
    own = [replace(point, metrics={**point.metrics, "budget": 1.0}) for point in cloud]
    with pytest.raises(StudyError, match="a metric of the study's own has that name"):
        selected("budget:3", own)


def test_a_value_that_is_nan_keeps_no_bound_and_comes_last():
    cloud = [replace(point, metrics={**point.metrics, "dice": float("nan")}) for point in CLOUD]
    cloud[1] = replace(cloud[1], metrics={**cloud[1].metrics, "dice": 0.5})
    assert selected("dice<1", cloud).trial == 1
    with pytest.raises(
        StudyError, match=r"trial 1 misses dice>0\.6 by 0\.1; trial 0 misses dice>0\.6, as it has no value"
    ):
        selected("dice>0.6", cloud)


def test_infeasible_trials_keep_no_bound():
    cloud = [make_point(0, 10, 0.9, violation=1.0), make_point(1, 20, 0.9)]
    assert selected("accuracy>=0.9", cloud).trial == 1
    with pytest.raises(StudyError, match=r"no feasible trial keeps flops<=10: trial 1 misses flops<=10 by 10 FLOPs$"):
        selected("flops<=10", cloud)


def test_the_whole_front_is_no_single_trial():
    with pytest.raises(ConfigError, match="only an export takes it"):
        selected("all", CLOUD)
    with pytest.raises(ConfigError, match="only an export takes it"):
        choose(WholeFront(), CLOUD, PLANE, dict, DENSE)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (
            "accuracy>=0.7 and flops<1k",
            "trial 2: fewest FLOPs of 3 that keep accuracy>=0.7 and flops<1k; on the front in ",
        ),
        ("flops<=400", "trial 3: highest accuracy of 4 that keep flops<=400; on the front in "),
        ("flops<=100", "trial 0: the only one that keeps flops<=100; on the front in 100 % of bootstrap draws"),
        ("trial:1", "trial 1: asked for by its number; on the front in "),
    ],
)
def test_a_choice_says_why_and_how_sure_its_place_is(rule, said):
    sure = confidence(CLOUD, PLANE, Truth(LABELS, ("a", "b")))
    choice = choose(rule, CLOUD, PLANE, lambda: sure, DENSE)
    assert str(choice).startswith(said)
    assert choice.probability == sure.probability[choice.point.trial]
    assert choice.stored() == {"reason": choice.reason, "probability": choice.probability, "in_words": choice.why}


def test_the_knee_says_in_how_many_draws_it_is_one():
    sure = confidence(CLOUD, PLANE, Truth(LABELS, ("a", "b")))
    assert sum(sure.knees.values()) == pytest.approx(1)
    choice = choose("knee", CLOUD, PLANE, lambda: sure, DENSE)
    share = sure.knees[choice.point.trial]
    assert share == max(sure.knees.values())
    assert choice.reason == f"the most frequent knee, that of {100 * share:.0f} % of bootstrap draws"
    assert choice.why.endswith(" of them")


@pytest.mark.parametrize(
    ("probability", "said"),
    [(0.0, "0 %"), (0.004, "less than 1 %"), (0.834, "83 %"), (0.9999, "more than 99 %"), (1.0, "100 %")],
)
def test_only_what_is_certain_is_0_or_100_percent(probability, said):
    sure = Confidence({4: probability}, frozenset(), 4, {})
    assert f"on the front in {said} of" in choose("trial:4", CLOUD, PLANE, lambda: sure, DENSE).why


def test_a_trial_that_violates_a_constraint_says_so():
    cloud = [make_point(0, 10, 0.9, violation=0.25)]
    choice = choose("trial:0", cloud, PLANE, lambda: Confidence({0: 0.0}, frozenset(), None), DENSE)
    assert str(choice) == "trial 0: asked for by its number; not on the front: it violates latency by 0.25"


def test_a_front_is_ranked_by_knees_then_by_probability_then_in_its_order():
    members = front(CLOUD, PLANE)
    assert [point.trial for point in members] == [0, 2, 3, 4]
    sure = Confidence({0: 0.5, 1: 0.1, 2: 0.5, 3: 0.4, 4: 1.0}, frozenset(), 3, {3: 0.6, 1: 0.4})
    choices = ranked(members, sure)
    assert [choice.point.trial for choice in choices] == [3, 4, 0, 2]
    assert choices[0].why == "place 1 of 4, the knee of 60 % of bootstrap draws; on the front in 40 % of them"
    assert choices[3].why == "place 4 of 4, the knee of 0 % of bootstrap draws; on the front in 50 % of them"
    with pytest.raises(StudyError, match="the front is empty"):
        ranked([], sure)
