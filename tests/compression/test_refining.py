import copy

import hostile
import pytest
import torch
from geometry import SIDE, OnMaps, Residual, seeded, smooth_images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.compress import compress
from hscc_search.compression.refining import (
    _cycle_lengths,
    _outputs,
    compared_layers,
    divergence,
    lessons,
    refine,
)
from hscc_search.compression.setting import Refinement, Setting
from hscc_search.dense.networks import DigitsCNN
from hscc_search.errors import CompressionError

IMAGES = smooth_images(256)
KEPT = torch.arange(0, 256, 8)


@pytest.fixture(scope="module", params=["Residual", "OnMaps", "Maps"])
def calibrated(request):
    """The calibration of a dense network, and its answers."""
    built = {"Residual": Residual, "OnMaps": OnMaps, "Maps": maps}
    calibration = calibrate(sharp(seeded(built[request.param])), IMAGES)
    return calibration, taught_by(calibration)


def taught_by(calibration, kept=KEPT):
    return lessons(calibration.network, IMAGES.__getitem__, len(IMAGES), kept, compared_layers(calibration))


def maps():
    """A network that scores each position."""
    return nn.Sequential(
        *(nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 3, 1))
    )


@torch.no_grad()
def sharp(network):
    """Make a random network as sure of its classes as a trained one: scores that vary by 2."""
    last = [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))][-1]
    last.weight *= 2 / network.eval()(IMAGES).std(dim=0).mean()
    return network


def compressed(calibration, **setting):
    return compress(calibration, Setting(budget=4.0, **setting)).network


@pytest.mark.parametrize("setting", [{}, {"regions": 4, "region_strategy": "grid", "region_gain": 0}])
def test_a_network_is_brought_nearer_to_the_dense_one(calibrated, setting):
    calibration, taught = calibrated
    network = compressed(calibration, **setting)
    trained = [parameter.requires_grad for parameter in network.parameters()]
    before = divergence(network, taught)
    course = refine(network, taught, Refinement(epochs=16))
    assert course.before == pytest.approx(before)
    assert course.after == pytest.approx(divergence(network, taught), rel=1e-5)
    assert course.after < course.before
    assert 1 <= course.best_epoch <= 16
    assert not network.training
    assert [parameter.requires_grad for parameter in network.parameters()] == trained


@given(rate=st.sampled_from([1e-6, 1e-3, 0.03, 1.0]), epochs=st.integers(1, 3), seed=st.integers(0, 100))
@settings(max_examples=12, deadline=None)
def test_a_network_never_ends_farther_from_the_dense_one(thin, rate, epochs, seed):
    network, taught = copy.deepcopy(thin[0]), thin[1]
    before = copy.deepcopy(network.state_dict())
    course = refine(network, taught, Refinement(epochs, rate, seed=seed))
    assert divergence(network, taught) == pytest.approx(course.after, rel=1e-5)
    assert course.after <= course.before
    unchanged = all(torch.equal(values, network.state_dict()[name]) for name, values in before.items())
    assert unchanged == (course.best_epoch == 0)
    assert (course.after == course.before) == (course.best_epoch == 0)


@pytest.fixture(scope="module")
def thin():
    """A compressed network, and the answers of the dense one."""
    calibration = calibrate(sharp(seeded(lambda: DigitsCNN(5, SIDE))), IMAGES)
    return compressed(calibration), taught_by(calibration)


def test_the_same_request_gives_the_same_network(thin):
    twice = [copy.deepcopy(thin[0]) for _ in range(2)]
    for network in twice:
        torch.rand(3)  # other randomness of the caller
        refine(network, thin[1], Refinement(2))
    first, second = (network.state_dict() for network in twice)
    assert all(torch.equal(values, second[name]) for name, values in first.items())


def test_lessons_set_images_aside_and_learn_from_the_others(calibrated):
    calibration, taught = calibrated
    assert torch.equal(torch.cat([taught.learnt, taught.kept]).sort().values, torch.arange(len(IMAGES)))
    with torch.no_grad():
        torch.testing.assert_close(taught.answers, calibration.network(IMAGES), rtol=1e-4, atol=1e-5)
    assert taught.inner.keys() == {record.name for record in calibration.records}


def test_compressing_may_refine_at_once():
    calibration = calibrate(sharp(seeded(maps)), IMAGES)
    weights = copy.deepcopy(calibration.network.state_dict())
    plain, refined = (compress(calibration, Setting(budget=4.0), refine=how) for how in (None, Refinement(16)))
    assert (refined.form, refined.plan, refined.macs) == (plain.form, plain.plan, plain.macs)
    taught = taught_by(calibration, torch.arange(1, len(IMAGES), 10))
    assert divergence(refined.network, taught) < divergence(plain.network, taught)
    assert all(torch.equal(values, weights[name]) for name, values in calibration.network.state_dict().items())


def test_the_dense_network_is_at_no_distance_from_itself_in_any_layer(calibrated):
    calibration, taught = calibrated
    with torch.no_grad(), _outputs(calibration.network, taught.inner) as outputs:
        calibration.network(IMAGES[taught.kept])
    for name, inner in taught.inner.items():
        assert inner.distance(outputs[name], taught.kept) < 1e-4  # responses are kept in 16 bits
        assert inner.distance(outputs[name] + inner.variance**0.5, taught.kept) > 0.1
    assert not any(module._forward_hooks for module in calibration.network.modules())


def test_layers_behind_a_clipping_activation_are_compared_behind_it(thin):
    _, taught = thin
    for inner in taught.inner.values():
        assert inner.bounds is not None
        assert inner.bounds[0] == inner.responses.min() == 0


@pytest.mark.parametrize(
    "block",
    [
        *("WithoutGradient", "Inference", "Checkpointed", "InPlace", "ChangesInput", "Windows", "Tokens"),
        *("FiveDimensions", "Transposed", "TwoNames", "BoundMethod", "AllPositionsAsImages"),
    ],
)
def test_networks_as_people_write_them_are_refined_or_refused_in_one_line(block):
    images = smooth_images(64, side=16)
    calibration = calibrate(hostile.Hostile([getattr(hostile, block)]).eval(), images)
    network = compress(calibration, Setting(budget=1.2)).network
    taught = lessons(calibration.network, images.__getitem__, 64, KEPT[:8], compared_layers(calibration))
    before = copy.deepcopy(network.state_dict())
    try:
        course = refine(network, taught, Refinement(2, 0.001))
    except CompressionError as error:
        assert block in ("WithoutGradient", "InPlace")
        assert "\n" not in str(error)
    else:
        assert course.after <= course.before
        assert course.best_epoch or all(
            torch.equal(before[name], value) for name, value in network.state_dict().items()
        )
    assert not any(module._forward_hooks for module in network.modules())


@given(epochs=st.integers(1, 300))
def test_cycles_get_longer_and_take_all_epochs(epochs):
    lengths = _cycle_lengths(epochs)
    assert sum(lengths) == epochs
    assert all(length >= 1 for length in lengths)
    assert lengths[:-1] == sorted(lengths[:-1])


class Looked(nn.Module):
    """A network with a parameter of integers, as a table of positions may be."""

    def __init__(self, classes=3):
        super().__init__()
        self.order = nn.Parameter(torch.arange(24).flip(0), requires_grad=False)
        self.first, self.last = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 24, 3, padding=1)
        self.head = nn.Linear(24, classes)

    def forward(self, x):
        return self.head(self.last(self.first(x).relu()[:, self.order]).relu().mean((2, 3)))


def test_parameters_of_integers_stay_as_they_are_and_gradients_may_be_off_outside():
    calibration = calibrate(sharp(seeded(Looked)), IMAGES)
    with torch.no_grad():
        network = compress(calibration, Setting(budget=3.0), Refinement(epochs=16)).network
    assert torch.equal(network.order, torch.arange(24).flip(0))
    plain = compress(calibration, Setting(budget=3.0)).network
    assert any(not torch.equal(*pair) for pair in zip(network.parameters(), plain.parameters(), strict=True))


def test_a_single_score_is_refused():
    calibration = calibrate(seeded(lambda: Looked(1)), IMAGES)
    with pytest.raises(CompressionError, match="answers with a single score"):
        compress(calibration, Setting(budget=2.0), Refinement(epochs=1))


@pytest.mark.parametrize(
    "values",
    [
        *({"epochs": value} for value in (0, -3, 2.5)),
        *({"images": value} for value in (0, 15, -5)),
        *({"learning_rate": value} for value in (0, -1, 1e9, float("nan"))),
    ],
    ids=str,
)
def test_a_request_is_checked_when_it_is_made(values):
    with pytest.raises(CompressionError, match=next(iter(values))):
        Refinement(**values)
