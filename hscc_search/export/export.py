"""Export a trial: compress again, write a folder, and check it by running both models that were written."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import torch
from torch import nn

from hscc_search.compression.inspection import Inspection
from hscc_search.config import StudyConfig
from hscc_search.data import Part
from hscc_search.dense.opened import Opened
from hscc_search.dense.weights import save_weights
from hscc_search.errors import ExportError, UnwritableError
from hscc_search.evaluation.cost import CountedCost
from hscc_search.evaluation.counters import measure_cost
from hscc_search.evaluation.predictions import batches
from hscc_search.evaluation.quality import Quality, measure_quality
from hscc_search.export.card import model_card
from hscc_search.export.deployed import Deployed
from hscc_search.export.folder import (
    ARCHITECTURE,
    CARD,
    CONFIG,
    MANIFEST,
    METRICS,
    ONNX,
    WEIGHTS,
    Architecture,
    Manifest,
    Metrics,
    Origin,
    Results,
    write_json,
    write_yaml,
)
from hscc_search.export.loading import build_module
from hscc_search.files import check_new_folder, folder_written_whole
from hscc_search.pareto.points import Measured, Point
from hscc_search.progress import Progress, Report, silent
from hscc_search.runtime.onnx import write_onnx
from hscc_search.search.opening import open_again
from hscc_search.search.record import StudyRecord
from hscc_search.search.space import space_of
from hscc_search.search.stored_study import Study
from hscc_search.search.trial import TrialResult, prepare, run_trial

_STEPS = ("writing model.onnx", "loading the models back", "writing the model card")
# Largest difference of scores between two runtimes, relative to the largest score: they add in different orders.
_TOLERANCE = 1e-3


class _Answers(NamedTuple):
    """The class that each written model predicts for each test image: integers, shape (images,)."""

    onnx: np.ndarray
    torch: np.ndarray


def export(
    study: Study, point: Point, config: StudyConfig, out: Path, device: str = "auto", report: Report = silent
) -> Metrics:
    """Compress with a trial's setting again, write the folder, load both models back and measure them on the test part.

    Args:
        study: from :func:`hscc_search.search.stored_study.read_study`.
        point: one of its finished trials.
        config: the study's configuration, with the paths of data and checkpoint on this machine; its epochs of
            fine-tuning may differ from the study's.
        out: a folder that does not exist yet.
        device: where the network is compressed.
        report: told of each step.

    Returns:
        The content of ``metrics.json``.

    Raises:
        ExportError: ``out`` exists, the study's inputs are no pixels, the network cannot be exported to ONNX, or the
            two written models disagree.
        UnwritableError: ``out`` cannot be written.
        DiskFullError: there is no room.
        StudyError: the images or the dense network are not the study's.
    """
    _check_output(out)
    record = study.record
    opened = open_again(record, config, device, report)
    _check_inputs(opened)
    result, inspection = _compress_again(opened, record, point, report)
    cost = _count(result, config.data.image_size)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnwritableError(f"cannot write to {out} ({error.strerror}): name another output folder") from error
    with folder_written_whole(out) as folder:
        report(Progress(f"exporting to {out}", 0, len(_STEPS), _STEPS[0]))
        _write_models(folder, opened, result)
        report(Progress(f"exporting to {out}", 1, len(_STEPS), _STEPS[1]))
        answers = _check(folder, opened.parts.test)
        report(Progress(f"exporting to {out}", 2, len(_STEPS), _STEPS[2]))
        metrics = _measure(record, point, opened, result, cost, answers)
        _describe(folder, record, config, metrics)
        # A split that was given is that of the training, too.
        plan, elsewhere = result.compressed.plan, opened.trained_elsewhere and opened.dataset.sides is None
        card = model_card(metrics, config, plan, inspection, record.notices, elsewhere)
        (folder / CARD).write_text(card, encoding="utf-8")
        write_json(folder / MANIFEST, Manifest.of(folder).stored())
        report(Progress(f"exporting to {out}", 3, len(_STEPS)))
    return metrics


def _check_output(out: Path) -> None:
    if os.path.lexists(out):
        raise ExportError(f"output folder {out} exists: name one that does not")
    check_new_folder(out)


def _check_inputs(opened: Opened) -> None:
    if opened.dataset.images.dtype != np.uint8:
        raise ExportError(
            f"the inputs of study {opened.config.name} are no pixels but numbers of data.factory "
            f"{opened.config.data.factory}, and an exported folder takes pixels: give inputs of uint8"
        )


def _compress_again(
    opened: Opened, record: StudyRecord, point: Point, report: Report
) -> tuple[TrialResult, Inspection]:
    prepared = prepare(opened, record.dense, report)
    setting = space_of(opened.config, prepared.calibration).setting(dict(point.sample))
    return run_trial(prepared, setting, report), prepared.calibration.inspection


def _count(result: TrialResult, image_size: int) -> CountedCost:
    """Count the cost of the compressed network while it runs.

    Raises:
        ExportError: its MACs are not those of the formula.
    """
    cost = measure_cost(result.compressed.network.cpu(), image_size)
    if cost.macs != result.measured["macs"]:
        raise ExportError(
            f"fvcore counts {cost.macs} MACs in the compressed network and the formula {result.measured['macs']}: "
            "a network whose layers run a different number of times on each call cannot be exported"
        )
    return cost


def _deployed(network: nn.Module, config: StudyConfig) -> Deployed:
    return Deployed(network, config.data.mean, config.data.std, config.data.image_size).cpu().eval()


def _write_models(folder: Path, opened: Opened, result: TrialResult) -> None:
    config = opened.config
    module = _deployed(result.compressed.network, config)
    write_onnx(module, config.data.image_size, folder / ONNX)
    save_weights(module.state_dict(), folder / WEIGHTS)
    architecture = Architecture(
        model=config.model.name,
        classes=opened.dataset.classes,
        image_size=config.data.image_size,
        mean=config.data.mean,
        std=config.data.std,
        form=result.compressed.form,
    )
    write_json(folder / ARCHITECTURE, architecture.stored())


def _check(folder: Path, test: Part) -> _Answers:
    """Run both models from their files over the test part.

    Raises:
        ExportError: their scores differ by more than rounding does.
    """
    by_onnx = _onnx_scores(folder / ONNX, test)
    by_torch = _torch_scores(build_module(folder), test)
    gap = float(np.abs(by_onnx - by_torch).max())
    scale = max(1.0, float(np.abs(by_torch).max()))
    if not gap <= _TOLERANCE * scale:
        raise ExportError(f"{ONNX} and {WEIGHTS} disagree: scores differ by up to {gap:g}")
    return _Answers(by_onnx.argmax(axis=1), by_torch.argmax(axis=1))


def _measure(
    record: StudyRecord, point: Point, opened: Opened, result: TrialResult, cost: CountedCost, answers: _Answers
) -> Metrics:
    """Measure the dense and the compressed network on the validation and the test part."""
    test, seed = opened.parts.test, opened.config.seed
    dense_classes = _torch_scores(_deployed(opened.network, opened.config), test).argmax(axis=1)
    dense_test, compressed_test = (
        measure_quality(predicted, test.labels, record.classes, seed) for predicted in (dense_classes, answers.onnx)
    )
    return Metrics(
        study=opened.config.name,
        trial=point.trial,
        sample=point.sample,
        finetuning_epochs=opened.config.finetuning.epochs,
        classes=record.classes,
        validation_images=len(record.labels),
        test_images=len(test),
        dense=Results(record.dense.cost, _validation_quality(record.dense.measured, record), dense_test),
        compressed=Results(cost, _validation_quality(result.measured, record), compressed_test),
        right=int((answers.onnx == test.labels).sum()),
        torch_differs_on=int((answers.onnx != answers.torch).sum()),
    )


def _validation_quality(measured: Measured, record: StudyRecord) -> Quality:
    """Measure the predictions on the validation part again, since stored metrics lack the F1 of single classes."""
    predicted = np.frombuffer(measured.predictions, "<u2")
    return measure_quality(predicted, record.labels, record.classes, record.config.seed)


def _describe(folder: Path, record: StudyRecord, config: StudyConfig, metrics: Metrics) -> None:
    """Write the files beside the models but the card, and the manifest with the digests of all others."""
    origin = Origin(config, metrics.trial, metrics.sample, record.fingerprint, record.versions)
    write_json(folder / METRICS, metrics.stored())
    write_yaml(folder / CONFIG, origin.stored())


def _onnx_scores(path: Path, part: Part) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    scores = [session.run(None, {name: images.astype(np.float32) / 255})[0] for images in batches(part.images)]
    return np.concatenate(scores)


@torch.no_grad()
def _torch_scores(module: Deployed, part: Part) -> np.ndarray:
    scores = [module(torch.from_numpy(images).float() / 255) for images in batches(part.images)]
    return torch.cat(scores).numpy()
