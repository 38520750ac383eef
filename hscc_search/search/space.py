"""What a study samples, and the setting that a sample stands for.

A sample holds one value for each name: ``regions``, ``clusters`` and ``energy`` or ``budget``; where a study samples by
stage or by layer the first three carry its name behind an ``@``, such as ``energy@stage2`` or ``regions@features.3``.
"""

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from hscc_search.config import BudgetRange, EnergyRange, StudyConfig
from hscc_search.errors import ConfigError

if TYPE_CHECKING:  # a front is read without torch
    from hscc_search.compression.calibration.calibrate import Calibration
    from hscc_search.compression.setting import Setting

Sample = dict[str, Any]
# What a study may sample for each place by itself; a budget is always one for the network.
_LOCAL = ("regions", "clusters", "energy")


@dataclass(frozen=True)
class Space:
    """The search space of a study.

    Attributes:
        config: of the study.
        places: by name of a stage or layer the layers it stands for; empty where the network is one.
        whole: places of fully connected layers alone, which have an energy, but no regions and clusters.
    """

    config: StudyConfig
    places: Mapping[str, Sequence[str]]
    whole: Collection[str] = ()

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """By name what can be sampled."""
        space = self.config.space
        rule: dict[str, BaseDistribution] = {}
        if space.budget is not None:
            # The front is drawn over FLOPs, so that ratios are spread evenly on a logarithmic scale.
            rule["budget"] = FloatDistribution(space.budget.low, space.budget.high, log=True)
        else:
            assert space.energy is not None
            rule["energy"] = FloatDistribution(space.energy.low, space.energy.high)
        named: dict[str, BaseDistribution] = {
            "regions": IntDistribution(space.regions.low, space.regions.high),
            "clusters": IntDistribution(space.clusters.low, space.clusters.high),
            **rule,
        }
        found: dict[str, BaseDistribution] = {}
        for name, distribution in named.items():
            if name in _LOCAL and self.places:
                divided = [place for place in self.places if name == "energy" or place not in self.whole]
                found |= dict.fromkeys((f"{name}@{place}" for place in divided), distribution)
            else:
                found[name] = distribution
        for name in ("region_strategy", "cluster_strategy", "rank_multiple"):
            if choices := getattr(space, name):
                found[name] = CategoricalDistribution(choices)
        return found

    @property
    def _levels(self) -> np.ndarray | None:
        """The values that energies or budgets may have; None where all between do."""
        span: EnergyRange | BudgetRange | None = self.config.space.budget or self.config.space.energy
        assert span is not None
        if span.low == span.high:
            return np.array([span.low])
        if span.levels is None:
            return None
        spaced = np.geomspace if isinstance(span, BudgetRange) else np.linspace
        # Of a narrow range levels may be equal.
        return np.unique(np.round(spaced(span.low, span.high, span.levels), 6).clip(span.low, span.high))

    def snapped(self, sample: Sample) -> Sample:
        """A sample with energies or budgets at the nearest of their levels."""
        levels = self._levels
        if levels is None:
            return sample
        return {
            name: float(levels[np.abs(levels - value).argmin()]) if isinstance(value, float) else value
            for name, value in sample.items()
        }

    def key(self, sample: Sample) -> tuple[tuple[str, Any], ...]:
        """The same for samples that give the same network.

        With one region it does not matter how it is found, and the strategy ``none`` finds one whatever is asked for.
        """
        telling = dict(sample)
        for strategy, count in (("region_strategy", "regions"), ("cluster_strategy", "clusters")):
            counts = [name for name in sample if name.split("@")[0] == count]
            if sample.get(strategy, getattr(self.config.compression, strategy)) == "none":
                telling |= dict.fromkeys(counts, 1)
            if all(telling[name] == 1 for name in counts):
                telling.pop(strategy, None)
        return tuple(sorted(telling.items()))

    @property
    def size(self) -> float:
        """How many samples there are, those of equal keys counted each; infinite without levels."""
        return math.prod(len(values) if values is not None else math.inf for values in self._values().values())

    def grid(self) -> Iterator[Sample]:
        """Every sample; the space must be finite."""
        values = self._values()
        for combination in itertools.product(*(values[name] or () for name in values)):
            yield dict(zip(values, combination, strict=True))

    def _values(self) -> dict[str, list[Any] | None]:
        levels = self._levels
        found: dict[str, list[Any] | None] = {}
        for name, distribution in self.distributions.items():
            if isinstance(distribution, IntDistribution):
                found[name] = list(range(distribution.low, distribution.high + 1))
            elif isinstance(distribution, CategoricalDistribution):
                found[name] = list(distribution.choices)
            else:
                found[name] = None if levels is None else levels.tolist()
        return found

    def checked(self, given: Mapping[str, Any]) -> Sample:
        """A sample that a user gave, such as one to start from, with every number of the right kind.

        Raises:
            ConfigError: a name or a value is not of this space.
        """
        wanted = ", ".join(self.distributions)
        if given.keys() != self.distributions.keys():
            raise ConfigError(f"study {self.config.name}: start: {dict(given)} needs values for {wanted} and no others")
        sample = {}
        for name, distribution in self.distributions.items():
            value = given[name]
            try:
                inside = distribution._contains(distribution.to_internal_repr(value))
            except (ValueError, TypeError):
                inside = False
            if not inside:
                raise ConfigError(f"study {self.config.name}: start: {name} {value!r} is not in the study's space")
            sample[name] = float(value) if isinstance(distribution, FloatDistribution) else value
        return self.snapped(sample)

    def setting(self, sample: Sample) -> "Setting":
        """What a sample stands for."""
        from hscc_search.compression.setting import Setting

        compression = self.config.compression
        common = {name: value for name, value in sample.items() if "@" not in name}
        by_layer = {
            layer: {name: sample[f"{name}@{place}"] for name in _LOCAL if f"{name}@{place}" in sample}
            for place, layers in self.places.items()
            for layer in layers
        }
        given = {
            "region_gain": compression.region_gain,
            "rank_multiple": compression.rank_multiple,
            "region_strategy": compression.region_strategy,
            "cluster_strategy": compression.cluster_strategy,
            "seed": self.config.seed,
            **common,
        }
        if by_layer and "budget" not in given:
            given["energy"] = 1.0  # of layers that have none of their own: there are none
        return Setting(**given, by_layer=by_layer)


def space_of(config: StudyConfig, calibration: "Calibration") -> Space:
    """The search space of a study on its calibrated network."""
    places = places_of(config, calibration)
    flat = {record.name for record in calibration.records if record.fully_connected}
    return Space(config, places, tuple(place for place, layers in places.items() if flat.issuperset(layers)))


def places_of(config: StudyConfig, calibration: "Calibration") -> dict[str, list[str]]:
    """The stages or layers that a study samples for by themselves; empty where it takes the network as one."""
    if config.space.per == "network":
        return {}
    from hscc_search.compression.ranks.choice import compressible

    records = compressible(calibration)
    if config.space.per == "layer":
        return {record.name: [record.name] for record in records}
    runs = itertools.groupby(records, key=lambda record: (record.lattice.height, record.lattice.width))
    return {f"stage{number}": [record.name for record in run] for number, (_, run) in enumerate(runs, 1)}
