"""What one trial does: compress the dense network with one setting and measure what came out."""

import copy
import time
from dataclasses import dataclass

import torch
from torch import nn

from hscc_search.compression.calibration import Calibration, calibrate
from hscc_search.compression.hscc import Compressed, compress
from hscc_search.compression.setting import Setting
from hscc_search.config import StudyConfig
from hscc_search.data import Part
from hscc_search.errors import CompressionError
from hscc_search.evaluation.cost import Cost, CountedCost, cost_of, measure_cost
from hscc_search.evaluation.latency import Runner, in_turns, runner
from hscc_search.evaluation.predict import normalised, predict
from hscc_search.evaluation.quality import Quality, measure_quality
from hscc_search.progress import Report, silent
from hscc_search.search.objectives import needs_latency
from hscc_search.training import fine_tune


@dataclass(frozen=True)
class Measurement:
    """What one trial found, on the validation part.

    Attributes:
        compressed: the network and the plan of its layers.
        cost: per image, its MACs by the formula of the compressed layers.
        quality: on the validation part.
        predictions: class of each validation image, as :class:`hscc_search.search.points.Point` keeps it.
        latency: milliseconds per batch, or None where the study does not look at it.
        seconds: spent in each phase.
    """

    compressed: Compressed
    cost: Cost
    quality: Quality
    predictions: bytes
    latency: float | None
    seconds: dict[str, float]


@dataclass(frozen=True)
class Bench:
    """All that trials share: made once per run, never again per trial.

    Attributes:
        config: of the study.
        network: the dense network.
        classes: class names.
        calibration: of the dense network, made with calibration images from the train part.
        train: what compressed networks are fine-tuned on.
        validation: what the search measures on.
        device: where everything runs.
        dense_cost: of the dense network, counted when the study was created.
        dense_runner: runs the dense network where latency is measured, None where it is not.
        dense_latency: milliseconds per batch of the dense network, measured when the study was created.
    """

    config: StudyConfig
    network: nn.Module
    classes: tuple[str, ...]
    calibration: Calibration
    train: Part
    validation: Part
    device: torch.device
    dense_cost: CountedCost
    dense_runner: Runner | None
    dense_latency: float | None

    def measure(self, setting: Setting, report: Report = silent) -> Measurement:
        """Compress with one setting, fine-tune where the study says so, and evaluate on the validation part.

        Raises:
            CompressionError: the compressed network answers with values that are not finite.
            ExportError: latency matters, and the network cannot be exported to its runtime.
        """
        clock = [time.perf_counter()]
        compressed = compress(self.calibration, setting)
        clock.append(time.perf_counter())
        if self.config.finetuning.epochs:
            fine_tune(compressed.network, self.network, self.config, self.train, self.device, report)
        clock.append(time.perf_counter())
        quality, predictions = self.quality(compressed.network)
        clock.append(time.perf_counter())
        latency = self._latency(compressed.network)
        clock.append(time.perf_counter())
        phases = zip(("compress", "fine-tune", "evaluate", "time"), clock, clock[1:], strict=False)
        seconds = {phase: end - start for phase, start, end in phases}
        # What lies outside of all layers, such as the matrix products of attention, is as it was in the dense network.
        macs = self.dense_cost.macs - self.calibration.macs + compressed.macs
        cost = cost_of(compressed.network, macs)
        return Measurement(compressed, cost, quality, predictions, latency, seconds)

    def quality(self, network: nn.Module) -> tuple[Quality, bytes]:
        """Measure a network on the validation part; gives the class of each image too."""
        outputs = predict(network, self.validation, self.config.data, self.device)
        if not (abs(outputs) < float("inf")).all():
            raise CompressionError("the compressed network answers with values that are not finite")
        predicted = outputs.argmax(axis=1)
        quality = measure_quality(predicted, self.validation.labels, len(self.classes), self.config.seed)
        return quality, predicted.astype("<u2").tobytes()

    def _latency(self, network: nn.Module) -> float | None:
        """Relative to the dense network's from the same turns: whatever else the machine does hits both."""
        if self.dense_runner is None or self.dense_latency is None:
            return None
        side, latency = self.config.data.image_size, self.config.latency
        compressed = runner(copy.deepcopy(network).cpu(), side, latency.runtime)
        times = in_turns({"dense": self.dense_runner, "compressed": compressed}, side, latency.batch_size)
        return self.dense_latency * times["compressed"] / times["dense"]


def make_bench(
    config: StudyConfig,
    network: nn.Module,
    classes: tuple[str, ...],
    train: Part,
    validation: Part,
    device: torch.device,
    dense_cost: CountedCost | None = None,
    dense_latency: float | None = None,
    report: Report = silent,
) -> Bench:
    """Calibrate, or take the calibration from the cache, and keep what all trials of a study share.

    Args:
        config: of the study.
        network: the dense network.
        classes: class names.
        train: part of the data.
        validation: part of the data.
        device: where everything runs.
        dense_cost: of the dense network, where it was counted before.
        dense_latency: milliseconds per batch, where it was measured before.
        report: told of calibrating.
    """
    images = calibration_images(config, train, device)
    dense = None
    if needs_latency(config):
        dense = runner(copy.deepcopy(network).cpu(), config.data.image_size, config.latency.runtime)
        if dense_latency is None:
            batch_size = config.latency.batch_size
            dense_latency = 1000 * in_turns({"dense": dense}, config.data.image_size, batch_size)["dense"]
    cost = dense_cost or measure_cost(network, config.data.image_size)
    calibration = calibrate(network, images, report, keep=True)
    return Bench(config, network, classes, calibration, train, validation, device, cost, dense, dense_latency)


def calibration_images(config: StudyConfig, train: Part, device: torch.device) -> torch.Tensor:
    """The calibration images of a study as its network takes them, float32 (images, 3, side, side)."""
    sample = train.sample(config.compression.calibration_images, config.seed)
    return normalised(torch.from_numpy(sample.images).to(device), config.data)


def metrics_of(
    cost: Cost, quality: Quality, classes: tuple[str, ...], latency: float | None
) -> tuple[dict[str, float], dict[str, float]]:
    """All metrics of a network by name, and the standard errors of those that depend on the images."""
    metrics: dict[str, float] = {
        "flops": cost.flops,
        "macs": cost.macs,
        "parameters": cost.parameters,
        "megabytes": cost.megabytes,
        "accuracy": quality.accuracy,
        "macro_f1": quality.macro_f1,
        **{f"recall:{name}": value for name, value in zip(classes, quality.recall, strict=True)},
    }
    if latency is not None:
        metrics["latency"] = latency
    errors = {
        "accuracy": quality.accuracy_se,
        "macro_f1": quality.macro_f1_se,
        **{f"recall:{name}": value for name, value in zip(classes, quality.recall_se, strict=True)},
    }
    return metrics, errors
