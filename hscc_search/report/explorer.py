"""The data of the page that explores a study, as JSON-compatible values; the page itself is in ``dashboards/``.

Trials are sent by column, and only those that a page does not know yet, so that a refresh of a long study is short.
What changes with each trial, such as who is on the front, is sent for all of them, a letter each.
"""

import base64
import hashlib
import math
import re
import shlex
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from hscc_search.compression.divided import DividedLayer
from hscc_search.config import IN_MEMORY, StudyConfig
from hscc_search.config.metrics import COSTS, is_share, less_is_better
from hscc_search.pareto.objectives import UNITS, title, violations
from hscc_search.pareto.points import Measured, Point
from hscc_search.report.table import front_line
from hscc_search.study.stored_study import Study

# Ranges of trials that a request may name.
_MOST_RANGES = 1000
# Validation images that are named of those that one network alone gets right.
_MOST_NAMED = 40
# Significant digits of values on the page.
_DIGITS = 8


def study_data(study: Study, storage: str) -> dict[str, Any]:
    """Gather what a page needs of a study as long as it is open, without its trials.

    Args:
        study: from :func:`hscc_search.study.stored_study.read_study`.
        storage: URL that an export command names, without a password.
    """
    config, record = study.config, study.record
    channels, height, width = config.data.shape
    return {
        "name": config.name,
        "model": config.model.name,
        "classes": list(record.classes),
        "images": f"{height} x {width} pixels" + ("" if channels == 3 else f", {channels} channels"),
        "validation_images": len(record.labels),
        "objectives": [objective.metric for objective in study.objectives],
        "constraints": list(violations(config, study.dense.metrics)),
        "metrics": [_metric(name, study) for name in study.dense.metrics],
        "dense": _network(study.dense),
        "notices": list(record.notices),
        "mean": _picture(None if record.images is None else record.images.mean),
        "export": _export(config, storage),
    }


def _export(config: StudyConfig, storage: str) -> list[str]:
    """What exports a trial, a command or, where the network was in memory, Python: parts around the trial's number."""
    folder = re.sub(r"[^\w.-]", "-", config.name)  # a name that needs no quotes in a shell
    if config.model.name == IN_MEMORY:
        return ["study.export(", f', "{folder}-trial', '")']
    command = f"hscc-search export {shlex.quote(config.name)} --storage {shlex.quote(storage)}"
    return [f"{command} --select trial:", f" --out {folder}-trial", ""]


def trials_data(study: Study, known: Collection[int] = ()) -> dict[str, Any]:
    """Gather what changes while a study runs.

    Args:
        study: as it stands.
        known: numbers of the trials that a page has already.

    Returns:
        ``new``, the columns of the other trials; ``numbers``, ``kinds`` and ``probability`` of all; and how the study
        stands. Kinds are a letter for each trial: f on the front, c close to it, d dominated, i infeasible.
        ``hypervolumes`` holds the trials with which the hypervolume changed, each with its value from there.
    """
    has, front = set(known), {point.trial for point in study.front}
    close, probability = study.confidence.close - front, study.confidence.probability
    new = [point for point in study.points if point.trial not in has]

    def kind(point: Point) -> str:
        if point.trial in front:
            return "f"
        if point.trial in close:
            return "c"
        return "d" if point.feasible else "i"

    searched = study.searched
    return {
        "identity": _identity(study),
        "new": _columns(study, new),
        "numbers": _ranges([point.trial for point in study.points]),
        "kinds": "".join(map(kind, study.points)),
        "probability": {trial: round(share, 3) for trial, share in probability.items() if share},
        "knee": study.confidence.knee,
        "knee_share": round(study.confidence.knees.get(study.confidence.knee or 0, 0.0), 3),
        "finished": len(searched.points),
        "refined": len(study.points) - len(searched.points),
        "wanted": study.config.trials,
        "failures": {str(trial): reason for trial, reason in study.failures.items()},
        "line": front_line(study),
        "hypervolumes": _changes([point.trial for point in study.points], study.hypervolumes()),
    }


def trial_data(study: Study, point: Point) -> dict[str, Any]:
    """Gather what a page shows of one trial beside its columns.

    Returns:
        Its layers, the regions and clusters of those that are divided, and its answers beside the dense network's.
    """
    return {
        "trial": point.trial,
        "layers": [
            {"name": layer.name, "dense": layer.macs_dense, "macs": layer.macs, "note": layer.summary}
            for layer in study.plan_of(point.trial)
        ],
        "divided": list(map(_divided, study.divided_of(point.trial))),
        "answers": _answers(study, point),
        "refined": {name: _short(value) for name, value in point.refined.items()},
        "int8": {name: _short(value) for name, value in point.int8.items() if name in ("divergence", "in_float")},
    }


def named_images(answers: Mapping[str, Any] | None) -> list[int]:
    """The positions of the validation images that the answers of a trial name."""
    sides = () if answers is None else (answers["only_dense"], answers["only_compressed"])
    return [row[0] for side in sides for row in side["images"]]


def known_trials(text: str, trials: Sequence[int]) -> set[int]:
    """Tell which trials a text names, ascending as :func:`trials_data` writes them: ``0-11,13``.

    Args:
        text: of a request; what is no such text names none.
        trials: numbers that there are, ascending.
    """
    named: set[int] = set()
    end = -1
    for part in text.split(",")[:_MOST_RANGES] if text.isascii() else ():
        first, _, last = part.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal() and len(part) < 30) or int(first) <= end:
            break
        end = int(last or first)
        named.update(trials[bisect_left(trials, int(first)) : bisect_right(trials, end)])
    return named


def _identity(study: Study) -> str:
    """A text that tells a study from another one of its name: a page that is open starts anew then."""
    config, record = study.config, study.record
    sections = (config.space, config.compression, config.finetuning, config.objectives, config.constraints)
    of = (record.fingerprint, record.dense.weights, config.seed, *sections)
    return hashlib.sha256(repr(of).encode()).hexdigest()[:16]


def _ranges(numbers: Sequence[int]) -> str:
    """Write ascending numbers as ranges."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def _changes(trials: Sequence[int], values: Sequence[float]) -> list[list[float]]:
    """The trials with which a value changed, each with the new value."""
    changes: list[list[float]] = []
    for trial, value in zip(trials, values, strict=True):
        if not changes or _short(value) != changes[-1][1]:
            changes.append([trial, _short(value)])
    return changes


def _metric(name: str, study: Study) -> dict[str, Any]:
    maximised = {objective.metric: objective.maximise for objective in study.objectives}
    unit = UNITS.get(name)
    return {
        "name": name,
        "title": title(name),
        "axis": unit.axis if unit else f"{title(name)}, validation part",
        "scale": unit.scale if unit else 1.0,
        "cost": name in COSTS,
        "share": is_share(name),
        "less": not maximised[name] if name in maximised else less_is_better(name),
    }


def _network(network: Measured) -> dict[str, Any]:
    return {
        "metrics": {name: _short(value) for name, value in network.metrics.items()},
        "errors": {name: _short(value) for name, value in network.errors.items()},
    }


def _columns(study: Study, points: Sequence[Point]) -> dict[str, Any]:
    sampled = list(dict.fromkeys(name for point in points for name in point.sample))
    return {
        "trial": [point.trial for point in points],
        "sample": {name: [_short(point.sample.get(name)) for point in points] for name in sampled},
        "metrics": {name: [_short(point.metrics.get(name)) for point in points] for name in study.dense.metrics},
        "errors": {name: [_short(point.errors.get(name)) for point in points] for name in study.dense.errors},
        "refines": [point.refines for point in points],
        "refined": [bool(point.refined) for point in points],
        "violations": [{name: _short(size) for name, size in point.violations.items() if size} for point in points],
    }


def _answers(study: Study, point: Point) -> dict[str, Any] | None:
    """Confusion matrices, true classes in rows, and the images that only one network gets right; None of maps."""
    labels, classes = study.record.labels, study.record.classes
    if labels.ndim > 1:
        return None
    found: dict[str, Any] = {"classes": list(classes)}
    right = {}
    for name, network in (("dense", study.dense), ("compressed", point)):
        predicted = np.frombuffer(network.predictions, "<u2").astype(np.int64)
        cells = np.bincount(labels.astype(np.int64) * len(classes) + predicted, minlength=len(classes) ** 2)
        recalls = [f"recall:{each}" for each in classes]
        found[name] = {
            "confusion": cells.reshape(len(classes), -1).tolist(),
            "recall": [_short(network.metrics.get(each)) for each in recalls],
            "error": [_short(network.errors.get(each)) for each in recalls],
        }
        right[name] = predicted == labels
    for name, other in (("dense", "compressed"), ("compressed", "dense")):
        found[f"only_{name}"] = _named(study, np.flatnonzero(right[name] & ~right[other]), (study.dense, point))
    return found


def _named(study: Study, images: np.ndarray, networks: tuple[Measured, Measured]) -> dict[str, Any]:
    """Name validation images, each with its position, its class and the classes that the two networks see."""
    names = study.record.images.names if study.record.images is not None else ()
    answers = [study.record.labels, *(np.frombuffer(network.predictions, "<u2") for network in networks)]
    rows = [
        [image, names[image] if names else f"validation image {image}", *(int(each[image]) for each in answers)]
        for image in images[:_MOST_NAMED].tolist()
    ]
    return {"count": len(images), "images": rows}


def _divided(layer: DividedLayer) -> dict[str, Any]:
    return {
        "name": layer.name,
        "size": list(layer.output_size),
        "pieces": [[piece.top, piece.bottom, piece.left, piece.right, piece.region] for piece in layer.pieces],
        "clusters": [list(sizes) for sizes in layer.clusters],
        "coactivation": list(map(_picture, layer.coactivation)),
    }


def _picture(values: np.ndarray | None) -> dict[str, Any] | None:
    """The bytes of an array, and its shape."""
    return None if values is None else {"shape": values.shape, "bytes": base64.b64encode(values.tobytes()).decode()}


def _short(value: Any) -> Any:
    """A number with the digits that a page needs, None where it is not finite; other values as they are."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
