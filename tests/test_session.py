import json

import pytest
import torch

import hscc_search
from hscc_search.config import StudyConfig
from hscc_search.dense.opened import open_dense
from hscc_search.errors import ExportError, StudyError
from hscc_search.evaluation.predictions import predict
from hscc_search.session import read_study, run_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return run_study(
        StudyConfig.from_file(
            "digits",
            name="session",
            storage=f"sqlite:///{tmp_path_factory.mktemp('session')}/studies.db",
            trials=3,
            data__image_size=8,
            training__epochs=2,
            compression__calibration_images=64,
            start=[{"regions": 1, "clusters": 1, "energy": 0.8}, {"regions": 4, "clusters": 2, "energy": 0.95}],
        ),
        device="cpu",
    )


@pytest.fixture(scope="module")
def validation(study):
    opened = open_dense(study.config, "cpu")
    return lambda network: predict(network, opened.parts.validation, opened.config.data, opened.device)


def test_a_table_has_a_row_per_trial(study):
    table = study.dataframe()
    assert table.index.name == "trial"
    assert table.index.tolist() == [0, 1, 2]
    assert table.loc[1, ["regions", "clusters", "energy"]].tolist() == [4, 2, 0.95]
    for point in study.points:
        assert table.loc[point.trial, "accuracy"] == point["accuracy"]
        assert table.loc[point.trial, "accuracy error"] == point.errors["accuracy"]
        assert table.loc[point.trial, "on front"] == (point in study.front)
    assert table["probability"].between(0, 1).all()


def test_the_figure_is_that_of_the_page(study):
    figure = study.figure()
    assert figure.layout.title.text
    assert sum(len(trace.x) for trace in figure.data if trace.mode and "markers" in trace.mode) >= len(study.front)


@pytest.mark.parametrize("trial", [1, "trial:1"])
def test_a_trial_becomes_its_network_in_one_call(study, validation, trial):
    network = study.compressed(trial)
    answers = validation(network).argmax(axis=1)
    assert answers.astype("<u2").tobytes() == study.points[1].predictions
    assert any(parameter.requires_grad for parameter in network.parameters())


def test_a_point_of_the_front_is_as_good_as_its_number(study, validation):
    point = study.select("knee")
    assert (validation(study.compressed(point)) == validation(study.compressed())).all()


def test_a_network_that_was_trained_further_is_exported_and_measured_anew(study, validation, tmp_path):
    network = study.compressed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.01)
    folder = study.export(0, tmp_path / "tuned", network=network)
    loaded = hscc_search.load(folder)
    for own, exported in zip(network.parameters(), loaded.network.parameters(), strict=True):
        assert torch.equal(own, exported)
    metrics = json.loads((folder / "metrics.json").read_text())
    own_accuracy = (validation(network).argmax(axis=1) == study.record.labels).mean()
    assert metrics["compressed"]["validation"]["metrics"]["accuracy"] == own_accuracy
    assert metrics["trained_further"]
    assert "trained further in a way of the user's own" in (folder / "README.md").read_text()


def test_a_network_of_another_form_is_not_exported_as_the_trial(study, tmp_path):
    with pytest.raises(ExportError, match=r"not of the form of trial 0: .* differ"):
        study.export(0, tmp_path / "other", network=study.compressed(1))
    assert not list(tmp_path.iterdir())


def test_trials_that_do_not_exist_are_refused(study):
    with pytest.raises(StudyError, match="trial 7"):
        study.compressed(7)


def test_a_study_that_is_read_again_is_the_same(study):
    again = read_study(study.config.storage, "session")
    assert type(again) is type(study)
    assert again.points == study.points
    assert again.dataframe().equals(study.dataframe())
