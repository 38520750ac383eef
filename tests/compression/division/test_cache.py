from dataclasses import replace

import pytest
from geometry import SIDE, Residual, seeded, smooth_images

from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.division.cache import PartitionCache, partition_of
from hscc_search.compression.division.partition import Division, divide
from hscc_search.dense.networks import DigitsCNN


@pytest.fixture(scope="module")
def residual():
    return calibrate(seeded(Residual), smooth_images(48))


def grid(regions, clusters=2):
    return Division("grid", regions, "coactivation", clusters, seed=0)


@pytest.mark.parametrize("megabytes", [0, 0.05, 1000])
def test_partitions_are_remembered_up_to_a_size(residual, megabytes):
    cache = PartitionCache(megabytes)
    records = residual.records[:3]
    for regions in (1, 4, 9, 4, 1):
        division = grid(regions, clusters=1)
        for record in records:
            partition = cache.partition(record, division)
            fresh = divide(record, division)
            assert (partition.labels == fresh.labels).all()
            assert [len(blocks) for blocks in partition.blocks] == [len(blocks) for blocks in fresh.blocks]
            assert cache.partition(record, division) is partition
            assert len(cache) == 1 or cache.megabytes <= megabytes
    assert len(cache) == {0: 1, 1000: 9}.get(megabytes, len(cache))


def test_the_partitions_used_last_are_remembered(residual):
    first, second, third = residual.records[:3]
    size = sum(PartitionCache(0).partition(record, grid(1)).megabytes for record in (first, second))
    cache = PartitionCache(size)
    partitions = {record.name: cache.partition(record, grid(1)) for record in (first, second)}
    assert cache.partition(first, grid(1)) is partitions[first.name]
    assert cache.partition(second, grid(1)) is partitions[second.name]
    assert cache.partition(first, grid(1)) is partitions[first.name]
    cache.partition(third, grid(1))
    assert cache.partition(second, grid(1)) is not partitions[second.name]


def test_a_calibration_remembers_its_partitions_and_a_changed_one_does_not(residual):
    record = residual.record("mix")
    partition = partition_of(residual, record, grid(4))
    assert partition_of(residual, record, grid(4)) is partition
    assert partition_of(residual, record, grid(4, clusters=1)) is not partition
    assert partition_of(replace(residual), record, grid(4)) is not partition


def test_a_fully_connected_layer_is_divided_once_for_all_divisions():
    calibration = calibrate(seeded(lambda: DigitsCNN(5, SIDE)), smooth_images(48))
    record = next(record for record in calibration.records if record.fully_connected)
    partitions = [partition_of(calibration, record, grid(*counts)) for counts in ((4, 2), (1, 1), (2, 3))]
    assert all(partition is partitions[0] for partition in partitions)
