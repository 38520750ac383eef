"""The compared methods by name: HSCC, its peers and its controls."""

from collections.abc import Callable
from typing import Any

from torch import nn

from hscc_search.compression.baselines import METHODS as PEERS
from hscc_search.compression.calibration.calibrate import Calibration
from hscc_search.compression.compress import compress
from hscc_search.compression.setting import Setting

# Compresses the calibrated network to a budget (dense over compressed FLOPs, above 1), with the seed of the split and
# the price of weights that the study names, which HSCC alone has.
Method = Callable[[Calibration, float, int, float], nn.Module]

# HSCC's values beside the budget: regions save FLOPs, but cutting a map into pieces costs more time than they save.
RECOMMENDED: dict[str, Any] = {"regions": 1, "clusters": 1, "rank_multiple": 8}


def _hscc(**changes: Any) -> Method:
    """Make a method of HSCC at its recommended values but for some changes."""

    def method(calibration: Calibration, budget: float, seed: int, weight_price: float) -> nn.Module:
        setting = Setting(**{**RECOMMENDED, "budget": budget, "seed": seed, "weight_price": weight_price, **changes})
        return compress(calibration, setting).network

    return method


def _peer(compressor: Callable[[Calibration, float], nn.Module]) -> Method:
    """Make a method of a peer; none of them draws random numbers or prices weights."""

    def method(calibration: Calibration, budget: float, seed: int, weight_price: float) -> nn.Module:
        return compressor(calibration, budget)

    return method


# HSCC and its peers; then HSCC with regions in all layers and with clusters, each beside a control that draws them at
# random.
METHODS: dict[str, Method] = {
    "hscc": _hscc(),
    **{name: _peer(compressor) for name, compressor in PEERS.items()},
    "hscc-regions": _hscc(regions=9, region_gain=0),
    "hscc-random-regions": _hscc(regions=9, region_gain=0, region_strategy="random"),
    "hscc-clusters": _hscc(clusters=2),
    "hscc-random-clusters": _hscc(clusters=2, cluster_strategy="random"),
}
