import pytest

from hscc_search.compression.setting import Setting, check_share
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
        {"energy": 0.5, "rank_multiple": 0},
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
    with pytest.raises(CompressionError):
        Setting(**values)


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
