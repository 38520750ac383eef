import io
import pickle
import random
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hscc_search.dense.device import choose_device
from hscc_search.dense.networks import DigitsCNN, build_network, kaiming_initialise
from hscc_search.dense.weights import load_weights, read_checkpoint, weights_digest
from hscc_search.errors import ModelError


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Write a module of the user's own into the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())

    def write(source):
        (tmp_path / "own_networks.py").write_text("from torch import nn\n" + source)
        monkeypatch.delitem(sys.modules, "own_networks", raising=False)

    yield write
    sys.modules.pop("own_networks", None)


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
    """What runs code of the file's author where a pickle is read without care."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return eval, (f"open({str(self.target)!r}, 'w')",)


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
    ("content", "found"),
    [
        (DigitsCNN(2, 8), "no plain state dict"),
        ({"state_dict": {"a": torch.ones(1)}, "epoch": 3}, "state_dict, epoch"),
        ([torch.ones(1)], "list"),
        (torch.ones(3), "Tensor"),
    ],
    ids=["whole network", "training state", "list", "tensor"],
)
def test_a_checkpoint_of_more_or_other_than_named_tensors_is_refused(tmp_path, content, found):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ModelError, match=found) as caught:
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


@pytest.mark.parametrize("place", ["missing.pt", "missing.safetensors", "."])
def test_a_checkpoint_that_is_not_there_is_named(tmp_path, place):
    with pytest.raises(ModelError, match="no checkpoint at"):
        read_checkpoint(tmp_path / place)


@pytest.mark.filterwarnings("ignore")
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


@pytest.mark.parametrize(("name", "size"), [("digits_cnn", 12), ("squeezenet1_1", 32), ("mobilenet_v3_small", 32)])
def test_a_network_is_built_by_name_with_the_asked_outputs(name, size):
    network = build_network(name, 5, size)
    assert not network.training
    assert network(torch.zeros(2, 3, size, size)).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("efficientnet_b0", "torchvision.models.efficientnet"),
        ("timm/efficientnet_b0", "timm.models.efficientnet"),
        ("ghostnetv2_100", "timm.models.ghostnet"),
        ("test_vit", "timm.models.vision_transformer"),
    ],
)
def test_a_name_is_looked_up_in_torchvision_and_then_in_timm(name, module):
    network = build_network(name, 5, 48)
    assert type(network).__module__ == module
    assert network(torch.zeros(2, 3, 48, 48)).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("resnt18", ["resnet18", "timm/resnet18"]),
        ("ghostnetv2_10", ["ghostnetv2_100"]),
        ("timm/ghostnetv2", ["ghostnetv2_100"]),
        ("mobilnet_v2", ["mobilenet_v2"]),
    ],
)
def test_close_names_are_suggested(name, suggested):
    with pytest.raises(ModelError, match=f"no network named '{name}' in torchvision or timm: did you mean") as caught:
        build_network(name, 5, 32)
    words = str(caught.value).replace("?", "").split()
    assert set(suggested) <= set(words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["alexnot", "digits", "fasterrcnn_resnet50_fpn", "raft_small", "", "timm/", "timm/alexnet", "resnet10t.c3_in1k"],
)
def test_a_name_of_no_classifier_is_refused(name):
    with pytest.raises(ModelError, match=f"no network named '{name}'"):
        build_network(name, 5, 32)


def test_weights_that_torchvision_does_not_have_are_refused():
    with pytest.raises(ModelError, match="cannot get torchvision weights 'NOPE' for squeezenet1_1"):
        build_network("squeezenet1_1", 5, 32, weights="NOPE")


@pytest.mark.parametrize(
    ("name", "weights", "reason"),
    [
        ("resnet10t", "NOPE", "Invalid pretrained tag"),
        ("vovnet39a", "DEFAULT", "No pretrained weights exist"),
        ("resnet10t", "DEFAULT", "LocalEntryNotFoundError"),
        ("resnet10t", "c3_in1k", "LocalEntryNotFoundError"),
    ],
)
def test_weights_that_timm_does_not_have_or_cannot_get_are_refused_in_one_line(
    tmp_path, monkeypatch, name, weights, reason
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=f"cannot get timm weights '{weights}' for {name}") as caught:
        build_network(name, 5, 32, weights=weights)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_timm_is_asked_for_the_tagged_weights(monkeypatch):
    import timm

    asked = []

    def create(name, **options):
        asked.append((name, options["pretrained"], options["num_classes"]))
        return timm_create(name, **{**options, "pretrained": False})

    timm_create = timm.create_model
    monkeypatch.setattr(timm, "create_model", create)
    for weights in (None, "DEFAULT", "r160_in1k"):
        build_network("test_vit", 5, 32, weights)
    assert asked == [("test_vit", False, 5), ("test_vit", True, 5), ("test_vit.r160_in1k", True, 5)]


def test_a_timm_network_that_cannot_be_built_at_the_size_is_refused_in_one_line():
    with pytest.raises(ModelError, match="swin_tiny_patch4_window7_224") as caught:
        build_network("swin_tiny_patch4_window7_224", 5, 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["digits_cnn", "own_networks:make"])
def test_weights_are_for_published_networks_only(name):
    with pytest.raises(ModelError, match=r"model\.weights is for torchvision and timm networks"):
        build_network(name, 5, 32, weights="DEFAULT")


def test_the_digits_network_needs_a_size_that_two_poolings_divide():
    with pytest.raises(ModelError, match="multiple of 4, not 18"):
        build_network("digits_cnn", 5, 18)


def test_a_function_in_the_working_folder_builds_a_network(own_module):
    own_module("def make(classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, classes))\n")
    network = build_network("own_networks:make", 4, 32)
    assert (network[1].out_features, network.training) == (4, False)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("nn.Flatten()", "must return scores of shape"),
        ("nn.Sequential(nn.Flatten(), nn.Linear(7, classes))", "cannot take images of 32 x 32 pixels"),
    ],
)
def test_a_network_that_does_not_fit_the_images_is_refused(own_module, source, reason):
    own_module(f"def make(classes):\n    return {source}\n")
    with pytest.raises(ModelError, match=reason):
        build_network("own_networks:make", 4, 32)


@pytest.mark.parametrize(
    ("name", "source", "reason"),
    [
        ("own_missing:make", "", "own_missing"),
        ("own_networks:absent", "", "absent"),
        ("own_networks:", "", "cannot build_network"),
        (":make", "", "cannot build_network"),
        ("own_networks:make", "def make(classes):\n    raise RuntimeError('two\\nlines')\n", "two lines"),
        ("own_networks:make", "def make():\n    return nn.Linear(1, 1)\n", "argument"),
        ("own_networks:make", "def make(classes:\n", "SyntaxError"),
        ("own_networks:make", "def make(classes):\n    return 'a network'\n", "torch.nn.Module, not str"),
        ("own_networks:make", "make = 3\n", "not callable"),
    ],
)
def test_what_is_wrong_with_a_function_of_ones_own_is_said_in_one_line(own_module, name, source, reason):
    own_module(source)
    with pytest.raises(ModelError) as caught:
        build_network(name, 4, 32)
    assert name in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def normalised_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def test_equal_weights_have_equal_digests_wherever_they_lie_in_memory():
    one, other = normalised_network(), normalised_network().to(memory_format=torch.channels_last)
    assert weights_digest(one) == weights_digest(other)


@pytest.mark.parametrize("change", ["weight", "buffer", "type", "name", "shape"])
def test_the_digest_depends_on_every_value_type_shape_and_name(change):
    one, other = normalised_network(), normalised_network()
    with torch.no_grad():
        if change == "weight":
            other[0].weight[3, 2, 1, 0] = torch.nextafter(other[0].weight[3, 2, 1, 0], torch.tensor(9.0))
        elif change == "buffer":
            other[1].num_batches_tracked += 1
        elif change == "type":
            one[1].running_mean, other[1].running_mean = torch.zeros(4), torch.zeros(8, dtype=torch.float16)
        elif change == "name":
            other = nn.Sequential(nn.Identity(), *other)
        else:
            other[0].weight = nn.Parameter(other[0].weight.reshape(3, 4, 3, 3))
    assert weights_digest(one) != weights_digest(other)


def test_kaiming_initialisation_gives_the_scale_that_relu_needs():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(8, 64, 3), nn.Linear(400, 50, bias=False))
    kaiming_initialise(network)
    assert network[0].weight.std().item() == pytest.approx((2 / (8 * 9)) ** 0.5, rel=0.05)
    assert network[1].weight.std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.05)
    assert not network[0].bias.any()


@pytest.mark.parametrize(
    ("name", "drawn_anew"),
    [
        ("digits_cnn", True),
        ("squeezenet1_1", True),
        ("mobilenet_v3_small", False),
        ("test_vit", False),
        ("test_resnet", False),
        ("test_nfnet", False),
    ],
)
def test_a_network_that_normalises_keeps_its_own_initialisation(name, drawn_anew):
    network = build_network(name, 5, 32)
    before = weights_digest(network)
    kaiming_initialise(network)
    assert (weights_digest(network) != before) == drawn_anew


def test_the_device_is_what_is_there():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ModelError, match="--device cpu"):
        choose_device("cuda")
