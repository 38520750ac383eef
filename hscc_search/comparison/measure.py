"""Every method at every budget on the same splits, side by side.

A row is one measured network. Each row is a file of its own, written whole when it is measured, so that a comparison
that is stopped goes on where it was.
"""

import copy
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hscc_search.comparison.methods import METHODS
from hscc_search.comparison.row import DENSE, Row, _file, _read, _write
from hscc_search.compression.calibration.calibrate import Calibration, calibrate
from hscc_search.config import StudyConfig
from hscc_search.data import Dataset, Parts, load_dataset, split
from hscc_search.dense.device import choose_device
from hscc_search.dense.fine_tuning import fine_tune
from hscc_search.dense.opened import dense_network
from hscc_search.errors import CompressionError, ConfigError
from hscc_search.evaluation.counters import measure_cost
from hscc_search.evaluation.predictions import predict
from hscc_search.evaluation.quality import measure_quality
from hscc_search.files import sha256
from hscc_search.progress import Progress, Report, silent
from hscc_search.runtime.latency import Runner, measure_latency, runners
from hscc_search.search.trial import calibration_images

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
) -> list[Row]:
    """Measure what is not yet measured in ``out``, and return all rows that were asked for.

    Args:
        config: names images, network and recipe; its split seed and budget settings are replaced.
        budgets: ratios of FLOPs.
        methods: keys of :data:`METHODS`.
        seeds: of the splits; each has a dense network of its own, trained where it is not in the cache.
        epochs: of fine-tuning; with 0 networks are measured as they come, else both ways.
        out: folder for the rows.
        device: where to compute; latency is always measured on the CPU.
        report: told of each step.

    Raises:
        ConfigError: a method or a number is wrong, a checkpoint is given for several splits, or ``out`` belongs to
            another comparison.
    """
    _check(config, budgets, methods, seeds)
    dataset = load_dataset(config.data, report)
    _claim(out, config, epochs, dataset.fingerprint)
    place = choose_device(device)
    tuned = [0, epochs] if epochs else [0]
    asked = [
        (method, budget, seed, count)
        for seed in seeds
        for method, budget in [(DENSE, 1.0), *((method, budget) for budget in budgets for method in methods)]
        for count in tuned
    ]
    wanted = list(dict.fromkeys(asked))
    for seed in dict.fromkeys(seeds):
        missing = [key for key in wanted if key[2] == seed and not _file(out, *key).exists()]
        if not missing:
            continue
        tree = config.stored()
        tree["data"]["split_seed"] = seed
        split_config = StudyConfig.from_tree(tree, f"split {seed}").finetuned(epochs)
        parts = split(dataset, config.data.validation, config.data.test, seed)
        network = dense_network(split_config, dataset, parts, place, report)
        _measure_split(_Split(split_config, dataset, parts, network, place), missing, out, report)
    return [_read(_file(out, *key)) for key in wanted]


@dataclass(frozen=True)
class _Split:
    config: StudyConfig
    dataset: Dataset
    parts: Parts
    dense: nn.Module
    device: torch.device

    @cached_property
    def dense_runners(self) -> dict[str, Runner]:
        """What runs the dense network beside each compressed one, by runtime."""
        return runners(copy.deepcopy(self.dense).cpu(), self.config.data.image_size)


def _measure_split(here: _Split, missing: list[tuple[str, float, int, int]], out: Path, report: Report) -> None:
    seed = here.config.data.split_seed
    calibration: Calibration | None = None
    groups = list(dict.fromkeys((method, budget) for method, budget, _, _ in missing))
    for done, (method, budget) in enumerate(groups):
        report(Progress(f"comparing on split {seed}", done, len(groups), f"{method} at {budget:g}x"))
        if calibration is None and method != DENSE:
            images = calibration_images(here.config, here.parts.train, here.device)
            calibration = calibrate(here.dense, images, report)
        counts = [count for name, ratio, _, count in missing if (name, ratio) == (method, budget)]
        for row in _rows(here, None if method == DENSE else calibration, method, budget, counts, report):
            _write(_file(out, row.method, row.budget, row.seed, row.epochs), asdict(row))
    report(Progress(f"comparing on split {seed}", len(groups), len(groups)))


def _rows(
    here: _Split, calibration: Calibration | None, method: str, budget: float, counts: list[int], report: Report
) -> Iterator[Row]:
    seed = here.config.data.split_seed
    start = time.perf_counter()
    try:
        # The dense network as it came: further training then starts from its batch norms, unfolded.
        network = copy.deepcopy(here.dense) if calibration is None else METHODS[method](calibration, budget, seed)
    except CompressionError as error:
        for count in counts:
            yield Row(method, budget, seed, count, failure=str(error))
        return
    seconds = time.perf_counter() - start
    for count in counts:
        if count:
            start = time.perf_counter()
            fine_tune(network, here.dense, here.config, here.parts.train, here.device, report)
            seconds = time.perf_counter() - start
        yield _row(here, network, Row(method, budget, seed, count, seconds=seconds))


def _row(here: _Split, network: nn.Module, row: Row) -> Row:
    classes = len(here.dataset.classes)
    test = here.parts.test
    scores = predict(network, test, here.config.data, here.device)
    if not np.isfinite(scores).all():
        return replace(row, failure="the network answers with values that are not finite")
    predicted = scores.argmax(axis=1)
    cost = measure_cost(network, here.config.data.image_size)
    return Row(
        **{
            **asdict(row),
            "macs": cost.macs,
            "parameters": cost.parameters,
            "quality": measure_quality(predicted, test.labels, classes, here.config.seed).stored(),
            "right": tuple((predicted == test.labels).astype(int).tolist()),
            "latency": _latency(here, network) if row.epochs == 0 and row.method != DENSE else {},
        }
    )


def _latency(here: _Split, network: nn.Module) -> dict[str, float]:
    side = here.config.data.image_size
    networks = {"dense": here.dense_runners, "compressed": runners(network.cpu(), side)}
    found = {}
    for run, seconds in measure_latency(networks, side, LATENCY_BATCHES).items():
        found[run] = seconds["compressed"] * 1000
        found[f"dense {run}"] = seconds["dense"] * 1000
    network.to(here.device)
    return found


def _check(config: StudyConfig, budgets: Sequence[float], methods: Sequence[str], seeds: Sequence[int]) -> None:
    for method in methods:
        if method not in METHODS:
            raise ConfigError(f"no method {method!r}: use one of {', '.join(METHODS)}")
    for budget in budgets:
        if not 1 < budget < math.inf:
            raise ConfigError(f"a budget must be above 1, not {budget:g}")
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise ConfigError(f"a seed must be from 0 to 2**32 - 1, not {seed}")
    if len(seeds) > 1 and config.model.checkpoint is not None:
        raise ConfigError(
            "a checkpoint belongs to one split: leave model.checkpoint out so that each split is trained, "
            "or give one seed"
        )


def _claim(out: Path, config: StudyConfig, epochs: int, fingerprint: str) -> None:
    """Make the folder, or check that it belongs to the same comparison."""
    checkpoint = config.model.checkpoint
    try:
        inputs = {"images": fingerprint, "checkpoint": sha256(checkpoint) if checkpoint else None}
    except OSError as error:
        raise ConfigError(f"cannot read checkpoint {checkpoint} ({error.strerror}): name another file") from error
    place = out / "comparison.json"
    if place.exists():
        try:
            stored = json.loads(place.read_text(encoding="utf-8"))
            before = StudyConfig.from_tree(stored["study"], f"{place}")
            tuned, inputs_before = stored["finetune"], {name: stored[name] for name in inputs}
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{place} is damaged: name another output folder") from error
        differences = config.differences(before)
        differences += [f"other {name}" for name in inputs if inputs[name] != inputs_before[name]]
        if tuned != epochs and tuned and epochs:
            differences.append(f"finetune: {tuned} -> {epochs}")
        if differences:
            raise ConfigError(f"{out} holds another comparison ({'; '.join(differences)}): name another output folder")
        if not epochs:
            return
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is no comparison: name another output folder")
    try:
        (out / "rows").mkdir(parents=True, exist_ok=True)
        _write(place, {"study": config.stored(), "finetune": epochs, **inputs})
    except OSError as error:
        raise ConfigError(f"cannot write to {out} ({error.strerror}): name another output folder") from error
