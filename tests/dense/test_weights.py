import io
import os
import pickle
import random

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hscc_search.dense.networks import DigitsCNN
from hscc_search.dense.weights import (
    load_weights,
    read_checkpoint,
    read_trained,
    state_digest,
    weights_digest,
    write_trained,
)
from hscc_search.errors import ModelError


def save_legacy(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("name", "save"),
    [("w.safetensors", save_file), ("w.pt", torch.save), ("w.pth", save_legacy)],
    ids=["safetensors", "state dict", "legacy state dict"],
)
def test_a_checkpoint_gives_its_weights_back(tmp_path, name, save):
    torch.manual_seed(1)
    trained, fresh = DigitsCNN(3, 8), DigitsCNN(3, 8)
    save(dict(trained.state_dict()), tmp_path / name)
    assert weights_digest(trained) != weights_digest(fresh)
    load_weights(fresh, read_checkpoint(tmp_path / name), name)
    assert weights_digest(trained) == weights_digest(fresh)


class Malicious:
    """An object whose pickle makes a folder when it is read without care."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def load_all(content):
    return torch.load(io.BytesIO(content), weights_only=False)


def plain_pickle(value, path):
    path.write_bytes(pickle.dumps(value))


@pytest.mark.parametrize("save", [torch.save, save_legacy, plain_pickle], ids=["zip", "legacy", "plain pickle"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("beside_tensors", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path, save, suffix, beside_tensors):
    target, path = tmp_path / "executed", tmp_path / f"weights{suffix}"
    malicious = Malicious(target)
    save({"weight": torch.ones(2), "more": malicious} if beside_tensors else malicious, path)
    with pytest.raises(ModelError, match="weights"):
        read_checkpoint(path)
    assert not target.exists()
    read_without_care = pickle.loads if save is plain_pickle else load_all
    read_without_care(path.read_bytes())
    assert target.exists(), "the file must be dangerous, or the test shows nothing"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (DigitsCNN(2, 8), "not a plain state dict"),
        ({"state_dict": {"a": torch.ones(1)}, "epoch": 3}, "state_dict, epoch"),
        ([torch.ones(1)], "list"),
        (torch.ones(3), "Tensor"),
    ],
    ids=["whole network", "training state", "list", "tensor"],
)
def test_a_checkpoint_of_more_or_other_than_named_tensors_is_refused(tmp_path, content, named):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ModelError, match=named) as caught:
        read_checkpoint(tmp_path / "weights.pt")
    assert "torch.save(model.state_dict(), path)" in str(caught.value)


def test_a_checkpoint_of_another_architecture_is_refused_and_changes_nothing():
    network = DigitsCNN(3, 8)
    before = weights_digest(network)
    with pytest.raises(ModelError, match=r"other\.pt is of another architecture than DigitsCNN: 13\.bias has shape"):
        load_weights(network, DigitsCNN(4, 8).state_dict(), "other.pt")
    state = DigitsCNN(3, 8).state_dict()
    state["extra"] = state.pop("0.weight")
    with pytest.raises(ModelError, match=r"0\.weight is missing; extra is unknown"):
        load_weights(network, state, "other.pt")
    assert weights_digest(network) == before


@pytest.mark.parametrize("name", ["missing.pt", "missing.safetensors", "."])
def test_a_checkpoint_that_is_not_there_is_named(tmp_path, name):
    with pytest.raises(ModelError, match="no checkpoint at"):
        read_checkpoint(tmp_path / name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "save"),
    [("w.safetensors", save_file), ("w.pt", torch.save), ("w.pth", save_legacy), ("w.pickle", plain_pickle)],
    ids=["safetensors", "zip", "legacy", "plain pickle"],
)
def test_damage_anywhere_in_a_checkpoint_is_survived_or_refused(tmp_path, name, save):
    path = tmp_path / name
    save({"weight": torch.arange(12.0).view(3, 4), "bias": torch.ones(2)}, path)
    content = path.read_bytes()
    chance = random.Random(0)
    for attempt in range(200):
        damaged = bytearray(content[: chance.randrange(len(content))] if attempt % 2 else content)
        if damaged:
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            assert set(map(type, read_checkpoint(path).values())) <= {torch.Tensor}
        except ModelError as error:
            assert name in str(error)
            assert "\n" not in str(error)


def normalised_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def test_equal_weights_have_equal_digests_wherever_they_lie_in_memory():
    network, channels_last = normalised_network(), normalised_network().to(memory_format=torch.channels_last)
    assert weights_digest(network) == weights_digest(channels_last)


@pytest.mark.parametrize("change", ["weight", "buffer", "type", "name", "shape"])
def test_the_digest_depends_on_every_value_type_shape_and_name(change):
    network, changed = normalised_network(), normalised_network()
    with torch.no_grad():
        if change == "weight":
            changed[0].weight[3, 2, 1, 0] = torch.nextafter(changed[0].weight[3, 2, 1, 0], torch.tensor(9.0))
        elif change == "buffer":
            changed[1].num_batches_tracked += 1
        elif change == "type":
            network[1].running_mean, changed[1].running_mean = torch.zeros(4), torch.zeros(8, dtype=torch.float16)
        elif change == "name":
            changed = nn.Sequential(nn.Identity(), *changed)
        else:
            changed[0].weight = nn.Parameter(changed[0].weight.reshape(3, 4, 3, 3))
    assert weights_digest(network) != weights_digest(changed)


def test_trained_weights_come_back_and_each_flipped_bit_is_noticed(tmp_path):
    network, path, chance = (
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)),
        tmp_path / "net.safetensors",
        random.Random(0),
    )
    write_trained(network, path)
    whole = path.read_bytes()
    assert state_digest(read_trained(path)) == weights_digest(network)
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        state = read_trained(path)
        assert state is None or state_digest(state) == weights_digest(network)  # another blank says the same
    for length in range(0, len(whole), 50):
        path.write_bytes(whole[:length])
        assert read_trained(path) is None
    path.unlink()
    assert read_trained(path) is None
