"""What a user should know before a search costs time."""

from collections.abc import Iterable, Iterator

import numpy as np

from hscc_search.compression.calibration.examination import examine, inspection_of
from hscc_search.compression.calibration.plain_layers import make_plain
from hscc_search.compression.inspection import Inspection
from hscc_search.config import StudyConfig
from hscc_search.data import PARTS
from hscc_search.data import notices as notices_on_images
from hscc_search.dense.notices import notices as notices_on_answers
from hscc_search.dense.notices import notices_on_maps
from hscc_search.dense.opened import Opened, open_built, with_checkpoint
from hscc_search.errors import ExportError, StudyError
from hscc_search.pareto.points import Measured
from hscc_search.progress import Notice, Report, silent
from hscc_search.runtime.onnx import onnx_program
from hscc_search.study.opening import calibration_images

# Images that an inspection runs: what it finds does not depend on them.
_IMAGES = 8


class Notices:
    """Lines on a study, each told at once, or raised where the study is strict.

    Attributes:
        lines: that were told.
    """

    def __init__(self, report: Report, strict: bool) -> None:
        self.lines: list[str] = []
        self._report, self._strict = report, strict

    def tell(self, lines: Iterable[str]) -> None:
        """Tell some lines.

        Raises:
            StudyError: the study is strict, and there is a line.
        """
        for line in lines:
            if self._strict:
                raise StudyError(f"{line} (without --strict this is a warning)")
            self.lines.append(line)
            self._report(Notice(f"warning: {line}"))


def inspect_study(config: StudyConfig, report: Report = silent) -> tuple[Inspection, tuple[str, ...]]:
    """Inspect the dense network of a study, as it is built or with the weights of the checkpoint; nothing is trained.

    Returns:
        The network layer by layer, and what should be known before a search, one line each.

    Raises:
        HsccError: the images or the network cannot be used, or the network cannot be compressed.
    """
    opened = open_built(config, "cpu", report)
    if config.model.checkpoint is not None:
        opened = with_checkpoint(opened, config.model.checkpoint, report)
    inspection = _inspected(opened)
    return inspection, tuple(_lines(opened, inspection))


def notices_before_training(opened: Opened) -> tuple[str, ...]:
    """Lines on the images, and on a network that is built and not trained yet."""
    return tuple(_lines(opened, _inspected(opened)))


def notices_on_dense(opened: Opened, measured: Measured) -> tuple[str, ...]:
    """Lines on where the weights of the dense network come from, and on what it answers to the validation images."""
    labels, classes = opened.parts.validation.labels, opened.dataset.classes
    if opened.dataset.maps:
        lines = notices_on_maps(measured["accuracy"], measured.errors["accuracy"], labels, classes)
    else:
        lines = notices_on_answers(np.frombuffer(measured.predictions, "<u2").astype(np.int64), labels, classes)
    return (*_lines_on_weights(opened), *lines)


def _lines_on_weights(opened: Opened) -> Iterator[str]:
    """A line on weights that may know the images that are measured on; none where a split says that they do not."""
    sides = opened.dataset.sides
    if not opened.trained_elsewhere:
        return
    if sides is None:
        yield (
            "which images the weights of the dense network were trained on is not known: if some are in the validation "
            "or the test part, accuracies are too high"
        )
    elif PARTS.index("validation") not in sides:
        yield (
            "the weights of the dense network may have been trained on all of the train part that was given: then "
            "accuracies on the validation part, which is drawn from it, are too high; the test part is apart"
        )


def _inspected(opened: Opened) -> Inspection:
    config = opened.config
    images = calibration_images(opened, _IMAGES).to(next(opened.network.parameters()).device)
    count = min(config.compression.calibration_images, len(opened.parts.train))
    return inspection_of(examine(opened.network, images), count)


def _lines(opened: Opened, inspection: Inspection) -> Iterator[str]:
    yield from notices_on_images(opened.dataset, opened.parts)
    yield from inspection.notices()
    yield from _precision_for_nothing(opened.config)
    yield from _export_fault(opened)


def _precision_for_nothing(config: StudyConfig) -> Iterator[str]:
    """A line where 8-bit integers change only what no trial is chosen by."""
    by = (*config.objectives, *(bound.metric for bound in config.constraints))
    if config.space.with_int8 and not {"latency", "megabytes"} & set(by):
        yield (
            "space.precision: int8 changes neither FLOPs nor parameters, so that such trials only lose accuracy: name "
            "latency or megabytes in objectives or constraints"
        )


def _export_fault(opened: Opened) -> Iterator[str]:
    """A line where trials could be searched and not exported: those of its layers that HSCC replaces always can be.

    Raises:
        StudyError: the study has int8 trials, which are exported to be measured.
    """
    if opened.config.model.name == "digits_cnn":
        return
    plain, _ = make_plain(opened.network, calibration_images(opened, 1))
    try:
        onnx_program(plain.cpu(), opened.config.data.shape)
    except ExportError as error:
        if opened.config.space.with_int8:
            raise StudyError(f"space.precision: int8 trials cannot be measured: {error}") from error
        yield f"no trial of this study can be exported: {error}"
