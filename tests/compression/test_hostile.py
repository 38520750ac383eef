"""Networks as people write them: exact at full rank, with the cost that torch counts, or refused in one line."""

import os
import warnings

import hostile
import pytest
import torch
from geometry import smooth_images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.calibration.examination import inspect
from hscc_search.compression.calibration.plain_layers import make_plain
from hscc_search.compression.compress import compress
from hscc_search.compression.setting import Setting
from hscc_search.errors import CompressionError, HsccError
from hscc_search.evaluation.counters import count_macs, measure_cost

# Networks that the generator makes; a thousand by HOSTILE=1000.
EXAMPLES = int(os.environ.get("HOSTILE", "50"))
IMAGES, OTHER_IMAGES = smooth_images(48, side=16), smooth_images(8, seed=1, side=16)

convolutions = st.fixed_dictionaries(
    {},
    optional={
        "kernel_size": st.sampled_from([1, 3, 5, (3, 1), 4]),
        "padding": st.sampled_from([0, 1, 2, "same", "valid", (1, 0)]),
        "dilation": st.sampled_from([1, 2]),
        "groups": st.sampled_from([1, 2, 12, 24]),
        "bias": st.booleans(),
        "padding_mode": st.sampled_from(["zeros", "reflect", "circular"]),
    },
)


def difference(compressed, dense):
    """Difference of answers relative to what they vary by; 0 where they hardly do, and rounding is all that is left."""
    with torch.no_grad():
        wanted, answers = dense(IMAGES.clone()), compressed(IMAGES.clone())
    spread, size = (wanted - wanted.mean(dim=0)).norm(), wanted.norm()
    return (answers - wanted).norm() / spread if spread > 0.02 * size else 0


def check(network, regions=1):
    """Check a network at full rank and at a budget; give the reasons of the layers that were left dense."""
    network.eval()
    calibration = calibrate(network, IMAGES.clone())
    assert calibration.inspection.error < 1e-4
    assert inspect(network, OTHER_IMAGES.clone()).error < 1e-4
    for setting in (
        Setting(energy=1.0),
        Setting(energy=1.0, regions=regions, region_strategy="grid"),
        Setting(budget=1.05, regions=regions, region_gain=0),
    ):
        compressed = compress(calibration, setting)
        assert compressed.macs == count_macs(compressed.network, IMAGES[:1])[""] > 0
        assert all(0 <= layer.macs <= layer.macs_dense for layer in compressed.plan)
        if setting.budget is None:
            # A variance of less than 1e-7, which single precision rounds away, is a response of 3e-4, in each layer.
            assert difference(compressed.network, network) < 1e-2
            assert not any(parameter.is_inference() for parameter in compressed.network.parameters())
        else:
            assert compressed.macs * setting.budget <= calibration.macs
    assert measure_cost(make_plain(network, IMAGES[:1])[0], 16).macs == calibration.macs
    return {layer.name: layer.left_dense for layer in calibration.inspection.layers if layer.left_dense}


# By the name of a block, a part of the reason for which its layer is left dense; None where it is compressed.
FATES = {
    "ByKeyword": None,
    "TypeTest": None,
    "ExactType": "answers differ",
    "ReadsDtype": None,
    "ReadsShape": None,
    "ComputesWithWeight": "not finite",
    "ComputesWithBias": "not finite",
    "PaddedByItself": "never called",
    "WithoutGradient": None,
    "Inference": None,
    "Checkpointed": None,
    "CheckpointedAgain": None,
    "TwoNames": None,
    "PlainList": None,
    "BoundMethod": None,
    "Twice": "called more than once",
    "ImageByImage": "called more than once",
    "NeverCalled": "never called",
    "InPlace": None,
    "ChangesInput": None,
    "Skip": None,
    "Normed": None,
    "Scaled": None,
    "WithStandardised": None,
    "ChannelsLast": None,
    "Tokens": None,
    "AllPositionsAsImages": None,
    "Windows": None,
    "PositionsFirst": "positions of all images",
    "FiveDimensions": None,
    "Transposed": None,
    "with_hook": "hooks of its own",
    "with_pre_hook": "hooks of its own",
    "with_outer_hook": None,
    "with_forward_replaced": "forward was replaced",
    "pruned": None,
    "with_weight_norm": None,
    "with_spectral_norm": None,
    "parametrised": None,
    "orthogonal": None,
    "clipping": "computes in its own way",
}


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch says of old ways to normalise weights, and of checkpoints
        yield


@pytest.mark.parametrize("name", FATES)
def test_a_layer_is_compressed_or_left_dense_for_a_reason(name):
    reason = check(hostile.Hostile([getattr(hostile, name)]), regions=4).get("blocks.0.layer")
    assert (reason is None) == (FATES[name] is None)
    assert FATES[name] is None or FATES[name] in reason


# The same networks each time, unless more are asked for.
@settings(max_examples=EXAMPLES, deadline=None, derandomize="HOSTILE" not in os.environ)
@given(
    blocks=st.lists(st.sampled_from(hostile.BLOCKS), min_size=1, max_size=4),
    convolution=convolutions,
    regions=st.sampled_from([1, 4]),
    seed=st.integers(0, 3),
)
def test_any_network_of_such_blocks_is_exact_or_refused_in_one_line(blocks, convolution, regions, seed):
    torch.manual_seed(seed)
    try:
        network = hostile.Hostile(blocks, **convolution)
        with torch.no_grad():
            network.eval()(IMAGES[:2].clone())
    except Exception:  # no network at all: sizes that do not fit
        return
    try:
        check(network, regions)
    except HsccError as error:
        assert "\n" not in str(error)
        assert len(str(error)) <= 2000


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name_costs_what_is_computed(padding):
    network = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=padding), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=padding), nn.ReLU()),
        *(nn.AdaptiveMaxPool2d(4), nn.Flatten(), nn.Linear(512, 10)),
    )
    check(network, regions=4)
    if padding == "same":
        assert calibrate(network.eval(), IMAGES).macs == 2_585_600


class Volumes(nn.Module):
    """Most of it in Conv3d layers, which stay dense."""

    def __init__(self):
        super().__init__()
        self.stem, self.volumes = nn.Conv2d(3, 24, 3, padding=1), nn.Conv3d(1, 24, 3, padding=1)
        self.head = nn.Linear(24, 4)

    def forward(self, images):
        return self.head(self.volumes(self.stem(images).relu()[:, None]).relu().mean((2, 3, 4)))


class Functional(nn.Module):
    """Most of it in a convolution that is no module."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 24, 3, padding=1), nn.Linear(96, 4)
        self.weight = nn.Parameter(torch.randn(96, 24, 5, 5) * 0.05)

    def forward(self, images):
        maps = functional.conv2d(self.stem(images).relu(), self.weight, padding=2).relu()
        return self.head(maps.mean((2, 3)))


@pytest.mark.parametrize("kind", [Volumes, Functional])
def test_what_is_no_layer_of_a_known_kind_counts_and_sets_the_budget_that_can_be_met(kind):
    calibration = calibrate(kind().eval(), IMAGES.clone())
    compressed = compress(calibration, Setting(energy=0.5))
    assert compressed.macs == count_macs(compressed.network, IMAGES[:1])[""] < calibration.macs
    with pytest.raises(
        CompressionError,
        match=r"budget of 2x fewer flops is out of reach: .* of the flops are in layers that can be compressed",
    ):
        compress(calibration, Setting(budget=2.0))
