import json
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
from hscc_search.compression.calibration.plain_layers import apply_plain, make_plain
from hscc_search.compression.compress import compress
from hscc_search.compression.form import NetworkForm
from hscc_search.compression.rebuild import rebuild
from hscc_search.compression.setting import Setting
from hscc_search.errors import CompressionError

IMAGES = smooth_images(48, side=16)
COMPUTING = ("WithStandardised", "pruned", "with_weight_norm", "with_spectral_norm", "parametrised")


class OwnConvolution(nn.Module):
    """No subclass of Conv2d: a weight of its own, times a gain, given to torch's function."""

    def __init__(self, width, **kwargs):
        super().__init__()
        self.kernel, self.gain = nn.Parameter(torch.randn(width, width, 3, 3) / 9), nn.Parameter(torch.tensor(1.5))
        self.padding = 1

    def forward(self, x):
        return functional.conv2d(x, self.kernel * self.gain, padding=self.padding)


class Clamped(OwnConvolution):
    """Changes its answer in place behind the convolution, which hardly shows."""

    def forward(self, x):
        return super().forward(x).clamp_(-50, 50)


class ChangesItsInput(OwnConvolution):
    def forward(self, x):
        return super().forward(x.mul_(0.5))


class Added(OwnConvolution):
    def forward(self, x):
        return super().forward(x) + x


class Routed(OwnConvolution):
    """Computes its weight from the image."""

    def forward(self, x):
        return functional.conv2d(x, self.kernel * x.mean().sigmoid(), padding=1)


class TwoCalls(OwnConvolution):
    def forward(self, x):
        return super().forward(super().forward(x))


def network_of(block, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch says of old ways to normalise weights
        torch.manual_seed(0)
        return hostile.Hostile([block], **kwargs).eval()


def names_of(network):
    _, plain = make_plain(network, IMAGES[:1])
    return [layer.layer for layer in plain]


@pytest.mark.parametrize("name", COMPUTING)
def test_a_layer_that_computes_its_weight_becomes_one_that_holds_it(name):
    network = network_of(getattr(hostile, name))
    plain, (form,) = make_plain(network, IMAGES[:1])
    layer = plain.get_submodule("blocks.0.layer")
    assert type(layer) is nn.Conv2d
    assert (form.layer, form.weight) == ("blocks.0.layer", tuple(layer.weight.shape))
    assert [*layer.state_dict()] == ["weight", "bias"]
    with torch.no_grad():
        assert torch.equal(plain(IMAGES.clone()), network(IMAGES.clone()))


@given(
    stride=st.sampled_from([1, 2, (1, 2)]),
    padding=st.sampled_from([0, 1, (2, 0)]),
    groups=st.sampled_from([1, 2, 24]),
    dilation=st.sampled_from([1, 2]),
    bias=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_whatever_the_convolution_is(stride, padding, groups, dilation, bias):
    network = network_of(
        hostile.parametrised, stride=stride, padding=padding, groups=groups, dilation=dilation, bias=bias
    )
    plain, (form,) = make_plain(network, IMAGES[:1])
    with torch.no_grad():
        assert torch.equal(plain(IMAGES.clone()), network(IMAGES.clone()))
    again = apply_plain(network, (form,))
    again.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert torch.equal(again(IMAGES.clone()), network(IMAGES.clone()))


def test_a_class_of_ones_own_counts_and_goes_the_whole_way():
    network = network_of(OwnConvolution)
    assert names_of(network) == ["blocks.0"]
    calibration = calibrate(network, IMAGES)
    assert "blocks.0" in [record.name for record in calibration.records]
    compressed = compress(calibration, Setting(budget=2))
    form = NetworkForm.from_stored(json.loads(json.dumps(compressed.form.stored())))
    assert form == compressed.form
    rebuilt = rebuild(network_of(OwnConvolution), form)
    rebuilt.load_state_dict(compressed.network.state_dict())
    with torch.no_grad():
        assert torch.equal(rebuilt(IMAGES), compressed.network(IMAGES))


@pytest.mark.parametrize("block", [Clamped, ChangesItsInput, Added, Routed, TwoCalls, hostile.Conditional])
def test_what_does_more_than_one_convolution_stays_as_it_is(block):
    network = network_of(block)
    assert names_of(network) == []
    assert type(make_plain(network, IMAGES[:1])[0].get_submodule("blocks.0")) is block


def test_a_hook_of_the_users_own_keeps_a_layer_as_it_is():
    network = network_of(hostile.WithStandardised)
    network.blocks[0].layer.register_forward_hook(lambda module, inputs, output: None)
    assert names_of(network) == []


def test_another_reference_to_the_layer_is_replaced_too():
    class Listed(hostile.WithStandardised):
        def __init__(self, width, **kwargs):
            super().__init__(width, **kwargs)
            self.steps = [self.layer, torch.relu]

        def forward(self, x):
            for step in self.steps:
                x = step(x)
            return x

    plain, _ = make_plain(network_of(Listed), IMAGES[:1])
    assert plain.blocks[0].steps[0] is plain.blocks[0].layer


def test_a_class_that_the_forward_asks_for_keeps_a_layer_as_it_is():
    class Asking(hostile.WithStandardised):
        def forward(self, x):
            return self.layer(x) if isinstance(self.layer, hostile.Standardised) else x

    assert names_of(network_of(Asking)) == []


@pytest.mark.parametrize("name", ["pruned", "WithStandardised"])
def test_a_calibration_from_the_cache_has_the_same_weights(name, monkeypatch, tmp_path):
    monkeypatch.setenv("HSCC_CACHE", str(tmp_path))
    network = network_of(getattr(hostile, name))
    made, read = (calibrate(network, IMAGES, keep=True) for _ in range(2))
    assert made.plain == read.plain
    assert made.plain
    for one, other in zip(made.network.parameters(), read.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_network_without_the_layer_is_refused():
    _, plain = make_plain(network_of(hostile.pruned), IMAGES[:1])
    with pytest.raises(CompressionError, match=r"no layer blocks\.0\.layer"):
        apply_plain(network_of(hostile.Conditional), plain)
