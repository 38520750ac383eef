import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stored_values import counts, layer_plans, metrics, names, plan_in_format_4, samples, shares

from hscc_search.compression.divided import DividedLayer
from hscc_search.compression.form import Piece
from hscc_search.compression.plan import LayerPlan
from hscc_search.config import StudyConfig
from hscc_search.errors import StudyError
from hscc_search.evaluation.cost import CountedCost
from hscc_search.pareto.points import Measured
from hscc_search.study.record import (
    DIVIDED,
    FORMAT,
    MEASURED,
    PLAN,
    DenseRecord,
    StudyRecord,
    TrialRecord,
    divided_from_stored,
    plan_from_stored,
    point_from_stored,
    versions,
)

CONFIG = StudyConfig.from_file("digits", storage="postgresql://me:secret@host/studies")
NO_PREDICTIONS = Measured({}, {}, b"")

measured = st.builds(Measured, metrics, metrics, st.binary(max_size=300))
costs = st.builds(CountedCost, counts, counts, counts, shares, counts, st.dictionaries(names, counts, max_size=2))
study_records = st.builds(
    StudyRecord,
    config=st.just(CONFIG),
    fingerprint=names,
    classes=st.lists(names, min_size=2, unique=True).map(tuple),
    labels=st.lists(st.integers(0, 2**16 - 1)).map(lambda labels: np.array(labels, np.uint16)),
    dense=st.builds(DenseRecord, measured, costs, names, st.dictionaries(names, names, max_size=2)),
    versions=st.dictionaries(names, names, max_size=2),
)


def through_json(tree):
    return json.loads(json.dumps(tree))


@given(study_records)
def test_a_study_comes_back_as_it_was_stored(record):
    stored = record.stored()
    again = StudyRecord.from_stored(through_json(stored))
    assert again.stored() == stored
    np.testing.assert_array_equal(again.labels, record.labels)
    for name in ("fingerprint", "classes", "dense", "versions"):
        assert getattr(again, name) == getattr(record, name)


def test_a_stored_study_has_no_password():
    record = StudyRecord(CONFIG, "", (), np.array([], np.uint16), dense_record(), {})
    assert "secret" not in json.dumps(record.stored())
    storage = StudyRecord.from_stored(record.stored()).config.storage
    assert storage.startswith("postgresql://me")
    assert storage.endswith("@host/studies")


def dense_record():
    return DenseRecord(NO_PREDICTIONS, CountedCost(1, 2, 3, 4.0, 1, {}), "digest")


def test_a_study_that_stored_no_identity_of_its_network_is_read():
    stored = StudyRecord(CONFIG, "", (), np.array([], np.uint16), dense_record(), {}).stored()
    del stored["dense"]["network"]
    del stored["config"]["training"]["when"]
    record = StudyRecord.from_stored(through_json(stored))
    assert record.dense.network == {}
    assert record.config.training.when == "always"


@given(measured, samples, st.dictionaries(names, st.floats(0, 10), max_size=2), st.lists(layer_plans(), max_size=3))
def test_a_trial_comes_back_as_it_was_stored(measured, sample, violations, plan):
    stored = through_json(TrialRecord(measured, sample, violations, plan).stored())
    point = point_from_stored(7, stored[MEASURED])
    assert (point.trial, point.sample, point.violations) == (7, sample, violations)
    assert (point.metrics, point.errors, point.predictions) == (
        measured.metrics,
        measured.errors,
        measured.predictions,
    )
    assert point.feasible == all(violation == 0 for violation in violations.values())
    assert plan_from_stored(stored[PLAN]) == tuple(plan)


@given(st.lists(layer_plans(), max_size=3))
def test_a_plan_of_format_4_is_read(plan):
    assert plan_from_stored(through_json([plan_in_format_4(layer) for layer in plan])) == tuple(plan)


@given(measured, samples, st.dictionaries(names, st.floats(-10, 10), max_size=3))
def test_a_trial_of_format_4_is_read(measured, sample, excesses):
    """Format 4 called the sample settings, and a violation was negative where its constraint is kept."""
    tree = through_json(TrialRecord(measured, sample, excesses, ()).stored())[MEASURED]
    tree["settings"] = tree.pop("sample")
    point = point_from_stored(0, {**tree, "seconds": {"compress": 0.2}})
    assert point.sample == sample
    assert point.violations == {name: max(excess, 0) for name, excess in excesses.items()}
    assert point.feasible == all(excess <= 0 for excess in excesses.values())


@given(study_records)
def test_a_study_of_format_4_is_read(record):
    """Format 4 had the number of images, and the quality of the dense network once more with the F1 of each class."""
    tree = through_json(record.stored())
    del tree["hscc_search"]
    tree |= {"version": 4, "images": 1797, "dense": {**tree["dense"], "quality": {"accuracy": 0.9}}}
    assert StudyRecord.from_stored(tree).stored() == record.stored()


@pytest.mark.parametrize(
    ("changed", "writer"),
    [({"version": 3}, "0.0.1"), ({"version": FORMAT + 1, "hscc_search": "7.8.9", "dense": None}, "7.8.9")],
)
def test_an_unknown_format_is_refused_by_both_formats_and_versions(changed, writer):
    record = StudyRecord(CONFIG, "", (), np.array([], np.uint16), dense_record(), {"hscc-search": "0.0.1"})
    tree = record.stored()
    if changed["version"] < 5:
        del tree["hscc_search"]
    message = (
        rf"study 'digits' has format {changed['version']}, written by hscc-search {writer}: "
        rf"hscc-search {versions()['hscc-search']} reads the formats 4 and 5"
    )
    with pytest.raises(StudyError, match=message):
        StudyRecord.from_stored({**tree, **changed})


COLUMN = 65_535  # bytes that MySQL takes for an attribute


def test_what_is_long_is_stored_short_and_comes_back():
    """A network of 502 convolutions, and a set of 1000 classes with 20,000 validation images."""
    chance = np.random.default_rng(0)
    regions = [tuple(tuple(int(rank) for rank in chance.integers(1, 200, 3)) for _ in range(9)) for _ in range(502)]
    plan = [
        LayerPlan(f"stages.{number // 10}.blocks.{number}.conv", 10**8 + number, 10**7 - number, (ranks,), (None,))
        for number, ranks in enumerate(regions)
    ]
    classes = [f"class number {number}" for number in range(1000)]
    labels = np.sort(chance.integers(0, 1000, 20_000)).astype("<u2")
    guesses = np.where(chance.random(20_000) < 0.7, labels, chance.integers(0, 1000, 20_000)).astype("<u2")
    recalls = {f"recall:{name}": float(value) for name, value in zip(classes, chance.random(1000), strict=True)}
    long = Measured({"accuracy": 0.7, **recalls}, recalls, guesses.tobytes())
    trial = TrialRecord(long, {"energy": 0.9}, {}, plan).stored()
    dense = dataclasses.replace(dense_record(), measured=long)
    study = StudyRecord(CONFIG, "digest", tuple(classes), labels, dense, versions()).stored()
    for stored in (trial[MEASURED], trial[PLAN], study):
        assert len(json.dumps(stored)) < COLUMN
    assert len(json.dumps([layer.stored() for layer in plan])) > COLUMN
    assert plan_from_stored(through_json(trial[PLAN])) == tuple(plan)
    assert point_from_stored(0, through_json(trial[MEASURED])).metrics == long.metrics
    again = StudyRecord.from_stored(through_json(study))
    assert again.stored() == study
    np.testing.assert_array_equal(again.labels, labels)
    # What another version needs to say that it does not read the study stays as it is.
    assert (study["version"], study["config"]["name"]) == (FORMAT, "digits")


@pytest.mark.parametrize(("layers", "pieces", "pictured"), [(3, 16, True), (12, 700, False), (40, 700, None)])
def test_divided_layers_fit_into_any_database_and_lose_pictures_first(layers, pieces, pictured):
    chance = np.random.default_rng(0)
    pictures = tuple(chance.integers(-127, 128, (20, 20), np.int8) for _ in range(9))
    divided = [
        DividedLayer(
            f"layer{number}",
            (56, 56),
            tuple(Piece(*map(int, chance.integers(0, 56, 5))) for _ in range(pieces)),
            ((3, 4),) * 9,
            pictures,
        )
        for number in range(layers)
    ]
    stored = TrialRecord(NO_PREDICTIONS, {"energy": 0.9}, {}, (), divided=divided).stored()
    if pictured is None:
        assert DIVIDED not in stored
        return
    assert len(json.dumps(stored[DIVIDED])) < COLUMN
    again = divided_from_stored(through_json(stored[DIVIDED]))
    assert [layer.pieces for layer in again] == [layer.pieces for layer in divided]
    assert all((picture is not None) == pictured for layer in again for picture in layer.coactivation)


def test_what_is_short_is_stored_as_it_is():
    plan = [LayerPlan("conv", 10, 5, (((1, 2),),), (None,))]
    stored = TrialRecord(NO_PREDICTIONS, {"energy": 0.9}, {}, plan).stored()
    assert stored[PLAN] == [layer.stored() for layer in plan]
    assert stored[MEASURED]["sample"] == {"energy": 0.9}


def test_draws_of_maps_and_their_points_come_back():
    draws = {"dice": np.linspace(0, 1, 200, dtype=np.float32), "accuracy": np.full(200, 0.5, np.float32)}
    measured = Measured({"dice": 0.5}, {"dice": 0.1}, b"", draws=draws)
    stored = TrialRecord(measured, {}, {}, ()).stored()
    assert not [key for key in stored if key.startswith("scores")]
    point = point_from_stored(3, through_json(stored)["measured"])
    for name, values in draws.items():
        np.testing.assert_array_equal(point.draws[name], values)

    points = np.array([[1000, 24], [0, 1024], [70000, 3]])
    dense = DenseRecord(measured, CountedCost(1, 2, 3, 4.0, 1, {}), "digest")
    record = StudyRecord.from_stored(through_json(StudyRecord(CONFIG, "", ("a", "b"), points, dense, {}).stored()))
    np.testing.assert_array_equal(record.labels, points)
    np.testing.assert_array_equal(record.dense.measured.draws["dice"], draws["dice"])
