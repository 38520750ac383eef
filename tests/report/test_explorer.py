import base64
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hscc_search.config import IN_MEMORY
from hscc_search.report.explorer import _ranges, known_trials, study_data, trial_data, trials_data


def test_every_trial_is_there_with_its_values(study):
    data = trials_data(study)
    new = data["new"]
    assert new["trial"] == [point.trial for point in study.points]
    for row, point in enumerate(study.points):
        assert {name: values[row] for name, values in new["sample"].items()} == pytest.approx(dict(point.sample))
        for name, values in new["metrics"].items():
            assert values[row] == pytest.approx(point[name], rel=1e-5)
        for name, values in new["errors"].items():
            assert values[row] == pytest.approx(point.errors[name], rel=1e-5)
    changes = dict(data["hypervolumes"])
    value = None
    for point, wanted in zip(study.points, study.hypervolumes(), strict=True):
        value = changes.get(point.trial, value)
        assert value == pytest.approx(wanted, rel=1e-5)
    json.dumps(data, allow_nan=False)


def test_kinds_say_who_is_on_the_front(constrained):
    data = trials_data(constrained)
    kinds = dict(zip([point.trial for point in constrained.points], data["kinds"], strict=True))
    front = {point.trial for point in constrained.front}
    assert {trial for trial, kind in kinds.items() if kind == "f"} == front
    assert {trial for trial, kind in kinds.items() if kind == "i"} == {
        point.trial for point in constrained.points if not point.feasible
    }
    assert {trial for trial, kind in kinds.items() if kind == "c"} == {point.trial for point in constrained.close}


@pytest.mark.parametrize("count", [0, 3, 8])
def test_a_refresh_carries_what_is_new(study, count):
    known = [point.trial for point in study.points[:count]]
    data = trials_data(study, known)
    assert data["new"]["trial"] == [point.trial for point in study.points[count:]]
    assert {key: value for key, value in data.items() if key != "new"} == {
        key: value for key, value in trials_data(study).items() if key != "new"
    }


@given(st.sets(st.integers(0, 300)), st.sets(st.integers(0, 300)))
def test_numbers_are_read_as_they_were_written(numbers, others):
    trials = sorted(numbers | others)
    assert known_trials(_ranges(sorted(numbers)), trials) == numbers


@given(st.text(alphabet="0123456789-, x", max_size=60))
def test_what_is_no_list_of_numbers_names_none_that_there_are_not(text):
    assert known_trials(text, range(20)) <= set(range(20))


def test_a_list_of_numbers_costs_no_more_than_the_trials_that_there_are():
    many = ",".join(["0-99999999999999"] * 10_000)
    assert known_trials(many, range(10)) == set(range(10))
    assert known_trials("9" * 10_000, range(10)) == set()


def test_values_that_are_not_finite_do_not_stop_a_page(study):
    point = replace(study.points[0], metrics={**study.points[0].metrics, "accuracy": float("nan")})
    data = trials_data(replace(study, points=(point, *study.points[1:])))
    assert data["new"]["metrics"]["accuracy"][0] is None
    json.dumps(data, allow_nan=False)


def test_a_trial_shows_its_layers_and_its_answers_beside_the_dense_network(study):
    point = study.front[0]
    data = trial_data(study, point)
    assert sum(layer["macs"] for layer in data["layers"]) == point["macs"]
    assert sum(layer["dense"] for layer in data["layers"]) == study.dense["macs"]
    answers = data["answers"]
    labels = study.record.labels
    for name, network in (("dense", study.dense), ("compressed", point)):
        confusion = np.array(answers[name]["confusion"])
        assert confusion.sum() == len(labels)
        assert confusion.trace() / len(labels) == pytest.approx(network["accuracy"])
        assert answers[name]["recall"] == pytest.approx(
            [network[f"recall:{each}"] for each in study.record.classes], rel=1e-4
        )
    difference = answers["only_compressed"]["count"] - answers["only_dense"]["count"]
    assert difference / len(labels) == pytest.approx(point["accuracy"] - study.dense["accuracy"])


def test_images_that_one_network_alone_gets_right_are_named(study):
    point = min(study.points, key=lambda point: point["accuracy"])
    dense, compressed = (np.frombuffer(each.predictions, "<u2") for each in (study.dense, point))
    labels = study.record.labels
    only_dense = np.flatnonzero((dense == labels) & (compressed != labels))
    named = trial_data(study, point)["answers"]["only_dense"]
    assert named["count"] == len(only_dense) > 0
    assert [row[0] for row in named["images"]] == only_dense[:40].tolist()
    for position, name, label, of_dense, of_compressed in named["images"]:
        assert name == study.record.images.names[position]
        assert name.startswith(study.record.classes[label])  # as the names of the digits do
        assert label == of_dense != of_compressed
    unnamed = replace(study, record=replace(study.record, images=None))
    first = trial_data(unnamed, point)["answers"]["only_dense"]["images"][0]
    assert first[1] == f"validation image {only_dense[0]}"


def test_a_trial_shows_the_regions_and_clusters_that_it_was_divided_into(study):
    divided = [point for point in study.points if study.divided_of(point.trial)]
    assert {point.trial for point in divided} == {
        point.trial for point in study.points if point.sample["regions"] > 1 or point.sample["clusters"] > 1
    }
    data = trial_data(study, divided[0])["divided"]
    for shown, layer in zip(data, study.divided_of(divided[0].trial), strict=True):
        covered = np.zeros(shown["size"], int)
        for top, bottom, left, right, region in shown["pieces"]:
            assert 0 <= region < len(shown["clusters"])
            covered[top:bottom, left:right] += 1
        assert (covered == 1).all()
        for picture, values in zip(shown["coactivation"], layer.coactivation, strict=True):
            if picture is not None:
                again = np.frombuffer(base64.b64decode(picture["bytes"]), np.int8).reshape(picture["shape"])
                assert np.array_equal(again, values)
    assert study_data(study, "sqlite:///a.db")["mean"]["shape"] == (8, 8, 3)


def test_the_export_command_is_quoted_for_a_shell(study):
    config = study.config.model_copy(update={"name": "my study; rm -rf"})
    data = study_data(replace(study, record=replace(study.record, config=config)), "sqlite:///a b.db")
    assert "7".join(data["export"]) == (
        "hscc-search export 'my study; rm -rf' --storage 'sqlite:///a b.db' --select trial:7 "
        "--out my-study--rm--rf-trial7"
    )


def test_a_network_in_memory_is_exported_in_python(study):
    model = study.config.model.model_copy(update={"name": IN_MEMORY})
    config = study.config.model_copy(update={"model": model})
    data = study_data(replace(study, record=replace(study.record, config=config)), "sqlite:///a.db")
    assert "7".join(data["export"]) == 'study.export(7, "digits-trial7")'
