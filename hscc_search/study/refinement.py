"""The refinement of a study's trials: which are refined, on which images, and how."""

from collections.abc import Mapping
from dataclasses import asdict, replace

import numpy as np
import optuna
import torch
from optuna.storages import BaseStorage

from hscc_search.compression.calibration.calibrate import Calibration
from hscc_search.compression.refining import ONE_KEPT_OF, Lessons, Refined, compared_layers, lessons
from hscc_search.compression.setting import Refinement
from hscc_search.config import StudyConfig
from hscc_search.dense.opened import Opened
from hscc_search.evaluation.predictions import network_input
from hscc_search.progress import Report, silent
from hscc_search.study.record import refined_trials
from hscc_search.study.stored_study import Study, study_as_it_stands


def refinement_of(config: StudyConfig) -> Refinement:
    """The refinement that a study file asks for."""
    return Refinement(config.refine.epochs, config.refine.learning_rate, config.refine.images, config.seed)


def left_to_refine(study: optuna.Study, storage: BaseStorage, config: StudyConfig) -> bool:
    """Tell whether the second stage of a study that has all its trials is not over yet.

    Args:
        study: as Optuna has it.
        storage: which holds it.
        config: with what the study file asks for now.
    """
    read = study_as_it_stands(study, storage)
    wanted = to_refine(replace(read, record=replace(read.record, config=config)))
    over = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    return not refined_trials(over).issuperset(wanted)


def to_refine(study: Study) -> list[int]:
    """The numbers of the trials that the second stage of a study measures again, refined, by number.

    These are the front's, and then those that cannot be told apart from it, the most probable first, as many as
    ``refine.most`` allows; none where the study refines each trial or none.
    """
    config, searched = study.config.refine, study.searched
    if config.trials != "front":
        return []
    probability = searched.confidence.probability
    close = sorted(searched.close, key=lambda point: -probability[point.trial])
    chosen = [*sorted(searched.front, key=lambda point: -probability[point.trial]), *close][: config.most]
    return sorted(point.trial for point in chosen if not point.refined)


def stored_refinement(request: Refinement, course: Refined) -> dict[str, float]:
    """What a trial keeps of its refinement: JSON-compatible values."""
    return {**asdict(request), **asdict(course)}


def refinement_from_stored(refined: Mapping[str, float]) -> Refinement | None:
    """The request of :func:`stored_refinement`; None where a trial was not refined."""
    if not refined:
        return None
    epochs, images, seed = (int(refined[name]) for name in ("epochs", "images", "seed"))
    return Refinement(epochs, refined["learning_rate"], images, seed)


def lessons_of(opened: Opened, calibration: Calibration, request: Refinement, report: Report = silent) -> Lessons:
    """Ask the dense network about train images, a tenth of which, in whole groups, are set aside.

    These are images that the layers were not fitted to, as far as there are such: to the others the network answers too
    well before it is refined, and would seem to become worse.
    """
    train, compression = opened.parts.train, opened.config.compression
    positions = train.drawn(request.images, request.seed)
    fitted = np.isin(positions, train.drawn(compression.calibration_images, opened.config.seed))
    images = np.asarray(train.images[positions])

    def take(batch: torch.Tensor) -> torch.Tensor:
        return network_input(torch.from_numpy(images[batch.numpy()]).to(opened.device), opened.config.data)

    kept = torch.from_numpy(_set_aside(train.groups[positions], fitted, request.seed))
    return lessons(calibration.network, take, len(positions), kept, compared_layers(calibration), report)


def _set_aside(groups: np.ndarray, fitted: np.ndarray, seed: int) -> np.ndarray:
    """Choose a tenth of the images, in whole groups as long as others remain.

    Args:
        groups: int64, shape (images,).
        fitted: bool, shape (images,), the images that layers were fitted to; groups without such come first.
        seed: of the choice.

    Returns:
        Positions, int64, ascending.
    """
    wanted, generator = max(1, len(groups) // ONE_KEPT_OF), np.random.default_rng(seed)
    names, of_image = np.unique(groups, return_inverse=True)
    with_fitted = np.bincount(of_image, fitted) > 0
    order = np.lexsort((generator.permutation(len(names)), with_fitted))
    sizes = np.bincount(of_image)[order].cumsum()
    count = int(np.searchsorted(sizes, wanted)) + 1
    if count == len(names):  # one group holds nearly all: single images then
        return np.sort(np.lexsort((generator.permutation(len(groups)), fitted))[:wanted])
    return np.flatnonzero(np.isin(of_image, order[:count]))
