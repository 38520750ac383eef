"""The menu of a layer: all ranks that its blocks may take, with the cost and the loss of each.

The regions of a group share the input rank, so a group has one variant for each input rank, and a variant one menu for
each block.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hscc_search.compression.calibration.calibrate import Calibration
from hscc_search.compression.calibration.record import LayerRecord
from hscc_search.compression.division.partition import Block, Partition
from hscc_search.compression.form import RegionRanks
from hscc_search.compression.ranks.costs import BlockCost, Copies, block_costs
from hscc_search.compression.ranks.energy import raise_to_total
from hscc_search.compression.ranks.losses import input_loss, input_ranks, rank_losses
from hscc_search.compression.ranks.options import Choice, Classes, Group, Options, least_priced
from hscc_search.compression.setting import BudgetOf


@dataclass(frozen=True)
class BlockMenu:
    """The options of one block at one input rank.

    Attributes:
        block: the block.
        total_ranks: total rank of each factored option, int64 (factored,), ascending.
        options: cost and loss of each; one option more, the last, where the block may also stay dense.
        weights: number of weights of each option, int64 (options,).
    """

    block: Block
    total_ranks: np.ndarray
    options: Options
    weights: np.ndarray

    def ranks(self, position: int) -> RegionRanks:
        """The ranks of the clusters at the option of one position."""
        if position == len(self.total_ranks):
            return None
        eigenvalues = self.block.eigenvalues
        return raise_to_total(eigenvalues, [0] * len(eigenvalues), int(self.total_ranks[position]))

    def with_prices(self, of_weight: float, of_copies: float) -> "BlockMenu":
        """The same options, whose losses hold the price of each weight, and that of all copies, as well."""
        losses = self.options.losses + of_weight * self.weights + of_copies
        return replace(self, options=replace(self.options, losses=losses))


@dataclass(frozen=True)
class Variant:
    """The options of the blocks of one group at one input rank.

    Attributes:
        input_rank: number of channels that the group's input is brought to, None for all of them.
        menus: of each block.
        copies: number of values that are copied into and out of the pieces of the map; 0 where it is not divided.
    """

    input_rank: int | None
    menus: tuple[BlockMenu, ...]
    copies: int

    @property
    def classes(self) -> Classes:
        """The options of each block."""
        return [menu.options for menu in self.menus]

    def with_prices(self, of_weight: float, of_copy: float) -> "Variant":
        """The same options, whose losses hold the prices of weights and of copies as well."""
        first, *others = self.menus  # all blocks share the copies, which are those of the first
        of_copies = of_copy * self.copies
        menus = (first.with_prices(of_weight, of_copies), *(menu.with_prices(of_weight, 0.0) for menu in others))
        return replace(self, menus=menus)


@dataclass(frozen=True)
class LayerMenu:
    """The options of one layer.

    Attributes:
        partition: of the layer.
        variants: the variants of each group.
    """

    partition: Partition
    variants: tuple[tuple[Variant, ...], ...]

    def groups(self) -> list[Group]:
        """The options of each group in the form that the knapsack takes."""
        return [[variant.classes for variant in variants] for variants in self.variants]

    def priced(self, price: float) -> float:
        """The least sum of losses and priced costs, with the best option of each block."""
        return sum(min(least_priced(classes, price) for classes in group) for group in self.groups())

    def with_prices(self, of_weight: float, of_copy: float) -> "LayerMenu":
        """The same options, whose losses hold the prices of weights and of copies as well."""
        variants = tuple(tuple(variant.with_prices(of_weight, of_copy) for variant in group) for group in self.variants)
        return replace(self, variants=variants)

    def chosen(self, choices: Sequence[Choice]) -> tuple[tuple[tuple[RegionRanks, ...], ...], tuple[int | None, ...]]:
        """Look up the ranks that the knapsack chose.

        Args:
            choices: the choice for each group.

        Returns:
            For each group the ranks of each region, and its input rank.
        """
        chosen = [variants[number] for variants, (number, _) in zip(self.variants, choices, strict=True)]
        ranks = tuple(
            tuple(menu.ranks(position) for menu, position in zip(variant.menus, positions, strict=True))
            for variant, (_, positions) in zip(chosen, choices, strict=True)
        )
        return ranks, tuple(variant.input_rank for variant in chosen)


def layer_menu(
    calibration: Calibration, record: LayerRecord, partition: Partition, multiple: int, budget_of: BudgetOf
) -> LayerMenu:
    """Build the menu of a divided layer.

    Args:
        calibration: of the dense network.
        record: of the layer.
        partition: of the layer.
        multiple: divisor of total ranks and input ranks.
        budget_of: the cost that is counted.
    """
    groups, copies = [], Copies.of_layer(calibration, record, partition)
    for costs in block_costs(calibration, record, partition, budget_of):
        losses = [rank_losses(cost.block, multiple) for cost in costs]
        candidates = input_ranks(record, costs[0].input_channels, multiple)
        groups.append(tuple(_variant(calibration, record, costs, losses, rank, copies) for rank in candidates))
    return LayerMenu(partition, tuple(groups))


def _variant(
    calibration: Calibration,
    record: LayerRecord,
    costs: list[BlockCost],
    losses: list[tuple[np.ndarray, np.ndarray]],
    input_rank: int | None,
    copies: Copies,
) -> Variant:
    """The menus of a group's blocks at one input rank.

    Args:
        calibration: of the dense network.
        record: of the layer.
        costs: of each block.
        losses: total ranks of each block and their losses, see :func:`rank_losses`.
        input_rank: see :class:`Variant`.
        copies: of the layer.
    """
    menus = []
    for number, (cost, (total_ranks, losses_of_ranks)) in enumerate(zip(costs, losses, strict=True)):
        loss = input_loss(calibration, record, cost, input_rank)
        menus.append(_block_menu(cost, total_ranks, losses_of_ranks + loss, input_rank, with_encoder=number == 0))
    return Variant(input_rank, tuple(menus), copies.of(costs, input_rank))


def _block_menu(
    cost: BlockCost, total_ranks: np.ndarray, losses: np.ndarray, input_rank: int | None, with_encoder: bool
) -> BlockMenu:
    """The options of one block that cost less than its dense filters, and these where there is no encoder.

    An encoder serves all blocks of a group: its cost and its weights are those of the first one.
    """
    costs, weights = cost.factored(total_ranks, input_rank), cost.weights(total_ranks, input_rank)
    cheaper = int(np.searchsorted(costs, cost.dense))
    if input_rank is None:
        costs, losses = np.append(costs[:cheaper], cost.dense), np.append(losses[:cheaper], 0.0)
        weights = np.append(weights[:cheaper], cost.dense_weights)
    else:
        cheaper = max(1, cheaper)  # each block needs an option
        costs, losses, weights = costs[:cheaper], losses[:cheaper], weights[:cheaper]
        if with_encoder:
            costs, weights = costs + cost.encoder(input_rank), weights + input_rank * cost.input_channels
    return BlockMenu(cost.block, total_ranks[:cheaper], Options(costs.astype(np.int64), losses), weights)
