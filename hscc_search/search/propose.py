"""The next sample to try, given what was tried so far. Nothing here touches a storage.

Optuna's samplers see a study in memory that holds the trials, so that reading and writing costs no round trip to a
database. A proposal that was tried before is drawn again, which Optuna's samplers do not do by themselves.
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
from hscc_search.search.space import Sample, Space

# Space-filling points that `auto` begins with; after them it varies the front.
_FILLING = 8
# Trials that a sampler sees at most: the front, then the latest.
_WINDOW = 120
# Repeated proposals after which the sampler is not asked again.
_REDRAWS = 20


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
    """A sample to try, and what its sampler reads again later (NSGA-II: the generation)."""

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
    taken = {space.key(one.sample) for one in tried}

    def fresh(sample: Sample) -> bool:
        return space.key(sample) not in taken

    for sample in map(space.checked, config.start):
        if fresh(sample):
            # NSGA-II only breeds from trials that carry their generation.
            bred = config.sampler == "nsga2"
            return Proposal(sample, _drawn(space, objectives, tried, seed, 0).attributes if bred else {})
    if config.sampler == "grid":
        return _from_grid(space, taken, seed=config.seed)
    # GP is slow, and its proposal does not depend on the seed.
    for attempt in range(1 if config.sampler == "gp" else _REDRAWS):
        proposal = _drawn(space, objectives, tried, seed, attempt)
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
    """Say to Optuna which objectives are maximised."""
    return [StudyDirection.MAXIMIZE if objective.maximise else StudyDirection.MINIMIZE for objective in objectives]


def _drawn(space: Space, objectives: Sequence[Objective], tried: Sequence[Tried], seed: int, attempt: int) -> Proposal:
    kind = space.config.sampler
    seed += 7919 * attempt
    if kind == "random":
        return Proposal(space.snapped(_uniform(space, random.Random(seed))))
    if kind == "auto":
        # Unfinished trials count too, or workers that start together would all take the first point.
        count = max(0, len(tried) - len(space.config.start))
        if count < _FILLING:
            return Proposal(space.snapped(_filling(space, count + attempt)))
        measured = [one for one in tried if one.values is not None]
        if not measured:
            return Proposal(space.snapped(_uniform(space, random.Random(seed))))
        return Proposal(space.snapped(_varied(space, objectives, measured, random.Random(seed))))
    return _by_optuna(_sampler(kind, seed), space, objectives, tried if kind == "nsga2" else _window(objectives, tried))


def _from_grid(space: Space, taken: set[tuple[tuple[str, Any], ...]], seed: int) -> Proposal | None:
    """Propose an untried sample of a finite space, in a random order, which covers the space evenly from the start."""
    left: dict[tuple[tuple[str, Any], ...], Sample] = {}
    for sample in space.grid():
        left.setdefault(space.key(sample), sample)
    order = list(left)
    random.Random(seed).shuffle(order)
    key = next((key for key in order if key not in taken), None)
    return None if key is None else Proposal(left[key])


def _uniform(space: Space, chance: random.Random) -> Sample:
    return {name: _at(distribution, chance.random()) for name, distribution in space.distributions.items()}


def _at(distribution: Any, share: float) -> Any:
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
    """Take the ``number``-th of a space-filling sequence (Halton), with the ends of energies and budgets first.

    Those ends are the ends of the front, and no sample between them tells where they lie.
    """
    from scipy.stats import qmc  # takes a second to import, and reading a front needs none of it

    names = list(space.distributions)
    shares = qmc.Halton(len(names), rng=np.random.default_rng(space.config.seed)).random(number + 1)[number]
    floats = [isinstance(space.distributions[name], FloatDistribution) for name in names]
    if number < 2:
        shares = np.where(floats, float(number), 0.0)
    return {name: _at(space.distributions[name], share) for name, share in zip(names, shares, strict=True)}


def _varied(space: Space, objectives: Sequence[Objective], measured: Sequence[Tried], chance: random.Random) -> Sample:
    """Draw one or two values of a member of the front anew, floats mostly nearby."""
    members = _front(objectives, measured) or list(measured)
    sample = dict(chance.choice(members).sample)
    names = list(space.distributions)
    for name in chance.sample(names, min(len(names), chance.choice((1, 1, 2)))):
        distribution = space.distributions[name]
        if isinstance(distribution, FloatDistribution) and chance.random() < 0.8:
            spread = 0.05
            low, high = distribution.low, distribution.high
            share = (
                np.log(sample[name] / low) / (np.log(high / low) or 1)
                if distribution.log
                else (sample[name] - low) / ((high - low) or 1)
            )
            sample[name] = _at(distribution, min(1.0, max(0.0, share + chance.gauss(0, spread))))
        else:
            sample[name] = _at(distribution, chance.random())
    return sample


def _front(objectives: Sequence[Objective], measured: Sequence[Tried]) -> list[Tried]:
    kept = [one for one in measured if all(value <= 0 for value in one.excesses)]
    if not kept:
        return []
    signs = np.array([objective.sign for objective in objectives])
    values = np.array([one.values for one in kept]) * signs
    return [kept[row] for row in np.flatnonzero(moocore.is_nondominated(values))]


def _window(objectives: Sequence[Objective], tried: Sequence[Tried]) -> list[Tried]:
    """Choose the trials that a sampler sees: all that run, the front, and the latest."""
    finished = [one for one in tried if one.values is not None]
    running = [one for one in tried if one.values is None and not one.failed]
    if len(finished) > _WINDOW:
        members = _front(objectives, finished)[-_WINDOW // 2 :]
        chosen = {id(one) for one in members}
        finished = members + [one for one in finished if id(one) not in chosen][-(_WINDOW - len(members)) :]
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
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(directions=directions_of(objectives), sampler=sampler)
        for one in tried:
            if one.failed:
                continue
            state = TrialState.RUNNING if one.values is None else TrialState.COMPLETE
            study.add_trial(
                create_trial(
                    state=state,
                    params=one.sample,
                    distributions=space.distributions,
                    values=one.values,
                    system_attrs={"constraints": list(one.excesses), **one.attributes},
                )
            )
        trial = study.ask(space.distributions)
    finally:
        optuna.logging.set_verbosity(verbosity)
    written = study.get_trials(deepcopy=False)[trial.number].system_attrs
    attributes = {key: value for key, value in written.items() if "generation" in key}
    return Proposal(space.snapped(trial.params), attributes)
