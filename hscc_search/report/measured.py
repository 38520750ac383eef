"""What ``run.py benchmark`` measured of exported trials on some device, beside the search's own figures."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hscc_search.errors import ConfigError, ExportError, quoted, shortened
from hscc_search.pareto.objectives import written
from hscc_search.study.stored_study import Study

# Names of the columns of :func:`measured_rows`.
HEADS = (
    *("trial", "fewer FLOPs", "accuracy", "latency in the search", "ms for 1 image", "p95", "ms for 32 images", "p95"),
    *("memory in MB", "threads", "processor"),
)
# Images per batch that a benchmark measures.
_BATCHES = ("1", "32")


@dataclass(frozen=True)
class OnDevice:
    """The measurement of an exported trial on a device.

    Attributes:
        trial: its number.
        median: milliseconds per batch of 1 and of 32 images.
        p95: of 95 % of the batches, likewise.
        threads: that ONNX Runtime was given; 0 where it chose.
        memory: the most that the process took, in MB; None where the device does not tell.
        device: model of the processor, and the version of ONNX Runtime.
    """

    trial: int
    median: tuple[float, ...]
    p95: tuple[float, ...]
    threads: int
    memory: float | None
    device: str


def read_measured(paths: Sequence[Path], study: Study) -> tuple[OnDevice, ...]:
    """Read files that ``run.py benchmark --out`` has written, of trials of a study.

    Raises:
        ConfigError: one is no such file, or is of another study or of no finished trial.
    """
    return tuple(_read(path, study) for path in paths)


def _read(path: Path, study: Study) -> OnDevice:
    # ONNX Runtime takes a moment to import, and few commands show a measurement.
    from hscc_search.export.manifest import refusing
    from hscc_search.export.run import read_json

    try:
        with refusing():
            tree = read_json(path)
        latency, memory = tree["latency"], tree.get("peak_memory_mb")
        median, p95 = (tuple(float(latency[batch][name]) for batch in _BATCHES) for name in ("median_ms", "p95_ms"))
        found = OnDevice(
            trial=operator.index(tree["trial"]),
            median=median,
            p95=p95,
            threads=int(tree["threads"]),
            memory=None if memory is None else float(memory),
            device=f"{shortened(str(tree['cpu']), 60)}, ONNX Runtime {shortened(str(tree['onnxruntime']), 20)}",
        )
    except ExportError as error:
        raise ConfigError(f"--measured: {error}") from error
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"--measured: {path} is not what run.py benchmark --out writes") from error
    if tree.get("study") != study.config.name:
        raise ConfigError(f"--measured: {path} is of study {quoted(tree.get('study'))}, not of {study.config.name}")
    if found.trial not in {point.trial for point in study.points}:
        raise ConfigError(f"--measured: {path} is of trial {quoted(found.trial)}, which this study has not finished")
    return found


def measured_rows(study: Study, measured: Sequence[OnDevice]) -> list[tuple[str, ...]]:
    """The rows of what was measured on devices, in the order of :data:`HEADS`."""
    return [_row(study, each) for each in measured]


def _row(study: Study, found: OnDevice) -> tuple[str, ...]:
    (point,) = [point for point in study.points if point.trial == found.trial]
    latency = written("latency", point["latency"]) if "latency" in point.metrics else "-"
    times = [f"{number:.3f}" for pair in zip(found.median, found.p95, strict=True) for number in pair]
    return (
        str(found.trial),
        f"{study.dense['flops'] / point['flops']:.2f}x",
        f"{point['accuracy']:.4f}" if "accuracy" in point.metrics else "-",
        latency,
        *times,
        "-" if found.memory is None else f"{found.memory:.0f}",
        str(found.threads or "all"),
        found.device,
    )
