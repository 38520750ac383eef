"""The design of a layer, once its ranks are chosen."""

from dataclasses import dataclass

from hscc_search.compression.calibration.calibrate import Calibration
from hscc_search.compression.calibration.record import LayerRecord
from hscc_search.compression.division.cache import WHOLE, partition_of
from hscc_search.compression.division.partition import Partition
from hscc_search.compression.division.regions import pieces
from hscc_search.compression.form import LayerForm, RegionRanks, total_rank
from hscc_search.compression.ranks.costs import block_costs


@dataclass(frozen=True)
class LayerDesign:
    """The design of one compressed layer, before its factors are fitted.

    Attributes:
        partition: its regions and clusters, with the axes that its basis filters are made from.
        form: the ranks, and all else that describes the compressed layer but its weights.
        macs: multiply-adds of the compressed layer per image.
    """

    partition: Partition
    form: LayerForm
    macs: int


def design_layer(
    calibration: Calibration,
    record: LayerRecord,
    partition: Partition,
    ranks: tuple[tuple[RegionRanks, ...], ...],
    input_ranks: tuple[int | None, ...],
) -> LayerDesign:
    """Put the design of one layer together.

    A layer whose regions all stay dense is not divided: separate dense filters for each region would cost time and gain
    little.

    Args:
        calibration: of the dense network.
        record: of the layer.
        partition: of the layer.
        ranks: for each group the ranks of each region.
        input_ranks: for each group the number of channels that its input is brought to, None for all of them.
    """
    divided = len(partition.blocks[0]) > 1
    if divided and all(region is None for regions in ranks for region in regions):
        partition = partition_of(calibration, record, WHOLE)
        ranks = ((None,),) * len(ranks)
        input_ranks = (None,) * len(ranks)
    macs = 0
    costs = block_costs(calibration, record, partition, "flops")
    for costs_of_group, regions, input_rank in zip(costs, ranks, input_ranks, strict=True):
        macs += costs_of_group[0].encoder(input_rank)
        for cost, region in zip(costs_of_group, regions, strict=True):
            macs += cost.of_ranks(total_rank(region), input_rank)
    output_size = (record.lattice.height, record.lattice.width)
    return LayerDesign(partition, LayerForm(output_size, ranks, pieces(partition.labels), input_ranks), macs)
