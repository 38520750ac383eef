import dataclasses
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from hscc_search.data import load_dataset
from hscc_search.dense.networks import DigitsCNN
from hscc_search.dense.opened import build, checkpoint_path, open_dense
from hscc_search.dense.weights import weights_digest
from hscc_search.errors import ConfigError, HsccWarning, ModelError, StudyError


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


def test_a_trained_network_is_taken_from_the_cache(study):
    config = study(training__epochs=1)
    first = open_dense(config, "cpu").network
    epochs = []
    again = open_dense(config, "cpu", epochs.append).network
    assert epochs == []
    assert weights_digest(first) == weights_digest(again)
    assert not again.training


def flip(path):
    damaged = bytearray(path.read_bytes())
    damaged[-9] ^= 16
    path.write_bytes(damaged)


def replace_by_a_plain_one(path):
    save_file(DigitsCNN(3, 16).state_dict(), path)


@pytest.mark.parametrize(
    "spoil",
    [flip, replace_by_a_plain_one],
    ids=["a bit", "another network"],
)
def test_weights_in_the_cache_that_are_not_what_was_written_are_trained_again(study, dataset, spoil):
    config = study(training__epochs=1)
    first = open_dense(config, "cpu").network
    spoil(checkpoint_path(config, dataset))
    epochs = []
    again = open_dense(config, "cpu", epochs.append).network
    assert len(epochs) == 1
    assert weights_digest(again) == weights_digest(first)
    assert weights_digest(open_dense(config, "cpu", epochs.append).network) == weights_digest(first)
    assert len(epochs) == 1


def test_weights_of_a_version_without_digests_are_taken_as_they_are(study, dataset):
    config = study(training__epochs=1)
    first, path = open_dense(config, "cpu").network, checkpoint_path(config, dataset)
    save_file(load_file(path), path)
    epochs = []
    assert weights_digest(open_dense(config, "cpu", epochs.append).network) == weights_digest(first)
    assert epochs == []


def test_with_a_cache_that_cannot_be_written_to_the_network_is_the_same(study, small_disk, monkeypatch):
    config = study(training__epochs=1)
    expected = open_dense(config, "cpu").network
    monkeypatch.setenv("HSCC_CACHE", str(small_disk(100, "ro")))
    with pytest.warns(HsccWarning, match="networks trained"):
        network = open_dense(config, "cpu").network
    assert weights_digest(network) == weights_digest(expected)


def test_a_network_that_another_process_trains_is_waited_for(study, dataset):
    config, reported = study(training__epochs=1), []
    trained, path = open_dense(config, "cpu").network, checkpoint_path(config, dataset)
    aside = path.rename(path.with_suffix(".aside"))
    with ThreadPoolExecutor(1) as pool, FileLock(path.with_suffix(".lock")):
        waiting = pool.submit(open_dense, config, "cpu", reported.append)
        while not reported and not waiting.done():
            time.sleep(0.01)
        aside.rename(path)
    assert weights_digest(waiting.result().network) == weights_digest(trained)
    assert [progress.note for progress in reported] == ["waiting for another process that trains it"]


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
    assert checkpoint_path(study(**change), dataset) != checkpoint_path(study(), dataset)


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
    assert checkpoint_path(study(**change), dataset) == checkpoint_path(study(), dataset)


def test_weights_trained_on_other_images_are_stored_apart(study, dataset):
    changed = dataclasses.replace(dataset, fingerprint="another")
    assert checkpoint_path(study(), changed) != checkpoint_path(study(), dataset)


def test_weights_of_a_changed_function_of_ones_own_are_stored_apart(study, dataset, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def path_for(width):
        monkeypatch.delitem(sys.modules, "own_changing", raising=False)
        (tmp_path / "own_changing.py").write_text(
            f"from torch import nn\n\n\ndef make(classes):\n    return nn.Linear({width}, classes)\n"
        )
        return checkpoint_path(study(model__name="own_changing:make"), dataset)

    first = path_for(3)
    assert path_for(400) != first
    assert path_for(3) == first


def test_a_checkpoint_replaces_training(study, own_cache, tmp_path):
    torch.manual_seed(3)
    own = DigitsCNN(10, 16)
    torch.save(own.state_dict(), tmp_path / "own.pt")
    epochs = []
    opened = open_dense(study(model__checkpoint=tmp_path / "own.pt"), "cpu", epochs.append)
    assert epochs == []
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
