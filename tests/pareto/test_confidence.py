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
from hscc_search.evaluation.quality import measure_quality
from hscc_search.pareto import confidence as module
from hscc_search.pareto.confidence import Confidence, confidence
from hscc_search.pareto.front import front, knee
from hscc_search.pareto.objectives import Objective
from hscc_search.pareto.points import Point, predictions_of
from hscc_search.pareto.resampling import resample, widening

FLOPS, LATENCY = Objective("flops", False), Objective("latency", False)
ACCURACY, MACRO_F1, RECALL = Objective("accuracy", True), Objective("macro_f1", True), Objective("recall:b", True)
PLANE = (FLOPS, ACCURACY)
CLASSES = ("a", "b", "c")
IMAGES = 12


def quality(predictions, labels):
    found = measure_quality(predictions.astype(np.int64), labels, len(CLASSES))
    return {"accuracy": found.accuracy, "macro_f1": found.macro_f1, "recall:b": found.recall[1]}


def point(trial, predictions, labels, flops=1.0, latency=1.0, feasible=True):
    metrics = {"flops": flops, "latency": latency, **quality(predictions, labels)}
    stored = predictions.astype("<u2").tobytes()
    return Point(trial, {}, metrics, {}, stored, {"latency": 0.0 if feasible else 0.1})


def two_classes(trial, flops, right):
    """A network that is right on the images marked True; all images are of the first class."""
    return Point(trial, {}, {"flops": flops, "accuracy": float(right.mean())}, {}, (~right).astype("<u2").tobytes())


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


def beats(one, other, objectives):
    pairs = [(-one[o.metric], -other[o.metric]) if o.maximise else (one[o.metric], other[o.metric]) for o in objectives]
    return all(mine <= yours for mine, yours in pairs) and any(mine < yours for mine, yours in pairs)


def drawn_studies(kept, objectives, labels, counts):
    """The trials as they would have been measured on each draw, one by one and with the shared definition."""
    predictions = predictions_of(kept)
    whole = {o.metric: np.array([one[o.metric] for one in kept]) for o in objectives if o.on_images}
    drawn = {metric: np.empty((len(kept), len(counts))) for metric in whole}
    for draw, count in enumerate(counts):
        images = np.repeat(np.arange(len(labels)), count)
        for row in range(len(kept)):
            found = quality(predictions[row, images], labels[images])
            for metric in drawn:
                drawn[metric][row, draw] = found[metric]
    for metric in drawn:
        factor = widening(whole[metric], drawn[metric], len(kept))
        drawn[metric] = whole[metric][:, None] + factor * (drawn[metric] - whole[metric][:, None])
    for draw in range(len(counts)):
        yield [
            Point(one.trial, {}, one.metrics | {metric: float(drawn[metric][row, draw]) for metric in drawn}, {}, b"")
            for row, one in enumerate(kept)
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
        patch.setattr(module, "_WIDENING_DRAWS", draws)
        patch.setattr(module, "_AT_ONCE", 5)
        found = confidence(points, objectives, labels, CLASSES, seed, draws)
    first = {}
    for one in points:
        if one.feasible:
            first.setdefault((one.predictions, *(one[o.metric] for o in objectives)), one)
    kept = list(first.values())
    on_front, surely, possibly = Counter(), Counter(), Counter()
    beaten = Counter()
    observed = {member.trial for member in front(kept, objectives)}
    if not any(objective.on_images for objective in objectives):
        draws = 1
    counts = module._draw(len(labels), draws, seed)
    for drawn in drawn_studies(kept, objectives, labels, counts):
        members = [one for one in drawn if not any(beats(other, one, objectives) for other in drawn)]
        on_front.update(member.trial for member in members)
        for one in drawn:
            beaten.update((other.trial, one.trial) for other in drawn if beats(other, one, objectives))
        if members:
            sums = goodness(members, objectives)
            best = [member.trial for member, value in zip(members, sums, strict=True) if value >= sums.max() - 1e-6]
            possibly.update(best)
            surely.update(best if len(best) == 1 else [])
    assert found.probability == {one.trial: on_front[one.trial] / draws for one in points}
    close = {
        one.trial
        for one in points
        if one.feasible
        for stand_in in [first[one.predictions, *(one[o.metric] for o in objectives)].trial]
        if all(beaten[other, stand_in] / draws < 0.95 for other in observed)
    }
    assert found.close == close
    if kept:
        assert possibly[found.knee] >= max(surely.values(), default=0)
    else:
        assert found.knee is None


@given(study=studies(), objectives=choices, shuffle=st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_confidence_depends_on_the_trials_and_not_on_how_they_are_listed(study, objectives, shuffle):
    points, labels = study
    found = confidence(points, objectives, labels, CLASSES, draws=30)
    shuffled = [*points, Point(None, {}, {"flops": 0.0}, {}, b"")]  # the dense network is no trial
    shuffle.shuffle(shuffled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_AT_ONCE", 7)
        assert confidence(shuffled, objectives, labels, CLASSES, draws=30) == found
    # Beaten in less than 95 % of the draws by each is less than being on more than 5 % of the fronts.
    stand_ins = {trial for trial, share in found.probability.items() if share > 0.05}
    assert stand_ins <= found.close


@given(
    data=st.data(),
    labels=st.lists(st.integers(0, 2), min_size=1, max_size=30).map(np.array),
)
@settings(max_examples=60, deadline=None)
def test_metrics_on_draws_are_those_of_the_evaluation(data, labels):
    guesses = st.lists(st.integers(0, 2), min_size=len(labels), max_size=len(labels))
    predictions = np.array(data.draw(st.lists(guesses, min_size=1, max_size=4)), dtype=np.uint16)
    counts = np.vstack([np.ones(len(labels), dtype=np.int64), module._draw(len(labels), 3, 0)])
    for draw, count in enumerate(counts):
        images = np.repeat(np.arange(len(labels)), count)
        for row in predictions:
            expected = quality(row[images], labels[images])
            for metric, precision in (("accuracy", 1e-7), ("macro_f1", 1e-15), ("recall:b", 1e-7)):
                found = resample(metric, row[None], labels, CLASSES, counts.astype(np.float32))
                assert found.shape == (1, 4)
                assert found[0, draw] == pytest.approx(expected[metric], rel=precision, abs=0)


@pytest.mark.parametrize(("gained", "lost"), [(6, 2), (3, 3), (10, 9), (4, 0)])
def test_two_networks_change_places_as_often_as_the_multinomial_says(gained, lost):
    images, draws = 50, 20000
    right = np.arange(images) < 30
    other = right.copy()
    other[:lost], other[30 : 30 + gained] = False, True
    pair = [two_classes(0, 1.0, right), two_classes(1, 2.0, other)]
    found = confidence(pair, PLANE, np.zeros(images, dtype=np.int64), ("a", "b"), draws=draws)
    # The dearer one is on the front of a draw when it gains more images there than it loses.
    share = 0.0
    for ups in range(images + 1):
        for downs in range(min(ups, images - ups + 1)):
            rest = images - ups - downs
            ways = math.factorial(images) // (math.factorial(ups) * math.factorial(downs) * math.factorial(rest))
            share += ways * (gained / images) ** ups * (lost / images) ** downs * (1 - (gained + lost) / images) ** rest
    assert found.probability[0] == 1
    assert found.probability[1] == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / draws))


def test_of_equal_trials_the_first_carries_the_probability_and_all_are_close():
    right = np.arange(20) < 15
    trials = [two_classes(3, 1.0, right), two_classes(1, 1.0, right), two_classes(2, 2.0, right)]
    found = confidence(trials, PLANE, np.zeros(20, dtype=np.int64), ("a", "b"))
    # Trial 2 costs more for the same answers.
    assert found == Confidence({1: 1.0, 2: 0.0, 3: 0.0}, frozenset({1, 3}), 1)


@pytest.mark.parametrize("objectives", [PLANE, (*PLANE, LATENCY)], ids=["swept", "draw by draw"])
def test_trials_that_tie_without_being_equal_share_a_front(objectives):
    right = np.arange(20) < 10
    trials = [two_classes(0, 1.0, right), two_classes(1, 1.0, ~right)]
    trials = [replace(trial, metrics=trial.metrics | {"latency": 1.0}) for trial in trials]
    found = confidence(trials, objectives, np.zeros(20, dtype=np.int64), ("a", "b"), draws=2000)
    ties = math.comb(20, 10) / 2**20
    for share in found.probability.values():
        assert share == pytest.approx(0.5 + ties / 2, abs=0.05)
    assert found.close == {0, 1}


def test_who_is_beaten_in_95_percent_of_the_draws_is_not_close():
    right = np.arange(20) < 15
    other = right.copy()
    other[:4], other[15] = False, True  # four images lost, one gained
    pair = [two_classes(0, 1.0, right), two_classes(1, 2.0, other)]
    seen = set()
    for seed in range(40):
        counts = module._draw(20, 20, seed).astype(int)
        beaten = int((counts[:, 15] <= counts[:, :4].sum(axis=1)).sum())
        found = confidence(pair, PLANE, np.zeros(20, dtype=np.int64), ("a", "b"), seed, draws=20)
        assert (1 in found.close) == (beaten < 19)
        seen.add(beaten)
    assert {18, 19, 20} <= seen


def test_infeasible_trials_are_on_no_front_and_take_nobody_off():
    labels = np.zeros(IMAGES, dtype=np.int64)
    good, poor = np.zeros(IMAGES, dtype=np.int64), np.arange(IMAGES) % 2
    trials = [point(0, good, labels, 1.0, feasible=False), point(1, poor, labels, 2.0)]
    found = confidence(trials, PLANE, labels, CLASSES)
    assert found == Confidence({0: 0.0, 1: 1.0}, frozenset({1}), 1)


def test_without_feasible_trials_there_is_nothing_to_be_sure_of():
    labels = np.zeros(IMAGES, dtype=np.int64)
    assert confidence([], PLANE, labels, CLASSES) == Confidence({}, frozenset(), None)
    alone = [point(7, labels, labels, feasible=False)]
    assert confidence(alone, PLANE, labels, CLASSES) == Confidence({7: 0.0}, frozenset(), None)


def test_of_trials_that_are_knees_equally_often_the_cheaper_wins():
    # Each is right on one of two images. Of a front of two the more accurate is the knee.
    right = np.arange(2) < 1
    trials = [two_classes(0, 2.0, right), two_classes(1, 1.0, ~right)]
    labels = np.zeros(2, dtype=np.int64)
    counts = module._draw(2, 40, 0)
    tied = 0
    for draws in range(1, 41):
        dearer = (counts[:draws, 0] > counts[:draws, 1]).sum()
        tied += 2 * dearer == draws
        assert confidence(trials, PLANE, labels, ("a", "b"), draws=draws).knee == (0 if 2 * dearer > draws else 1)
    assert tied


def test_costs_alone_are_certain():
    metrics = [(1, 5), (2, 3), (2, 4), (3, 3), (4, 1)]
    trials = [
        Point(trial, {}, {"flops": flops, "latency": latency}, {}, bytes(2 * IMAGES))
        for trial, (flops, latency) in enumerate(metrics)
    ]
    objectives = (FLOPS, LATENCY)
    found = confidence(trials, objectives, np.zeros(IMAGES, dtype=np.int64), CLASSES)
    assert found.probability == {0: 1, 1: 1, 2: 0, 3: 0, 4: 1}
    assert found.close == {0, 1, 4}
    assert found.knee == knee(front(trials, objectives), objectives).trial


def test_a_class_that_does_not_exist_and_labels_of_other_images_are_refused():
    labels = np.zeros(IMAGES, dtype=np.int64)
    trials = [point(0, labels, labels)]
    unknown = Point(0, {}, trials[0].metrics | {"recall:dog": 1.0}, {}, trials[0].predictions)
    with pytest.raises(StudyError, match="no recall:dog: the classes are a, b, c"):
        confidence([unknown], (FLOPS, Objective("recall:dog", True)), labels, CLASSES)
    with pytest.raises(StudyError, match="predictions for 12 images, but there are 11 labels"):
        confidence(trials, PLANE, labels[1:], CLASSES)


@pytest.mark.parametrize(("signal", "noise"), [(1.0, 0.3), (1.0, 1.0), (0.5, 1.0)])
def test_the_widening_undoes_what_noise_adds_to_the_spread(signal, noise):
    generator = np.random.default_rng(0)
    whole = generator.normal(scale=signal, size=20000) + generator.normal(scale=noise, size=20000)
    common = generator.normal(scale=5, size=50)  # moves all trials alike
    drawn = whole[:, None] + generator.normal(scale=noise, size=(20000, 50)) + common
    expected = math.sqrt((signal**2 + noise**2) / signal**2)
    assert widening(whole, drawn, len(whole)) == pytest.approx(expected, rel=0.03)


def test_the_widening_has_bounds():
    noisy = np.random.default_rng(0).normal(size=(4, 30))
    assert widening(np.zeros(4), noisy, 4) == pytest.approx(math.sqrt(10))
    assert widening(np.zeros(3), noisy[:3], 3) == 1
    whole = np.arange(4.0)
    assert widening(whole, np.repeat(whole[:, None], 30, axis=1), 4) == 1


SPREADS = {"wide": 0.15, "narrow": 0.02}


def simulated(spread, studies=400, trials=12, images=400):
    """Probabilities, truth and closeness of simulated studies, each of shape (studies * trials,).

    True accuracies lie evenly around 0.75, up to the spread away. A network is right on an image when a normal
    variable that it shares with the others by 0.8 lies below its threshold: networks err on the same hard images,
    the standard error of a difference of two accuracies is 0.019.
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
        found = confidence(points, PLANE, labels, ("a", "b"), seed, draws=200)
        on_front = [
            all(true[trial] > true[other] for other in np.flatnonzero(flops < flops[trial])) for trial in range(trials)
        ]
        rows += [(found.probability[trial], on_front[trial], trial in found.close) for trial in range(trials)]
    return (np.array(column) for column in zip(*rows, strict=True))


def calibration(probability, on_front):
    """Per bin of given probabilities: how many, their mean, the true share, and by how much that may differ."""
    edges = [0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1]
    table = []
    for low, high in itertools.pairwise(edges):
        chosen = (probability > low) & (probability <= high)
        given_ = probability[chosen]
        # Three standard errors of the share, and 0.02 for what is measured to remain.
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
    assert on_front[probability == 0].mean() < 0.02  # 200 draws tell no less than 0.005; measured 0 and 0.014
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
        points.append(Point(trial, {}, metrics, {}, predictions.astype("<u2").tobytes()))
    found = confidence(points, objectives, labels, CLASSES, draws=draws)
    members = {member.trial for member in front(points, objectives)}
    assert len(found.probability) == 10000
    assert {trial for trial, given_ in found.probability.items() if given_ > 0.05} <= found.close
    assert found.probability[int(flops.argmin())] == 1  # the cheapest is beaten by none
    assert len(members & found.close) > 0.9 * len(members)
    assert len(found.close) < 5000
