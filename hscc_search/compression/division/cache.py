"""A cache of partitions: they depend on no rank, so that many settings share them."""

from collections import OrderedDict

from hscc_search.compression.calibration.calibrate import Calibration
from hscc_search.compression.calibration.record import LayerRecord
from hscc_search.compression.division.partition import Division, Partition, divide

# The division into one region and one cluster.
WHOLE = Division("none", 1, "none", 1, seed=0)

# Most memory that the partitions of one calibration take, in 10^6 bytes.
_MEGABYTES = 1000


def partition_of(calibration: Calibration, record: LayerRecord, division: Division) -> Partition:
    """Divide a layer, or take its partition from the calibration's cache. A fully connected layer is always whole."""
    cache = calibration.remember("partitions", lambda: PartitionCache(_MEGABYTES))
    return cache.partition(record, WHOLE if record.fully_connected else division)


class PartitionCache:
    """Partitions of one network's layers: those used last, up to a size in 10^6 bytes, and at least one."""

    def __init__(self, megabytes: float) -> None:
        self.limit = megabytes
        self._partitions: OrderedDict[tuple[str, Division], Partition] = OrderedDict()

    def __len__(self) -> int:
        return len(self._partitions)

    @property
    def megabytes(self) -> float:
        """The size of all of them, in 10^6 bytes."""
        return sum(partition.megabytes for partition in self._partitions.values())

    def partition(self, record: LayerRecord, division: Division) -> Partition:
        """Divide a layer, or take its partition from the cache."""
        key = (record.name, division)
        partition = self._partitions.pop(key, None) or divide(record, division)
        self._partitions[key] = partition
        while len(self) > 1 and self.megabytes > self.limit:
            self._partitions.popitem(last=False)
        return partition
