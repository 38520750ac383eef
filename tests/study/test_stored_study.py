import numpy as np
import optuna
import pytest

from hscc_search.errors import StorageError
from hscc_search.storage import existing_storage, open_storage
from hscc_search.study.catalogue import copy_study, remove_study
from hscc_search.study.stored_study import StudyReader, read_study


def test_infeasible_trials_are_never_on_the_front_and_optuna_agrees(bounded_url):
    study = read_study(bounded_url, "bounded")
    poor = {point.trial for point in study.points if point["accuracy"] < 0.75}
    assert 0 < len(poor) < len(study.points)
    assert {point.trial for point in study.points if not point.feasible} == poor
    members = {point.trial for point in study.front}
    assert members
    assert not members & poor
    opened = optuna.load_study(study_name="bounded", storage=existing_storage(bounded_url))
    assert {trial.number for trial in opened.best_trials} == members
    assert all(study.confidence.probability[trial] == 0 for trial in poor)
    assert not study.confidence.close & poor
    assert study.confidence.knee not in poor
    assert [trial.values for trial in opened.best_trials] == [
        [study.points[trial.number][objective.metric] for objective in study.objectives] for trial in opened.best_trials
    ]


def test_starts_come_first_and_every_point_has_all_metrics(bounded_url):
    study = read_study(bounded_url, "bounded")
    assert [point.sample for point in study.points[:3]] == list(study.config.start)
    assert len(study.config.start) == 3
    assert len(study.points) == 6
    assert {frozenset(point.metrics) for point in study.points} == {frozenset(study.dense.metrics)}
    assert study.dense["latency"] > 0
    trials = optuna.load_study(study_name="bounded", storage=existing_storage(bounded_url)).trials
    for point in study.points:
        predicted = np.frombuffer(point.predictions, "<u2")
        assert float((predicted == study.record.labels).mean()) == point["accuracy"]
        excesses = {"accuracy >= 0.75": 0.75 - point["accuracy"], "latency <= 1000": point["latency"] - 1000}
        assert point.violations == {name: max(excess, 0.0) for name, excess in excesses.items()}
        assert list(trials[point.trial].system_attrs["constraints"]) == list(excesses.values())
    assert study.failures == {6: "RuntimeError: no memory"}
    history = study.hypervolumes()
    assert history == sorted(history)
    assert history[-1] == pytest.approx(study.hypervolume)


def same(study, other):
    """Tell whether two studies say the same, as their fields are compared, and of each trial."""
    assert study == other
    assert study.confidence.probability == other.confidence.probability
    assert study.hypervolumes() == other.hypervolumes()
    return True


@pytest.mark.parametrize("kind", ["sqlite", "proxy"])
def test_a_reader_reads_what_is_new_and_agrees_with_a_new_one(bounded_url, tmp_path, request, kind):
    url = f"sqlite:///{tmp_path}/copy.db" if kind == "sqlite" else request.getfixturevalue("proxy")
    copy_study(bounded_url, "bounded", "grown", url)
    storage = open_storage(url)
    reader, twin = StudyReader(storage), StudyReader(open_storage(url))
    first = reader.read("grown")
    assert reader.read("grown") is first
    assert same(first, read_study(url, "grown"))
    opened = optuna.load_study(study_name="grown", storage=storage)
    opened.add_trials(opened.trials[2:4])
    second = reader.read("grown")
    assert len(second.points) == len(first.points) + 2
    assert second.points[0] is first.points[0]
    assert same(second, twin.read("grown"))
    assert same(second, read_study(url, "grown"))
    remove_study(url, "grown")
    with pytest.raises(StorageError, match="no study 'grown'"):
        reader.read("grown")
    if kind == "proxy":  # Optuna's own keeps trials by their number in the storage
        return
    # SQLite gives the numbers of what was removed to what comes next.
    copy_study(bounded_url, "bounded", "grown", url)
    opened = optuna.load_study(study_name="grown", storage=storage)
    opened.add_trials(opened.trials[:2])
    assert same(reader.read("grown"), read_study(url, "grown"))
    remove_study(url, "grown")
