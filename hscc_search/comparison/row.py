"""One measured network of a comparison, and the file that keeps it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hscc_search.errors import ConfigError
from hscc_search.files import written_whole


@dataclass(frozen=True)
class Row:
    """One measured network.

    Attributes:
        method: a key of :data:`METHODS`, or ``dense``.
        budget: asked ratio of FLOPs; 1 for the dense network.
        seed: of the split.
        epochs: of fine-tuning.
        macs: multiply-adds per image; FLOPs are twice as many.
        parameters: number of weights.
        quality: on the test part, see :class:`hscc_search.evaluation.quality.Quality`.
        right: for each image of the test part 1 where the network was right, else 0.
        latency: median milliseconds per batch by ``runtime batch``, such as ``torch 1``, with the dense network's
            from the same turns under ``dense torch 1``; empty where it was not measured.
        seconds: that compressing (or training further) took.
        failure: why there is no network, or None.
    """

    method: str
    budget: float
    seed: int
    epochs: int
    macs: int = 0
    parameters: int = 0
    quality: dict[str, Any] | None = None
    right: tuple[int, ...] = ()
    latency: dict[str, float] | None = None
    seconds: float = 0.0
    failure: str | None = None


DENSE = "dense"


def _file(out: Path, method: str, budget: float, seed: int, epochs: int) -> Path:
    return out / "rows" / f"split{seed}-{method}-{budget:.12g}x-{epochs}epochs.json"


def _write(path: Path, tree: dict[str, Any]) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
        temporary.chmod(0o644)


def _read(path: Path) -> Row:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return Row(**{**tree, "right": tuple(tree["right"])})
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged: delete it, and it is measured again") from error
