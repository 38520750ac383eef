"""Every method at every budget on the same splits, side by side.

A row is one measured network. Each row is a file of its own, written whole when it is measured, so that a comparison
that is stopped goes on where it was.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hscc_search import models
from hscc_search.compression.baselines import METHODS as BASELINES
from hscc_search.compression.calibration import Calibration, calibrate
from hscc_search.compression.hscc import compress
from hscc_search.compression.setting import Setting
from hscc_search.config import StudyConfig
from hscc_search.data import Dataset, Parts, load_dataset, split
from hscc_search.errors import CompressionError, ConfigError
from hscc_search.evaluation.cost import measure_cost
from hscc_search.evaluation.latency import Runner, measure_latency, runners
from hscc_search.evaluation.predict import predict
from hscc_search.evaluation.quality import measure_quality
from hscc_search.files import sha256, written_whole
from hscc_search.progress import Progress, Report, silent
from hscc_search.search.objective import calibration_images
from hscc_search.training import dense_network, fine_tune

DENSE = "dense"
LATENCY_BATCHES = (1, 32)


def _hscc(**changes: Any) -> Callable[[Calibration, float, int], nn.Module]:
    def method(calibration: Calibration, budget: float, seed: int) -> nn.Module:
        setting = Setting(**{**RECOMMENDED, "budget": budget, "seed": seed, **changes})
        return compress(calibration, setting).network

    return method


def _baseline(
    compressor: Callable[[nn.Module, Calibration, float], nn.Module],
) -> Callable[[Calibration, float, int], nn.Module]:
    return lambda calibration, budget, seed: compressor(calibration.network, calibration, budget)


# What HSCC itself would take for a budget: regions save FLOPs, but cutting a map into pieces costs more time than that.
RECOMMENDED: dict[str, Any] = {"regions": 1, "clusters": 1, "rank_multiple": 8}

# The method and its peers; then the method with regions in all layers and with clusters, each beside a control that
# draws them at random.
METHODS: dict[str, Callable[[Calibration, float, int], nn.Module]] = {
    "hscc": _hscc(),
    **{name: _baseline(compressor) for name, compressor in BASELINES.items()},
    "hscc-regions": _hscc(regions=9, region_gain=0),
    "hscc-random-regions": _hscc(regions=9, region_gain=0, region_strategy="random"),
    "hscc-clusters": _hscc(clusters=2),
    "hscc-random-clusters": _hscc(clusters=2, cluster_strategy="random"),
}


@dataclass(frozen=True)
class Row:
    """One measured network.

    Attributes:
        method: a key of :data:`METHODS`, or ``dense``.
        budget: asked ratio of FLOPs; 1 for the dense network.
        seed: of the split.
        epochs: of fine-tuning.
        macs: multiply-adds per image; FLOPs are twice as many.
        parameters: number of weights.
        quality: on the test part, see :class:`hscc_search.evaluation.quality.Quality`.
        right: for each image of the test part 1 where the network was right, else 0.
        latency: median milliseconds per batch by ``runtime batch``, such as ``torch 1``, with the dense network's
            from the same turns under ``dense torch 1``; empty where it was not measured.
        seconds: that compressing (or training further) took.
        failure: why there is no network, or None.
    """

    method: str
    budget: float
    seed: int
    epochs: int
    macs: int = 0
    parameters: int = 0
    quality: dict[str, Any] | None = None
    right: tuple[int, ...] = ()
    latency: dict[str, float] | None = None
    seconds: float = 0.0
    failure: str | None = None


@dataclass(frozen=True)
class Summary:
    """The rows of one method, budget and number of epochs over all splits: means, each with its standard error.

    Differences are of the same images; their errors come from the images too. They are None where a row is missing.

    Attributes:
        ratio: dense FLOPs / FLOPs, the least over the splits.
        accuracy: on the test parts, 0 to 1.
        to_dense: accuracy minus the dense network's without further training.
        to_hscc: accuracy of HSCC at the same budget and epochs minus this one's.
        speedup: dense latency / latency by ``runtime batch``, median over the splits.
        failures: the splits' reasons where there is no network.
    """

    method: str
    budget: float
    epochs: int
    splits: int
    ratio: float | None
    parameters: int | None
    accuracy: float | None
    accuracy_se: float | None
    macro_f1: float | None
    macro_f1_se: float | None
    to_dense: float | None
    to_dense_se: float | None
    to_hscc: float | None
    to_hscc_se: float | None
    speedup: dict[str, float]
    failures: tuple[str, ...]


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
    place = models.choose_device(device)
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


def summarise(rows: Sequence[Row]) -> list[Summary]:
    """Put the rows of all splits together, in the order in which methods and budgets first occur."""
    keys = list(dict.fromkeys((row.method, row.budget, row.epochs) for row in rows))
    found = {(row.method, row.budget, row.epochs, row.seed): row for row in rows}
    seeds = list(dict.fromkeys(row.seed for row in rows))

    def of(method: str, budget: float, epochs: int) -> list[Row | None]:
        every = [found.get((method, budget, epochs, seed)) for seed in seeds]
        return [row if row is not None and row.failure is None else None for row in every]

    dense = of(DENSE, 1.0, 0)
    summaries = []
    for method, budget, epochs in keys:
        here = of(method, budget, epochs)
        there = [row for row in here if row is not None]
        whole = len(there) == len(here)
        to_dense, to_dense_se = _paired(here, dense)
        to_hscc, to_hscc_se = _paired(of("hscc", budget, epochs), here)
        accuracy, accuracy_se = _mean([row.quality for row in there if row.quality], "accuracy", whole)
        macro_f1, macro_f1_se = _mean([row.quality for row in there if row.quality], "macro_f1", whole)
        ratios = [first.macs / row.macs for first, row in zip(dense, here, strict=True) if first and row]
        summaries.append(
            Summary(
                method=method,
                budget=budget,
                epochs=epochs,
                splits=len(there),
                ratio=min(ratios) if ratios else None,
                parameters=max(row.parameters for row in there) if there else None,
                accuracy=accuracy,
                accuracy_se=accuracy_se,
                macro_f1=macro_f1,
                macro_f1_se=macro_f1_se,
                to_dense=to_dense,
                to_dense_se=to_dense_se,
                to_hscc=to_hscc,
                to_hscc_se=to_hscc_se,
                speedup=_speedup(of(method, budget, 0)),
                failures=tuple(
                    f"split {row.seed}: {row.failure}"
                    for row in rows
                    if (row.method, row.budget, row.epochs) == (method, budget, epochs) and row.failure
                ),
            )
        )
    return summaries


def _mean(qualities: list[dict[str, Any]], key: str, whole: bool) -> tuple[float | None, float | None]:
    if not qualities or not whole:
        return None, None
    errors = [quality[f"{key}_se"] for quality in qualities]
    mean = sum(quality[key] for quality in qualities) / len(qualities)
    return mean, math.sqrt(sum(error**2 for error in errors)) / len(errors)


def _paired(first: Sequence[Row | None], second: Sequence[Row | None]) -> tuple[float | None, float | None]:
    """Mean over splits of the paired differences first - second, and its standard error from the images."""
    means, variances = [], []
    for one, other in zip(first, second, strict=True):
        if one is None or other is None:
            return None, None
        difference = np.array(one.right) - np.array(other.right)
        means.append(difference.mean())
        variances.append(difference.var() / len(difference))
    return float(np.mean(means)), math.sqrt(sum(variances)) / len(variances)


def _speedup(rows: Sequence[Row | None]) -> dict[str, float]:
    measured = [row.latency for row in rows if row is not None and row.latency]
    names = [name for name in (measured[0] if measured else {}) if not name.startswith("dense ")]
    return {
        name: float(np.median([row[f"dense {name}"] / row[name] for row in measured if name in row])) for name in names
    }


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


def _file(out: Path, method: str, budget: float, seed: int, epochs: int) -> Path:
    return out / "rows" / f"split{seed}-{method}-{budget:.12g}x-{epochs}epochs.json"


def _write(path: Path, tree: dict[str, Any]) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
        temporary.chmod(0o644)


def _read(path: Path) -> Row:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return Row(**{**tree, "right": tuple(tree["right"])})
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged: delete it, and it is measured again") from error
