"""Ranks for all layers at once: those with the least loss whose cost stays within a budget.

Within a budget of FLOPs, weights have a price as well. A fully connected layer takes one multiply-add for each weight
and image, so that FLOPs alone would leave it large, and the file with it, where it is hardly needed.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from hscc_search.compression.calibration.calibrate import Calibration
from hscc_search.compression.calibration.record import LayerRecord
from hscc_search.compression.division.cache import partition_of
from hscc_search.compression.division.partition import Division
from hscc_search.compression.ranks.design import LayerDesign, design_layer
from hscc_search.compression.ranks.knapsack import solve
from hscc_search.compression.ranks.menu import LayerMenu, layer_menu
from hscc_search.compression.ranks.options import Group, cheapest
from hscc_search.compression.ranks.relaxation import relax
from hscc_search.compression.setting import BudgetOf, Setting
from hscc_search.errors import CompressionError


def design_by_budget(
    calibration: Calibration, records: Sequence[LayerRecord], setting: Setting
) -> dict[str, LayerDesign]:
    """Choose the ranks with the least loss within a budget, which also has to pay for the layers that stay dense.

    Args:
        calibration: of the dense network.
        records: the layers to compress.
        setting: one with a budget.

    Returns:
        The design of each layer by its name.

    Raises:
        CompressionError: the budget is out of reach.
    """
    assert setting.budget is not None
    total, fixed = _dense_costs(calibration, records, setting.budget_of)
    limit = int(total / setting.budget) - fixed
    menus = [_menu(calibration, record, setting.of(record.name).division, setting) for record in records]
    least = cheapest(_groups(menus))
    if least > limit:
        raise CompressionError(
            f"a budget of {setting.budget:g}x fewer {setting.budget_of} is out of reach: "
            f"the lowest rank everywhere gives {total / (fixed + least):.3g}x, since "
            f"{1 - fixed / total:.0%} of the {setting.budget_of} are in layers that can be compressed"
        )
    prices = (0.0, 0.0)
    if setting.budget_of == "flops" and (setting.weight_price or setting.copy_price):
        price = relax(_groups(menus), limit).price
        prices = (setting.weight_price * price, setting.copy_price * price)
        menus = [menu.with_prices(*prices) for menu in menus]
    if setting.region_gain > 0:
        menus = _divided_where_it_pays(calibration, records, menus, setting, limit, prices)
    choices = solve(_groups(menus), limit)
    designs = {}
    for record, menu in zip(records, menus, strict=True):
        count = len(menu.variants)
        choices_of_layer, choices = choices[:count], choices[count:]
        designs[record.name] = design_layer(calibration, record, menu.partition, *menu.chosen(choices_of_layer))
    return designs


def _dense_costs(calibration: Calibration, records: Sequence[LayerRecord], budget_of: BudgetOf) -> tuple[int, int]:
    """The cost of the dense network, and the part of it outside of the layers to compress."""
    if budget_of == "flops":
        total = calibration.macs
        return total, total - sum(record.macs for record in records)
    network = calibration.network
    total = _parameters(network)
    return total, total - sum(_parameters(network.get_submodule(record.name)) for record in records)


def _divided_where_it_pays(
    calibration: Calibration,
    records: Sequence[LayerRecord],
    menus: list[LayerMenu],
    setting: Setting,
    limit: int,
    prices: tuple[float, float],
) -> list[LayerMenu]:
    """Undo the division into regions of each layer where it gains less than the setting asks for."""
    if all(len(menu.partition.blocks[0]) == 1 for menu in menus):
        return menus
    price = relax(_groups(menus), limit).price
    worthwhile = []
    for record, menu in zip(records, menus, strict=True):
        if len(menu.partition.blocks[0]) > 1:
            undivided = replace(setting.of(record.name).division, region_strategy="none", regions=1)
            whole = _menu(calibration, record, undivided, setting).with_prices(*prices)
            if menu.priced(price) > (1 - setting.region_gain) * whole.priced(price):
                menu = whole
        worthwhile.append(menu)
    return worthwhile


def _menu(calibration: Calibration, record: LayerRecord, division: Division, setting: Setting) -> LayerMenu:
    partition = partition_of(calibration, record, division)
    return layer_menu(calibration, record, partition, setting.rank_multiple, setting.budget_of)


def _groups(menus: list[LayerMenu]) -> list[Group]:
    return [group for menu in menus for group in menu.groups()]


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
