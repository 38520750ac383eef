"""The formats of the stored study and the stored trial: nothing else writes or reads their keys. Needs no torch.

A study's record is one attribute of Optuna's study, so that a study has it whole or not at all. A trial's record is
several attributes of Optuna's trial: the measurements, from which the front comes; the plan of its layers, read for one
trial at a time; and the scores of the validation images, read where an objective is a metric of scores, in as many
pieces as databases need. What is long in the others, as with hundreds of layers or of classes, is stored packed.

``FORMAT`` is raised when a record holds other things, or when the same sample would give another network; then
``from_stored`` learns to read the format before, and ``READ`` names both.
"""

import base64
import importlib.metadata
import json
import lzma
import platform
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from hscc_search.compression.divided import DividedLayer
from hscc_search.compression.inspection import Inspection
from hscc_search.compression.plan import LayerPlan
from hscc_search.config import StudyConfig
from hscc_search.errors import StudyError
from hscc_search.evaluation.cost import CountedCost
from hscc_search.pareto.points import Measured, Point
from hscc_search.storage import without_password
from hscc_search.study.images_record import ImagesRecord

FORMAT = 5
READ = (4, FORMAT)

# Key of packed values, and the most characters that are stored as they are: MySQL takes 65,535 bytes for an attribute.
_SHORTENED, _LONG = "packed", 30_000

# Keys among the attributes of Optuna's study and trials.
STUDY, MEASURED, PLAN, DIVIDED, FAILURE = "hscc", "measured", "plan", "divided", "failure"
# Key among the system attributes of a trial of the second stage: the number of the trial that it refines.
REFINES = "hscc:refines"
# Why a trial failed that two workers created at the same time.
TOO_LATE = "another worker was quicker"
# The pieces of the scores are called scores:0, scores:1 and so on.
SCORES = "scores:"
_PIECE = 60_000


@dataclass(frozen=True)
class DenseRecord:
    """The dense network as a study stores it.

    Attributes:
        measured: on the validation part.
        cost: as it was counted when the study was created.
        weights: digest of its weights, see :func:`hscc_search.dense.weights.weights_digest`.
        network: digests of its structure and code, see :func:`hscc_search.dense.identity.identity`; empty where 0.1.0
            stored the study.
    """

    measured: Measured
    cost: CountedCost
    weights: str
    network: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyRecord:
    """A study as it is stored when it is created, without its trials.

    Attributes:
        config: the study file with every default filled in; its storage has no password.
        fingerprint: of the data set.
        classes: class names.
        labels: class of each validation image, uint16; where targets are maps, the number of points of each class in
            each, uint32, shape (images, classes).
        groups: int64, shape (images,), the same for validation images that belong together; None where none do.
        images: what pages show of the images; None in a study of version 0.1.0.
        dense: the dense network.
        versions: of Python and of the packages that the study was created with, by name.
        inspection: of the dense network, layer by layer; None in a study of version 0.1.0.
        notices: what the user was warned of when the study was created, one line each.
    """

    config: StudyConfig
    fingerprint: str
    classes: tuple[str, ...]
    labels: np.ndarray = field(compare=False, repr=False)
    dense: DenseRecord
    versions: dict[str, str]
    inspection: Inspection | None = None
    notices: tuple[str, ...] = ()
    groups: np.ndarray | None = field(default=None, compare=False, repr=False, kw_only=True)
    images: ImagesRecord | None = field(default=None, compare=False, repr=False, kw_only=True)

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values."""
        head = {
            "version": FORMAT,
            "hscc_search": importlib.metadata.version("hscc-search"),
            "config": {**self.config.stored(), "storage": without_password(self.config.storage)},
            "versions": self.versions,
        }
        rest = {
            "fingerprint": self.fingerprint,
            "classes": list(self.classes),
            **_stored_labels(self.labels),
            **({} if self.groups is None else {"groups": _packed(_renumbered(self.groups))}),
            "dense": {
                **_stored_measured(self.dense.measured),
                "cost": self.dense.cost.stored(),
                "weights": self.dense.weights,
                "network": dict(self.dense.network),
            },
            "inspection": None if self.inspection is None else self.inspection.stored(),
            "notices": list(self.notices),
            # The key "images" was a number in format 4.
            **({} if self.images is None else {"pictures": self.images.stored()}),
        }
        return {**head, **_shortened(rest)}  # the head is read by versions that read nothing else

    @classmethod
    def from_stored(cls, tree: Mapping[str, Any]) -> "StudyRecord":
        """Undo :meth:`stored`.

        Raises:
            StudyError: the record has a format that this version does not read.
        """
        name = tree["config"]["name"]
        if tree["version"] not in READ:
            # Before format 5 only the version that created the study was stored.
            writer = tree.get("hscc_search", tree["versions"]["hscc-search"])
            raise StudyError(
                f"study {name!r} has format {tree['version']}, written by hscc-search {writer}: "
                f"hscc-search {importlib.metadata.version('hscc-search')} reads the formats "
                f"{' and '.join(map(str, READ))}"
            )
        tree = {**tree, **_whole(tree)}
        dense = tree["dense"]
        return cls(
            config=StudyConfig.from_stored(tree["config"], f"stored study {name}"),
            fingerprint=tree["fingerprint"],
            classes=tuple(tree["classes"]),
            labels=_labels_from_stored(tree),
            groups=np.frombuffer(_unpacked(tree["groups"]), "<u4").astype(np.int64) if "groups" in tree else None,
            dense=DenseRecord(
                Measured(
                    dense["metrics"],
                    dense["errors"],
                    _unpacked(dense["predictions"]),
                    draws=_draws_from_stored(dense),
                ),
                CountedCost.from_stored(dense["cost"]),
                dense["weights"],
                dense.get("network", {}),
            ),
            versions=tree["versions"],
            inspection=Inspection.from_stored(tree["inspection"]) if tree.get("inspection") else None,
            notices=tuple(tree.get("notices", ())),
            images=ImagesRecord.from_stored(tree["pictures"]) if "pictures" in tree else None,
        )


@dataclass(frozen=True)
class TrialRecord:
    """A finished trial as a study stores it; read back by :func:`point_from_stored` and :func:`plan_from_stored`.

    Attributes:
        measured: on the validation part.
        sample: the values that the search drew.
        violations: by constraint the distance by which it is missed, 0 where it is kept.
        plan: of each layer.
        refined: see :class:`hscc_search.pareto.points.Point`.
        refines: likewise.
        int8: likewise.
        divided: the layers that have more than one region or cluster.
    """

    measured: Measured
    sample: Mapping[str, Any]
    violations: Mapping[str, float]
    plan: Sequence[LayerPlan]
    refined: Mapping[str, float] = field(default_factory=dict)
    refines: int | None = None
    int8: Mapping[str, Any] = field(default_factory=dict)
    divided: Sequence[DividedLayer] = ()

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values of the trial's attributes, by their keys."""
        measured = {
            "sample": dict(self.sample),
            **_stored_measured(self.measured),
            "violations": dict(self.violations),
            **({"refined": dict(self.refined)} if self.refined else {}),
            **({} if self.refines is None else {"refines": self.refines}),
            **({"int8": dict(self.int8)} if self.int8 else {}),
        }
        return {
            MEASURED: _shortened(measured),
            PLAN: _shortened([layer.stored() for layer in self.plan]),
            **_stored_divided(self.divided),
            **_stored_scores(self.measured.scores),
        }


def point_from_stored(trial: int, tree: Mapping[str, Any], scores: Mapping[str, Any] | None = None) -> Point:
    """Read the measurements of a trial by its number, with the pieces of its scores by key where they are needed.

    In format 4 the sample was called settings, and a violation was negative where a constraint was kept.
    """
    tree = _whole(tree)
    return Point(
        metrics=tree["metrics"],
        errors=tree["errors"],
        predictions=_unpacked(tree["predictions"]),
        scores=_scores_from_stored(scores) if scores else None,
        draws=_draws_from_stored(tree),
        trial=trial,
        sample=tree["sample"] if "sample" in tree else tree["settings"],
        violations={name: max(size, 0.0) for name, size in tree["violations"].items()},
        refined=tree.get("refined", {}),
        refines=tree.get("refines"),
        int8=tree.get("int8", {}),
    )


def plan_from_stored(tree: Any) -> tuple[LayerPlan, ...]:
    """Read the plan of each layer in a trial."""
    return tuple(map(LayerPlan.from_stored, _whole(tree)))


def divided_from_stored(tree: Any) -> tuple[DividedLayer, ...]:
    """Read the divided layers of a trial; a trial without any has no such attribute."""
    return tuple(map(DividedLayer.from_stored, _whole(tree)))


def refines(trial: FrozenTrial) -> int | None:
    """The number of the trial that one of the second stage measures again, refined; None of all others."""
    number: int | None = trial.system_attrs.get(REFINES)
    return number


def refined_trials(trials: Sequence[FrozenTrial]) -> set[int]:
    """The numbers of the trials that are refined, or are being refined, or could not be."""
    numbers = {refines(trial) for trial in trials if trial.user_attrs.get(FAILURE) != TOO_LATE}
    return {number for number in numbers if number is not None}


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that a study depends on, by name."""
    packages = ("hscc-search", "torch", "torchvision", "optuna", "scikit-learn", "fvcore", "numpy")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def _stored_divided(layers: Sequence[DividedLayer]) -> dict[str, Any]:
    """The attribute of divided layers: without their pictures, or none at all, where it would be too long."""
    without = [replace(layer, coactivation=(None,) * len(layer.clusters)) for layer in layers]
    for kept in (layers, without):
        tree = _shortened([layer.stored() for layer in kept])
        if layers and len(json.dumps(tree)) <= _PIECE:
            return {DIVIDED: tree}
    return {}


def _stored_measured(measured: Measured) -> dict[str, Any]:
    draws = {name: _packed(values.astype("<f8").tobytes()) for name, values in measured.draws.items()}
    return {
        "metrics": dict(measured.metrics),
        "errors": dict(measured.errors),
        "predictions": _packed(measured.predictions),
        **({"on_draws": draws} if draws else {}),
    }


def _draws_from_stored(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.frombuffer(_unpacked(text), "<f8") for name, text in tree.get("on_draws", {}).items()}


def _stored_labels(labels: np.ndarray) -> dict[str, Any]:
    """The classes of images, or the numbers of points of each class in maps."""
    if labels.ndim == 1:
        return {"labels": _packed(labels.astype("<u2").tobytes())}
    return {"points": _packed(labels.astype("<u4").tobytes())}


def _labels_from_stored(tree: Mapping[str, Any]) -> np.ndarray:
    """Undo :func:`_stored_labels`."""
    if "labels" in tree:
        return np.frombuffer(_unpacked(tree["labels"]), "<u2")
    return np.frombuffer(_unpacked(tree["points"]), "<u4").reshape(-1, len(tree["classes"]))


def _stored_scores(scores: np.ndarray | None) -> dict[str, Any]:
    """The pieces of scores by their keys; none without scores."""
    if scores is None:
        return {}
    # High bytes first, then low ones: the high ones alike make the text a fifth shorter.
    text = _packed(scores.astype("<f2").reshape(-1).view(np.uint8).reshape(-1, 2).T[::-1].tobytes())
    pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
    first = {"shape": list(scores.shape), "pieces": len(pieces)}
    return {
        f"{SCORES}{number}": {"text": piece, **(first if not number else {})} for number, piece in enumerate(pieces)
    }


def _scores_from_stored(pieces: Mapping[str, Any]) -> np.ndarray:
    """Undo :func:`_stored_scores`."""
    first = pieces[f"{SCORES}0"]
    text = "".join(pieces[f"{SCORES}{number}"]["text"] for number in range(first["pieces"]))
    values = np.frombuffer(_unpacked(text), np.uint8).reshape(2, -1)[::-1].T
    return np.ascontiguousarray(values).view("<f2").reshape(first["shape"])


def _renumbered(groups: np.ndarray) -> bytes:
    return np.unique(groups, return_inverse=True)[1].astype("<u4").tobytes()


def _shortened(tree: Any) -> Any:
    """JSON-compatible values as they are, or packed where they are long."""
    text = json.dumps(tree)
    return tree if len(text) <= _LONG else {_SHORTENED: base64.b85encode(lzma.compress(text.encode())).decode()}


def _whole(tree: Any) -> Any:
    """Undo :func:`_shortened`."""
    if isinstance(tree, Mapping) and _SHORTENED in tree:
        return json.loads(lzma.decompress(base64.b85decode(tree[_SHORTENED])))
    return tree


def _packed(values: bytes) -> str:
    """Write bytes as short text."""
    return base64.b64encode(zlib.compress(values)).decode()


def _unpacked(text: str) -> bytes:
    """Undo :func:`_packed`."""
    return zlib.decompress(base64.b64decode(text))
