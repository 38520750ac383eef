"""The formats of a comparison's files. Nothing else writes or reads their keys. Needs no torch.

``FORMAT`` is raised when a file holds other things; then ``from_stored`` learns to read the format before, and ``READ``
names both. Format 1, of hscc-search 0.1.0, has no number.
"""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from hscc_search.config import StudyConfig
from hscc_search.errors import ConfigError
from hscc_search.evaluation.quality import Quality

FORMAT = 2
READ = (1, FORMAT)

# The method name of the dense network.
DENSE = "dense"


@dataclass(frozen=True)
class ComparisonRecord:
    """The inputs that all networks of a comparison share.

    Attributes:
        config: of the study; the comparison does not use its space, split seed and epochs of fine-tuning.
        epochs: of fine-tuning, 0 where no network is fine-tuned.
        fingerprint: of the data set.
        checkpoint: SHA-256 of the dense network's weights file, None where each split trains its own.
    """

    config: StudyConfig
    epochs: int
    fingerprint: str
    checkpoint: str | None

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values."""
        return {
            "format": FORMAT,
            "study": self.config.stored(),
            "finetune": self.epochs,
            "images": self.fingerprint,
            "checkpoint": self.checkpoint,
        }

    @classmethod
    def from_stored(cls, tree: Mapping[str, Any], origin: str) -> "ComparisonRecord":
        """Undo :meth:`stored`. Format 1 had the same keys.

        Args:
            tree: what was stored.
            origin: the file, for messages.

        Raises:
            ConfigError: the record has a format that this version does not read.
            KeyError, TypeError: the record is damaged.
        """
        _check_format(tree, origin)
        config = StudyConfig.from_stored(tree["study"], origin)
        return cls(config, tree["finetune"], tree["images"], tree["checkpoint"])


@dataclass(frozen=True)
class Asked:
    """One network that a comparison asks for.

    Attributes:
        method: a key of :data:`hscc_search.comparison.methods.METHODS`, or :data:`DENSE`.
        budget: asked ratio of dense FLOPs to compressed FLOPs; 1 for the dense network.
        seed: of the split.
        epochs: of fine-tuning.
        refined: whether it is refined towards the dense network's answers, without labels.
    """

    method: str
    budget: float
    seed: int
    epochs: int
    refined: bool = False


@dataclass(frozen=True)
class ComparedNetwork:
    """One measured network of a comparison, or the reason why there is none.

    Attributes:
        asked: which network it is.
        macs: multiply-adds per image; FLOPs are twice as many.
        parameters: number of weights and biases.
        quality: on the test part; None where there is no network.
        right: for each image of the test part 1 where the network is right, else 0.
        latency: median milliseconds per batch by ``runtime batch``, such as ``torch 1``; empty where not measured.
        dense_latency: the dense network's, taken in the same turns.
        seconds: time of compressing, or of fine-tuning where the network was fine-tuned.
        failure: why there is no network, or None.
        groups: for each image of the test part the number of its group, where images belong together; else empty.
    """

    asked: Asked
    macs: int = 0
    parameters: int = 0
    quality: Quality | None = None
    right: tuple[int, ...] = ()
    latency: Mapping[str, float] = field(default_factory=dict)
    dense_latency: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    failure: str | None = None
    groups: tuple[int, ...] = ()

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values."""
        tree = asdict(self)
        return {"format": FORMAT, **tree.pop("asked"), **tree}

    @classmethod
    def from_stored(cls, tree: Mapping[str, Any], origin: str) -> "ComparedNetwork":
        """Undo :meth:`stored`.

        Args:
            tree: what was stored.
            origin: the file, for messages.

        Raises:
            ConfigError: the network is stored in a format that this version does not read.
            KeyError, TypeError: what was stored is damaged.
        """
        if _check_format(tree, origin) == 1:
            tree = _from_format_1(tree)
        quality = tree["quality"]
        return cls(
            asked=Asked(tree["method"], tree["budget"], tree["seed"], tree["epochs"], tree.get("refined", False)),
            macs=tree["macs"],
            parameters=tree["parameters"],
            quality=None if quality is None else Quality(quality["metrics"], quality["errors"]),
            right=tuple(tree["right"]),
            groups=tuple(tree.get("groups", ())),
            latency=tree["latency"],
            dense_latency=tree["dense_latency"],
            seconds=tree["seconds"],
            failure=tree["failure"],
        )


def _check_format(tree: Mapping[str, Any], origin: str) -> int:
    """The format of a stored file.

    Raises:
        ConfigError: this version does not read it.
    """
    stored_format = tree.get("format", 1)
    if stored_format not in READ:
        version = importlib.metadata.version("hscc-search")
        raise ConfigError(
            f"{origin} is in format {stored_format}, and hscc-search {version} reads the formats "
            f"{' and '.join(map(str, READ))}: use a newer version, or name another output folder"
        )
    return int(stored_format)


def _from_format_1(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Bring a network stored in format 1 to format 2.

    Errors stood beside the metrics, with ``_se`` behind the name; classes had positions and no names, so their recall
    and F1 are left out. Latencies of both networks stood together.
    """
    quality, latency = tree["quality"], tree["latency"] or {}
    names = ("accuracy", "macro_f1")
    prefix = "dense "
    return {
        **tree,
        "quality": quality
        and {
            "metrics": {name: quality[name] for name in names},
            "errors": {name: quality[f"{name}_se"] for name in names},
        },
        "latency": {run: value for run, value in latency.items() if not run.startswith(prefix)},
        "dense_latency": {run.removeprefix(prefix): value for run, value in latency.items() if run.startswith(prefix)},
    }
