import json
from dataclasses import asdict

import numpy as np
import pytest

from hscc_search.compression.setting import Refinement, Setting, check_share
from hscc_search.errors import CompressionError


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"energy": 0.5, "budget": 2},
        {"energy": 0.5, "channel_share": 0.5},
        {"energy": 0.0},
        {"energy": 1.5},
        {"channel_share": 0},
        {"channel_share": 1.01},
        {"budget": 1},
        {"budget": -2},
        {"budget": float("nan")},
        {"budget": 2, "budget_of": "bytes"},
        *({"energy": 0.5, "rank_multiple": value} for value in (0, True, 1.5, "8", None)),
        *({"energy": value} for value in ("a", True)),
        *({"budget": value} for value in ("a", [2], 2j)),
        *({"budget": 2, name: "a"} for name in ("region_gain", "weight_price", "copy_price", "regions", "clusters")),
        *({"energy": 0.5, "seed": value} for value in (-1, 0.5, "a", True)),
        {"budget": 2, "region_gain": -0.1},
        {"budget": 2, "region_gain": 1.1},
        {"budget": 2, "region_gain": float("nan")},
        {"energy": 0.5, "regions": 0},
        {"energy": 0.5, "clusters": 0},
        {"energy": 0.5, "region_strategy": "rings"},
        {"energy": 0.5, "cluster_strategy": "rings"},
        {"energy": 0.5, "by_layer": {"conv": {"energy": 1.5}}},
        {"energy": 0.5, "by_layer": {"conv": {"regions": 0}}},
        {"budget": 2, "by_layer": {"conv": {"energy": 0.5}}},
        {"by_layer": {"conv": {"regions": 2}}},
        {"by_layer": {"conv": {"energy": 0.5}, "head": {"regions": 2}}},
    ],
    ids=str,
)
def test_a_setting_out_of_range_is_an_error(values):
    with pytest.raises(CompressionError) as refused:
        Setting(**values)
    assert "\n" not in str(refused.value)


def test_a_setting_takes_numbers_of_numpy():
    Setting(np.int64(4), np.uint8(2), budget=np.float32(2), rank_multiple=np.int32(8), seed=np.int64(3))
    Setting(energy=np.float64(0.5))


def test_a_layer_takes_its_own_values_and_the_common_ones_otherwise():
    setting = Setting(regions=4, energy=0.9, seed=3, by_layer={"conv": {"energy": 0.5, "clusters": 2}})
    assert setting.of("conv") == Setting(regions=4, clusters=2, energy=0.5, seed=3)
    assert setting.of("head") == Setting(regions=4, energy=0.9, seed=3)


def test_energies_of_layers_need_none_in_common_and_a_layer_without_is_an_error():
    setting = Setting(regions=4, by_layer={"conv": {"energy": 0.5}, "head": {"energy": 0.8}})
    assert setting.energy is None
    assert setting.of("conv") == Setting(regions=4, energy=0.5)
    with pytest.raises(CompressionError, match="no energy for layer other"):
        setting.of("other")


def test_shares_are_named_in_errors():
    check_share("energy", 1)
    with pytest.raises(CompressionError, match="energy must be above 0"):
        check_share("energy", 0)


@pytest.mark.parametrize(
    "values",
    [
        *({"epochs": value} for value in (2.5, True, "8", None, np.float64(8), np.True_)),
        *({"images": value} for value in (np.int64(15), "many", [64])),
        *({"seed": value} for value in (-1, 0.5, False, "a", None, 2**32)),
        *({"learning_rate": value} for value in ("a", True, None, 1j, np.float32(2))),
    ],
    ids=str,
)
def test_what_is_no_number_of_a_refinement_is_refused_in_one_line(values):
    with pytest.raises(CompressionError, match=rf"^{next(iter(values))} of a refinement must be .*, not ") as refused:
        Refinement(**values)
    assert "\n" not in str(refused.value)


def test_numbers_of_numpy_are_numbers_and_are_stored_as_those_of_python():
    request = Refinement(np.int64(8), np.float32(0.5), np.uint16(64), np.int8(3))
    assert request == Refinement(8, 0.5, 64, 3)
    assert json.loads(json.dumps(asdict(request))) == asdict(request)
