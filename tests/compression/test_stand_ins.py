import copy
import pickle

import pytest
import torch
from geometry import smooth_images
from torch import nn
from torch.nn.utils import prune

from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.compress import compress
from hscc_search.compression.setting import Setting
from hscc_search.compression.stand_ins import computes_otherwise, replaced, replaced_in_order
from hscc_search.errors import CompressionError


class Own(nn.Conv2d):
    """A class that adds nothing but its making."""

    def __init__(self, width):
        super().__init__(width, width, 3, padding=1)
        self.scale = 0.5


@pytest.fixture(scope="module")
def compressed():
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        Own(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1024, 32),
    ]
    dense = nn.Sequential(*layers, nn.ReLU(), nn.Linear(32, 3)).eval()
    return compress(calibrate(dense, smooth_images(64, side=16)), Setting(regions=4, budget=3, region_gain=0)).network


def test_a_stand_in_is_of_the_layers_class_with_its_attributes(compressed):
    first, own, full = compressed[0], compressed[2], compressed[5]
    assert isinstance(first, nn.Conv2d)
    assert (first.in_channels, first.out_channels, first.stride, first.padding) == (3, 16, (2, 2), (1, 1))
    assert isinstance(own, Own)
    assert own.scale == 0.5
    assert isinstance(full, nn.Linear)
    assert full.in_features == 1024


def test_the_dense_weights_have_a_shape_and_no_values(compressed):
    own = compressed.to(torch.float64)[2]
    assert own.weight.shape == (16, 16, 3, 3)
    assert own.bias.shape == (16,)
    assert own.weight.dtype == own.bias.dtype == torch.float64
    assert own.weight.isnan().all()
    assert not {"2.weight", "2.bias"} & set(compressed.state_dict())
    compressed.to(torch.float32)


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))], ids=["copy", "pickle"]
)
def test_a_compressed_network_is_copied_and_pickled(compressed, again):
    images = smooth_images(2, seed=1, side=16)
    other = again(compressed)
    assert isinstance(other[2], Own)
    with torch.no_grad():
        assert torch.equal(other(images), compressed(images))
    with torch.no_grad():
        other[2].regions[0][0].weight.zero_()
        assert not torch.equal(other(images), compressed(images))


@pytest.mark.filterwarnings("ignore")  # tracing warns of the size that regions check
def test_a_compressed_network_is_traced_and_exported(compressed):
    images = smooth_images(2, seed=1, side=16)
    with torch.no_grad():
        traced = torch.jit.trace(compressed, images)
        exported = torch.export.export(compressed, (images,)).module()
        expected = compressed(images)
        assert torch.allclose(traced(images), expected, atol=1e-6)
        assert torch.allclose(exported(images), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(3, 3, 1), None),
        (Own(3), None),
        (type("Forward", (nn.Linear,), {"forward": lambda self, x: x})(3, 3), "computes in its own way"),
        (type("Call", (nn.Linear,), {"__call__": lambda self, x: x})(3, 3), "computes in its own way"),
        (type("Extra", (nn.Linear,), {"get_extra_state": lambda self: 1})(3, 3), "computes in its own way"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), "computes in its own way"),
        (prune.identity(nn.Linear(3, 3), "weight"), "hooks of its own"),
    ],
    ids=["plain", "own", "forward", "call", "extra state", "parametrised", "pruned"],
)
def test_only_a_layer_whose_computation_is_known_is_replaced(layer, reason):
    found = computes_otherwise(layer)
    assert found is None if reason is None else reason in found


def test_whatever_refers_to_a_layer_refers_to_its_stand_in():
    network = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    network.again, network.listed, network.call = network[0], [network[0]], network[0].forward
    other = replaced(network, {"0": nn.Sequential(nn.Linear(3, 1), nn.Linear(1, 3))})
    assert other[0] is other.again is other.listed[0] is other.call.__self__
    assert isinstance(other[0], nn.Linear)
    assert network[0] is network.again is network.listed[0]


def test_what_cannot_be_copied_is_refused_in_one_line():
    network = nn.Sequential(nn.Linear(3, 3))
    network.lines = (line for line in "ab")
    with pytest.raises(CompressionError, match="cannot be copied: TypeError"):
        replaced(network, {})


@pytest.mark.parametrize("calls", [0, 2])
def test_a_layer_that_is_not_called_once_is_refused(calls):
    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            for _ in range(calls):
                x = self.layer(x)
            return x

    with pytest.raises(CompressionError, match="layer layer is not called"):
        replaced_in_order(Called(), {"layer": lambda x: (nn.Linear(3, 3), x)}, torch.zeros(2, 3))
