import dataclasses

import pytest

from hscc_search.config import StudyConfig
from hscc_search.data import load_dataset
from hscc_search.dense.cached import checkpoint_path, path_before
from hscc_search.dense.identity import STRUCTURE, UNKNOWN


@pytest.fixture(scope="module")
def dataset(study, first_cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HSCC_CACHE", str(first_cache))
        return load_dataset(study().data)


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
        {"data__classes": list("1023456789")},
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
        {"data__groups": ".*"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_does_not_train_the_network_shares_its_weights(study, dataset, change):
    assert checkpoint_path(study(**change), dataset, {}) == checkpoint_path(study(), dataset, {})


def test_weights_trained_on_other_images_are_stored_apart(study, dataset):
    changed = dataclasses.replace(dataset, fingerprint="another")
    assert checkpoint_path(study(), changed, {}) != checkpoint_path(study(), dataset, {})


def test_weights_trained_on_another_split_are_stored_apart(study, dataset):
    """Copies decide on the split; those of version 0.1.0 are the ones that are judged by shape."""
    assert dataset.judgement == ""
    judged = dataclasses.replace(dataset, judgement="by colour")
    assert checkpoint_path(study(), judged, {}) != checkpoint_path(study(), dataset, {})
    assert checkpoint_path(study(data__copies="exact"), dataset, {}) == checkpoint_path(study(), dataset, {})


def test_weights_of_another_network_are_stored_apart(study, dataset):
    paths = {checkpoint_path(study(), dataset, {STRUCTURE: structure}) for structure in ("one", "other", "one")}
    assert len(paths) == 2


def test_weights_of_a_network_with_an_unknown_part_are_stored_apart_each_time(study, dataset):
    paths = {checkpoint_path(study(), dataset, {STRUCTURE: "one", "own.Net": UNKNOWN}) for _ in range(2)}
    assert len(paths) == 2


def test_how_an_own_network_is_trained_or_kept_does_not_name_its_weights(study, dataset):
    always = study(training__when="always")
    assert checkpoint_path(always, dataset, {}) == checkpoint_path(study(), dataset, {})


def test_the_path_of_the_version_before_is_what_it_was(study, dataset, own_module):
    """The names are those that 0.1.0 gave."""
    own_module(own_old="from torch import nn\n\n\ndef make(classes):\n    return nn.Linear(3, classes)\n")
    images = dataclasses.replace(dataset, fingerprint="images")
    digits, own = StudyConfig.from_file("digits"), StudyConfig.from_file("digits", model__name="own_old:make", seed=3)
    assert path_before(digits, images).name == "digits_cnn-9dac08f9b64329317df0026e.safetensors"
    assert path_before(own, images).name == "own_old-make-c13464705b7c17adef4831cf.safetensors"
