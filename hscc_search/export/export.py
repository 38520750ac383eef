"""Export a trial: compress again, write a folder, and check it by running both models that were written."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hscc_search.compression.compress import compress
from hscc_search.compression.refining import mean_divergence
from hscc_search.config import Shape, StudyConfig
from hscc_search.data import Part
from hscc_search.dense.opened import Opened
from hscc_search.dense.weights import check_values, save_weights
from hscc_search.errors import ExportError
from hscc_search.evaluation.cost import CountedCost
from hscc_search.evaluation.counters import measure_cost
from hscc_search.evaluation.draws import alone
from hscc_search.evaluation.maps import measure_maps
from hscc_search.evaluation.own import measure_own, own_metrics
from hscc_search.evaluation.quality import Quality, measure_quality
from hscc_search.evaluation.scores import kept_scores
from hscc_search.export.card import model_card
from hscc_search.export.checking import Answers, check, torch_scores
from hscc_search.export.folder import (
    ARCHITECTURE,
    CARD,
    CONFIG,
    METRICS,
    ONNX,
    WEIGHTS,
    Architecture,
    Metrics,
    Origin,
    Pictures,
    Results,
)
from hscc_search.export.formats import NO_EXTRAS, Extras, check_formats
from hscc_search.export.manifest import write_json, write_manifest, write_script, write_yaml
from hscc_search.export.signature import sign
from hscc_search.files import check_new_folder, folder_written_whole, make_parent
from hscc_search.pareto.points import Measured, Point
from hscc_search.pareto.selection import Choice
from hscc_search.progress import Progress, Report, silent
from hscc_search.runtime.onnx import contents_of
from hscc_search.study.deployment import deployed, normalisation, write_float_file
from hscc_search.study.opening import open_again
from hscc_search.study.record import StudyRecord
from hscc_search.study.refinement import refinement_from_stored, refinement_of
from hscc_search.study.space import precision_of, space_of
from hscc_search.study.stored_study import Study
from hscc_search.study.trial import Prepared, TrialResult, measure_trial, prepare, run_trial

_STEPS = ("writing model.onnx", "loading the models back", "writing the model card")


def export(
    study: Study,
    point: Point,
    config: StudyConfig,
    out: Path,
    device: str = "auto",
    report: Report = silent,
    tuned: nn.Module | None = None,
    prepared: Prepared | None = None,
    refine: bool = False,
    choice: Choice | None = None,
    extras: Extras = NO_EXTRAS,
) -> Metrics:
    """Compress a trial again, write the folder, load both models back, measure them, and return ``metrics.json``.

    Args:
        study: to which the trial belongs.
        point: one of its finished trials.
        config: the study's, with paths of this machine; its epochs of fine-tuning may differ.
        out: a folder that does not exist yet.
        device: where the network is compressed.
        report: told of each step.
        tuned: the trial's network after further training elsewhere, whose weights are exported; None compresses again.
        prepared: images and dense network, opened and calibrated; None opens those that ``config`` names.
        refine: also a trial that is not refined, as ``config`` says.
        choice: of the trial, which the folder tells; None tells nothing.
        extras: what it is to hold, and may lose, beyond what every export does.

    Raises:
        ExportError: ``out`` exists, a model cannot be written, answers as it should not, or is not of the trial's form.
        UnwritableError: ``out`` cannot be written, or there is no room (DiskFullError).
        StudyError: the images or the dense network are not the study's.
    """
    _check_beforehand(out, config)
    opened = prepared.opened if prepared else open_again(study.record, config, device, report)
    check_formats(extras.formats, precision_of(dict(point.sample)) == "int8", _pictures(opened))
    make_parent(out)
    with folder_written_whole(out) as folder:
        prepared = prepared or prepare(opened, study.record.dense, report)
        result = _compress_again(prepared, point, refine, report, tuned, folder / ONNX)
        cost = _count(result, config.data.shape)
        report(Progress(f"exporting to {out}", 0, len(_STEPS), _STEPS[0]))
        _write_models(folder, opened, result)
        report(Progress(f"exporting to {out}", 1, len(_STEPS), _STEPS[1]))
        answers = check(folder, opened, bool(result.int8), extras)
        report(Progress(f"exporting to {out}", 2, len(_STEPS), _STEPS[2]))
        metrics = _measure(folder, study.record, point, opened, result, cost, answers, tuned is not None, choice)
        _describe(folder, study.record, config, metrics, _card(study.record, prepared, result, metrics, extras), extras)
        report(Progress(f"exporting to {out}", 3, len(_STEPS)))
    return metrics


def _card(record: StudyRecord, prepared: Prepared, result: TrialResult, metrics: Metrics, extras: Extras) -> str:
    opened, inspection = prepared.opened, prepared.calibration.inspection
    # A split that was given is that of the training, too.
    elsewhere = opened.trained_elsewhere and opened.dataset.sides is None
    plan, pictures, signed = result.compressed.plan, _pictures(opened), extras.key is not None
    return model_card(metrics, opened.config, plan, inspection, record.notices, elsewhere, pictures, signed)


def _check_beforehand(out: Path, config: StudyConfig) -> None:
    """Check the output folder, and that the study's own metrics can be imported, by which the test part is measured."""
    own_metrics(config)
    if os.path.lexists(out):
        raise ExportError(f"output folder {out} exists: name one that does not")
    check_new_folder(out)


def _compress_again(
    prepared: Prepared,
    point: Point,
    refine: bool,
    report: Report,
    tuned: nn.Module | None,
    int8_file: Path,
) -> TrialResult:
    config = prepared.config
    setting = space_of(config, prepared.calibration).setting(dict(point.sample))
    precision = precision_of(dict(point.sample))
    refinement = refinement_of(config) if refine and not point.refined else refinement_from_stored(point.refined)
    if tuned is None:
        with _threads(point.int8.get("threads", torch.get_num_threads())):
            return run_trial(prepared, setting, refinement, report, precision, int8_file)
    compressed = compress(prepared.calibration, setting)
    own, weights = compressed.network.state_dict(), tuned.state_dict()
    differing = [name for name in {**own, **weights} if _shape(own, name) != _shape(weights, name)]
    if differing:
        raise ExportError(
            f"the given network is not of the form of {point.name}: {', '.join(differing[:3])} differ; "
            "train what study.compressed() returns for this trial, without changing its layers"
        )
    check_values(weights, "the given network")
    compressed.network.load_state_dict(weights)
    return measure_trial(prepared, compressed, precision, int8_file, report)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch use as many threads as when a trial was measured, so that it gives the same file byte by byte."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _shape(state: Mapping[str, torch.Tensor], name: str) -> torch.Size | None:
    return state[name].shape if name in state else None


def _count(result: TrialResult, shape: Shape) -> CountedCost:
    """Count the cost of the compressed network while it runs.

    Raises:
        ExportError: its MACs are not those of the formula.
    """
    cost = measure_cost(result.compressed.network.cpu(), shape)
    if cost.macs != result.measured["macs"]:
        raise ExportError(
            f"fvcore counts {cost.macs} MACs in the compressed network and the formula {result.measured['macs']}: "
            "a network whose layers run a different number of times on each call cannot be exported"
        )
    return replace(cost, megabytes=result.measured["megabytes"])


def _pictures(opened: Opened) -> Pictures:
    return Pictures.of(opened.config.data, opened.dataset.images.dtype)


def _write_models(folder: Path, opened: Opened, result: TrialResult) -> None:
    """Write both models; where the trial is of 8-bit integers, its ONNX file is in the folder already."""
    config, (mean, std) = opened.config, normalisation(opened)
    module = deployed(result.compressed.network, opened)
    if not result.int8:
        write_float_file(module, opened, folder / ONNX)
    save_weights(module.state_dict(), folder / WEIGHTS)
    architecture = Architecture(
        model=config.model.name,
        classes=opened.dataset.classes,
        pictures=_pictures(opened),
        mean=mean,
        std=std,
        form=result.compressed.form,
        output=config.model.output,
        maps=opened.dataset.maps,
    )
    write_json(folder / ARCHITECTURE, architecture.stored())


def _measure(
    folder: Path,
    record: StudyRecord,
    point: Point,
    opened: Opened,
    result: TrialResult,
    cost: CountedCost,
    answers: Answers,
    trained_further: bool,
    choice: Choice | None,
) -> Metrics:
    """Measure the dense and the compressed network on the validation and the test part."""
    test, validation = opened.parts.test, opened.parts.validation
    dense_scores = torch_scores(deployed(opened.network, opened), test)
    dense_test, compressed_test = (_test_quality(opened, scores) for scores in (dense_scores, answers.onnx))
    by_onnx, by_torch = answers.onnx.argmax(axis=1), answers.torch.argmax(axis=1)
    return Metrics(
        study=opened.config.name,
        trial=point.trial,
        sample=point.sample,
        finetuning_epochs=0 if trained_further else opened.config.finetuning.epochs,
        trained_further=trained_further,
        refined={} if trained_further else result.refined,
        int8=_int8(point, result, answers),
        classes=record.classes,
        validation_images=len(record.labels),
        test_images=len(test),
        dense=Results(record.dense.cost, _validation_quality(record.dense.measured, record), dense_test),
        compressed=Results(cost, _validation_quality(result.measured, record), compressed_test),
        right=int((by_onnx == test.labels).sum()),
        torch_differs_on=int((by_onnx != by_torch).sum()),
        validation_groups=_groups(validation),
        test_groups=_groups(test),
        maps=opened.dataset.maps,
        onnx=contents_of(folder / ONNX),
        formats=answers.formats,
        chosen={} if choice is None else choice.stored(),
    )


def _int8(point: Point, result: TrialResult, answers: Answers) -> Mapping[str, Any]:
    """What the card says of a file of 8-bit integers; empty where the network is float32."""
    if not result.int8:
        return {}
    exact, rounded = (torch.from_numpy(scores) for scores in (answers.torch, answers.onnx))
    return {
        "divergence": float(mean_divergence(rounded, exact)),
        "in_float": list(result.int8["in_float"]),
        "as_measured": result.int8["sha256"] == point.int8.get("sha256"),
    }


def _groups(part: Part) -> int | None:
    """Count the groups of a part; None where each image is one of its own."""
    return None if alone(part.groups) else len(np.unique(part.groups))


def _test_quality(opened: Opened, scores: np.ndarray) -> Quality:
    """Measure scores on the test part, by all metrics that the study asks for."""
    test, config = opened.parts.test, opened.config
    kept = kept_scores(scores)
    own = measure_own(own_metrics(config), kept, test.labels, config.seed, test.groups)
    if opened.dataset.maps:
        return measure_maps(scores, test.labels, config.seed, test.groups, config.asked_metrics, own).quality
    return measure_quality(
        scores.argmax(axis=1),
        test.labels,
        opened.dataset.classes,
        config.seed,
        scores=kept,
        groups=test.groups,
        asked=config.asked_metrics,
        own=own,
    )


def _validation_quality(measured: Measured, record: StudyRecord) -> Quality:
    """Measure the predictions on the validation part again, since stored metrics lack the F1 of single classes."""
    if record.labels.ndim > 1:  # of maps all metrics are stored
        return Quality({name: measured.metrics[name] for name in measured.errors}, dict(measured.errors))
    predicted, config = np.frombuffer(measured.predictions, "<u2"), record.config
    again = measure_quality(predicted, record.labels, record.classes, config.seed, groups=record.groups)
    stored = [name for name in measured.errors if name not in again.metrics]
    return Quality(
        {**again.metrics, **{name: measured.metrics[name] for name in stored}},
        {**again.errors, **{name: measured.errors[name] for name in stored}},
    )


def _describe(
    folder: Path, record: StudyRecord, config: StudyConfig, metrics: Metrics, card: str, extras: Extras
) -> None:
    """Write the files beside the models, at last the manifest with the digests of all others, and its signature."""
    origin = Origin(config, metrics.trial, metrics.sample, record.fingerprint, record.versions)
    write_json(folder / METRICS, metrics.stored())
    write_yaml(folder / CONFIG, origin.stored())
    (folder / CARD).write_text(card, encoding="utf-8")
    write_script(folder)
    write_manifest(folder)
    if extras.key is not None:
        sign(folder, extras.key)
