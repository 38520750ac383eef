"""Blocks, costs and losses of designed layers, for the tests of ranks."""

from dataclasses import dataclass

from hscc_search.compression.division.partition import Block
from hscc_search.compression.form import RegionRanks


@dataclass(frozen=True)
class Designed:
    """One block of a designed network.

    Attributes:
        layer: name of its layer.
        block: the block.
        ranks: ranks of its clusters, None where it stays dense.
    """

    layer: str
    block: Block
    ranks: RegionRanks


def every_block(designs):
    """The blocks of all layers, groups and regions."""
    return [
        Designed(name, block, ranks)
        for name, design in designs.items()
        for blocks, regions in zip(design.partition.blocks, design.form.ranks, strict=True)
        for block, ranks in zip(blocks, regions, strict=True)
    ]


def macs_of(calibration, designs):
    """Multiply-adds per image of the whole network."""
    left_dense = sum(layer.macs for layer in calibration.inspection.layers if layer.left_dense)
    return sum(design.macs for design in designs.values()) + left_dense + calibration.inspection.macs_outside


def parameters_of(network):
    """The number of weights of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


def inputs_of(calibration, name):
    """The number of values that one filter of a layer reads."""
    return calibration.network.get_submodule(name).weight[0].numel()


def highest_cheaper_rank(calibration, designed):
    """The highest rank that costs less than the dense filters of a block."""
    inputs, outputs = inputs_of(calibration, designed.layer), len(designed.block.clusters)
    return max(rank for rank in range(outputs) if rank * (inputs + outputs) < inputs * outputs)


def loss_of(designs):
    """The dropped variance of all blocks, which is what a budget minimises."""
    loss = 0.0
    for designed in every_block(designs):
        if designed.ranks is not None:
            spectra = zip(designed.block.eigenvalues, designed.ranks, strict=True)
            loss += sum(float(values[rank:].sum()) for values, rank in spectra) * designed.block.area
    return loss


def assert_ranks_fit(calibration, designs, multiple):
    """Check that total ranks are multiples, layers cost no more than dense, and ranks do not exceed their clusters."""
    for name, design in designs.items():
        assert design.macs <= calibration.record(name).macs
    for designed in every_block(designs):
        if designed.ranks is None:
            continue
        assert sum(designed.ranks) % multiple == 0
        assert 1 <= sum(designed.ranks) <= len(designed.block.clusters)
        spectra = zip(designed.ranks, designed.block.eigenvalues, strict=True)
        assert all(0 <= rank <= len(values) for rank, values in spectra)
