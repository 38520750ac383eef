"""One trial: compress the dense network with one setting and measure the result."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hscc_search.compression.calibration.calibrate import Calibration, calibrate
from hscc_search.compression.calibration.plain_layers import make_plain
from hscc_search.compression.compress import Compressed, compress
from hscc_search.compression.refining import Lessons, refine
from hscc_search.compression.setting import Refinement, Setting
from hscc_search.config import Precision, StudyConfig
from hscc_search.config.metrics import needs_scores
from hscc_search.dense.fine_tuning import fine_tune
from hscc_search.dense.opened import Opened, open_dense
from hscc_search.errors import CompressionError
from hscc_search.evaluation.cost import Cost, CountedCost
from hscc_search.evaluation.counters import cost_of, count_macs, measure_cost
from hscc_search.evaluation.draws import draw_counts
from hscc_search.evaluation.maps import measure_maps
from hscc_search.evaluation.own import check_own_metrics, measure_own, own_metrics
from hscc_search.evaluation.predictions import predict
from hscc_search.evaluation.quality import measure_quality
from hscc_search.evaluation.scores import kept_scores
from hscc_search.files import megabytes_of, sha256
from hscc_search.pareto.points import Measured
from hscc_search.progress import Report, silent
from hscc_search.runtime.latency import Runner, file_runner, in_turns, runner
from hscc_search.runtime.onnx import onnx_scores
from hscc_search.study.deployment import deployed, write_float_file, write_int8_file
from hscc_search.study.opening import calibration_images
from hscc_search.study.record import DenseRecord
from hscc_search.study.refinement import lessons_of, stored_refinement
from hscc_search.temporary import temporary_folder

# Bytes of the scores of a trial that are stored though no metric of the study needs them.
_MOST_BYTES = 2**20


@dataclass(frozen=True)
class Prepared:
    """The data that all trials of a study share, made once per run.

    Attributes:
        opened: images, split and dense network.
        calibration: of the dense network, on images from the train part.
        dense_cost: of the dense network, counted when the study was created.
        dense_runner: runs the dense network where latency is measured, None where it is not.
        dense_latency: milliseconds per batch of the dense network, measured when the study was created.
    """

    opened: Opened
    calibration: Calibration
    dense_cost: CountedCost
    dense_runner: Runner | None
    dense_latency: float | None
    _lessons: dict[tuple[int, int], Lessons] = field(default_factory=dict, repr=False)

    @property
    def config(self) -> StudyConfig:
        """The configuration of the study."""
        return self.opened.config

    def lessons(self, refinement: Refinement, report: Report = silent) -> Lessons:
        """The dense network's answers to the images of a refinement; asked for once."""
        key = refinement.images, refinement.seed
        if key not in self._lessons:
            self._lessons[key] = lessons_of(self.opened, self.calibration, refinement, report)
        return self._lessons[key]


@dataclass(frozen=True)
class TrialResult:
    """The result of one trial.

    Attributes:
        compressed: the network and the plan of its layers.
        measured: on the validation part; its MACs are those of the formula.
        refined: how it was refined; empty where it was not.
        int8: what became of it in 8-bit integers, see :class:`hscc_search.pareto.points.Point`; empty where it is
            float32.
    """

    compressed: Compressed
    measured: Measured
    refined: Mapping[str, float] = field(default_factory=dict)
    int8: Mapping[str, Any] = field(default_factory=dict)


def prepare(opened: Opened, dense: DenseRecord | None = None, report: Report = silent) -> Prepared:
    """Calibrate the dense network, or read its calibration from the cache, and measure its cost and latency.

    Args:
        opened: images, split and dense network of the study.
        dense: the stored record, from which cost and latency are taken; None for a new study, which measures them.
        report: told of calibrating.

    Raises:
        CompressionError: the network cannot be compressed, or its cost is another one than the study stores.
    """
    config = opened.config
    images = calibration_images(opened)
    plain, _ = make_plain(opened.network, images[:1])  # what a weight takes to be computed is no cost of an answer
    cost, dense_runner = _counted(plain, opened, dense)
    dense_latency = None
    if dense_runner is not None and dense is not None:
        dense_latency = dense.measured["latency"]
    elif dense_runner is not None:
        times = in_turns({"dense": dense_runner}, config.data.shape, config.latency.batch_size)
        dense_latency = times["dense"]
    calibration = calibrate(opened.network, images, report, keep=True)
    if cost.macs != calibration.macs:
        raise CompressionError(
            f"{cost.macs:,} multiply-adds of the dense network are stored or counted on an empty image, and "
            f"{calibration.macs:,} on a calibration image: start a study of another name, with a network whose cost "
            "is the same for all images"
        )
    return Prepared(opened, calibration, cost, dense_runner, dense_latency)


def _counted(network: nn.Module, opened: Opened, dense: DenseRecord | None) -> tuple[CountedCost, Runner | None]:
    """Count the dense network's cost; in a study with int8 its size is that of its ONNX file.

    Returns:
        The cost, of the stored record where there is one; and what runs the network as trials are run, in a study with
        int8 from that file, None where latency is not measured.
    """
    config = opened.config
    cost = dense.cost if dense is not None else measure_cost(network, config.data.shape)
    if not config.needs_latency and not (config.space.with_int8 and dense is None):
        return cost, None
    if not config.space.with_int8:
        return cost, runner(copy.deepcopy(network).cpu(), config.data.shape, config.latency.runtime)
    with _float_file(network, opened) as path:
        if dense is None:
            cost = replace(cost, megabytes=megabytes_of(path))
        return cost, file_runner(path) if config.needs_latency else None


@contextmanager
def _float_file(network: nn.Module, opened: Opened) -> Iterator[Path]:
    """Write the ONNX file of a network as it is deployed, and remove it after the block."""
    with temporary_folder("hscc-float") as folder:
        write_float_file(deployed(copy.deepcopy(network), opened), opened, folder / "model.onnx")
        yield folder / "model.onnx"


def run_trial(
    prepared: Prepared,
    setting: Setting,
    refinement: Refinement | None = None,
    report: Report = silent,
    precision: Precision = "float32",
    int8_file: Path | None = None,
) -> TrialResult:
    """Compress with one setting, refine, fine-tune where the study says so, and measure on the validation part.

    Args:
        prepared: what the study's trials share.
        setting: of this one.
        refinement: None does not refine.
        report: told of refining, fine-tuning and rounding.
        precision: of the network that is measured.
        int8_file: where the file of 8-bit integers is written; None keeps it no longer than it is measured.

    Raises:
        CompressionError: the setting cannot be met, the compressed network answers with values that are not finite, or
            its multiply-adds are not those that were planned.
        ExportError: the network cannot be exported to the runtime that measures its latency, or rounded.
    """
    opened = prepared.opened
    compressed = compress(prepared.calibration, setting)
    refined: Mapping[str, float] = {}
    if refinement is not None:
        course = refine(compressed.network, prepared.lessons(refinement, report), refinement, report)
        refined = stored_refinement(refinement, course)
    if opened.config.finetuning.epochs:
        fine_tune(compressed.network, opened.network, opened.config, opened.parts.train, opened.device, report)
    return replace(measure_trial(prepared, compressed, precision, int8_file, report), refined=refined)


def measure_trial(
    prepared: Prepared,
    compressed: Compressed,
    precision: Precision = "float32",
    int8_file: Path | None = None,
    report: Report = silent,
) -> TrialResult:
    """Count the multiply-adds of a compressed network while it runs, and measure it on the validation part.

    Args:
        prepared: what the study's trials share.
        compressed: the network.
        precision: of int8, answers, size and latency are those of the written file.
        int8_file: as for :func:`run_trial`.
        report: told of rounding.

    Raises:
        CompressionError: it answers with values that are not finite, or its multiply-adds are not those of its plan.
        ExportError: the network cannot be exported to the runtime that measures its latency, or rounded.
    """
    counted = count_macs(compressed.network, prepared.calibration.images[:1])[""]
    if counted != compressed.macs:
        raise CompressionError(
            f"the compressed network takes {counted:,} multiply-adds, and by the plan of its layers {compressed.macs:,}"
        )
    cost = cost_of(compressed.network, counted)
    if precision == "int8":
        if int8_file is not None:
            return _measure_int8(prepared, compressed, cost, int8_file, report)
        with temporary_folder("hscc-trial") as folder:
            return _measure_int8(prepared, compressed, cost, folder / "model.onnx", report)
    if prepared.config.space.with_int8:
        cost, latency = _of_float_file(prepared, compressed.network, cost)
    else:
        latency = _latency(prepared, compressed.network)
    return TrialResult(compressed, measure(prepared.opened, compressed.network, cost, latency))


def _of_float_file(prepared: Prepared, network: nn.Module, cost: Cost) -> tuple[Cost, float | None]:
    """Write the ONNX file, and take its size and latency, as for int8 trials."""
    with _float_file(network, prepared.opened) as path:
        latency = _in_turns_with_dense(prepared, lambda: file_runner(path))
        return replace(cost, megabytes=megabytes_of(path)), latency


def _measure_int8(prepared: Prepared, compressed: Compressed, cost: Cost, path: Path, report: Report) -> TrialResult:
    """Write the file of 8-bit integers, and measure what it answers, its size and its latency."""
    opened = prepared.opened
    course = write_int8_file(compressed.network, opened, path, report)
    latency = _in_turns_with_dense(prepared, lambda: file_runner(path))
    scores = onnx_scores(path, opened.parts.validation)
    cost = replace(cost, megabytes=megabytes_of(path))
    int8 = {**asdict(course), "sha256": sha256(path), "threads": torch.get_num_threads()}
    return TrialResult(compressed, _measured(opened, scores, cost, latency), int8=int8)


def measure(opened: Opened, network: nn.Module, cost: Cost, latency: float | None) -> Measured:
    """Measure a network on the validation part.

    Args:
        opened: images and split of the study.
        network: dense or compressed, on the device of ``opened``.
        cost: of the network.
        latency: milliseconds per batch, None where the study does not measure it.

    Raises:
        CompressionError: the network answers with values that are not finite.
    """
    scores = predict(network, opened.parts.validation, opened.config.data, opened.device)
    return _measured(opened, scores, cost, latency)


def _measured(opened: Opened, scores: np.ndarray, cost: Cost, latency: float | None) -> Measured:
    """Measure the scores of a network for the validation images, and put them beside its costs."""
    validation = opened.parts.validation
    if not np.isfinite(scores).all():
        raise CompressionError("the network answers with values that are not finite")
    config = opened.config
    costs = {
        "flops": cost.flops,
        "macs": cost.macs,
        "parameters": cost.parameters,
        "megabytes": cost.megabytes,
    }
    if latency is not None:
        costs["latency"] = latency
    kept, asked = kept_scores(scores), config.asked_metrics
    own = measure_own(own_metrics(config), kept, validation.labels, config.seed, validation.groups)
    if opened.dataset.maps:
        of_maps = measure_maps(scores, validation.labels, config.seed, validation.groups, asked, own)
        quality = of_maps.quality
        return Measured({**costs, **quality.metrics}, quality.errors, predictions=b"", draws=of_maps.draws)
    predicted = scores.argmax(axis=1)
    quality = measure_quality(
        predicted,
        validation.labels,
        opened.dataset.classes,
        config.seed,
        scores=kept,
        groups=validation.groups,
        asked=asked,
        own=own,
    )
    return Measured(
        metrics={**costs, **_without_f1(quality.metrics)},
        errors=_without_f1(quality.errors),
        predictions=predicted.astype("<u2").tobytes(),
        scores=kept if kept.nbytes <= _MOST_BYTES or any(map(needs_scores, asked)) else None,
        draws={name: each.draws for name, each in own.items()},
    )


def check_metrics(opened: Opened) -> None:
    """Try the study's own metrics on the scores of the dense network, on all validation images and on one draw of them.

    Raises:
        ConfigError: one cannot be imported.
        StudyError: one fails.
    """
    config, validation = opened.config, opened.parts.validation
    if config.metrics:
        functions = own_metrics(config)
        scores = kept_scores(predict(opened.network, validation, config.data, opened.device))
        counts = draw_counts(len(validation), 1, config.seed, validation.groups)
        check_own_metrics(functions, scores, validation.labels, counts)


def load_dense(
    config: StudyConfig, device: str = "auto", report: Report = silent
) -> tuple[torch.nn.Module, torch.Tensor]:
    """Load the dense network of a study and its calibration images, ready for :func:`hscc_search.calibrate`.

    Returns:
        The network in evaluation mode, trained first unless its weights are in the cache, and normalised images,
        float32, shape (images, channels, height, width); both on the device.
    """
    opened = open_dense(config, device, report)
    return opened.network, calibration_images(opened)


def _latency(prepared: Prepared, network: nn.Module) -> float | None:
    """Time a network and the dense one in turns, so that other work on the machine hits both.

    Returns:
        Milliseconds per batch: the stored latency of the dense network times the ratio of the two times.
    """
    shape, runtime = prepared.config.data.shape, prepared.config.latency.runtime
    return _in_turns_with_dense(prepared, lambda: runner(copy.deepcopy(network).cpu(), shape, runtime))


def _in_turns_with_dense(prepared: Prepared, make_runner: Callable[[], Runner]) -> float | None:
    if prepared.dense_runner is None or prepared.dense_latency is None:
        return None
    runners = {"dense": prepared.dense_runner, "compressed": make_runner()}
    times = in_turns(runners, prepared.config.data.shape, prepared.config.latency.batch_size)
    return prepared.dense_latency * times["compressed"] / times["dense"]


def _without_f1(values: dict[str, float]) -> dict[str, float]:
    """Leave out the F1 of single classes, which can be computed again from predictions and labels."""
    return {name: value for name, value in values.items() if not name.startswith("f1:")}
