import dataclasses

import pytest
import torch

from hscc_search.data import load_dataset
from hscc_search.dense.opened import build, checkpoint_path, open_dense
from hscc_search.dense.training import train
from hscc_search.dense.weights import weights_digest
from hscc_search.errors import DiskFullError
from hscc_search.evaluation.predictions import predict

CPU = torch.device("cpu")


class PowerCutError(Exception):
    pass


def cut_after(epoch, error):
    def report(progress):
        if progress.done == epoch:
            raise error

    return report


@pytest.mark.parametrize(
    ("dropout", "cuts"), [(False, (1,)), (False, (3,)), (True, (1, 2))], ids=["first", "last", "twice with dropout"]
)
def test_an_interrupted_training_ends_in_the_weights_of_an_unbroken_one(study, tmp_path, monkeypatch, dropout, cuts):
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
    path = checkpoint_path(config, load_dataset(config.data))
    for cut in cuts:
        with pytest.raises(PowerCutError):
            open_dense(config, "cpu", cut_after(cut, PowerCutError()))
        assert not path.exists()
        torch.rand(7)
    epochs = []
    resumed = open_dense(config, "cpu", lambda progress: epochs.append(progress.done))

    unbroken = build(config, 10)
    train(unbroken, config, resumed.parts, tmp_path / "unbroken.safetensors", CPU)
    assert epochs == list(range(cuts[-1] + 1, 4))
    assert weights_digest(resumed.network) == weights_digest(unbroken)
    assert weights_digest(resumed.network) != weights_digest(build(config, 10))
    assert set(path.parent.iterdir()) == {path, path.with_suffix(".lock")}


def test_training_teaches_the_digits_and_reports_on_each_epoch(plain_study):
    config = plain_study()
    steps = []
    opened = open_dense(config, "cpu", steps.append)
    validation = opened.parts.validation
    accuracy = (predict(opened.network, validation, config.data, CPU).argmax(1) == validation.labels).mean()
    assert accuracy > 0.7
    assert [(step.done, step.total) for step in steps] == [(epoch, 6) for epoch in range(1, 7)]
    assert f"validation accuracy {accuracy:.3f}" in steps[-1].note


def test_a_part_that_is_smaller_than_a_batch_trains_too(study, tmp_path):
    opened = open_dense(study(training__epochs=1), "cpu")
    few = dataclasses.replace(opened.parts, train=opened.parts.train.subset(20, 0))
    untrained, network = build(opened.config, 10), build(opened.config, 10)
    train(network, opened.config, few, tmp_path / "weights.safetensors", CPU)
    assert weights_digest(network) != weights_digest(untrained)


def damage(path):
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("spoil", [damage, cut_off])
def test_an_unfinished_training_that_was_damaged_begins_again(study, spoil):
    config = study(training__epochs=2)
    path = checkpoint_path(config, load_dataset(config.data))
    with pytest.raises(PowerCutError):
        open_dense(config, "cpu", cut_after(1, PowerCutError()))
    spoil(path.with_suffix(".unfinished"))
    epochs = []
    resumed = open_dense(config, "cpu", lambda progress: epochs.append(progress.done))
    assert epochs == [1, 2]
    assert weights_digest(open_dense(config, "cpu").network) == weights_digest(resumed.network)


def test_a_training_whose_state_finds_no_room_ends_in_one_line_and_goes_on_later(study, small_disk, monkeypatch):
    config, disk = study(training__epochs=1), small_disk(3000)
    monkeypatch.setenv("HSCC_CACHE", str(disk))
    with pytest.raises(DiskFullError, match=rf"no room for .*\.unfinished: .* free in {disk}"):
        open_dense(config, "cpu")
    assert [path.suffix for path in (disk / "checkpoints").iterdir()] == [".lock"]
    small_disk(40_000, "remount")
    assert checkpoint_path(config, open_dense(config, "cpu").dataset).exists()
