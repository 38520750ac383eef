"""The search space of a study, and the setting that is made from a sample.

A sample holds one value for each name: ``regions``, ``clusters`` and ``energy`` or ``budget``; where a study samples by
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

from hscc_search.config import BudgetRange, StudyConfig
from hscc_search.errors import ConfigError

if TYPE_CHECKING:  # a front is read without torch
    from hscc_search.compression.calibration.calibrate import Calibration
    from hscc_search.compression.setting import Setting

Sample = dict[str, Any]
# Names that may be sampled for each stage or layer separately; a budget is always for the whole network.
_LOCAL = ("regions", "clusters", "energy")


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
        for name in ("region_strategy", "cluster_strategy", "rank_multiple"):
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
        return math.prod(len(values) if values is not None else math.inf for values in self._values().values())

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
            raise ConfigError(f"study {self.config.name}: start: {dict(start)} needs values for {names} and no others")
        sample = {}
        for name, distribution in self.distributions.items():
            value = start[name]
            try:
                inside = distribution._contains(distribution.to_internal_repr(value))
            except (ValueError, TypeError):
                inside = False
            if not inside:
                raise ConfigError(f"study {self.config.name}: start: {name} {value!r} is not in the study's space")
            sample[name] = float(value) if isinstance(distribution, FloatDistribution) else value
        return self.snapped(sample)

    def setting(self, sample: Sample) -> "Setting":
        """Make the compressor's setting from a sample."""
        from hscc_search.compression.setting import Setting

        compression = self.config.compression
        of_network = {name: value for name, value in sample.items() if "@" not in name}
        by_layer = {
            layer: {name: sample[f"{name}@{scope}"] for name in _LOCAL if f"{name}@{scope}" in sample}
            for scope, layers in self.scopes.items()
            for layer in layers
        }
        values = {
            "region_gain": compression.region_gain,
            "rank_multiple": compression.rank_multiple,
            "region_strategy": compression.region_strategy,
            "cluster_strategy": compression.cluster_strategy,
            "seed": self.config.seed,
            **of_network,
        }
        return Setting(**values, by_layer=by_layer)


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
