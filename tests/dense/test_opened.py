import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from hscc_search.data import load_dataset, split
from hscc_search.dense.cached import path_before
from hscc_search.dense.networks import DigitsCNN
from hscc_search.dense.opened import open_dense
from hscc_search.dense.start import build
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


def test_weights_of_a_version_without_digests_are_taken_as_they_are(study, told):
    config = study(training__epochs=1)
    first = open_dense(config, "cpu")
    save_file(load_file(first.weights_file), first.weights_file)
    assert weights_digest(open_dense(config, "cpu", told).network) == weights_digest(first.network)
    assert told.steps == []


def test_with_a_cache_that_cannot_be_written_to_the_network_is_the_same(study, small_disk, monkeypatch, told):
    config = study(training__epochs=1)
    expected = weights_digest(open_dense(config, "cpu").network)
    monkeypatch.setenv("HSCC_CACHE", str(small_disk(100, "ro")))
    with pytest.warns(HsccWarning, match="networks trained"):
        opened = open_dense(config, "cpu", told)
    assert weights_digest(opened.network) == expected
    assert (opened.weights_file, opened.given) == (None, False)
    assert [step.done for step in told.steps if "training" in step.task] == [1]


def test_damaged_weights_in_a_cache_that_cannot_be_written_to_stay_and_are_not_taken(
    study, small_disk, monkeypatch, told
):
    config = study(training__epochs=1)
    monkeypatch.setenv("HSCC_CACHE", str(small_disk(40_000)))
    first = open_dense(config, "cpu")
    content = bytearray(first.weights_file.read_bytes())
    content[-1000] ^= 4
    first.weights_file.write_bytes(content)
    small_disk(40_000, "remount,ro")
    with pytest.warns(HsccWarning, match="cannot be written to"):
        again = open_dense(config, "cpu", told)
    assert weights_digest(again.network) == weights_digest(first.network)
    assert [line for line in told.lines if "of no use" in line] == told.lines[:1]
    assert first.weights_file.read_bytes() == content


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


def test_another_split_than_that_of_the_study_is_refused_before_training(study, own_cache, dataset):
    data = study().data
    labels = split(dataset, data.validation, data.test, data.split_seed).validation.labels
    with pytest.raises(StudyError, match=r"another split of these images .*another name"):
        open_dense(study(), "cpu", labels=labels[::-1])
    assert not (own_cache / "checkpoints").exists()
    assert len(open_dense(study(training__epochs=1), "cpu", labels=labels).parts.validation) == len(labels)


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


def test_a_network_that_cannot_take_images_of_this_size_is_refused_by_name(study):
    with pytest.raises(ModelError, match="squeezenet1_1"):
        open_dense(study(model__name="squeezenet1_1"), "cpu")


OWN = """
    import torch
    from torch import nn

    from own_helper import scale


    class Net(nn.Sequential):
        def forward(self, x):
            return super().forward(x) * scale()


    def make(classes):
        return Net(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, classes))


    def trained(classes):
        network = make(classes)
        network.load_state_dict(torch.load(FILE, weights_only=True))
        return network


    def seeding(classes):
        torch.manual_seed(0)
        return make(classes)


    def seeding_and_trained(classes):
        torch.manual_seed(0)
        return trained(classes)


    def unrepeatable(classes):
        network = make(classes)
        torch.seed()
        nn.init.normal_(network[4].weight)
        return network
"""
HELPER = "def scale():\n    return 1.0\n"


@pytest.fixture
def own(own_module, study, told, tmp_path):
    """Open the network of a function of one's own: ``own("make", helper=...)``; its weights are in ``weights.pt``."""

    def open_own(function, helper=HELPER, started=None, **changes):
        own_module(own_net=OWN.replace("FILE", repr(str(tmp_path / "weights.pt"))), own_helper=helper)
        quick = {"training__epochs": 2, "training__mixup": 0.0, "training__flip": False}
        config = study(**{**quick, "model__name": f"own_net:{function}", **changes})
        before = {}
        if started is not None:
            before = {
                "fingerprint": started.dataset.fingerprint,
                "weights": weights_digest(started.network),
                "network": started.identity,
            }
        told.steps.clear(), told.lines.clear()
        return open_dense(config, "cpu", told, **before)

    return open_own


def test_trained_weights_of_a_function_of_ones_own_are_kept(own, told, tmp_path):
    drawn = own("make", training__epochs=4)
    assert told.lines == ["training: 4 epochs from random weights of own_net:make"]
    torch.save(drawn.network.state_dict(), tmp_path / "weights.pt")
    kept = own("trained")
    assert (told.steps, kept.weights_file) == ([], None)
    assert told.lines[0].startswith("training: none: own_net:trained returns the same weights under different seeds")
    assert weights_digest(kept.network) == weights_digest(drawn.network)
    again = own("trained", training__when="always")
    assert len(told.steps) == 2
    assert told.lines == ["training: 2 epochs from the weights of own_net:trained, since training.when is always"]
    assert weights_digest(again.network) != weights_digest(drawn.network)
    # What was trained is in the cache now, and is still not what the function returns.
    assert weights_digest(own("trained").network) == weights_digest(drawn.network)
    # A function that seeds torch is asked what it knows.
    assert weights_digest(own("seeding_and_trained").network) == weights_digest(drawn.network)
    assert "knows the images already" in told.lines[0]
    own("seeding")
    assert len(told.steps) == 2


def test_no_epochs_take_the_weights_as_they_come(own, told):
    opened = own("make", training__epochs=0)
    assert (told.steps, opened.weights_file) == ([], None)
    assert told.lines == ["training: none: training.epochs is 0, so the weights of own_net:make are taken as they are"]
    assert weights_digest(opened.network) == weights_digest(build(opened.config, 10))


def test_a_changed_helper_is_trained_anew_and_stops_a_study_before_that(own, told):
    first = own("make")
    assert own("make").weights_file == first.weights_file
    assert told.steps == []
    with pytest.raises(StudyError, match=r"another dense network: own_helper\.scale of own_net:make has changed"):
        own("make", HELPER.replace("1.0", "0.5"), started=first)
    assert told.steps == []
    changed = own("make", HELPER.replace("1.0", "0.5"))
    assert len(told.steps) == 2
    assert changed.weights_file != first.weights_file
    assert own("make", started=first).weights_file == first.weights_file


def test_other_weights_at_build_stop_a_study_before_training(own, told, tmp_path):
    states = [own("make", seed=seed).network.state_dict() for seed in (0, 1)]
    torch.save(states[0], tmp_path / "weights.pt")
    kept, trained = own("trained"), own("trained", training__when="always")
    assert weights_digest(own("trained", started=kept).network) == weights_digest(kept.network)
    torch.save(states[1], tmp_path / "weights.pt")
    for started, changes in ((kept, {}), (trained, {"training__when": "always"})):
        with pytest.raises(StudyError, match="another dense network, of other weights before training") as caught:
            own("trained", started=started, **changes)
        assert "--checkpoint FILE" in str(caught.value)
        assert told.steps == []
    # The trained weights themselves go on.
    by_file = own("trained", started=trained, model__checkpoint=trained.weights_file)
    assert weights_digest(by_file.network) == weights_digest(trained.network)


def test_a_study_of_a_checkpoint_is_not_trained_without_it(own, told):
    file = own("make").weights_file
    started = own("make", model__checkpoint=file)
    with pytest.raises(StudyError, match="--checkpoint FILE"):
        own("make", started=started, seed=5)
    assert told.steps == []


def test_weights_that_are_others_on_each_call_are_not_taken_from_the_cache(own, told):
    first = own("unrepeatable")
    reason = "own_net:unrepeatable gives other weights on each call"
    assert told.lines[1] == (
        f"training: {reason}, so nothing is taken from the cache: go on with --checkpoint {first.weights_file}"
    )
    with pytest.raises(StudyError, match="other weights before training"):
        own("unrepeatable", started=first)
    assert told.steps == []
    again = own("unrepeatable", started=first, model__checkpoint=first.weights_file)
    assert weights_digest(again.network) == weights_digest(first.network)


def test_a_checkpoint_that_is_not_finite_is_refused(own, tmp_path):
    state = own("make").network.state_dict()
    state["4.bias"][2] = torch.nan
    torch.save(state, tmp_path / "weights.pt")
    for function, changes in (("trained", {}), ("make", {"model__checkpoint": tmp_path / "weights.pt"})):
        with pytest.raises(ModelError, match=r"holds values that are not finite \(4\.bias\)"):
            own(function, **changes)


def test_what_was_stripped_from_a_checkpoint_is_told(own, told, tmp_path):
    trained = own("make").network
    torch.save({"model": {f"module.{key}": value for key, value in trained.state_dict().items()}}, tmp_path / "w.pt")
    opened = own("make", model__checkpoint=tmp_path / "w.pt")
    line = f"checkpoint {tmp_path / 'w.pt'}: took 'model', stripped 'module.' from all names"
    assert told.lines == [f"training: none: the weights are those of checkpoint {tmp_path / 'w.pt'}", line]
    assert weights_digest(opened.network) == weights_digest(trained)


def test_layers_of_several_names_and_tied_weights_are_trained(own_module, study, told):
    own_module(
        own_shared="""
        from torch import nn


        class Net(nn.Module):
            def __init__(self, classes):
                super().__init__()
                self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
                self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
                self.two.weight = self.one.weight
                self.head = nn.Linear(8, classes)
                self.all = nn.Sequential(*self.features.children())

            def forward(self, x):
                return self.head(self.two(self.one(self.all(x).mean((2, 3))).relu()).relu())


        make = Net
        """
    )
    config = study(model__name="own_shared:make", training__epochs=2)
    first = open_dense(config, "cpu", told)
    assert len(told.steps) == 2
    again = open_dense(config, "cpu", told)
    assert len(told.steps) == 2
    assert weights_digest(again.network) == weights_digest(first.network)
    assert again.network.one.weight is again.network.two.weight
    assert again.network.all[0] is again.network.features[0]


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "flipped", "not finite", "of another network"])
def test_a_damaged_file_of_trained_weights_is_made_again(own, told, damage):
    first = own("make")
    path, content = first.weights_file, first.weights_file.read_bytes()
    state = {"not finite": {"4.bias": torch.full((10,), torch.nan)}, "of another network": {"bias": torch.ones(3)}}
    if damage in state:
        save_file({**first.network.state_dict(), **state[damage]}, path)
    else:
        flipped = bytearray(content)
        flipped[-1000] ^= 4
        damaged = {"truncated": content[:-77], "empty": b"", "foreign": b"\x00PNG" * 999, "flipped": bytes(flipped)}
        path.write_bytes(damaged[damage])
    again = own("make")
    assert len(told.steps) == 2
    assert told.lines[0].startswith("training: weights in the cache are of no use and made again: checkpoint ")
    assert weights_digest(again.network) == weights_digest(first.network)
    assert path.read_bytes() == content


def test_a_study_of_the_version_before_finds_what_was_trained_for_it(own, told):
    trained = own("make")
    before = path_before(trained.config, trained.dataset)
    trained.weights_file.rename(before)
    opened = own("make", started=dataclasses.replace(trained, identity={}))
    assert (told.steps, opened.weights_file) == ([], before)
    assert weights_digest(opened.network) == weights_digest(trained.network)
    # For a new study, whose network may be another one, the name of the file says too little.
    assert own("make").weights_file == trained.weights_file
    assert len(told.steps) == 2
    # And for a study that was started with other weights.
    trained.weights_file.unlink()
    with pytest.raises(StudyError, match="another dense network"):
        own("make", started=dataclasses.replace(own("make", seed=1), identity={}))
