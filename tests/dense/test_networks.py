import sys

import pytest
import torch
from torch import nn

from hscc_search.dense.identity import START, STRUCTURE, identity
from hscc_search.dense.networks import build_network, kaiming_initialise
from hscc_search.dense.weights import weights_digest
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


@pytest.mark.parametrize(
    ("name", "image_size"), [("digits_cnn", 12), ("squeezenet1_1", 32), ("mobilenet_v3_small", 32)]
)
def test_a_network_is_built_by_name_with_the_asked_outputs(name, image_size):
    network = build_network(name, 5, image_size)
    assert not network.training
    assert network(torch.zeros(2, 3, image_size, image_size)).shape == (2, 5)


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
    assert set(identity(network)) == {STRUCTURE, START}
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


@pytest.mark.parametrize("shape", [(1, 32, 48), (3, 48, 32), (4, 32, 32)])
@pytest.mark.parametrize("name", ["digits_cnn", "timm/test_resnet"])
def test_networks_are_built_for_other_channels_and_sizes(name, shape):
    network = build_network(name, 5, shape)
    first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    assert first.in_channels == shape[0]
    assert network(torch.rand(2, *shape)).shape == (2, 5)


def test_what_torchvision_cannot_build_for_one_channel_is_refused_in_one_line():
    with pytest.raises(
        ModelError, match=r"torchvision builds resnet18 for 3 channels, not for 1: leave data\.channels out"
    ):
        build_network("resnet18", 5, (1, 32, 32))


def test_a_network_of_ones_own_must_take_the_channels(own_module):
    own_module(
        "def make(classes):\n    return nn.Sequential(nn.Conv2d(3, 4, 32), nn.Flatten(), nn.Linear(4, classes))\n"
    )
    with pytest.raises(ModelError, match="cannot take images of 32 x 32 pixels and 1 channel, 2 at a time"):
        build_network("own_networks:make", 4, (1, 32, 32))


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
        ("own_networks:", "", "cannot build"),
        (":make", "", "cannot build"),
        ("own_networks:make", "def make(classes):\n    raise RuntimeError('two\\nlines')\n", "two lines"),
        ("own_networks:make", "def make():\n    return nn.Linear(1, 1)\n", "argument"),
        ("own_networks:make", "def make(classes:\n", "SyntaxError"),
        ("own_networks:make", "def make(classes):\n    return 'a network'\n", "torch.nn.Module, not str"),
        ("own_networks:make", "make = 3\n", "not callable"),
        ("sys:exit", "", "SystemExit: 4"),
        ("own_networks:make", "raise SystemExit('leave')\n", "SystemExit: leave"),
    ],
)
def test_what_is_wrong_with_a_function_of_ones_own_is_said_in_one_line(own_module, name, source, reason):
    own_module(source)
    with pytest.raises(ModelError) as caught:
        build_network(name, 4, 32)
    assert name in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


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
