"""The sections on compression: what all trials have in common, and what is sampled for each."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from hscc_search.config.section import Section

RegionStrategy = Literal["grid", "bands", "kmeans", "slic", "random", "none"]
ClusterStrategy = Literal["coactivation", "contiguous", "random", "none"]
RankMultiple = Annotated[int, Field(ge=1, le=64)]


class CompressionConfig(Section):
    """What all trials of a study have in common."""

    region_strategy: RegionStrategy = Field(
        "grid",
        description="how the output map of a layer is divided: grid into rectangles, bands into horizontal bands, "
        "kmeans and slic by mean activations, random as a control, none not at all",
    )
    cluster_strategy: ClusterStrategy = Field(
        "coactivation",
        description="how the channels of a region are grouped: coactivation by how they activate together, "
        "contiguous and random as controls, none not at all",
    )
    region_gain: float = Field(
        0.1,
        ge=0,
        le=1,
        description="with a budget, share by which regions must improve a layer for it to be divided; 0 divides all",
    )
    rank_multiple: RankMultiple = Field(
        1, description="the ranks of a region add up to a multiple of it; 8 or 16 suit the kernels of most processors"
    )
    calibration_images: int = Field(
        512, ge=8, description="images of the train part that regions, clusters and factors are learnt from"
    )


class _Range(Section):
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


class IntegerRange(_Range):
    """Whole numbers from ``low`` to ``high``."""

    low: int = Field(ge=1, description="the smallest")
    high: int = Field(ge=1, description="the largest")


class EnergyRange(_Range):
    """Energies, which are shares of the response variance, from ``low`` to ``high``."""

    low: float = Field(gt=0, le=1, description="the smallest share of the variance")
    high: float = Field(gt=0, le=1, description="the largest share of the variance")
    levels: int | None = Field(
        None, ge=2, le=1000, description="number of evenly spaced values; without it any value between is sampled"
    )


class BudgetRange(_Range):
    """Budgets, which are ratios of dense to compressed FLOPs, from ``low`` to ``high``."""

    low: float = Field(gt=1, description="the smallest ratio")
    high: float = Field(gt=1, description="the largest ratio")
    levels: int | None = Field(
        None, ge=2, le=1000, description="number of values in equal ratios; without it any value between is sampled"
    )


class SpaceConfig(Section):
    """What a study samples: regions, clusters, and either energies or a budget for the network.

    Regions, clusters and energy hold for the whole network, or are sampled for each stage (layers in a row whose output
    maps have one size) or each layer. A budget is always one for the network, which divides it over the layers.
    """

    per: Literal["network", "stage", "layer"] = Field(
        "network", description="what has regions, clusters and energy of its own"
    )
    regions: IntegerRange = Field(IntegerRange(low=1, high=9), description="regions of a layer, at most")
    clusters: IntegerRange = Field(IntegerRange(low=1, high=3), description="clusters of a region, at most")
    energy: EnergyRange | None = Field(
        EnergyRange(low=0.6, high=0.99),
        description="share of its response variance that each cluster keeps; has no default beside a budget",
    )
    budget: BudgetRange | None = Field(
        None, description="dense FLOPs over compressed FLOPs, at least, of the network; in place of energy"
    )
    region_strategy: tuple[RegionStrategy, ...] = Field(
        (), strict=False, description="strategies to choose from; without any the one of compression"
    )
    cluster_strategy: tuple[ClusterStrategy, ...] = Field(
        (), strict=False, description="strategies to choose from; without any the one of compression"
    )
    rank_multiple: tuple[RankMultiple, ...] = Field(
        (), strict=False, description="multiples to choose from; without any the one of compression"
    )

    @model_validator(mode="before")
    @classmethod
    def _no_default_energy_beside_a_budget(cls, given: Any) -> Any:
        """Let the default of ``energy`` hold only where there is no budget.

        A stored study holds ``energy: null`` beside its budget; null without a budget stands for the default.
        """
        if not isinstance(given, dict) or given.get("energy") is not None:
            return given
        if given.get("budget") is not None:
            return {**given, "energy": None}
        return {key: value for key, value in given.items() if key != "energy"}

    @model_validator(mode="after")
    def _energy_or_budget(self) -> "SpaceConfig":
        if self.energy is not None and self.budget is not None:
            raise ValueError("give energy or budget, not both: each decides the ranks")
        return self

    @model_validator(mode="after")
    def _each_choice_once(self) -> "SpaceConfig":
        for name in ("region_strategy", "cluster_strategy", "rank_multiple"):
            choices = getattr(self, name)
            if len(set(choices)) < len(choices):
                raise ValueError(f"{name}: every choice once, not {list(choices)}")
        return self

    @property
    def rule(self) -> EnergyRange | BudgetRange:
        """The range that decides the ranks: of energies, or of budgets."""
        rule = self.energy or self.budget
        assert rule is not None
        return rule
