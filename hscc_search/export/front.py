"""Export of a whole front: a folder for each trial, and an index of them."""

import os
from pathlib import Path
from typing import Any

from hscc_search.config import StudyConfig
from hscc_search.config.metrics import COSTS
from hscc_search.export.export import export
from hscc_search.export.formats import FORMATS, NO_EXTRAS, Extras
from hscc_search.export.index import Asked, Index
from hscc_search.export.signature import fingerprint
from hscc_search.pareto.objectives import quality_of
from hscc_search.progress import Progress, Report, silent
from hscc_search.study.opening import open_again
from hscc_search.study.stored_study import Study
from hscc_search.study.trial import Prepared, prepare


def export_front(
    study: Study,
    config: StudyConfig,
    out: Path,
    device: str = "auto",
    report: Report = silent,
    prepared: Prepared | None = None,
    refine: bool = False,
    extras: Extras = NO_EXTRAS,
) -> list[dict[str, Any]]:
    """Export each trial of the front into a folder of its own, as :func:`hscc_search.export.export.export` does.

    Trials are ranked by how often each is the knee of a bootstrap draw, see
    :func:`hscc_search.pareto.selection.ranked`. Each folder appears whole, and the index says after each which there
    are; where an export was stopped, the same one continues with the trials that lack.

    Args:
        study: whose front is exported.
        config: the study's, with paths of this machine; its epochs of fine-tuning may differ from the study's.
        out: a folder that does not exist yet, or in which the same export was begun.
        device: where networks are compressed.
        report: told of each trial, and of the steps of its export.
        prepared: images and dense network, opened and calibrated; None opens those that ``config`` names, once.
        refine: also trials that are not refined, as ``config`` says.
        extras: as for one export; the same ones where an export goes on.

    Returns:
        What ``index.json`` says of each trial.

    Raises:
        ExportError: ``out`` holds something else, or a network cannot be exported.
        HsccError: as for one export; or the front is empty.
    """
    index = _index(study, config, refine, extras)
    index.claim(out, extras.key)
    if prepared is None and index.lacking(out):
        prepared = prepare(open_again(study.record, config, device, report), study.record.dense, report)
    folders, task = index.folders(), f"exporting the front to {out}"
    for done, (name, choice) in enumerate(zip(folders, index.choices, strict=True)):
        if not os.path.lexists(out / name):
            report(Progress(task, done, len(folders), name))
            noted = _noted(report, done, len(folders), task, name)
            export(study, choice.point, config, out / name, device, noted, None, prepared, refine, choice, extras)
            index.write(out)
    report(Progress(task, len(folders), len(folders)))
    return index.write(out)


def _index(study: Study, config: StudyConfig, refine: bool, extras: Extras) -> Index:
    record, choices = study.record, tuple(study.ranked())
    trials, weights = tuple(choice.point.trial for choice in choices), record.dense.weights
    epochs, formats = config.finetuning.epochs, tuple(name for name in FORMATS if name in extras.formats)
    signed_by = None if extras.key is None else fingerprint(extras.key.public_key())
    of_answers = [name for name in config.asked_metrics if name not in COSTS]
    return Index(
        Asked(config.name, record.fingerprint, weights, epochs, refine, trials, formats, signed_by),
        choices,
        record.classes,
        tuple(dict.fromkeys([quality_of(config), *of_answers])),
        study.dense.metrics.get("latency"),
    )


def _noted(report: Report, done: int, total: int, task: str, folder: str) -> Report:
    """A report of one trial's export that tells its last steps as notes on the export of the whole front."""

    def tell(progress: Progress) -> None:
        if progress.task.startswith("exporting to "):
            progress = Progress(task, done, total, f"{folder} {progress.note}".rstrip())
        report(progress)

    return tell
