import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from filelock import FileLock

from hscc_search.data import load_dataset
from hscc_search.dense.cached import checkpoint_path
from hscc_search.dense.networks import DigitsCNN
from hscc_search.dense.opened import open_dense
from hscc_search.dense.start import build
from hscc_search.dense.weights import weights_digest
from hscc_search.errors import ConfigError, ModelError, StudyError


@pytest.fixture(scope="module")
def dataset(study, first_cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HSCC_CACHE", str(first_cache))
        return load_dataset(study().data)


def test_images_split_and_network_belong_to_the_study(study, dataset):
    config = study(training__epochs=1)
    opened = open_dense(config, "cpu")
    assert opened.config == config
    assert opened.dataset.fingerprint == dataset.fingerprint
    assert sum(map(len, (opened.parts.train, opened.parts.validation, opened.parts.test))) == len(dataset.labels)
    assert opened.device == torch.device("cpu")
    assert not opened.network.training


def test_a_trained_network_is_taken_from_the_cache(study, told):
    config = study(training__epochs=1)
    first = open_dense(config, "cpu").network
    opened = open_dense(config, "cpu", told)
    again = opened.network
    assert told.steps == []
    assert told.lines == [
        f"training: none: digits_cnn was trained before, and its weights are in {opened.weights_file}"
    ]
    assert weights_digest(first) == weights_digest(again)
    assert not again.training


def test_a_network_that_another_process_trains_is_waited_for(study, told):
    config = study(training__epochs=1)
    opened = open_dense(config, "cpu")
    trained, path = opened.network, opened.weights_file
    aside = path.rename(path.with_suffix(".aside"))
    with ThreadPoolExecutor(1) as pool, FileLock(path.with_suffix(".lock")):
        waiting = pool.submit(open_dense, config, "cpu", told)
        while not told.steps and not waiting.done():
            time.sleep(0.01)
        aside.rename(path)
    assert weights_digest(waiting.result().network) == weights_digest(trained)
    assert [progress.note for progress in told.steps] == ["waiting for another process that trains it"]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"training__epochs": 4},
        {"training__learning_rate": 0.1},
        {"training__mixup": 0.0},
        {"model__name": "squeezenet1_1"},
        {"model__weights": "DEFAULT"},
        {"data__image_size": 20},
        {"data__split_seed": 1},
        {"data__validation": 0.2},
        {"data__mean": [0.4, 0.5, 0.5]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_weights_trained_otherwise_are_stored_apart(study, dataset, change):
    assert checkpoint_path(study(**change), dataset, {}) != checkpoint_path(study(), dataset, {})


@pytest.mark.parametrize(
    "change",
    [
        {"trials": 3},
        {"storage": "sqlite:///other.db"},
        {"space__regions": {"low": 2, "high": 3}},
        {"compression__calibration_images": 64},
        {"model__checkpoint": "elsewhere.pt"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_does_not_train_the_network_shares_its_weights(study, dataset, change):
    assert checkpoint_path(study(**change), dataset, {}) == checkpoint_path(study(), dataset, {})


def test_weights_trained_on_other_images_are_stored_apart(study, dataset):
    changed = dataclasses.replace(dataset, fingerprint="another")
    assert checkpoint_path(study(), changed, {}) != checkpoint_path(study(), dataset, {})


def test_a_checkpoint_replaces_training(study, own_cache, tmp_path, told):
    torch.manual_seed(3)
    own = DigitsCNN(10, 16)
    torch.save(own.state_dict(), tmp_path / "own.pt")
    opened = open_dense(study(model__checkpoint=tmp_path / "own.pt"), "cpu", told)
    assert told.steps == []
    assert told.lines == [f"training: none: the weights are those of checkpoint {tmp_path / 'own.pt'}"]
    assert weights_digest(opened.network) == weights_digest(own)
    assert not (own_cache / "checkpoints").exists()


def test_other_images_than_those_of_the_study_are_refused_before_training(study, own_cache):
    with pytest.raises(StudyError, match="other images"):
        open_dense(study(), "cpu", fingerprint="another")
    assert not (own_cache / "checkpoints").exists()


def test_another_dense_network_than_that_of_the_study_is_refused(study, dataset):
    config = study(training__epochs=1)
    weights = weights_digest(open_dense(config, "cpu").network)
    opened = open_dense(config, "cpu", fingerprint=dataset.fingerprint, weights=weights)
    assert weights_digest(opened.network) == weights
    with pytest.raises(StudyError, match="another dense network"):
        open_dense(config, "cpu", weights="another")


def test_a_metric_of_an_absent_class_is_refused_before_training(study, own_cache):
    with pytest.raises(ConfigError, match="eleven"):
        open_dense(study(objectives=["recall:eleven", "flops"]), "cpu")
    assert not (own_cache / "checkpoints").exists()


def test_a_network_starts_from_its_seed_and_leaves_the_callers_randomness_alone(study):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, reseeded = build(study(), 10), build(study(), 10), build(study(seed=1), 10)
    assert torch.equal(torch.get_rng_state(), state)
    assert weights_digest(first) == weights_digest(again)
    assert weights_digest(first) != weights_digest(reseeded)


def test_a_network_that_cannot_take_images_of_this_size_is_refused_by_name(study):
    with pytest.raises(ModelError, match="squeezenet1_1"):
        open_dense(study(model__name="squeezenet1_1"), "cpu")


def test_a_network_of_ones_own_keeps_the_weights_that_it_comes_with(study, tmp_path, monkeypatch):
    (tmp_path / "with_weights.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def make(classes):\n"
        "    layer = nn.Linear(3 * 16 * 16, classes)\n"
        "    nn.init.constant_(layer.weight, 0.25)\n"
        "    return nn.Sequential(nn.Flatten(), layer)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    network = build(study(model__name="with_weights:make"), 10)
    assert torch.all(network[1].weight == 0.25)
