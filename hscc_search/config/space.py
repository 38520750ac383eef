"""The sections on compression: values that all trials share, and values that are sampled for each trial."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from hscc_search.config.section import Section

RegionStrategy = Literal["grid", "bands", "kmeans", "slic", "random", "none"]
ClusterStrategy = Literal["coactivation", "contiguous", "random", "none"]
Precision = Literal["float32", "int8"]
RankMultiple = Annotated[int, Field(ge=1, le=64)]
# The largest ratio of dense to compressed FLOPs that is asked for.
MOST_BUDGET = 10_000
# What copying a value takes in multiply-adds, where time is asked for: see "Regions chosen for time" in FINDINGS.md.
COPY_PRICE = 100.0


class CompressionConfig(Section):
    """The compression of all trials of a study."""

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
    weight_price: float = Field(
        3,
        ge=0,
        le=1e6,
        description="with a budget, multiply-adds that a weight is worth beside those that it takes: fully connected "
        "layers have few, and with 0 stay large in file and memory for hardly any accuracy",
    )
    copy_price: float | None = Field(
        None,
        ge=0,
        le=1e6,
        description="with a budget, multiply-adds that a value is worth which is copied into or out of a region; "
        f"without it {COPY_PRICE:g} where latency is an objective or a constraint, so that regions are where they save "
        "time, else 0; no layer is left undivided for it where region_gain is 0",
    )
    rank_multiple: RankMultiple = Field(
        1, description="divisor of the total rank of each region; 8 or 16 suit the kernels of most processors"
    )
    calibration_images: int = Field(
        512,
        ge=8,
        le=1_000_000,
        description="images of the train part that regions, clusters and factors are learnt from",
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

    low: int = Field(ge=1, le=1024, description="the smallest")
    high: int = Field(ge=1, le=1024, description="the largest")


class EnergyRange(_Range):
    """Energies, which are shares of the response variance, from ``low`` to ``high``."""

    low: float = Field(gt=0, le=1, description="the smallest share of the variance")
    high: float = Field(gt=0, le=1, description="the largest share of the variance")
    levels: int | None = Field(
        None, ge=2, le=1000, description="number of evenly spaced values; without it any value between is sampled"
    )


class BudgetRange(_Range):
    """Budgets, which are ratios of dense to compressed FLOPs, from ``low`` to ``high``."""

    low: float = Field(gt=1, le=MOST_BUDGET, description="the smallest ratio")
    high: float = Field(gt=1, le=MOST_BUDGET, description="the largest ratio")
    levels: int | None = Field(
        None, ge=2, le=1000, description="number of values in equal ratios; without it any value between is sampled"
    )


class SpaceConfig(Section):
    """The values that a study samples: regions, clusters, and either energies or a budget for the network.

    Regions, clusters and energy are sampled once for the whole network, or for each stage (consecutive layers whose
    output maps have the same size), or for each layer. A budget is always for the whole network, and is divided over
    its layers.
    """

    per: Literal["network", "stage", "layer"] = Field(
        "network", description="the unit that regions, clusters and energy are sampled for"
    )
    regions: IntegerRange = Field(IntegerRange(low=1, high=9), description="largest number of regions of a layer")
    clusters: IntegerRange = Field(IntegerRange(low=1, high=3), description="largest number of clusters of a region")
    energy: EnergyRange | None = Field(
        EnergyRange(low=0.6, high=0.99),
        description="share of its response variance that each cluster keeps; without default where a budget is given",
    )
    budget: BudgetRange | None = Field(
        None, description="smallest ratio of dense to compressed FLOPs of the network; instead of energy"
    )
    region_strategy: tuple[RegionStrategy, ...] = Field(
        (), strict=False, description="strategies to choose from; where empty, all trials have the one of `compression`"
    )
    cluster_strategy: tuple[ClusterStrategy, ...] = Field(
        (), strict=False, description="strategies to choose from; where empty, all trials have the one of `compression`"
    )
    rank_multiple: tuple[RankMultiple, ...] = Field(
        (), strict=False, description="multiples to choose from; where empty, all trials have the one of `compression`"
    )
    precision: tuple[Precision, ...] = Field(
        (),
        strict=False,
        description="number formats to choose from; where empty, all trials are float32. An int8 trial is "
        "rounded, with calibration images, to an ONNX file of 8-bit integers, which is then measured",
    )

    @model_validator(mode="before")
    @classmethod
    def _no_default_energy_beside_a_budget(cls, tree: Any) -> Any:
        """Let the default of ``energy`` hold only where there is no budget.

        A stored study holds ``energy: null`` beside its budget; null without a budget stands for the default.
        """
        if not isinstance(tree, dict) or tree.get("energy") is not None:
            return tree
        if tree.get("budget") is not None:
            return {**tree, "energy": None}
        return {key: value for key, value in tree.items() if key != "energy"}

    @model_validator(mode="after")
    def _energy_or_budget(self) -> "SpaceConfig":
        if self.energy is not None and self.budget is not None:
            raise ValueError("give energy or budget, not both: each decides the ranks")
        return self

    @model_validator(mode="after")
    def _each_choice_once(self) -> "SpaceConfig":
        for name in ("region_strategy", "cluster_strategy", "rank_multiple", "precision"):
            choices = getattr(self, name)
            if len(set(choices)) < len(choices):
                raise ValueError(f"{name}: every choice once, not {list(choices)}")
        return self

    @property
    def with_int8(self) -> bool:
        """Tell whether trials may be of 8-bit integers; then the files of all of them are measured."""
        return "int8" in self.precision

    @property
    def rule(self) -> EnergyRange | BudgetRange:
        """The range that decides the ranks: of energies, or of budgets."""
        rule = self.energy or self.budget
        assert rule is not None
        return rule
