"""Propose the next sample, given the samples that were tried. Nothing in this module touches a storage.

Optuna's samplers see a study in memory that holds the trials, so that reading and writing costs no round trip to a
database. A proposal that was tried before is drawn again, which Optuna's samplers do not do themselves.
"""

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import moocore
import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from hscc_search.pareto.objectives import Objective
from hscc_search.progress import errors_only
from hscc_search.study.space import Sample, Space

# Number of space-filling samples that `auto` begins with; after them it varies the front.
_FILLING = 8
# Largest number of finished trials that a sampler sees: the front, then the latest.
_WINDOW = 120
# Number of proposals, all of them tried before, after which the sampler is not asked again.
_REDRAWS = 20
# Probability that `auto` varies an energy or budget close by, and the standard deviation then, as a share of its range.
_NEARBY, _SPREAD = 0.8, 0.05


@dataclass(frozen=True)
class Tried:
    """A sample that was tried, or is being tried.

    Attributes:
        sample: the values.
        values: of the objectives, in their order; None while it runs and where it failed.
        excesses: beyond the bounds of the constraints, above 0 where one is not kept.
        failed: whether it ended without values.
        attributes: what the sampler stored with it.
    """

    sample: Sample
    values: tuple[float, ...] | None = None
    excesses: tuple[float, ...] = ()
    failed: bool = False
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Proposal:
    """A sample to try.

    Attributes:
        sample: the values.
        attributes: what the sampler stores with the trial and reads later (NSGA-II: the generation).
    """

    sample: Sample
    attributes: dict[str, Any] = field(default_factory=dict)


def propose(space: Space, objectives: Sequence[Objective], tried: Sequence[Tried], seed: int) -> Proposal | None:
    """Propose the next sample.

    Args:
        space: of the study; its configuration names the sampler and the samples to start from.
        objectives: of the study.
        tried: all samples so far, in the order of their trials.
        seed: the same seed and the same trials give the same proposal.

    Returns:
        A sample that was not tried before; None where none is left.
    """
    config = space.config
    taken = {space.key(trial.sample) for trial in tried}

    def fresh(sample: Sample) -> bool:
        return space.key(sample) not in taken

    for sample in map(space.checked, config.start):
        if fresh(sample):
            # NSGA-II breeds only from trials with a generation, so a start sample gets that of a drawn one.
            if config.sampler == "nsga2":
                return Proposal(sample, _draw(space, objectives, tried, seed, attempt=0).attributes)
            return Proposal(sample)
    if config.sampler == "grid":
        return _from_grid(space, taken, seed=config.seed)
    # GP is slow, and its proposal does not depend on the seed.
    for attempt in range(1 if config.sampler == "gp" else _REDRAWS):
        proposal = _draw(space, objectives, tried, seed, attempt)
        if fresh(proposal.sample):
            return proposal
    if space.size <= 1_000_000:
        return _from_grid(space, taken, seed)
    for attempt in range(1000):
        sample = space.snapped(_uniform(space, random.Random(seed + attempt)))
        if fresh(sample):
            return Proposal(sample)
    return None


def directions_of(objectives: Sequence[Objective]) -> list[StudyDirection]:
    """The directions of the objectives, as Optuna takes them."""
    return [StudyDirection.MAXIMIZE if objective.maximise else StudyDirection.MINIMIZE for objective in objectives]


def _draw(space: Space, objectives: Sequence[Objective], tried: Sequence[Tried], seed: int, attempt: int) -> Proposal:
    """Draw a sample with the study's sampler; each attempt has a seed of its own."""
    kind = space.config.sampler
    seed += 7919 * attempt
    if kind == "random":
        return Proposal(space.snapped(_uniform(space, random.Random(seed))))
    if kind == "auto":
        # Unfinished trials count too, or workers that start together would all take the first sample.
        count = max(0, len(tried) - len(space.config.start))
        if count < _FILLING:
            return Proposal(space.snapped(_filling(space, count + attempt)))
        measured = [trial for trial in tried if trial.values is not None]
        if not measured:
            return Proposal(space.snapped(_uniform(space, random.Random(seed))))
        return Proposal(space.snapped(_varied(space, objectives, measured, random.Random(seed))))
    return _by_optuna(_sampler(kind, seed), space, objectives, tried if kind == "nsga2" else _window(objectives, tried))


def _from_grid(space: Space, taken: set[tuple[tuple[str, Any], ...]], seed: int) -> Proposal | None:
    """Propose an untried sample of a finite space, in a random order, which covers the space evenly from the start."""
    samples: dict[tuple[tuple[str, Any], ...], Sample] = {}
    for sample in space.grid():
        samples.setdefault(space.key(sample), sample)
    order = list(samples)
    random.Random(seed).shuffle(order)
    for key in order:
        if key not in taken:
            return Proposal(samples[key])
    return None


def _uniform(space: Space, generator: random.Random) -> Sample:
    return {name: _value_at(distribution, generator.random()) for name, distribution in space.distributions.items()}


def _value_at(distribution: Any, share: float) -> Any:
    """Take the value of a distribution at a share of its range, 0 to 1."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[min(int(share * len(distribution.choices)), len(distribution.choices) - 1)]
    if isinstance(distribution, IntDistribution):
        return min(distribution.low + int(share * (distribution.high - distribution.low + 1)), distribution.high)
    assert isinstance(distribution, FloatDistribution)
    low, high = distribution.low, distribution.high
    value = low * (high / low) ** share if distribution.log else low + share * (high - low)
    return min(max(float(value), low), high)


def _filling(space: Space, number: int) -> Sample:
    """Take sample ``number`` of a space-filling sequence (Halton).

    The first two are the lowest and the highest energies or budgets instead: they are the ends of the front, which no
    sample between them shows. Each is proposed once in each precision, so that these differ in nothing else.
    """
    from scipy.stats import qmc  # takes a second to import, and reading a front needs none of it

    precisions = space.config.space.precision if "precision" in space.distributions else [None]
    number, turn = divmod(number, len(precisions))
    names = [name for name in space.distributions if name != "precision"]
    shares = qmc.Halton(len(names), rng=np.random.default_rng(space.config.seed)).random(number + 1)[number]
    floats = [isinstance(space.distributions[name], FloatDistribution) for name in names]
    if number < 2:
        shares = np.where(floats, float(number), 0.0)
    sample = {name: _value_at(space.distributions[name], share) for name, share in zip(names, shares, strict=True)}
    return sample if len(precisions) == 1 else {**sample, "precision": precisions[turn]}


def _varied(
    space: Space, objectives: Sequence[Objective], measured: Sequence[Tried], generator: random.Random
) -> Sample:
    """Take a member of the front and draw one or two of its values again, energies and budgets mostly close by."""
    members = _front(objectives, measured) or list(measured)
    sample = dict(generator.choice(members).sample)
    names = list(space.distributions)
    for name in generator.sample(names, min(len(names), generator.choice((1, 1, 2)))):
        distribution = space.distributions[name]
        if isinstance(distribution, FloatDistribution) and generator.random() < _NEARBY:
            share = _share_of(distribution, sample[name])
            sample[name] = _value_at(distribution, min(1.0, max(0.0, share + generator.gauss(0, _SPREAD))))
        else:
            sample[name] = _value_at(distribution, generator.random())
    return sample


def _share_of(distribution: FloatDistribution, value: float) -> float:
    """Undo :func:`_value_at`; 0 for a range of one value."""
    low, high = distribution.low, distribution.high
    if distribution.log:
        share: float = np.log(value / low) / (np.log(high / low) or 1)
        return share
    return (value - low) / ((high - low) or 1)


def _front(objectives: Sequence[Objective], measured: Sequence[Tried]) -> list[Tried]:
    feasible = [trial for trial in measured if all(excess <= 0 for excess in trial.excesses)]
    if not feasible:
        return []
    signs = np.array([objective.sign for objective in objectives])
    values = np.array([trial.values for trial in feasible]) * signs
    return [feasible[position] for position in np.flatnonzero(moocore.is_nondominated(values))]


def _window(objectives: Sequence[Objective], tried: Sequence[Tried]) -> list[Tried]:
    """Choose the trials that a sampler sees: members of the front, the latest finished ones, and all that run."""
    finished = [trial for trial in tried if trial.values is not None]
    running = [trial for trial in tried if trial.values is None and not trial.failed]
    if len(finished) > _WINDOW:
        members = _front(objectives, finished)[-_WINDOW // 2 :]
        chosen = {id(trial) for trial in members}
        rest = [trial for trial in finished if id(trial) not in chosen]
        finished = members + rest[-(_WINDOW - len(members)) :]
    return finished + running


def _sampler(kind: str, seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "gp":
            return GPSampler(seed=seed, n_startup_trials=2, deterministic_objective=True)
        if kind == "tpe":
            return TPESampler(seed=seed, multivariate=True, constant_liar=True)
        return NSGAIISampler(seed=seed, population_size=20)


def _by_optuna(sampler: BaseSampler, space: Space, objectives: Sequence[Objective], tried: Sequence[Tried]) -> Proposal:
    with errors_only("optuna"):
        study = optuna.create_study(directions=directions_of(objectives), sampler=sampler)
        for trial in tried:
            if trial.failed:
                continue
            state = TrialState.RUNNING if trial.values is None else TrialState.COMPLETE
            study.add_trial(
                create_trial(
                    state=state,
                    params=trial.sample,
                    distributions=space.distributions,
                    values=trial.values,
                    system_attrs={"constraints": list(trial.excesses), **trial.attributes},
                )
            )
        proposed = study.ask(space.distributions)
    stored = study.get_trials(deepcopy=False)[proposed.number].system_attrs
    attributes = {key: value for key, value in stored.items() if "generation" in key}
    return Proposal(space.snapped(proposed.params), attributes)
