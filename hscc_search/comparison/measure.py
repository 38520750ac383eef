"""Compress the dense network of each split with every method at every budget, and measure the results."""

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import nn

from hscc_search.comparison.folder import claim, network_path, read_network, write_network
from hscc_search.comparison.methods import METHODS
from hscc_search.comparison.record import DENSE, Asked, ComparedNetwork, ComparisonRecord
from hscc_search.compression.calibration.calibrate import Calibration, calibrate
from hscc_search.compression.calibration.plain_layers import make_plain
from hscc_search.compression.refining import Lessons
from hscc_search.compression.refining import refine as refine_network
from hscc_search.config import StudyConfig
from hscc_search.config.space import MOST_BUDGET
from hscc_search.data import load_dataset
from hscc_search.dense.fine_tuning import fine_tune
from hscc_search.dense.opened import Opened, open_dense
from hscc_search.errors import CompressionError, ConfigError
from hscc_search.evaluation.counters import measure_cost
from hscc_search.evaluation.draws import alone
from hscc_search.evaluation.own import measure_own, own_metrics
from hscc_search.evaluation.predictions import predict
from hscc_search.evaluation.quality import measure_quality
from hscc_search.evaluation.scores import kept_scores
from hscc_search.files import sha256
from hscc_search.progress import Progress, Report, silent
from hscc_search.runtime.latency import Runner, measure_latency, runners
from hscc_search.study.opening import calibration_images
from hscc_search.study.refinement import lessons_of, refinement_of

# Images per batch where latency is measured.
LATENCY_BATCHES = (1, 32)


def compare(
    config: StudyConfig,
    budgets: Sequence[float],
    methods: Sequence[str],
    seeds: Sequence[int],
    epochs: int,
    out: Path,
    device: str = "auto",
    report: Report = silent,
    refine: bool = False,
) -> list[ComparedNetwork]:
    """Measure the networks that ``out`` does not hold yet, and return all that were asked for.

    Args:
        config: of a study; its split seed and its epochs of fine-tuning are replaced.
        budgets: ratios of dense FLOPs to compressed FLOPs, above 1.
        methods: keys of :data:`hscc_search.comparison.methods.METHODS`.
        seeds: of the splits; each split has a dense network of its own, trained where it is not in the cache.
        epochs: of fine-tuning; above 0 each network is measured before and after fine-tuning.
        out: folder for the measured networks.
        device: where to compute; latency is always measured on the CPU.
        report: told of each step.
        refine: measure each network after refining as well, as the study's ``refine`` section says how.

    Raises:
        HsccError: a method or a number is wrong, several splits are asked for where a checkpoint or the images belong
            to one, ``out`` belongs to another comparison, or the images or the dense network cannot be used.
    """
    _check(config, budgets, methods, seeds)
    dataset = load_dataset(config.data, report)
    if dataset.maps:
        raise ConfigError("targets are maps, and methods are compared on images of one class each: use run and front")
    if dataset.sides is not None and len(set(seeds)) > 1:
        raise ConfigError(
            "the images come with a split, which is kept, and other seeds draw no other one: give one seed"
        )
    config = claim(out, ComparisonRecord(config, epochs, dataset.fingerprint, _checkpoint_digest(config)))
    every = _asked(budgets, methods, seeds, epochs, refine)
    for seed in dict.fromkeys(seeds):
        missing = [asked for asked in every if asked.seed == seed and not network_path(out, asked).exists()]
        if missing:
            opened = open_dense(_config_of_split(config, seed, epochs), device, report)
            if opened.given and len(set(seeds)) > 1:
                raise ConfigError(
                    f"the weights that {config.model.name} comes with belong to one split: "
                    "give one seed, or training.when: always, so that each split is trained"
                )
            for network in _measure_split(_Split(opened, report), missing):
                write_network(out, network)
    return [read_network(network_path(out, asked)) for asked in every]


def _check(config: StudyConfig, budgets: Sequence[float], methods: Sequence[str], seeds: Sequence[int]) -> None:
    for method in methods:
        if method not in METHODS:
            raise ConfigError(f"no method {method!r}: use one of {', '.join(METHODS)}")
    for budget in budgets:
        if not 1 < budget <= MOST_BUDGET:
            raise ConfigError(f"a budget must be above 1 and at most {MOST_BUDGET:,}, not {budget:g}")
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise ConfigError(f"a seed must be from 0 to 2**32 - 1, not {seed}")
    if len(seeds) > 1 and config.model.checkpoint is not None:
        raise ConfigError(
            "a checkpoint belongs to one split: leave model.checkpoint out so that each split is trained, "
            "or give one seed"
        )


def _checkpoint_digest(config: StudyConfig) -> str | None:
    checkpoint = config.model.checkpoint
    try:
        return sha256(checkpoint) if checkpoint else None
    except OSError as error:
        raise ConfigError(f"cannot read checkpoint {checkpoint} ({error.strerror}): name another file") from error


def _asked(
    budgets: Sequence[float], methods: Sequence[str], seeds: Sequence[int], epochs: int, refine: bool
) -> list[Asked]:
    """List the networks to compare, each once: on each split the dense one first, and further stages after theirs."""
    pairs = [(DENSE, 1.0), *((method, budget) for budget in budgets for method in methods)]
    stages = [(0, False), *([(0, True)] if refine else []), *([(epochs, False)] if epochs else [])]
    asked = [Asked(*pair, seed, *stage) for seed in seeds for pair in pairs for stage in stages]
    # The dense network has nothing to be refined towards.
    return [network for network in dict.fromkeys(asked) if not (network.refined and network.method == DENSE)]


def _config_of_split(config: StudyConfig, seed: int, epochs: int) -> StudyConfig:
    tree = config.stored()
    tree["data"]["split_seed"] = seed
    return StudyConfig.from_tree(tree, f"split {seed}").finetuned(epochs)


@dataclass(frozen=True)
class _Split:
    """One split with its dense network, and what its compressed networks share."""

    opened: Opened
    report: Report

    @property
    def seed(self) -> int:
        return self.opened.config.data.split_seed

    @cached_property
    def calibration(self) -> Calibration:
        """The dense network's calibration, made when the first method needs it."""
        return calibrate(self.opened.network, calibration_images(self.opened), self.report)

    @cached_property
    def lessons(self) -> Lessons:
        """The dense network's answers to the images of a refinement, asked for once."""
        return lessons_of(self.opened, self.calibration, refinement_of(self.opened.config), self.report)

    @cached_property
    def dense_runners(self) -> dict[str, Runner]:
        """Runners of the dense network by runtime, to be timed in turns with each compressed one."""
        return runners(_plain(self.opened, self.opened.network).cpu(), self.opened.config.data.shape)


def _measure_split(split: _Split, missing: Sequence[Asked]) -> Iterator[ComparedNetwork]:
    """Measure the missing networks of one split, and yield each as soon as it is measured."""
    task = f"comparing on split {split.seed}"
    pairs = list(dict.fromkeys((asked.method, asked.budget) for asked in missing))
    for done, (method, budget) in enumerate(pairs):
        split.report(Progress(task, done, len(pairs), f"{method} at {budget:g}x"))
        yield from _measure_stages(
            split, [asked for asked in missing if (asked.method, asked.budget) == (method, budget)]
        )
    split.report(Progress(task, len(pairs), len(pairs)))


def _measure_stages(split: _Split, stages: Sequence[Asked]) -> Iterator[ComparedNetwork]:
    """Compress by one method to one budget, and measure at each asked stage: as it is, refined, fine-tuned.

    Args:
        split: with its dense network.
        stages: of the same method and budget; the one of neither comes first.
    """
    opened = split.opened
    method, budget = stages[0].method, stages[0].budget
    calibration = None if method == DENSE else split.calibration
    start = time.perf_counter()
    try:
        if calibration is None:
            # The network as it was opened, for fine-tuning it with its batch norms, which calibrating folds.
            network = copy.deepcopy(opened.network)
        else:
            network = METHODS[method](calibration, budget, split.seed, opened.config.compression.weight_price)
    except CompressionError as error:
        for asked in stages:
            yield ComparedNetwork(asked, failure=str(error))
        return
    seconds = time.perf_counter() - start
    for asked in stages:
        if asked.refined:
            yield _measure_refined(split, copy.deepcopy(network), asked)
            continue
        if asked.epochs:
            start = time.perf_counter()
            fine_tune(network, opened.network, opened.config, opened.parts.train, opened.device, split.report)
            seconds = time.perf_counter() - start
        yield _measure(split, network, asked, seconds)


def _measure_refined(split: _Split, network: nn.Module, asked: Asked) -> ComparedNetwork:
    start = time.perf_counter()
    try:
        refine_network(network, split.lessons, refinement_of(split.opened.config), split.report)
    except CompressionError as error:
        return ComparedNetwork(asked, failure=str(error))
    return _measure(split, network, asked, time.perf_counter() - start)


def _measure(split: _Split, network: nn.Module, asked: Asked, seconds: float) -> ComparedNetwork:
    opened = split.opened
    config, test = opened.config, opened.parts.test
    scores = predict(network, test, config.data, opened.device)
    if not np.isfinite(scores).all():
        reason = "the network answers with values that are not finite"
        return ComparedNetwork(asked, seconds=seconds, failure=reason)
    predicted, kept = scores.argmax(axis=1), kept_scores(scores)
    cost = measure_cost(_plain(opened, network) if asked.method == DENSE else network, config.data.shape)
    timed = asked.epochs == 0 and not asked.refined and asked.method != DENSE
    latency, dense_latency = _latencies(split, network) if timed else ({}, {})
    return ComparedNetwork(
        asked,
        macs=cost.macs,
        parameters=cost.parameters,
        quality=measure_quality(
            predicted,
            test.labels,
            opened.dataset.classes,
            config.seed,
            scores=kept,
            groups=test.groups,
            asked=config.asked_metrics,
            own=measure_own(own_metrics(config), kept, test.labels, config.seed, test.groups),
        ),
        right=tuple((predicted == test.labels).astype(int).tolist()),
        groups=() if alone(test.groups) else tuple(np.unique(test.groups, return_inverse=True)[1].tolist()),
        latency=latency,
        dense_latency=dense_latency,
        seconds=seconds,
    )


def _plain(opened: Opened, network: nn.Module) -> nn.Module:
    """A copy of the dense network without what its weights take to be computed, which is no cost of an answer."""
    return make_plain(network, calibration_images(opened, 1))[0]


def _latencies(split: _Split, network: nn.Module) -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds per batch by ``runtime batch``, of a compressed and of the dense network."""
    opened = split.opened
    shape = opened.config.data.shape
    networks = {"dense": split.dense_runners, "compressed": runners(network.cpu(), shape)}
    latencies = measure_latency(networks, shape, LATENCY_BATCHES)
    network.to(opened.device)
    return (
        {run: milliseconds["compressed"] for run, milliseconds in latencies.items()},
        {run: milliseconds["dense"] for run, milliseconds in latencies.items()},
    )
