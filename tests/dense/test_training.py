import dataclasses
import functools
import hashlib

import pytest
import torch
from torch import nn

from hscc_search.compression.calibration.store import cache_key
from hscc_search.data import load_dataset
from hscc_search.dense import epochs
from hscc_search.dense.cached import checkpoint_path
from hscc_search.dense.identity import identity
from hscc_search.dense.opened import open_built, open_dense
from hscc_search.dense.start import build
from hscc_search.dense.training import train
from hscc_search.dense.weights import weights_digest
from hscc_search.errors import DiskFullError, HsccError, ModelError
from hscc_search.evaluation.predictions import predict
from hscc_search.progress import Notice

CPU = torch.device("cpu")


class PowerCutError(Exception):
    pass


def cut_after(epoch, error):
    def report(progress):
        if not isinstance(progress, Notice) and progress.done == epoch:
            raise error

    return report


def test_a_network_that_was_just_trained_is_as_it_comes_from_the_cache(study, own_cache):
    trained, cached = (open_dense(study(), "cpu").network for _ in range(2))
    assert {name: value.stride() for name, value in trained.state_dict().items()} == {
        name: value.stride() for name, value in cached.state_dict().items()
    }
    assert cache_key(trained, torch.zeros(4, 3, 8, 8), 2) == cache_key(cached, torch.zeros(4, 3, 8, 8), 2)


@pytest.mark.parametrize(
    ("dropout", "cuts"), [(False, (1,)), (False, (3,)), (True, (1, 2))], ids=["first", "last", "twice with dropout"]
)
def test_an_interrupted_training_ends_in_the_weights_of_an_unbroken_one(
    study, tmp_path, monkeypatch, told, dropout, cuts
):
    # After each epoch, however long that takes on a busy machine.
    monkeypatch.setattr("hscc_search.dense.training._WRITING_SHARE", 1e9)
    changes = {}
    if dropout:
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "own_dropout.py").write_text(
            "from torch import nn\n\n\ndef make(classes):\n"
            "    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),\n"
            "                         nn.Dropout(0.3), nn.Linear(392, classes))\n"
        )
        changes = {"model__name": "own_dropout:make"}
    config = study(**changes)
    path = checkpoint_path(config, load_dataset(config.data), identity(build(config, 10)))
    for cut in cuts:
        with pytest.raises(PowerCutError):
            open_dense(config, "cpu", cut_after(cut, PowerCutError()))
        assert not path.exists()
        torch.rand(7)
    resumed = open_dense(config, "cpu", told)

    unbroken = build(config, 10)
    train(unbroken, config, resumed.parts, tmp_path / "unbroken.safetensors", CPU)
    assert [step.done for step in told.steps] == list(range(cuts[-1] + 1, 4))
    assert weights_digest(resumed.network) == weights_digest(unbroken)
    assert weights_digest(resumed.network) != weights_digest(build(config, 10))
    assert set(path.parent.iterdir()) == {path, path.with_suffix(".lock")}


def test_images_that_are_too_many_to_be_held_are_read_batch_by_batch_and_train_the_same_weights(study, monkeypatch):
    config = study()
    opened = open_built(config, "cpu")
    digests = []
    for most in (epochs._HELD, 0):
        monkeypatch.setattr(epochs, "_HELD", most)
        network = build(config, 10)
        train(network, config, opened.parts, None, CPU)
        digests.append(weights_digest(network))
    assert digests[0] == digests[1] != weights_digest(build(config, 10))


def test_training_teaches_the_digits_and_reports_on_each_epoch(plain_study, told):
    config = plain_study()
    opened = open_dense(config, "cpu", told)
    validation = opened.parts.validation
    accuracy = (predict(opened.network, validation, config.data, CPU).argmax(1) == validation.labels).mean()
    assert accuracy > 0.7
    assert [(step.done, step.total) for step in told.steps] == [(epoch, 6) for epoch in range(1, 7)]
    assert f"validation accuracy {accuracy:.3f}" in told.steps[-1].note


@pytest.mark.parametrize("change", [{"training__learning_rate": 100.0}, {"data__std": [0.0001] * 3}])
def test_a_training_that_diverges_ends_with_its_epoch(study, own_cache, change):
    epochs = []
    config = study(training__epochs=40, **change)
    with pytest.raises(ModelError, match=r"the network diverged in epoch \d \(loss (nan|inf)\): lower the learning"):
        open_dense(config, "cpu", lambda progress: epochs.append(progress.done))
    assert len(epochs) < 9
    assert not list((own_cache / "checkpoints").glob("*.safetensors"))


def test_a_part_that_is_smaller_than_a_batch_trains_too(study, tmp_path):
    opened = open_dense(study(training__epochs=1), "cpu")
    few = dataclasses.replace(opened.parts, train=opened.parts.train.subset(20, 0))
    untrained, network = build(opened.config, 10), build(opened.config, 10)
    train(network, opened.config, few, tmp_path / "weights.safetensors", CPU)
    assert weights_digest(network) != weights_digest(untrained)


SMALL = """
    from torch import nn


    class Net(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 64), nn.ReLU())
            self.again = self.layers[2]
            self.one, self.two = nn.Linear(64, 64), nn.Linear(64, 64)
            self.two.weight = self.one.weight
            self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(64, classes))

        def forward(self, x):
            return self.head(self.two(self.one(self.layers(x)).relu()).relu())


    make = Net
"""


@pytest.fixture
def cut(own_module, study):
    """Train a small network of shared layers, cut after the second of its three epochs: the configuration and path."""

    def make():
        own_module(own_small=SMALL)
        config = study(model__name="own_small:make")
        with pytest.raises(PowerCutError):
            open_dense(config, "cpu", cut_after(2, PowerCutError()))
        path = checkpoint_path(config, load_dataset(config.data), identity(build(config, 10)))
        return config, path.with_suffix(".unfinished")

    return make


def flipped(content, share):
    changed = bytearray(content)
    changed[int(share * (len(content) - 1))] ^= 16
    return bytes(changed)


@pytest.mark.parametrize(
    "damage",
    [
        None,
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"\x89PNG" * 1000,
        lambda content: content[:-32],
        *(functools.partial(flipped, share=share) for share in (0, 0.6, 1)),
    ],
)
def test_a_damaged_unfinished_training_begins_anew_with_the_same_result(cut, told, tmp_path, damage):
    config, unfinished = cut()
    if damage is not None:
        unfinished.write_bytes(damage(unfinished.read_bytes()))
    resumed = open_dense(config, "cpu", told)
    # The state is not written after each of the epochs where that would take a large share of their time.
    first = told.steps[0].done
    assert first > 1 if damage is None else first == 1
    damaged = [line for line in told.lines if "is damaged" in line]
    assert len(damaged) == (damage is not None)
    assert all(line.startswith("training: begins anew") and "\n" not in line for line in damaged)
    unbroken = build(config, 10)
    train(unbroken, config, resumed.parts, tmp_path / "unbroken.safetensors", CPU)
    assert weights_digest(resumed.network) == weights_digest(unbroken)
    assert not unfinished.exists()


def test_an_unfinished_training_of_another_network_begins_anew(cut, told, tmp_path):
    config, unfinished = cut()
    other = nn.Linear(2, 2)
    state = {"network": other.state_dict(), "optimizer": {}, "schedule": {}, "epochs": 2}
    torch.save(state, unfinished)
    unfinished.write_bytes(unfinished.read_bytes() + hashlib.sha256(unfinished.read_bytes()).digest())
    resumed = open_dense(config, "cpu", told)
    assert [step.done for step in told.steps] == [1, 2, 3]
    unbroken = build(config, 10)
    train(unbroken, config, resumed.parts, tmp_path / "unbroken.safetensors", CPU)
    assert weights_digest(resumed.network) == weights_digest(unbroken)


def test_weights_that_cannot_be_written_are_said_in_one_line(cut, tmp_path):
    config, _ = cut()
    parts = open_dense(config, "cpu").parts
    with pytest.raises(HsccError, match="cannot write"):
        train(build(config, 10), config, parts, tmp_path / "absent" / "weights.safetensors", CPU)


def test_a_training_without_room_for_its_weights_is_refused_before_it_begins(study, small_disk, monkeypatch, told):
    config, disk = study(training__epochs=1), small_disk(1500)
    monkeypatch.setenv("HSCC_CACHE", str(disk))
    with pytest.raises(DiskFullError, match=rf"no room for the weights .*\.safetensors: .* free in {disk}"):
        open_dense(config, "cpu", told)
    assert not [step for step in told.steps if step.task == "training the dense network"]
    assert {path.suffix for path in (disk / "checkpoints").iterdir()} == {".lock"}
    small_disk(40_000, "remount")
    assert open_dense(config, "cpu").weights_file.exists()


@pytest.mark.parametrize("kilobytes", [3000, 5200])
def test_a_state_that_would_leave_no_room_for_the_weights_is_not_kept(study, small_disk, monkeypatch, told, kilobytes):
    config, disk = study(training__epochs=2), small_disk(kilobytes)
    monkeypatch.setenv("HSCC_CACHE", str(disk))
    opened = open_dense(config, "cpu", told)
    assert len([line for line in told.lines if "goes on without keeping its state" in line]) == 1
    assert {path.suffix for path in (disk / "checkpoints").iterdir()} == {".lock", ".safetensors"}
    assert opened.weights_file.exists()
