"""The formats of the stored study and the stored trial. Nobody else writes or reads their keys.

A study's record is one attribute of Optuna's study, so that a study has it whole or not at all. A trial's record is two
attributes of Optuna's trial: what was measured, which a front is drawn from, and the plan of its layers, which is read
for one trial at a time. Needs no torch.

``FORMAT`` is raised when a record holds other things, or when the same sample would give another network; then
``from_stored`` learns to read the format before, and ``READ`` names both.
"""

import base64
import importlib.metadata
import platform
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hscc_search.compression.plan import LayerPlan
from hscc_search.config import StudyConfig
from hscc_search.errors import StudyError
from hscc_search.evaluation.cost import CountedCost
from hscc_search.pareto.points import Measured, Point
from hscc_search.storage import without_password

FORMAT = 5
READ = (4, FORMAT)

# Keys among the attributes of Optuna's study and trials.
STUDY, MEASURED, PLAN, FAILURE = "hscc", "measured", "plan", "failure"


@dataclass(frozen=True)
class DenseRecord:
    """What is stored of the dense network.

    Attributes:
        measured: on the validation part.
        cost: as it was counted when the study was created.
        weights: digest of its weights, see :func:`hscc_search.dense.weights.weights_digest`.
    """

    measured: Measured
    cost: CountedCost
    weights: str


@dataclass(frozen=True, eq=False)
class StudyRecord:
    """What is stored of a study when it is created.

    Attributes:
        config: the study file with every default filled in; its storage has no password.
        fingerprint: of the data set.
        classes: class names.
        labels: class of each validation image, uint16.
        dense: the dense network.
        versions: of the packages that the study was created with.
    """

    config: StudyConfig
    fingerprint: str
    classes: tuple[str, ...]
    labels: np.ndarray
    dense: DenseRecord
    versions: dict[str, str]

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values."""
        return {
            "version": FORMAT,
            "config": {**self.config.stored(), "storage": without_password(self.config.storage)},
            "versions": self.versions,
            "fingerprint": self.fingerprint,
            "classes": list(self.classes),
            "labels": _packed(self.labels.astype("<u2").tobytes()),
            "dense": {
                **_stored_measured(self.dense.measured),
                "cost": self.dense.cost.stored(),
                "weights": self.dense.weights,
            },
        }

    @classmethod
    def from_stored(cls, tree: Mapping[str, Any]) -> "StudyRecord":
        """Undo :meth:`stored`.

        Raises:
            StudyError: the record has a format that this version does not read.
        """
        name, dense = tree["config"]["name"], tree["dense"]
        if tree["version"] not in READ:
            raise StudyError(
                f"study {name!r} is stored in format {tree['version']}, by hscc-search "
                f"{tree['versions']['hscc-search']}: hscc-search {versions()['hscc-search']} reads the formats "
                f"{' and '.join(map(str, READ))}"
            )
        return cls(
            config=StudyConfig.from_tree(tree["config"], f"stored study {name}"),
            fingerprint=tree["fingerprint"],
            classes=tuple(tree["classes"]),
            labels=np.frombuffer(_unpacked(tree["labels"]), "<u2"),
            dense=DenseRecord(
                Measured(dense["metrics"], dense["errors"], _unpacked(dense["predictions"])),
                CountedCost(**dense["cost"]),
                dense["weights"],
            ),
            versions=tree["versions"],
        )


@dataclass(frozen=True)
class TrialRecord:
    """What is stored of a finished trial.

    Attributes:
        measured: on the validation part.
        sample: the values that the search drew.
        violations: by constraint how far it is missed, 0 where it is kept.
        plan: what became of each layer.
    """

    measured: Measured
    sample: Mapping[str, Any]
    violations: Mapping[str, float]
    plan: Sequence[LayerPlan]

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values of the trial's attributes, by key."""
        measured = {
            "sample": dict(self.sample),
            **_stored_measured(self.measured),
            "violations": dict(self.violations),
        }
        return {MEASURED: measured, PLAN: [layer.stored() for layer in self.plan]}


def point_from_stored(trial: int, tree: Mapping[str, Any]) -> Point:
    """Read what was measured of a trial.

    In format 4 the sample was called settings, and a violation was negative where a constraint was kept.
    """
    return Point(
        metrics=tree["metrics"],
        errors=tree["errors"],
        predictions=_unpacked(tree["predictions"]),
        trial=trial,
        sample=tree["sample"] if "sample" in tree else tree["settings"],
        violations={name: max(0.0, size) for name, size in tree["violations"].items()},
    )


def plan_from_stored(tree: Sequence[dict[str, Any]]) -> tuple[LayerPlan, ...]:
    """Read what became of each layer in a trial."""
    return tuple(map(LayerPlan.from_stored, tree))


def versions() -> dict[str, str]:
    """Look up the installed versions of what a study depends on."""
    packages = ("hscc-search", "torch", "torchvision", "optuna", "scikit-learn", "fvcore", "numpy")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def _stored_measured(measured: Measured) -> dict[str, Any]:
    return {
        "metrics": dict(measured.metrics),
        "errors": dict(measured.errors),
        "predictions": _packed(measured.predictions),
    }


def _packed(values: bytes) -> str:
    """Write bytes as short text."""
    return base64.b64encode(zlib.compress(values)).decode()


def _unpacked(text: str) -> bytes:
    """Undo :func:`_packed`."""
    return zlib.decompress(base64.b64decode(text))
