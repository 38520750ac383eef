"""The search space of a study, and the setting that is made from a sample.

A sample holds one value for each name: ``regions``, ``clusters`` and ``energy`` or ``budget``, and those of which the
study has several, such as ``precision``; where a study samples by
stage or layer, the first three are followed by ``@`` and its name, as in ``energy@stage2`` or ``regions@features.3``.
"""

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from hscc_search.config import BudgetRange, Precision, StudyConfig
from hscc_search.errors import ConfigError, quoted

if TYPE_CHECKING:  # a front is read without torch
    from hscc_search.compression.calibration.calibrate import Calibration
    from hscc_search.compression.setting import Setting

Sample = dict[str, Any]
# Names that may be sampled for each stage or layer separately; a budget is always for the whole network.
_LOCAL = ("regions", "clusters", "energy")
# Samples of a grid, which are all listed before each trial.
_LARGEST_GRID = 100_000


@dataclass(frozen=True)
class Space:
    """The search space of a study.

    Attributes:
        config: of the study.
        scopes: for each stage or layer that is sampled separately, by its name, the layers in it; empty where a value
            holds for the whole network.
        undivided: scopes of fully connected layers alone, which have an energy but no regions or clusters.
    """

    config: StudyConfig
    scopes: Mapping[str, Sequence[str]]
    undivided: Collection[str] = ()

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The distribution of each sampled value, by name."""
        space = self.config.space
        by_name: dict[str, BaseDistribution] = {
            "regions": IntDistribution(space.regions.low, space.regions.high),
            "clusters": IntDistribution(space.clusters.low, space.clusters.high),
        }
        if isinstance(space.rule, BudgetRange):
            # Budgets are ratios, so they are spread evenly on a logarithmic scale.
            by_name["budget"] = FloatDistribution(space.rule.low, space.rule.high, log=True)
        else:
            by_name["energy"] = FloatDistribution(space.rule.low, space.rule.high)
        distributions: dict[str, BaseDistribution] = {}
        for name, distribution in by_name.items():
            if name in _LOCAL and self.scopes:
                scopes = [scope for scope in self.scopes if name == "energy" or scope not in self.undivided]
                distributions |= dict.fromkeys((f"{name}@{scope}" for scope in scopes), distribution)
            else:
                distributions[name] = distribution
        for name in ("region_strategy", "cluster_strategy", "rank_multiple", "precision"):
            if choices := getattr(space, name):
                distributions[name] = CategoricalDistribution(choices)
        return distributions

    @property
    def _levels(self) -> np.ndarray | None:
        """The values that energies or budgets may have; None for the whole range."""
        rule = self.config.space.rule
        if rule.low == rule.high:
            return np.array([rule.low])
        if rule.levels is None:
            return None
        spaced = np.geomspace if isinstance(rule, BudgetRange) else np.linspace
        # Rounding may make levels of a narrow range equal.
        return np.unique(np.round(spaced(rule.low, rule.high, rule.levels), 6).clip(rule.low, rule.high))

    def snapped(self, sample: Sample) -> Sample:
        """Move energies or budgets of a sample to the nearest of their levels."""
        levels = self._levels
        if levels is None:
            return sample
        return {
            name: float(levels[np.abs(levels - value).argmin()]) if isinstance(value, float) else value
            for name, value in sample.items()
        }

    def key(self, sample: Sample) -> tuple[tuple[str, Any], ...]:
        """Identify a sample: samples that give the same network have the same key.

        With one region or cluster the strategy does not matter, and with the strategy ``none`` the number does not.
        """
        relevant = dict(sample)
        for strategy, count in (("region_strategy", "regions"), ("cluster_strategy", "clusters")):
            counts = [name for name in sample if name.split("@")[0] == count]
            if sample.get(strategy, getattr(self.config.compression, strategy)) == "none":
                relevant |= dict.fromkeys(counts, 1)
            if all(relevant[name] == 1 for name in counts):
                relevant.pop(strategy, None)
        return tuple(sorted(relevant.items()))

    @property
    def size(self) -> float:
        """Number of samples, counting those with equal keys separately; infinite without levels."""
        counts = [len(values) for values in self._values().values() if values is not None]
        # The number for a network of many layers may be too large for a float, which a product with infinity is.
        return math.prod(counts) if len(counts) == len(self.distributions) else math.inf

    def grid(self) -> Iterator[Sample]:
        """Go through all samples of a finite space."""
        values = self._values()
        for combination in itertools.product(*(values[name] or () for name in values)):
            yield dict(zip(values, combination, strict=True))

    def _values(self) -> dict[str, list[Any] | None]:
        levels = self._levels
        values: dict[str, list[Any] | None] = {}
        for name, distribution in self.distributions.items():
            if isinstance(distribution, IntDistribution):
                values[name] = list(range(distribution.low, distribution.high + 1))
            elif isinstance(distribution, CategoricalDistribution):
                values[name] = list(distribution.choices)
            else:
                values[name] = None if levels is None else levels.tolist()
        return values

    def checked(self, start: Mapping[str, Any]) -> Sample:
        """Check a start sample of the study file, give every number its type, and snap it to the levels.

        Raises:
            ConfigError: a name or a value is not of this space.
        """
        if start.keys() != self.distributions.keys():
            names = ", ".join(self.distributions)
            raise ConfigError(
                f"study {self.config.name}: start: {quoted(dict(start))} needs values for {names} and no others"
            )
        sample = {}
        for name, distribution in self.distributions.items():
            _check_inside(self.config, name, start[name], distribution)
            sample[name] = float(start[name]) if isinstance(distribution, FloatDistribution) else start[name]
        return self.snapped(sample)

    def check(self) -> None:
        """Check the start samples of the study file, and that a grid can be gone through.

        Raises:
            ConfigError: a name or a value is not of this space, or the grid has too many samples.
        """
        for sample in self.config.start:
            self.checked(sample)
        if self.config.sampler == "grid" and self.size > _LARGEST_GRID:
            raise ConfigError(
                f"study {self.config.name}: sampler grid: the space has more than {_LARGEST_GRID:,} samples: "
                "give fewer levels or narrower ranges, or another sampler"
            )

    def setting(self, sample: Sample) -> "Setting":
        """Make the compressor's setting from a sample: everything but its precision, see :func:`precision_of`."""
        from hscc_search.compression.setting import Setting

        compression = self.config.compression
        of_network = {name: value for name, value in sample.items() if "@" not in name and name != "precision"}
        by_layer = {
            layer: {name: sample[f"{name}@{scope}"] for name in _LOCAL if f"{name}@{scope}" in sample}
            for scope, layers in self.scopes.items()
            for layer in layers
        }
        values = {
            "region_gain": compression.region_gain,
            "weight_price": compression.weight_price,
            "copy_price": self.config.price_of_copies,
            "rank_multiple": compression.rank_multiple,
            "region_strategy": compression.region_strategy,
            "cluster_strategy": compression.cluster_strategy,
            "seed": self.config.seed,
            **of_network,
        }
        return Setting(**values, by_layer=by_layer)


def precision_of(sample: Sample) -> Precision:
    """The number format of a sample's network."""
    precision: Precision = sample.get("precision", "float32")
    return precision


def check_space(config: StudyConfig) -> None:
    """Check of a study's space what can be known before its network is trained and calibrated.

    Raises:
        ConfigError: a start sample lies outside, or a grid has too many samples.
    """
    of_network = Space(config, {})
    if config.space.per == "network":
        of_network.check()
        return
    for sample in config.start:  # whose stages or layers are not known yet
        for name, value in sample.items():
            distribution = of_network.distributions.get(name.partition("@")[0])
            if distribution is None:
                names = ", ".join(of_network.distributions)
                raise ConfigError(f"study {config.name}: start: {quoted(name)} is no name of a value: use {names}")
            _check_inside(config, name, value, distribution)


def _check_inside(config: StudyConfig, name: str, value: Any, distribution: BaseDistribution) -> None:
    try:
        inside = distribution._contains(distribution.to_internal_repr(value))
    except (ValueError, TypeError):
        inside = False
    if not inside:
        raise ConfigError(f"study {config.name}: start: {name} {quoted(value)} is not in the study's space")


def space_of(config: StudyConfig, calibration: "Calibration") -> Space:
    """Make the search space of a study on its calibrated network."""
    scopes = _scopes(config, calibration)
    fully_connected = {record.name for record in calibration.records if record.fully_connected}
    undivided = tuple(scope for scope, layers in scopes.items() if fully_connected.issuperset(layers))
    return Space(config, scopes, undivided)


def _scopes(config: StudyConfig, calibration: "Calibration") -> dict[str, list[str]]:
    """Name the stages or layers that are sampled separately, with the layers in each."""
    if config.space.per == "network":
        return {}

    records = calibration.records
    if config.space.per == "layer":
        return {record.name: [record.name] for record in records}
    stages = itertools.groupby(records, key=lambda record: (record.lattice.height, record.lattice.width))
    return {f"stage{number}": [record.name for record in stage] for number, (_, stage) in enumerate(stages, 1)}
