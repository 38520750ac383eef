import io
import os
import pickle
import random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file, save_model
from torch import nn

from hscc_search.dense.networks import DigitsCNN
from hscc_search.dense.weights import load_checkpoint, load_weights, read_checkpoint, save_weights, weights_digest
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
    assert load_checkpoint(fresh, tmp_path / name) is None
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
        ({"state": {0: {"momentum": torch.ones(1)}}, "param_groups": [{"lr": 0.1}]}, "state, param_groups"),
        ({"first": {"a": torch.ones(1)}, "second": {"a": torch.ones(1)}}, "first, second"),
        ({"state_dict": {}, "epoch": 3}, "state_dict, epoch"),
        ({0: torch.ones(1)}, "keys 0"),
        ([torch.ones(1)], "list"),
        (torch.ones(3), "Tensor"),
    ],
    ids=["whole network", "optimizer", "two networks", "empty", "numbers", "list", "tensor"],
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


WRAPPERS = ["state_dict", "model_state_dict", "model", "net", "ema"]


def trained_digits():
    torch.manual_seed(1)
    return DigitsCNN(3, 8)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_weights_among_other_plain_values_are_found_and_it_is_said(tmp_path, wrapper):
    trained, fresh, path = trained_digits(), DigitsCNN(3, 8), tmp_path / "w.pt"
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9)
    trained(torch.rand(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    beside = {"epoch": 3, "optimizer": optimizer.state_dict(), "loss": torch.tensor(0.3), "names": ["a", "b"]}
    torch.save({**beside, wrapper: trained.state_dict()}, path)
    assert load_checkpoint(fresh, path) == f"checkpoint {path}: took {wrapper!r}"
    assert weights_digest(fresh) == weights_digest(trained)


def test_weights_in_two_wrappers_and_beside_an_average_of_them_are_found(tmp_path):
    trained, fresh, path = trained_digits(), DigitsCNN(3, 8), tmp_path / "w.pt"
    state = {f"module.{name}": value for name, value in trained.state_dict().items()}
    average = {name: value + 1 for name, value in state.items()}
    torch.save({"ema": average, "model": {"state_dict": state, "args": None}}, path)
    took = "took 'model' and not 'ema', took 'state_dict', stripped 'module.' from all names"
    assert load_checkpoint(fresh, path) == f"checkpoint {path}: {took}"
    assert weights_digest(fresh) == weights_digest(trained)


def test_plain_values_among_the_weights_are_ignored_and_named(tmp_path):
    trained, fresh, path = trained_digits(), DigitsCNN(3, 8), tmp_path / "w.pt"
    torch.save({**trained.state_dict(), "epoch": 3, "best": 0.9}, path)
    assert load_checkpoint(fresh, path) == f"checkpoint {path}: ignored 'epoch', 'best'"
    assert weights_digest(fresh) == weights_digest(trained)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (float("nan"), torch.float32),
        (float("inf"), torch.float32),
        (float("-inf"), torch.float64),
        (float("inf"), torch.float16),
        (float("nan"), torch.float8_e4m3fn),
    ],
)
@pytest.mark.parametrize("wrapped", [True, False])
def test_values_that_are_not_finite_are_refused_before_anything_else(tmp_path, value, dtype, wrapped):
    state = {"of.another.network": torch.tensor([1.0, value]).to(dtype)}
    torch.save({"model": state} if wrapped else state, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"w\.pt holds values that are not finite \(of\.another\.network\)"):
        read_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (lambda: torch.ones(2, device="meta"), "meta"),
        (lambda: torch.eye(3).to_sparse(), "sparse"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantised"),
    ],
    ids=["meta", "sparse", "quantised"],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_hold_no_plain_values_are_refused(tmp_path, value, kind):
    torch.save({"weight": value()}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=f"holds a {kind} tensor"):
        read_checkpoint(tmp_path / "w.pt")


class Shared(nn.Module):
    """A network with a layer under two names, tied weights, a buffer in two places, and views of one storage."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)
        self.all = nn.Sequential(self.layer, nn.BatchNorm2d(4))
        self.head, self.embed = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.head.weight = self.embed.weight
        line = torch.arange(10.0)
        for name, view in {"early": line[:6], "late": line[4:], "square": line[:9].view(3, 3), "line": line}.items():
            self.register_buffer(name, view)
        self.embed.register_buffer("line", line)


def test_tensors_of_several_names_are_written_once_and_restored_by_name(tmp_path):
    torch.manual_seed(1)
    trained, fresh, path = Shared(), Shared(), tmp_path / "w.safetensors"
    with torch.no_grad():
        trained.line.mul_(2)
    save_weights(trained.state_dict(), path)
    with safe_open(path, "pt") as file:
        written = set(file.keys())
    assert written >= {"early", "late", "square", "line", "embed.weight"} - {"embed.weight"}
    assert len(written & {"layer.weight", "all.0.weight"}) == 1
    assert len(written & {"head.weight", "embed.weight"}) == 1
    assert len(written & {"line", "embed.line"}) == 1
    assert read_checkpoint(path).tensors.keys() == trained.state_dict().keys()
    assert load_checkpoint(fresh, path) is None
    assert weights_digest(fresh) == weights_digest(trained)
    assert fresh.head.weight is fresh.embed.weight


def test_a_file_that_another_program_wrote_without_repeating_tied_weights_is_loaded(tmp_path):
    torch.manual_seed(1)
    trained, fresh = Shared(), Shared()
    for name in ("early", "late", "square"):
        for network in (trained, fresh):
            setattr(network, name, getattr(network, name).clone())
    save_model(trained, str(tmp_path / "w.safetensors"))
    assert load_checkpoint(fresh, tmp_path / "w.safetensors") is None
    assert weights_digest(fresh) == weights_digest(trained)
    state = {name: value for name, value in trained.state_dict().items() if name not in ("head.weight", "embed.line")}
    torch.save(state, tmp_path / "w.pt")
    again = Shared()
    assert load_checkpoint(again, tmp_path / "w.pt") is None
    assert weights_digest(again) == weights_digest(trained)


@pytest.mark.parametrize("content", ["weights", "wrapped"])
def test_a_flipped_bit_of_a_saved_state_dict_is_damage(tmp_path, content):
    path, state = tmp_path / "w.pt", dict(DigitsCNN(3, 8).state_dict())
    torch.save(state if content == "weights" else {"model": state}, path)
    whole = path.read_bytes()
    for share in (0.3, 0.5, 0.7):
        damaged = bytearray(whole)
        damaged[int(len(whole) * share)] ^= 1 << 6
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match="is damaged or of another format"):
            read_checkpoint(path)


def circles():
    one, other, beside, deep = {}, {}, {}, {"w": torch.zeros(2)}
    one["model"] = one
    other["net"] = dict.fromkeys(("model", "net", "ema", "params"), other)
    beside |= {"model": beside, "net": {"state_dict": {"w": torch.zeros(2)}}, "n": 1}
    for _ in range(300):
        deep = {"model": deep, "epoch": 3}
    return [one, other, beside, deep]


@pytest.mark.parametrize("content", circles(), ids=["itself", "each other", "beside weights", "deep"])
def test_wrappers_without_end_are_refused_in_one_line(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="holds more or other than named tensors"):
        read_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torch.zeros(1).expand(10**7, 10**5), "repeats a few values"),
        (lambda: torch.zeros(9).as_strided((10**6, 10**6), (0, 0)), "repeats a few values"),
        (lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), "a nested tensor"),
        (lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged), "a nested tensor"),
    ],
    ids=["expanded", "strided", "nested", "jagged"],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_tensors_that_are_more_than_what_is_stored_are_refused(tmp_path, make, said):
    torch.save({"w": make(), "bias": torch.zeros(1).expand(1000)}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=f"{said}.*|damaged or of another format") as refused:
        read_checkpoint(tmp_path / "w.pt")
    assert len(str(refused.value)) < 700
    torch.save({"bias": torch.zeros(1).expand(1000)}, tmp_path / "w.pt")
    assert read_checkpoint(tmp_path / "w.pt").tensors["bias"].shape == (1000,)


def test_each_flipped_bit_of_a_written_file_is_noticed_or_changes_nothing(tmp_path):
    path = tmp_path / "w.safetensors"
    state = {"weight": torch.arange(6.0), "again": torch.ones(2)}
    save_weights({**state, "tied": state["again"]}, path)
    content, before = path.read_bytes(), read_checkpoint(path).tensors
    refused = 0
    for bit in range(0, 8 * len(content), 13):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            read = read_checkpoint(path).tensors
        except ModelError:
            refused += 1
        else:
            assert read.keys() == before.keys()
            assert all(torch.equal(read[name], before[name]) for name in before)
    assert refused > 0.9 * len(range(0, 8 * len(content), 13))


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
            assert set(map(type, read_checkpoint(path).tensors.values())) <= {torch.Tensor}
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
