import itertools

import pytest
import torch
from geometry import SIDE
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.division import clusters as cluster_strategies
from hscc_search.compression.division import regions as region_strategies
from hscc_search.compression.fitting import vectors
from hscc_search.compression.fitting.layer import fit_layer
from hscc_search.compression.ranks.choice import choose_ranks
from hscc_search.compression.setting import Setting

STRATEGIES = ("grid", "bands")


def fit_only_layer(layer, images, setting, x=None):
    """Fit a layer that is the whole network; the compressed layer and its design."""
    calibration = calibrate(nn.Sequential(layer), images)
    design = choose_ranks(calibration, setting)["0"]
    with torch.no_grad():
        module, _ = fit_layer(calibration, "0", design, 1, images if x is None else x)
        return module, design


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("regions", "clusters"), [(1, 1), (1, 3), (4, 1), (6, 3)])
def test_factors_of_a_layer_of_low_rank_are_exact_on_other_images_too(strategy, regions, clusters):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 24, 3, padding=1)
    with torch.no_grad():
        layer.weight.copy_((torch.randn(24, 2) @ torch.randn(2, 27)).view_as(layer.weight))
    images = torch.randn(32, 3, SIDE, SIDE)
    module, design = fit_only_layer(layer, images, Setting(regions, clusters, 1 - 1e-5, region_strategy=strategy))
    assert None not in design.form.ranks[0]
    assert all(rank <= 2 for ranks in design.form.ranks[0] for rank in ranks)
    assert design.macs < SIDE * SIDE * 24 * 27
    others = torch.randn(8, 3, SIDE, SIDE)
    torch.testing.assert_close(module(others), layer(others), rtol=1e-3, atol=1e-3)


def test_each_group_of_low_rank_is_factored_exactly():
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 24, 3, padding=1, groups=2)
    with torch.no_grad():
        for group in range(2):
            low = torch.randn(12, group + 1) @ torch.randn(group + 1, 36)
            layer.weight[12 * group : 12 * group + 12] = low.view(12, 4, 3, 3)
    module, design = fit_only_layer(layer, torch.randn(32, 8, 8, 8), Setting(energy=1 - 1e-5))
    assert design.form.ranks == (((1,),), ((2,),))
    others = torch.randn(8, 8, 8, 8)
    torch.testing.assert_close(module(others), layer(others), rtol=1e-3, atol=1e-3)


def test_a_linear_layer_of_low_rank_is_factored_exactly():
    torch.manual_seed(0)
    layer = nn.Linear(40, 30)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(30, 3) @ torch.randn(3, 40))
    module, design = fit_only_layer(layer, torch.randn(200, 40), Setting(4, 3, 1 - 1e-5))
    assert design.form.ranks == (((3,),),)
    others = torch.randn(20, 40)
    torch.testing.assert_close(module(others), layer(others), rtol=1e-3, atol=1e-3)


def test_a_linear_layer_with_more_outputs_than_images_is_factored_exactly():
    torch.manual_seed(0)
    layer = nn.Linear(40, 90)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(90, 6) @ torch.randn(6, 40))
    images = torch.randn(50, 40)
    damaged = 0.5 * images + 1
    module, design = fit_only_layer(layer, images, Setting(4, 3, 1 - 1e-6), damaged)
    assert sum(design.form.ranks[0][0]) >= 6
    expected = layer(images)
    assert (module(damaged) - expected).norm() < 0.1 * expected.norm()
    assert (layer(damaged) - expected).norm() > 0.3 * expected.norm()
    others = torch.randn(20, 40)
    assert (module(0.5 * others + 1) - layer(others)).norm() < 0.1 * layer(others).norm()


def test_few_extra_axes_are_enough_for_a_low_rank(monkeypatch):
    torch.manual_seed(0)
    layer = nn.Linear(200, 300)
    images = torch.randn(150, 200) * torch.logspace(0, -2, 200)
    damaged = images + 0.02 * torch.randn(150, 200)
    errors = {}
    for extra in (10, 300):
        monkeypatch.setattr(vectors, "EXTRA_AXES", extra)
        module, _ = fit_only_layer(layer, images, Setting(1, 1, 0.9), damaged)
        errors[extra] = (module(damaged) - layer(images)).norm()
    assert errors[10] < 1.05 * errors[300]


def test_a_linear_layer_on_maps_is_factored_exactly():
    torch.manual_seed(0)
    layer = nn.Linear(40, 30)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(30, 3) @ torch.randn(3, 40))
    module, design = fit_only_layer(layer, torch.randn(20, 6, 5, 40), Setting(4, 3, 1 - 1e-5))
    assert design.form.ranks == (((3,),),)
    assert design.macs == 30 * 3 * (40 + 30)
    others = torch.randn(3, 6, 5, 40)
    torch.testing.assert_close(module(others), layer(others), rtol=1e-3, atol=1e-3)


def test_scales_and_shifts_of_the_input_are_undone():
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 12, 1)
    images = torch.randn(64, 3, 8, 8)
    # Scales and shifts by the layers before are undone without a loss.
    damaged = 0.5 * images + 1
    module, _ = fit_only_layer(layer, images, Setting(4, 1, 1 - 1e-5), damaged)
    expected = layer(images)
    assert (module(damaged) - expected).norm() < 0.01 * expected.norm()
    assert (layer(damaged) - expected).norm() > 0.3 * expected.norm()


@given(
    regions=st.integers(1, 5),
    clusters=st.integers(1, 3),
    strategy=st.sampled_from(sorted(region_strategies.STRATEGIES)),
    cluster_strategy=st.sampled_from(sorted(cluster_strategies.STRATEGIES)),
    groups=st.integers(1, 2),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_the_error_of_a_layer_never_rises_with_its_energy(regions, clusters, strategy, cluster_strategy, groups, seed):
    torch.manual_seed(seed)
    layer = nn.Conv2d(4, 12, 3, padding=1, groups=groups)
    images = torch.randn(8, 4, 6, 6) @ torch.randn(6, 6)
    calibration = calibrate(nn.Sequential(layer), images)
    errors = []
    with torch.no_grad():
        dense = layer(images)
        for energy in (0.2, 0.5, 0.8, 0.9, 0.99, 1.0):
            setting = Setting(regions, clusters, energy, region_strategy=strategy, cluster_strategy=cluster_strategy)
            design = choose_ranks(calibration, setting)["0"]
            module, _ = fit_layer(calibration, "0", design, 1, images)
            missed = (module(images) - dense).flatten(2)
            # Weighted by their effects on the loss: energy is a share of that variance.
            blocks = [block for regions_of_group in design.partition.blocks for block in regions_of_group]
            errors.append(
                sum(
                    float((missed[:, block.channels, block.positions] * block.effects[:, None]).square().sum())
                    for block in blocks
                )
            )
    # The ridge that shrinks a recombination towards the clusters' own axes may cost a part in a thousand.
    assert all(later <= earlier + 2e-3 * errors[0] for earlier, later in itertools.pairwise(errors))
    assert errors[-1] <= 1e-6 * errors[0]


def test_regions_have_filters_of_their_own():
    # The left half varies along one axis of the channels, the right half along another.
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 8, 1)
    images = torch.randn(64, 2, 8, 8)
    images[:, 0, :, 4:] = 0
    images[:, 1, :, :4] = 0
    halves, design = fit_only_layer(layer, images, Setting(2, 1, 0.999999))
    assert design.form.ranks == (((1,), (1,)),)
    with torch.no_grad():
        torch.testing.assert_close(halves(images), layer(images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("count", [30, 90], ids=["few images", "many images"])
def test_a_linear_layer_that_stays_dense_makes_up_for_a_shift(count):
    torch.manual_seed(0)
    layer = nn.Linear(40, 50)
    images = torch.randn(count, 40)
    calibration = calibrate(nn.Sequential(layer), images)
    design = choose_ranks(calibration, Setting(energy=1.0))["0"]
    assert design.form.ranks == ((None,),)
    with torch.no_grad():
        module, answers = fit_layer(calibration, "0", design, 1, images + 1)
        expected = layer(images)
        torch.testing.assert_close(answers, module(images + 1), rtol=1e-4, atol=1e-4)
        assert (answers - expected).norm() < 0.01 * expected.norm()
        assert (layer(images + 1) - expected).norm() > 0.3 * expected.norm()


@pytest.mark.parametrize("regions", [1, 4])
@pytest.mark.parametrize("energy", [0.9, 1.0])
def test_the_answers_are_those_of_the_module(regions, energy):
    torch.manual_seed(0)
    images = torch.randn(20, 8, 6, 6)
    calibration = calibrate(nn.Sequential(nn.Conv2d(8, 24, 3, padding=1, groups=2)), images)
    with torch.no_grad():
        design = choose_ranks(calibration, Setting(regions, energy=energy))["0"]
        module, answers = fit_layer(calibration, "0", design, 1, images)
        torch.testing.assert_close(answers, module(images), rtol=1e-4, atol=1e-4)
