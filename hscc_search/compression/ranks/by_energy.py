"""Ranks for each cluster by itself: the rank that keeps its energy, or as the control a share of its channels."""

from hscc_search.compression.calibration.calibrate import Calibration
from hscc_search.compression.calibration.record import LayerRecord
from hscc_search.compression.division.cache import partition_of
from hscc_search.compression.form import RegionRanks
from hscc_search.compression.ranks.costs import BlockCost, block_costs
from hscc_search.compression.ranks.design import LayerDesign, design_layer
from hscc_search.compression.ranks.energy import raise_to_total, rank_for_energy
from hscc_search.compression.setting import Setting


def design_by_energy(calibration: Calibration, record: LayerRecord, setting: Setting) -> LayerDesign:
    """Choose the ranks of one layer by its own setting, which has an energy or a share of channels."""
    partition = partition_of(calibration, record, setting.division)
    costs = block_costs(calibration, record, partition, "flops")
    ranks = tuple(tuple(_region_ranks(cost, setting) for cost in costs_of_group) for costs_of_group in costs)
    return design_layer(calibration, record, partition, ranks, input_ranks=(None,) * len(ranks))


def _region_ranks(cost: BlockCost, setting: Setting) -> RegionRanks:
    """The rank of each cluster of a region; None where such factors cost no less than the dense filters."""
    eigenvalues = cost.block.eigenvalues
    if setting.energy is not None:
        ranks = [rank_for_energy(values, setting.energy) for values in eigenvalues]
    else:
        assert setting.channel_share is not None
        ranks = [max(1, round(setting.channel_share * len(values))) for values in eigenvalues]
    multiple = setting.rank_multiple
    total = max(1, -(-sum(ranks) // multiple) * multiple)
    if total > cost.output_channels or cost.of_ranks(total, None) >= cost.dense:
        return None
    return raise_to_total(eigenvalues, ranks, total)
