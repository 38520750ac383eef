import json

import pytest
from geometry import Residual, seeded, smooth_images
from torch import nn

from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.compress import compress
from hscc_search.compression.plan import LayerPlan
from hscc_search.compression.setting import Setting


@pytest.fixture(scope="module")
def calibration():
    return calibrate(seeded(Residual), smooth_images(32))


def test_the_plan_names_every_layer_with_what_became_of_it(calibration):
    plan = {layer.name: layer for layer in compress(calibration, Setting(4, 2, 0.8)).plan}
    assert list(plan) == ["stem.0", "reduce", "grouped", "project", "mix", "head"]
    assert plan["head"].left_dense == "tiny"
    assert plan["head"].macs == plan["head"].macs_dense
    assert plan["head"].ranks == plan["head"].input_ranks == ()
    assert plan["mix"].left_dense is None
    assert plan["mix"].regions == plan["grouped"].regions == 4
    assert [len(regions) for regions in plan["mix"].ranks] == [4]
    assert [len(regions) for regions in plan["grouped"].ranks] == [4, 4]  # of two groups
    ranks_of_mix = [ranks for ranks in plan["mix"].ranks[0] if ranks is not None]
    assert {len(ranks) for ranks in ranks_of_mix} <= {1, 2}  # clusters
    assert plan["mix"].input_ranks == (None,)


def test_ranks_of_the_plan_are_those_of_the_form(calibration):
    for setting in (Setting(4, 2, 0.8), Setting(2, 1, budget=2.5, region_gain=0), Setting(energy=1.0)):
        compressed = compress(calibration, setting)
        plan = {layer.name: layer for layer in compressed.plan if layer.left_dense is None}
        assert plan.keys() == compressed.form.layers.keys()
        for name, form in compressed.form.layers.items():
            assert (plan[name].ranks, plan[name].input_ranks) == (form.ranks, form.input_ranks)


def test_a_tiny_layer_is_left_dense():
    network = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 64, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 1))
    )
    plan = compress(calibrate(network, smooth_images(16)), Setting(energy=0.5)).plan
    assert {layer.name: layer.left_dense for layer in plan} == {"0": None, "3": "tiny"}


def test_a_plan_comes_back_from_json_as_it_was(calibration):
    for setting in (Setting(4, 2, 0.8), Setting(2, 1, budget=2.5, region_gain=0), Setting(energy=1.0)):
        plan = compress(calibration, setting).plan
        assert tuple(LayerPlan.from_stored(json.loads(json.dumps(layer.stored()))) for layer in plan) == plan


def test_a_plan_of_format_4_is_read():
    """One list for the regions of all groups, their number in a group, and no ranks where a region stays dense."""
    stored = {"name": "conv", "macs_dense": 100, "macs": 50, "regions": 2, "ranks": [[3, 1], [], [2, 2], [4]]}
    plan = LayerPlan.from_stored({**stored, "input_ranks": [None, 8], "left_dense": None})
    assert plan.ranks == (((3, 1), None), ((2, 2), (4,)))
    assert plan.regions == 2
    assert plan.summary == "total rank per region: 4, dense, 4, 4; of all, 8 inputs"
    left = {"name": "head", "macs_dense": 9, "macs": 9, "regions": 0, "ranks": [], "input_ranks": []}
    assert LayerPlan.from_stored({**left, "left_dense": "tiny"}) == LayerPlan("head", 9, 9, left_dense="tiny")


def test_a_plan_tells_ranks_or_the_reason(calibration):
    plan = {layer.name: layer for layer in compress(calibration, Setting(2, 2, 0.8)).plan}
    assert plan["head"].summary == "left dense: tiny"
    totals = ["dense" if ranks is None else str(sum(ranks)) for ranks in plan["mix"].ranks[0]]
    assert plan["mix"].summary == f"total rank per region: {', '.join(totals)}"
