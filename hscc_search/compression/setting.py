"""The request to the compressor."""

import math
import operator
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, Literal, get_args

from hscc_search.compression.division.partition import Division
from hscc_search.config import ClusterStrategy, RegionStrategy
from hscc_search.errors import CompressionError, quoted

# The cost that a budget divides.
BudgetOf = Literal["flops", "parameters"]

# Fields that choose the ranks; a setting has exactly one of them.
_RULES = ("energy", "channel_share", "budget")
# Integers are below it, of which seeds are the largest.
_LARGEST = 1 << 32


@dataclass(frozen=True)
class Setting:
    """The request to the compressor: how layers are divided, and how ranks are chosen.

    Exactly one of ``energy``, ``channel_share`` and ``budget`` chooses the ranks. They may all be missing where
    ``by_layer`` gives an energy to every layer.

    Attributes:
        regions: regions per convolution, at most.
        clusters: clusters per region, at most.
        energy: share of each cluster's response variance that its rank keeps, above 0 and up to 1.
        channel_share: rank of each cluster as a share of its channels, above 0 and up to 1: a control that ignores
            the variance.
        budget: cost of the dense network over cost of the compressed one, above 1; ranks are divided over layers,
            regions and clusters so that the loss grows least.
        budget_of: the cost that ``budget`` is a ratio of. FLOPs are counted as multiply-adds (MACs): each is two FLOPs
            in the dense and in the compressed network alike, so the ratio is the same.
        region_gain: with a budget, a layer is divided only where its regions lower the sum of its loss and the price of
            its cost by this share, 0 to 1; with 0 every layer is divided. Pieces of a map cost time, and smaller gains
            do not hold on other images.
        weight_price: with a budget of FLOPs, the number of multiply-adds that a weight is worth beside those that it
            takes, 0 or more. With 0 only FLOPs count.
        copy_price: with a budget of FLOPs, the number of multiply-adds that a value is worth which is copied into or
            out of a region, 0 or more. With 0 regions are chosen for their FLOPs alone, and can cost more time than
            they save.
        rank_multiple: divisor of the total rank of each region: kernels are fast at certain widths.
        region_strategy: a key of :data:`hscc_search.compression.division.regions.STRATEGIES`.
        cluster_strategy: a key of :data:`hscc_search.compression.division.clusters.STRATEGIES`.
        seed: for the region and cluster strategies that draw.
        by_layer: values of single layers that replace the common ones, by the layer's path: ``regions``, ``clusters``,
            ``energy``.

    Raises:
        CompressionError: a value is out of range, or the ranks are chosen by no field or by several.
    """

    regions: int = 1
    clusters: int = 1
    energy: float | None = None
    channel_share: float | None = None
    budget: float | None = None
    budget_of: BudgetOf = "flops"
    region_gain: float = 0.1
    weight_price: float = 3.0
    copy_price: float = 0.0
    rank_multiple: int = 1
    region_strategy: RegionStrategy = "grid"
    cluster_strategy: ClusterStrategy = "coactivation"
    seed: int = 0
    by_layer: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_rule()
        for name in ("energy", "channel_share"):
            if getattr(self, name) is not None:
                check_share(name, getattr(self, name))
        if self.budget is not None and not (_is_number(self.budget) and 1 < self.budget < math.inf):
            raise CompressionError(f"budget must be a finite number above 1, not {quoted(self.budget)}")
        for name in ("region_strategy", "cluster_strategy"):
            if not isinstance(getattr(self, name), str):
                raise CompressionError(f"{name} must be a text, not {quoted(getattr(self, name))}")
        if self.budget_of not in get_args(BudgetOf):
            raise CompressionError(f"a budget is of {' or '.join(get_args(BudgetOf))}, not of {self.budget_of!r}")
        if not (_is_number(self.region_gain) and 0 <= self.region_gain <= 1):
            raise CompressionError(f"region_gain must be a number from 0 to 1, not {quoted(self.region_gain)}")
        for name in ("weight_price", "copy_price"):
            if not (_is_number(getattr(self, name)) and 0 <= getattr(self, name) < math.inf):
                raise CompressionError(f"{name} must be a finite number, 0 or more, not {quoted(getattr(self, name))}")
        for name, least in (("regions", 1), ("clusters", 1), ("rank_multiple", 1), ("seed", 0)):
            _integer(name, getattr(self, name), least)
        self.division  # noqa: B018  (checks its values)
        for layer in self.by_layer:
            self.of(layer)

    def _check_rule(self) -> None:
        rules = [name for name in _RULES if getattr(self, name) is not None]
        by_layer_alone = not rules and any("energy" in values for values in self.by_layer.values())
        if len(rules) != 1 and not by_layer_alone:
            names = " and ".join(rules) or "none of them"
            raise CompressionError(f"a setting needs exactly one of {', '.join(_RULES[:-1])} and budget, not {names}")

    def of(self, layer: str) -> "Setting":
        """The setting of one layer, without ``by_layer``.

        Raises:
            CompressionError: neither the layer nor the whole network has a rule for ranks, or the layer's own values
                are out of range.
        """
        values = self.by_layer.get(layer, {})
        if "energy" not in values and all(getattr(self, name) is None for name in _RULES):
            raise CompressionError(f"the setting has no energy for layer {layer}, and none for the whole network")
        return replace(self, by_layer={}, **values) if self.by_layer else self

    @property
    def division(self) -> Division:
        """The division that the setting asks for."""
        return Division(self.region_strategy, self.regions, self.cluster_strategy, self.clusters, self.seed)


@dataclass(frozen=True)
class Refinement:
    """The request for a refinement.

    Attributes:
        epochs: passes over the images at most, 1 or more.
        learning_rate: highest step of Adam, relative to the size of each weight, above 0 and up to 1.
        images: number of them at most, 16 or more, with those that are set aside.
        seed: of the choice of the images and of their order.

    Raises:
        CompressionError: a value is out of range.
    """

    epochs: int = 8
    learning_rate: float = 0.01
    images: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("images", 16), ("seed", 0)):
            # As Python's own, since it is stored as JSON.
            object.__setattr__(self, name, _integer(f"{name} of a refinement", getattr(self, name), least))
        check_share("learning_rate of a refinement", self.learning_rate)
        object.__setattr__(self, "learning_rate", float(self.learning_rate))


def check_share(name: str, share: float) -> None:
    """Raise CompressionError unless a share is a number above 0 and at most 1."""
    if not (_is_number(share) and 0 < share <= 1):
        raise CompressionError(f"{name} must be above 0 and at most 1, not {quoted(share)}")


def _is_number(value: object) -> bool:
    """Tell numbers of Python and of numpy from truths and from all else."""
    return isinstance(value, Real) and not isinstance(value, bool)


def _integer(name: str, value: Any, least: int) -> int:
    """An integer of Python, of numpy or of torch as one of Python.

    Raises:
        CompressionError: it is none, a truth, below ``least``, or 2^32 or more.
    """
    with suppress(TypeError):
        number = operator.index(value)
        if not isinstance(value, bool) and least <= number < _LARGEST:
            return number
    raise CompressionError(f"{name} must be an integer from {least} to 2^32 - 1, not {quoted(value)}")
