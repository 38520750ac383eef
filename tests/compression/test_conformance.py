"""The compressor on the architectures of the zoo: random weights, batch norms as after training."""

import gc
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from geometry import smooth_images
from settling import NORMS, settle
from torch import nn

from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.calibration.examination import TINY_SHARE
from hscc_search.compression.compress import compress
from hscc_search.compression.rebuild import rebuild
from hscc_search.compression.setting import Setting
from hscc_search.dense.networks import build_network
from hscc_search.errors import CompressionError
from hscc_search.evaluation.counters import measure_cost

CLASSES = 5
BUDGET = 1.5


@dataclass(frozen=True)
class Zoo:
    """A network and what is to become of it.

    Attributes:
        name: as a study names it.
        image_size: of its images, in pixels.
        norms: number of its batch norms.
        clusters: the cluster strategy; k-means over the channels of many layers takes most of the time.
        kept: a pattern of the names of batch norms that follow no convolution, None if there are none.
        depthwise: number of its depthwise convolutions.
        others: number of its modules that multiply and add in their own forward pass.
    """

    name: str
    image_size: int
    norms: int = 0
    clusters: str = "contiguous"
    kept: str | None = None
    depthwise: int = 0
    others: int = 0


ZOO = [
    Zoo("alexnet", 64, clusters="coactivation"),
    Zoo("networks:small_resnet18", 64, norms=21),
    Zoo("networks:small_resnet50", 32, norms=20),
    # Its batch norms come before the convolutions: those after a concatenation stay.
    Zoo("networks:small_densenet121", 32, norms=23, kept=r"norm1|norm5|transition\d\.norm"),
    Zoo("mobilenet_v2", 64, norms=52, depthwise=17),
    Zoo("efficientnet_b0", 64, norms=49, depthwise=16),
    Zoo("networks:small_convnext", 32, depthwise=5),
    Zoo("ghostnetv2_100", 64, norms=122, depthwise=69),
    Zoo("networks:small_vovnet39a", 32, norms=33),
    # Its identity branches are batch norms without a convolution.
    Zoo("networks:small_repvgg_a0", 32, norms=19, kept="identity", clusters="coactivation"),
    # Its activations call a depthwise convolution as a function.
    Zoo("networks:vanillanet_5", 64, norms=13, kept=r"\.norm$", others=4),
    Zoo("networks:in_the_style_of_lsnet", 64, norms=42, kept=r"^\d+(\.norm)?$", depthwise=13),
    Zoo("networks:small_vgg16", 32),
    Zoo("networks:small_inception_resnet_v2", 75, norms=42),
]


def built(zoo, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_network(zoo.name, CLASSES, zoo.image_size)


@torch.no_grad()
def distance(network, dense, images):
    """Error relative to how much the dense outputs vary."""
    expected = dense(images)
    return float((network(images) - expected).norm() / (expected - expected.mean(dim=0)).norm())


def is_factored(layer):
    """Tell whether a layer of a plan has a region that does not stay dense."""
    return any(ranks is not None for regions in layer.ranks for ranks in regions)


def norms_of(network):
    return [name for name, module in network.named_modules() if isinstance(module, NORMS)]


def check_plan(zoo, dense, calibration, compressed):
    """Every layer is in the plan once, compressed or with a reason that holds."""
    layers = {name: layer for name, layer in dense.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))}
    plan = {entry.name: entry for entry in compressed.plan}
    others = plan.keys() - layers.keys()
    assert layers.keys() <= plan.keys()
    assert len(compressed.plan) == len(plan)
    assert len(others) == zoo.others
    depthwise = {name for name, layer in layers.items() if 1 < getattr(layer, "groups", 1) == layer.in_channels}
    assert {name for name, entry in plan.items() if entry.left_dense == "depthwise"} == depthwise
    assert len(depthwise) == zoo.depthwise
    for name in plan.keys() - depthwise - others:
        tiny = plan[name].macs_dense < TINY_SHARE * calibration.macs
        assert plan[name].left_dense == ("tiny" if tiny else None)
    for entry in compressed.plan:
        assert (entry.left_dense is None) == (entry.name in compressed.form.layers)
        assert entry.macs <= entry.macs_dense
        assert (entry.regions > 0) == (entry.left_dense is None)
    assert sum(is_factored(entry) for entry in compressed.plan) >= 3  # the budget is not met by dense filters


def check_macs(zoo, dense, calibration, compressed):
    """The formula, fvcore and torch agree, and the budget is kept."""
    cost, cost_dense = measure_cost(compressed.network, zoo.image_size), measure_cost(dense, zoo.image_size)
    assert compressed.macs == cost.macs == cost.macs_torch
    assert calibration.macs == cost_dense.macs == cost_dense.macs_torch
    assert calibration.macs == sum(entry.macs_dense for entry in compressed.plan)
    assert compressed.macs * BUDGET <= calibration.macs
    assert cost.macs < cost_dense.macs


def check_folds(zoo, dense, calibration):
    """Batch norms that follow a convolution are folded, and no others."""
    kept = [name for name in norms_of(dense) if zoo.kept is not None and re.search(zoo.kept, name)]
    assert len(norms_of(dense)) == zoo.norms
    assert norms_of(calibration.network) == kept
    assert len(calibration.folds) == zoo.norms - len(kept)
    assert distance(calibration.network, dense, calibration.images) < 1e-3


def check_outputs(network, image_size):
    with torch.no_grad():
        output = network(smooth_images(3, seed=2, side=image_size))
    assert output.shape == (3, CLASSES)
    assert output.isfinite().all()


@dataclass(frozen=True)
class Case:
    zoo: Zoo
    dense: nn.Module
    calibration: Any
    divided: Any
    whole: Any


@pytest.fixture(scope="module", autouse=True)
def modules_collected_once():
    """Keep what was imported out of the collections after each case, which are to free its networks."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", params=ZOO, ids=lambda zoo: zoo.name)
def case(request):
    zoo = request.param
    dense = settle(built(zoo), zoo.image_size)
    calibration = calibrate(dense, smooth_images(12, side=zoo.image_size))
    yield Case(
        zoo,
        dense,
        calibration,
        compress(calibration, Setting(4, 2, budget=BUDGET, weight_price=0, cluster_strategy=zoo.clusters)),
        compress(calibration, Setting(energy=1.0)),
    )
    gc.collect()


def test_the_compressed_network_answers(case):
    check_outputs(case.divided.network, case.zoo.image_size)
    assert not case.divided.network.training


def test_every_layer_is_compressed_or_left_for_a_reason(case):
    check_plan(case.zoo, case.dense, case.calibration, case.divided)
    assert max(entry.regions for entry in case.divided.plan) == 4
    ranks_of_regions = [ranks for entry in case.divided.plan for regions in entry.ranks for ranks in regions if ranks]
    assert max(len(ranks) for ranks in ranks_of_regions) == 2


def test_layers_pass_for_those_of_the_dense_network(case):
    assert repr(case.divided.network)  # torch's exporter calls it
    for record in case.calibration.records:
        ours, dense = (network.get_submodule(record.name) for network in (case.divided.network, case.dense))
        assert isinstance(ours, type(dense))
        assert {name: getattr(ours, name) for name in dense.__constants__} == {
            name: getattr(dense, name) for name in dense.__constants__
        }


def test_the_formula_and_both_counters_agree(case):
    check_macs(case.zoo, case.dense, case.calibration, case.divided)


def test_batch_norms_after_a_convolution_are_folded(case):
    check_folds(case.zoo, case.dense, case.calibration)


def test_all_the_energy_answers_as_the_dense_network(case):
    assert sum(is_factored(entry) for entry in case.whole.plan) >= 1
    assert distance(case.whole.network, case.dense, case.calibration.images) < 1e-3


def test_form_and_weights_rebuild_it_from_a_fresh_network(case):
    again = rebuild(built(case.zoo, seed=1), case.divided.form)
    again.load_state_dict(case.divided.network.state_dict())
    images = smooth_images(3, seed=2, side=case.zoo.image_size)
    with torch.no_grad():
        assert torch.equal(again.eval()(images), case.divided.network(images))


def test_images_of_another_size_are_refused_by_regions_and_taken_by_whole_maps(case):
    other = case.zoo.image_size + 32
    with pytest.raises(CompressionError, match="regions belong to a map"):
        case.divided.network(smooth_images(2, side=other))
    check_outputs(case.whole.network, other)
