"""Verify an exported folder: its files, the answers of its models, and its accuracy on images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from hscc_search.config import IN_MEMORY, DataConfig
from hscc_search.config.data import TABLES
from hscc_search.config.explain import explain
from hscc_search.config.yaml_file import read_yaml
from hscc_search.data import Part, load_dataset, split
from hscc_search.data.rows import Rows
from hscc_search.errors import ConfigError, ExportError, one_line
from hscc_search.evaluation.quality import measure_quality
from hscc_search.export import run
from hscc_search.export.checking import TOLERANCE, answer
from hscc_search.export.folder import CONFIG, METRICS, ONNX, REFERENCE, WEIGHTS, Architecture, read_architecture
from hscc_search.export.formats import FORMATS, answers
from hscc_search.export.loading import load, names_own_code
from hscc_search.export.manifest import refusing
from hscc_search.export.runtimes import HARMS, PACKAGES, install_command
from hscc_search.export.signature import check_signature, fingerprint, read_public_key
from hscc_search.progress import Report, silent
from hscc_search.runtime.onnx import onnx_scores

# How far the accuracy on the test part may be from that at export: a processor that adds in another order turns an
# image or two that stand between two classes.
_MOST_ACCURACY = 0.01
# Bytes of config.yaml: a study file with all defaults, and the sample of a trial.
_MOST_YAML = 1 << 20


@dataclass(frozen=True)
class Verified:
    """What was found of a folder whose files are all as exported.

    Attributes:
        files: their number.
        gaps: how far the answers of each model are from those at export, as a share of the largest score, by its file.
        not_run: why a model was not run, by its file.
        signed_by: name of the key that signed the manifest; None where no key was given to check it with.
    """

    files: int
    gaps: dict[str, float]
    not_run: dict[str, str]
    signed_by: str | None = None


@dataclass(frozen=True)
class OnImages:
    """The accuracy of ``model.onnx`` on images.

    Attributes:
        accuracy: share of the images whose class is right.
        error: its standard error.
        images: their number.
        at_export: the accuracy at export where the images are the study's test part; None where they are others.
    """

    accuracy: float
    error: float
    images: int
    at_export: float | None


def verify(folder: Path, trust: bool = False, key: Path | None = None) -> Verified:
    """Compare all files of a folder with its manifest, and run its models on the inputs that anybody can make.

    Args:
        folder: an exported one.
        trust: as for :func:`hscc_search.export.loading.load`; also runs the files of runtimes that do not check what
            they load.
        key: file of the public key that the manifest must be signed with; None checks no signature.

    Raises:
        ConfigError: the key cannot be read.
        ExportError: a file was changed, is missing or additional, or a model does not answer as at export; or the
            manifest is not signed with the key.
    """
    if not folder.is_dir():
        raise ExportError(f"there is no folder {folder}")
    signed_by = None if key is None else _signed_by(folder, key)
    with refusing():
        files, exported = run.check_files(folder), run.Folder(folder).opened()
        inputs = exported.made_inputs()
        scores = {ONNX: exported.scores(inputs)}
    architecture = read_architecture(folder)
    _read_config(folder)
    not_run = _why_not_built(architecture, trust)
    if not not_run:
        scores[WEIGHTS] = answer(load(folder, trust=trust), inputs)
    if not (folder / REFERENCE).exists():  # a folder of 0.1.0, which holds no answers
        return Verified(files, _compared(folder, scores), not_run, signed_by)
    with refusing():
        further = {name: file for name, file in FORMATS.items() if file in run.listed(folder)}
        kept = run.answering(folder)
        for name, file in further.items():
            why = _why_not_run(name, trust) if file in kept else "what it answered at export was not written down"
            if why is None:
                scores[file] = _answers(folder, name)
            else:
                not_run[file] = why
        gaps = {name: run.check_answers(folder, values, name) for name, values in scores.items()}
    return Verified(files, gaps, not_run, signed_by)


def accuracy_on(folder: Path, data: Path, report: Report = silent) -> OnImages:
    """Measure ``model.onnx`` on images: on the study's test part where they are the study's, else on all of them.

    Args:
        folder: an exported one, verified.
        data: a folder of images by class, or a table of them.
        report: told of reading.

    Raises:
        HsccError: the images cannot be used, or the accuracy on the test part is not that at export.
    """
    architecture, origin = read_architecture(folder), _read_config(folder)
    if architecture.maps:
        raise ExportError(f"{folder} answers with maps, of which images in folders of classes do not say what is right")
    config = _data_config(origin, architecture, data)
    dataset = load_dataset(config, report)
    same = dataset.fingerprint == origin.get("dataset_fingerprint")
    if same:
        part = split(dataset, config.validation, config.test, config.split_seed).test
    else:
        part = Part(Rows(dataset.images, np.arange(len(dataset.labels))), dataset.labels, dataset.groups)
    predicted = onnx_scores(folder / ONNX, part).argmax(axis=1)
    found = measure_quality(predicted, part.labels, dataset.classes, groups=part.groups)
    accuracy, at_export = found.metrics["accuracy"], _at_export(folder) if same else None
    if at_export is not None and abs(accuracy - at_export) > _MOST_ACCURACY:
        raise ExportError(
            f"{folder / ONNX} has an accuracy of {accuracy:.4f} on the study's test part, and had {at_export:.4f} at "
            "export"
        )
    return OnImages(accuracy, found.errors["accuracy"], len(part), at_export)


def _signed_by(folder: Path, path: Path) -> str:
    """Check that the manifest was signed with a key, and name that.

    Raises:
        ConfigError, ExportError: the key cannot be read, or it was not.
    """
    key = read_public_key(path)
    check_signature(folder, key)
    return fingerprint(key)


def _read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.yaml``, of which aliases and sizes are bounded.

    Raises:
        ExportError: it cannot be read.
    """
    try:
        tree = read_yaml(folder / CONFIG, most_bytes=_MOST_YAML)
    except ConfigError as error:
        raise ExportError(one_line(error)) from error
    if not isinstance(tree, dict):
        raise ExportError(f"{folder / CONFIG} is damaged: it holds no mapping")
    return tree


def _data_config(origin: dict[str, Any], architecture: Architecture, data: Path) -> DataConfig:
    """The study's section on its images, if those of ``data`` may be these; else images that are read alike.

    Raises:
        ConfigError: nothing reads such images.
    """
    pictures = architecture.pictures
    if pictures.values == "float32":
        raise ConfigError("the inputs of this network are made by a data set of its own, and not read from files")
    table = data.suffix.lower() in TABLES and not data.is_dir()
    source, study = "table" if table else "folder", origin.get("study")
    own = study.get("data") if isinstance(study, dict) else None
    if not isinstance(own, dict) or own.get("source") != source:
        size = pictures.image_size
        own = {
            "image_size": size if isinstance(size, int) else list(size),
            "channels": pictures.channels,
            "resize": pictures.resize,
            "resize_to": pictures.resize_to,
            "range": pictures.bounds,
            "mean": architecture.mean,
            "std": architecture.std,
        }
    try:
        return DataConfig.model_validate({**own, "source": source, "path": data, "classes": architecture.classes})
    except ValidationError as error:
        raise ConfigError(f"these images cannot be read as the study's: {explain(error, DataConfig)}") from error


def _at_export(folder: Path) -> float:
    """The accuracy on the test part at export."""
    with refusing():
        tree = run.read_json(folder / METRICS)
    try:
        return float(tree["compressed"]["test"]["metrics"]["accuracy"])
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(f"{folder / METRICS} holds no accuracy on the test part") from error


def _why_not_built(architecture: Architecture, trust: bool) -> dict[str, str]:
    """Why a torch module cannot be built from the folder alone, by its file; empty where it can be."""
    if architecture.model == IN_MEMORY:
        return {WEIGHTS: "its network was an object in memory: hscc_search.load(folder, network) builds it"}
    named = [] if trust else names_own_code(architecture)
    return {WEIGHTS: f"{named[0]} is code of somebody's own: --trust runs it"} if named else {}


def _why_not_run(name: str, trust: bool) -> str | None:
    """Why the file of a format is not run; None where it is."""
    if name in HARMS and not trust:
        return f"{HARMS[name]}: --trust runs it"
    command = install_command(name) if name in PACKAGES else None
    return None if command is None else f"its runtime is not installed: {command}"


def _answers(folder: Path, name: str) -> np.ndarray:
    """Run the file of a format as :func:`hscc_search.export.formats.answers` does.

    Raises:
        ExportError: its runtime cannot.
    """
    try:
        return answers(folder, name)
    except run.Refused:
        raise
    except Exception as error:  # runtimes raise whatever they meet
        raise ExportError(f"{folder / FORMATS[name]} cannot be run: {one_line(error, with_type=True)}") from error


def _compared(folder: Path, scores: dict[str, np.ndarray]) -> dict[str, float]:
    """How far the two models of a folder are from each other.

    Raises:
        ExportError: farther than the order of additions explains.
    """
    if len(scores) < 2:
        return {}
    gap = run.gap_between(scores[ONNX], scores[WEIGHTS])
    if not gap <= TOLERANCE:
        raise ExportError(f"{folder / ONNX} and {folder / WEIGHTS} disagree: scores differ by {gap:.2g} of the largest")
    return dict.fromkeys(scores, gap)
