"""One point of the search space."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hscc_search.compression.division.partition import Division
from hscc_search.compression.ranks.energy import check_share
from hscc_search.errors import CompressionError

# What a budget may be of.
COSTS = ("flops", "parameters")


@dataclass(frozen=True)
class Setting:
    """One point of the search space. Exactly one of ``energy``, ``ratio`` and ``budget`` says how ranks are chosen.

    Attributes:
        regions: regions per convolution, at most.
        clusters: clusters per region, at most.
        energy: share of each cluster's response variance that its rank keeps, above 0 and up to 1.
        ratio: share of each cluster's channels that its rank has, above 0 and up to 1; a control.
        budget: how many times less the whole network shall cost, above 1; ranks are divided over layers, regions and
            clusters so that the loss grows least.
        budget_of: what costs, ``flops`` or ``parameters``.
        region_gain: with a budget, a layer is divided only where its regions bring its loss and the price of its cost
            down by this share, 0 to 1; with 0 every layer is. Pieces of a map cost time, and smaller gains do not hold
            on other images.
        rank_multiple: the total rank of a region is a multiple of it, for the sake of the kernels.
        region_strategy: a key of :data:`hscc_search.compression.division.regions.STRATEGIES`.
        cluster_strategy: a key of :data:`hscc_search.compression.division.clusters.STRATEGIES`.
        seed: of regions and clusters.
        by_layer: by the path of a layer what is different there: ``regions``, ``clusters``, ``energy``.

    Raises:
        CompressionError: a value is out of range.
    """

    regions: int = 1
    clusters: int = 1
    energy: float | None = None
    ratio: float | None = None
    budget: float | None = None
    budget_of: str = "flops"
    region_gain: float = 0.1
    rank_multiple: int = 1
    region_strategy: str = "grid"
    cluster_strategy: str = "coactivation"
    seed: int = 0
    by_layer: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = [name for name in ("energy", "ratio", "budget") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise CompressionError(f"a setting needs exactly one of energy, ratio and budget, not {found}")
        for name in ("energy", "ratio"):
            if getattr(self, name) is not None:
                check_share(name, getattr(self, name))
        if self.budget is not None and not self.budget > 1:
            raise CompressionError(f"budget must be above 1, not {self.budget}")
        if self.budget_of not in COSTS:
            raise CompressionError(f"a budget is of {' or '.join(COSTS)}, not of {self.budget_of!r}")
        if not 0 <= self.region_gain <= 1:
            raise CompressionError(f"region_gain must be from 0 to 1, not {self.region_gain}")
        if self.rank_multiple < 1:
            raise CompressionError(f"rank_multiple must be 1 or more, not {self.rank_multiple}")
        self.division  # noqa: B018  (checks its values)
        for name in self.by_layer:
            self.of(name)

    def of(self, layer: str) -> "Setting":
        """What holds for one layer."""
        own = self.by_layer.get(layer)
        return replace(self, by_layer={}, **own) if own else self

    @property
    def division(self) -> Division:
        """How the layers are divided."""
        return Division(self.region_strategy, self.regions, self.cluster_strategy, self.clusters, self.seed)
