import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri

from hscc_search.errors import StudyError
from hscc_search.evaluation.draws import draw_counts
from hscc_search.evaluation.own import OWN_DRAWS, measure_own
from hscc_search.evaluation.quality import measure_quality
from hscc_search.pareto import confidence as module
from hscc_search.pareto.confidence import Confidence, Truth, confidence
from hscc_search.pareto.front import front, knee
from hscc_search.pareto.objectives import Objective
from hscc_search.pareto.points import Point, predictions_of
from hscc_search.pareto.resampling import widening

FLOPS, LATENCY = Objective("flops", False), Objective("latency", False)
ACCURACY, MACRO_F1, RECALL = Objective("accuracy", True), Objective("macro_f1", True), Objective("recall:b", True)
PLANE = (FLOPS, ACCURACY)
CLASSES = ("a", "b", "c")
IMAGES = 12


def quality(predictions, labels):
    return measure_quality(predictions.astype(np.int64), labels, CLASSES).metrics


def point(trial, predictions, labels, flops=1.0, latency=1.0, feasible=True):
    metrics = {"flops": flops, "latency": latency, **quality(predictions, labels)}
    stored = predictions.astype("<u2").tobytes()
    return Point(metrics, {}, stored, trial, {}, {"latency": 0.0 if feasible else 0.1})


def two_classes(trial, flops, right):
    """A network that is right on the images marked True; all images are of the first class."""
    return Point({"flops": flops, "accuracy": float(right.mean())}, {}, (~right).astype("<u2").tobytes(), trial, {})


@st.composite
def studies(draw):
    labels = np.array(draw(st.lists(st.integers(0, 2), min_size=IMAGES, max_size=IMAGES)))
    # Networks err on few images, and few values are possible, so that ties and duplicates are common.
    errors = st.lists(st.tuples(st.integers(0, IMAGES - 1), st.integers(0, 2)), max_size=4)
    rows = draw(st.lists(st.tuples(errors, st.integers(1, 4), st.integers(1, 3), st.integers(0, 4)), max_size=8))
    points = []
    for trial, (wrong, flops, latency, state) in enumerate(rows):
        predictions = labels.copy()
        for image, guess in wrong:
            predictions[image] = guess
        points.append(point(trial, predictions, labels, float(flops), float(latency), feasible=state > 0))
    return points, labels


choices = st.sampled_from(
    [
        PLANE,
        (ACCURACY, FLOPS),
        (FLOPS, MACRO_F1),
        (RECALL, LATENCY),
        (ACCURACY, MACRO_F1),
        (FLOPS, LATENCY),
        (FLOPS, LATENCY, ACCURACY),
        (FLOPS, ACCURACY, RECALL),
        (MACRO_F1, FLOPS, LATENCY, ACCURACY),
    ]
)


def dominates(winner, loser, objectives):
    signs = [(-1 if objective.maximise else 1, objective.metric) for objective in objectives]
    pairs = [(sign * winner[metric], sign * loser[metric]) for sign, metric in signs]
    return all(better <= worse for better, worse in pairs) and any(better < worse for better, worse in pairs)


def drawn_studies(trials, objectives, labels, counts):
    """The trials as they would have been measured on each draw, each by itself and with the shared definition."""
    predictions = predictions_of(trials)
    noisy = [objective.metric for objective in objectives if objective.on_images]
    whole = {metric: np.array([trial[metric] for trial in trials]) for metric in noisy}
    drawn = {metric: np.empty((len(trials), len(counts))) for metric in noisy}
    for draw, count in enumerate(counts):
        images = np.repeat(np.arange(len(labels)), count)
        for row in range(len(trials)):
            measured = quality(predictions[row, images], labels[images])
            for metric in noisy:
                drawn[metric][row, draw] = measured[metric]
    for metric in noisy:
        factor = widening(whole[metric], drawn[metric], len(trials))
        drawn[metric] = whole[metric][:, None] + factor * (drawn[metric] - whole[metric][:, None])
    for draw in range(len(counts)):
        yield [
            replace(trial, metrics=trial.metrics | {metric: float(drawn[metric][row, draw]) for metric in noisy})
            for row, trial in enumerate(trials)
        ]


def goodness(members, objectives):
    total = np.zeros(len(members))
    for objective in objectives:
        column = np.array([member[objective.metric] for member in members]) * (1 if objective.maximise else -1)
        if len(members) < 3:
            total = column  # the last one stays
        elif column.max() > column.min():
            total += (column - column.min()) / (column.max() - column.min())
    return total


@given(study=studies(), objectives=choices, seed=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_confidence_counts_the_fronts_of_studies_measured_on_each_draw(study, objectives, seed):
    points, labels = study
    # As many draws as the widening is estimated on; 19 of 20 are 95 %.
    draws = 20
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WIDENING_DRAWS", draws)
        patch.setattr(module, "DRAWS_AT_ONCE", 5)
        sure = confidence(points, objectives, Truth(labels, CLASSES), seed, draws)

    # Of equal trials the first stands for all.
    first, stand_in = {}, {}
    for trial in points:
        if trial.feasible:
            same = (trial.predictions, *(trial[objective.metric] for objective in objectives))
            stand_in[trial.trial] = first.setdefault(same, trial).trial
    distinct = list(first.values())
    observed = {member.trial for member in front(distinct, objectives)}
    on_front, dominated, surely_knee, possibly_knee = Counter(), Counter(), Counter(), Counter()
    if not any(objective.on_images for objective in objectives):
        draws = 1
    for drawn in drawn_studies(distinct, objectives, labels, draw_counts(len(labels), draws, seed)):
        pairs = [
            (first.trial, second.trial) for first in drawn for second in drawn if dominates(first, second, objectives)
        ]
        dominated.update(pairs)
        members = [trial for trial in drawn if trial.trial not in {loser for _, loser in pairs}]
        on_front.update(member.trial for member in members)
        if members:
            sums = goodness(members, objectives)
            best = [member.trial for member, value in zip(members, sums, strict=True) if value >= sums.max() - 1e-6]
            possibly_knee.update(best)
            surely_knee.update(best if len(best) == 1 else [])

    assert sure.probability == {trial.trial: on_front[trial.trial] / draws for trial in points}
    assert sure.close == {
        trial.trial
        for trial in points
        if trial.feasible and all(dominated[member, stand_in[trial.trial]] / draws < 0.95 for member in observed)
    }
    if distinct:
        assert possibly_knee[sure.knee] >= max(surely_knee.values(), default=0)
    else:
        assert sure.knee is None


@given(study=studies(), objectives=choices, shuffle=st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_confidence_depends_on_the_trials_and_not_on_how_they_are_listed(study, objectives, shuffle):
    points, labels = study
    sure = confidence(points, objectives, Truth(labels, CLASSES), draws=30)
    shuffled = list(points)
    shuffle.shuffle(shuffled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "DRAWS_AT_ONCE", 7)
        assert confidence(shuffled, objectives, Truth(labels, CLASSES), draws=30) == sure
    # A trial on more than 5 % of the fronts is dominated by any one trial in less than 95 % of the draws.
    assert {trial for trial, share in sure.probability.items() if share > 0.05} <= sure.close


@pytest.mark.parametrize(("gained", "lost"), [(6, 2), (3, 3), (10, 9), (4, 0)])
def test_two_networks_change_places_as_often_as_the_multinomial_says(gained, lost):
    images, draws = 50, 20000
    right = np.arange(images) < 30
    other = right.copy()
    other[:lost], other[30 : 30 + gained] = False, True
    pair = [two_classes(0, 1.0, right), two_classes(1, 2.0, other)]
    sure = confidence(pair, PLANE, Truth(np.zeros(images, dtype=np.int64), ("a", "b")), draws=draws)
    # The dearer one is on the front of a draw when it gains more images there than it loses.
    share = 0.0
    for ups in range(images + 1):
        for downs in range(min(ups, images - ups + 1)):
            rest = images - ups - downs
            ways = math.factorial(images) // (math.factorial(ups) * math.factorial(downs) * math.factorial(rest))
            share += ways * (gained / images) ** ups * (lost / images) ** downs * (1 - (gained + lost) / images) ** rest
    assert sure.probability[0] == 1
    assert sure.probability[1] == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / draws))


def test_of_equal_trials_the_first_carries_the_probability_and_all_are_close():
    right = np.arange(20) < 15
    trials = [two_classes(3, 1.0, right), two_classes(1, 1.0, right), two_classes(2, 2.0, right)]
    sure = confidence(trials, PLANE, Truth(np.zeros(20, dtype=np.int64), ("a", "b")))
    # Trial 2 costs more for the same answers.
    assert sure == Confidence({1: 1.0, 2: 0.0, 3: 0.0}, frozenset({1, 3}), 1, {1: 1.0})


@pytest.mark.parametrize("objectives", [PLANE, (*PLANE, LATENCY)], ids=["swept", "draw by draw"])
def test_trials_that_tie_without_being_equal_share_a_front(objectives):
    right = np.arange(20) < 10
    trials = [two_classes(0, 1.0, right), two_classes(1, 1.0, ~right)]
    trials = [replace(trial, metrics=trial.metrics | {"latency": 1.0}) for trial in trials]
    sure = confidence(trials, objectives, Truth(np.zeros(20, dtype=np.int64), ("a", "b")), draws=2000)
    ties = math.comb(20, 10) / 2**20
    for share in sure.probability.values():
        assert share == pytest.approx(0.5 + ties / 2, abs=0.05)
    assert sure.close == {0, 1}


def test_a_trial_that_is_dominated_in_95_percent_of_the_draws_is_not_close():
    right = np.arange(20) < 15
    other = right.copy()
    other[:4], other[15] = False, True  # four images lost, one gained
    pair = [two_classes(0, 1.0, right), two_classes(1, 2.0, other)]
    seen = set()
    for seed in range(40):
        counts = draw_counts(20, 20, seed).astype(int)
        dominated = int((counts[:, 15] <= counts[:, :4].sum(axis=1)).sum())
        sure = confidence(pair, PLANE, Truth(np.zeros(20, dtype=np.int64), ("a", "b")), seed, draws=20)
        assert (1 in sure.close) == (dominated < 19)
        seen.add(dominated)
    assert {18, 19, 20} <= seen


def test_infeasible_trials_are_on_no_front_and_dominate_no_trial():
    labels = np.zeros(IMAGES, dtype=np.int64)
    good, poor = np.zeros(IMAGES, dtype=np.int64), np.arange(IMAGES) % 2
    trials = [point(0, good, labels, 1.0, feasible=False), point(1, poor, labels, 2.0)]
    sure = confidence(trials, PLANE, Truth(labels, CLASSES))
    assert sure == Confidence({0: 0.0, 1: 1.0}, frozenset({1}), 1, {1: 1.0})


def test_without_feasible_trials_there_is_no_knee_and_no_trial_is_close():
    labels = np.zeros(IMAGES, dtype=np.int64)
    assert confidence([], PLANE, Truth(labels, CLASSES)) == Confidence({}, frozenset(), None)
    alone = [point(7, labels, labels, feasible=False)]
    assert confidence(alone, PLANE, Truth(labels, CLASSES)) == Confidence({7: 0.0}, frozenset(), None)


def test_of_trials_that_are_knees_equally_often_the_cheaper_wins():
    # Each is right on one of two images. Of a front of two the more accurate is the knee.
    right = np.arange(2) < 1
    trials = [two_classes(0, 2.0, right), two_classes(1, 1.0, ~right)]
    labels = np.zeros(2, dtype=np.int64)
    counts = draw_counts(2, 40, 0)
    tied = 0
    for draws in range(1, 41):
        dearer = (counts[:draws, 0] > counts[:draws, 1]).sum()
        tied += 2 * dearer == draws
        assert confidence(trials, PLANE, Truth(labels, ("a", "b")), draws=draws).knee == (
            0 if 2 * dearer > draws else 1
        )
    assert tied


def test_costs_alone_are_certain():
    metrics = [(1, 5), (2, 3), (2, 4), (3, 3), (4, 1)]
    trials = [
        Point({"flops": flops, "latency": latency}, {}, bytes(2 * IMAGES), trial, {})
        for trial, (flops, latency) in enumerate(metrics)
    ]
    objectives = (FLOPS, LATENCY)
    sure = confidence(trials, objectives, Truth(np.zeros(IMAGES, dtype=np.int64), CLASSES))
    assert sure.probability == {0: 1, 1: 1, 2: 0, 3: 0, 4: 1}
    assert sure.close == {0, 1, 4}
    assert sure.knee == knee(front(trials, objectives), objectives).trial


def test_a_class_that_does_not_exist_and_labels_of_other_images_are_refused():
    labels = np.zeros(IMAGES, dtype=np.int64)
    trials = [point(0, labels, labels)]
    unknown = replace(trials[0], metrics=trials[0].metrics | {"recall:dog": 1.0})
    with pytest.raises(StudyError, match="no recall:dog: the classes are a, b, c"):
        confidence([unknown], (FLOPS, Objective("recall:dog", True)), Truth(labels, CLASSES))
    with pytest.raises(StudyError, match="predictions for 12 images, but there are 11 labels"):
        confidence(trials, PLANE, Truth(labels[1:], CLASSES))


SPREADS = {"wide": 0.15, "narrow": 0.02}


def simulated(spread, studies=400, trials=12, images=400):
    """Probability, whether truly on the front, and closeness in simulated studies: shapes (studies * trials,).

    True accuracies lie evenly around 0.75, up to the spread away. A network is right on an image when a normal
    variable, of which it shares 0.8 of the variance with the others, lies below its threshold: networks err on the
    same hard images, and the standard error of a difference of two accuracies is 0.019.
    """
    generator = np.random.default_rng(0)
    labels = np.zeros(images, dtype=np.int64)
    rows = []
    for seed in range(studies):
        true = generator.uniform(0.75 - spread, 0.75 + spread, trials)
        flops = generator.permutation(trials).astype(float)
        ease = math.sqrt(0.8) * generator.normal(size=images)
        right = ease + math.sqrt(0.2) * generator.normal(size=(trials, images)) < ndtri(true)[:, None]
        points = [two_classes(trial, flops[trial], right[trial]) for trial in range(trials)]
        sure = confidence(points, PLANE, Truth(labels, ("a", "b")), seed, draws=200)
        on_front = [
            all(true[trial] > true[other] for other in np.flatnonzero(flops < flops[trial])) for trial in range(trials)
        ]
        rows += [(sure.probability[trial], on_front[trial], trial in sure.close) for trial in range(trials)]
    return (np.array(column) for column in zip(*rows, strict=True))


def calibration(probability, on_front):
    """For each bin of given probabilities their number, their mean, the true share, and the allowed difference."""
    edges = [0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1]
    table = []
    for low, high in itertools.pairwise(edges):
        chosen = (probability > low) & (probability <= high)
        given_ = probability[chosen]
        # Three standard errors of the share, and 0.02 for the remaining bias, as measured.
        allowed = 3 * math.sqrt((given_ * (1 - given_)).sum()) / len(given_) + 0.02
        table.append((len(given_), given_.mean(), on_front[chosen].mean(), allowed))
    return table


@pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS)
def test_a_probability_is_the_share_of_trials_that_are_truly_on_the_front(spread):
    probability, on_front, close = simulated(spread)
    for number, given_, true, allowed in calibration(probability, on_front):
        print(f"{number:5d} trials given {given_:.3f}: {true:.3f} on the front, +- {allowed:.3f}")
        assert abs(given_ - true) <= allowed
    print(f"close: {close[on_front].mean():.4f} of the true front, {close.mean():.3f} of all trials")
    assert on_front[probability == 0].mean() < 0.02  # 200 draws resolve 0.005; measured 0 and 0.014
    assert close[on_front].mean() >= 0.97  # measured 0.997 and 0.990


def test_the_calibration_would_show_that_the_plain_bootstrap_is_too_sure(monkeypatch):
    monkeypatch.setattr(module, "widening", lambda *args: 1.0)
    probability, on_front, _ = simulated(SPREADS["narrow"])
    wrong = [abs(given_ - true) > allowed for _, given_, true, allowed in calibration(probability, on_front)]
    assert sum(wrong) >= 3


@pytest.mark.parametrize(
    ("objectives", "draws"), [(PLANE, 1000), ((FLOPS, MACRO_F1), 100), ((FLOPS, LATENCY, ACCURACY), 100)]
)
def test_ten_thousand_trials(objectives, draws):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, size=423)
    flops, latency = generator.uniform(1, 10, size=(2, 10000))
    share = 0.5 + 0.4 * np.log10(flops) - 0.2 * generator.random(10000)
    ease = generator.random(423)
    points = []
    for trial in range(10000):
        right = ease < share[trial] + generator.normal(scale=0.1, size=423)
        predictions = np.where(right, labels, (labels + 1) % 3)
        accuracy = float(right.mean())
        metrics = {"flops": flops[trial], "latency": latency[trial], "accuracy": accuracy, "macro_f1": accuracy}
        points.append(Point(metrics, {}, predictions.astype("<u2").tobytes(), trial, {}))
    sure = confidence(points, objectives, Truth(labels, CLASSES), draws=draws)
    members = {member.trial for member in front(points, objectives)}
    assert len(sure.probability) == 10000
    assert {trial for trial, given_ in sure.probability.items() if given_ > 0.05} <= sure.close
    assert sure.probability[int(flops.argmin())] == 1  # no trial dominates the cheapest
    assert len(members & sure.close) > 0.9 * len(members)
    assert len(sure.close) < 5000


def own_accuracy(scores, targets):
    return float((scores.argmax(axis=1) == targets).mean())


@pytest.mark.parametrize(("offset", "factor"), [(0, 1), (1e9, 1), (0, 1e-50), (0, 1e60)])
def test_values_that_were_stored_on_draws_give_what_predictions_give(offset, factor):
    """However large a metric is, and however little its values differ."""
    generator = np.random.default_rng(0)

    def own_metric(scores, targets):
        return offset + factor * own_accuracy(scores, targets)

    labels, groups = generator.integers(0, 3, 60), np.arange(60) // 2
    of_classes, of_maps = [], []
    for trial, noise in enumerate((0.3, 0.6, 0.8, 0.9, 1.2, 1.2)):
        scores = (np.eye(3)[labels] + noise * generator.normal(size=(60, 3))).astype(np.float16)
        own = measure_own({"own": own_metric}, scores, labels, 5, groups)["own"]
        accuracy = own_accuracy(scores, labels)
        metrics, draws = {"flops": 10.0 - trial, "own": own.value, "accuracy": accuracy}, {"own": own.draws}
        predictions = scores.argmax(axis=1).astype("<u2").tobytes()
        of_classes.append(Point(metrics, {}, predictions, trial, {}, scores=scores, draws=draws))
        of_maps.append(Point(metrics, {}, b"", trial, {}, draws=draws))
    truth, objectives = Truth(labels, CLASSES, groups), (FLOPS, Objective("own", True, (offset, offset + factor)))
    by_draws = confidence(of_classes, objectives, truth, 5)
    assert confidence(of_maps, objectives, Truth(np.full((60, 3), 9), CLASSES, groups), 5) == by_draws
    by_predictions = confidence(of_classes, (FLOPS, ACCURACY), truth, 5, draws=OWN_DRAWS)
    assert by_draws.probability == pytest.approx(by_predictions.probability, abs=0.02)
    assert len(set(by_draws.probability.values())) > 2


def test_a_trial_without_the_values_of_an_own_metric_is_refused():
    point = Point({"flops": 1.0, "own": 0.5}, {}, b"\0\0" * 5, 0, {}, scores=np.zeros((5, 2), np.float16))
    with pytest.raises(StudyError, match="trial 0 has no own on bootstrap draws: it holds none"):
        confidence([point], (FLOPS, Objective("own", True, (0.0, 1.0))), Truth(np.zeros(5, int), ("a", "b")))


def test_maps_without_the_values_of_a_metric_are_refused():
    points = [Point({"flops": 1.0, "own": 0.5}, {}, b"", 0, {}, draws={"accuracy": np.ones(OWN_DRAWS, np.float32)})]
    with pytest.raises(StudyError, match="trial 0 has no own on bootstrap draws: it holds accuracy"):
        confidence(points, (FLOPS, Objective("own", True, (0.0, 1.0))), Truth(np.ones((5, 2), int), ("a", "b")))
