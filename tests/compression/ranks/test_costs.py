import pytest
import torch
from designs import macs_of
from geometry import seeded, smooth_images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.division.cache import partition_of
from hscc_search.compression.division.partition import Division
from hscc_search.compression.division.regions import pieces
from hscc_search.compression.form import LayerForm
from hscc_search.compression.layers import build, group_modules
from hscc_search.compression.ranks.choice import choose_ranks
from hscc_search.compression.ranks.menu import layer_menu
from hscc_search.compression.setting import Setting


def copied(module, images):
    """The values that the groups of a built layer copy for one image: those of all patches, and of what is joined."""
    count = 0
    for group, share in zip(group_modules(module), images.chunk(len(group_modules(module)), dim=1), strict=True):
        patches = group.cut(share)
        if len(patches) > 1:
            sizes = [nn.functional.pad(patch.x, patch.padding).numel() for patch in patches]
            count += (sum(sizes) + group(share).numel()) // len(images)
    return count


@given(
    regions=st.integers(1, 9),
    strategy=st.sampled_from(["grid", "bands", "random"]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
)
@settings(max_examples=10, deadline=None)
def test_a_layer_copies_as_many_values_as_are_counted(regions, strategy, kernel, stride, padding, dilation, groups):
    def network():
        layer = nn.Conv2d(8, 12, kernel, stride, padding, dilation, groups)
        pooled = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)]
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), layer, *pooled)

    calibration = calibrate(seeded(network), smooth_images(24))
    record = calibration.record("2")
    partition = partition_of(calibration, record, Division(strategy, regions, "none", 1, 0))
    menu = layer_menu(calibration, record, partition, 4, "flops")
    for variants in zip(*menu.variants, strict=True):
        ranks = tuple(tuple((1,) for _ in variant.menus) for variant in variants)
        inputs = tuple(variant.input_rank for variant in variants)
        form = LayerForm((record.lattice.height, record.lattice.width), ranks, pieces(partition.labels), inputs)
        module = build(calibration.network.get_submodule("2"), form)
        assert sum(variant.copies for variant in variants) == copied(module, torch.zeros(2, 8, 14, 14))


def divided(designs):
    return {name for name, design in designs.items() if len(design.form.pieces) > 1}


@pytest.mark.parametrize(("strategy", "regions"), [("grid", 4), ("kmeans", 3)])
def test_fewer_layers_are_divided_the_dearer_a_copy_is(digits_cnn, strategy, regions):
    found = []
    for price in (0, 0.1, 1, 1e6):
        setting = Setting(regions, budget=2, region_strategy=strategy, region_gain=1e-6, copy_price=price)
        designs = choose_ranks(digits_cnn, setting)
        assert macs_of(digits_cnn, designs) * 2 <= digits_cnn.macs
        found.append(divided(designs))
    assert found[0] >= found[1] >= found[2] >= found[3]
    assert found[0] and not found[3]
    whole = choose_ranks(digits_cnn, Setting(budget=2))
    assert [design.form for design in designs.values()] == [design.form for design in whole.values()]


def test_a_price_of_copies_changes_nothing_where_no_map_is_divided(calibration):
    free, priced = (choose_ranks(calibration, Setting(budget=2, copy_price=price)) for price in (0, 1000))
    assert [design.form for design in free.values()] == [design.form for design in priced.values()]
