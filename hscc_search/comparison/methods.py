"""What is compared: HSCC, its controls and its peers, each by name."""

from collections.abc import Callable
from typing import Any

from torch import nn

from hscc_search.compression.baselines import METHODS as BASELINES
from hscc_search.compression.calibration.calibrate import Calibration
from hscc_search.compression.compress import compress
from hscc_search.compression.setting import Setting


def _hscc(**changes: Any) -> Callable[[Calibration, float, int], nn.Module]:
    def method(calibration: Calibration, budget: float, seed: int) -> nn.Module:
        setting = Setting(**{**RECOMMENDED, "budget": budget, "seed": seed, **changes})
        return compress(calibration, setting).network

    return method


def _baseline(
    compressor: Callable[[nn.Module, Calibration, float], nn.Module],
) -> Callable[[Calibration, float, int], nn.Module]:
    return lambda calibration, budget, seed: compressor(calibration.network, calibration, budget)


# What HSCC itself would take for a budget: regions save FLOPs, but cutting a map into pieces costs more time than that.
RECOMMENDED: dict[str, Any] = {"regions": 1, "clusters": 1, "rank_multiple": 8}


# The method and its peers; then the method with regions in all layers and with clusters, each beside a control that
# draws them at random.
METHODS: dict[str, Callable[[Calibration, float, int], nn.Module]] = {
    "hscc": _hscc(),
    **{name: _baseline(compressor) for name, compressor in BASELINES.items()},
    "hscc-regions": _hscc(regions=9, region_gain=0),
    "hscc-random-regions": _hscc(regions=9, region_gain=0, region_strategy="random"),
    "hscc-clusters": _hscc(clusters=2),
    "hscc-random-clusters": _hscc(clusters=2, cluster_strategy="random"),
}
