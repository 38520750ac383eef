"""What one trial does: compress the dense network with one setting and measure what came out."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hscc_search.compression.calibration import Calibration, calibrate
from hscc_search.compression.hscc import Compressed, compress
from hscc_search.compression.setting import Setting
from hscc_search.config import StudyConfig
from hscc_search.data import Part
from hscc_search.errors import CompressionError
from hscc_search.evaluation.cost import Cost, measure_cost
from hscc_search.evaluation.predict import normalised, predict
from hscc_search.evaluation.quality import Quality, measure_quality
from hscc_search.progress import Report, silent
from hscc_search.training import fine_tune


@dataclass(frozen=True)
class Measurement:
    """What one trial found, on the validation part.

    Attributes:
        compressed: the network and the plan of its layers.
        cost: per image.
        quality: on the validation part.
        seconds: spent in each phase.
    """

    compressed: Compressed
    cost: Cost
    quality: Quality
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
    """

    config: StudyConfig
    network: nn.Module
    classes: tuple[str, ...]
    calibration: Calibration
    train: Part
    validation: Part
    device: torch.device

    def measure(self, setting: Setting, report: Report = silent) -> Measurement:
        """Compress with one setting, fine-tune where the study says so, count, and evaluate on the validation part.

        Raises:
            CompressionError: the compressed network answers with values that are not finite.
        """
        clock = [time.perf_counter()]
        compressed = compress(self.calibration, setting)
        clock.append(time.perf_counter())
        if self.config.finetuning.epochs:
            fine_tune(compressed.network, self.network, self.config, self.train, self.device, report)
        clock.append(time.perf_counter())
        cost = measure_cost(compressed.network, self.config.data.image_size)
        clock.append(time.perf_counter())
        quality = self.quality(compressed.network)
        clock.append(time.perf_counter())
        phases = zip(("compress", "fine-tune", "count", "evaluate"), clock, clock[1:], strict=False)
        return Measurement(compressed, cost, quality, {phase: end - start for phase, start, end in phases})

    def quality(self, network: nn.Module) -> Quality:
        """Measure a network on the validation part."""
        outputs = predict(network, self.validation, self.config.data, self.device)
        if not (abs(outputs) < float("inf")).all():
            raise CompressionError("the compressed network answers with values that are not finite")
        return measure_quality(outputs.argmax(axis=1), self.validation.labels, len(self.classes), self.config.seed)


def make_bench(
    config: StudyConfig,
    network: nn.Module,
    classes: tuple[str, ...],
    train: Part,
    validation: Part,
    device: torch.device,
    report: Report = silent,
) -> Bench:
    """Calibrate, and keep what all trials of a study share."""
    images = calibration_images(config, train, device)
    return Bench(config, network, classes, calibrate(network, images, report), train, validation, device)


def calibration_images(config: StudyConfig, train: Part, device: torch.device) -> torch.Tensor:
    """The calibration images of a study as its network takes them, float32 (images, 3, side, side)."""
    sample = train.sample(config.compression.calibration_images, config.seed)
    return normalised(torch.from_numpy(sample.images).to(device), config.data)


def setting_of(config: StudyConfig, params: dict[str, Any]) -> Setting:
    """The setting that a trial's sampled values stand for."""
    return Setting(
        regions=params["regions"],
        clusters=params["clusters"],
        energy=params.get("energy"),
        budget=params.get("budget"),
        region_gain=config.compression.region_gain,
        rank_multiple=config.compression.rank_multiple,
        region_strategy=config.compression.region_strategy,
        cluster_strategy=config.compression.cluster_strategy,
        seed=config.seed,
    )
