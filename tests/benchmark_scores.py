"""The time of reading trials with their scores, and of the probabilities of a front over them.

Run by `make benchmark-scores`. Prints the seconds in which a study of 10,000 trials with the scores of 400 images and 4
classes is read from SQLite, their size, and the seconds of the probabilities of 300 trials for accuracy and for AUROC.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
from optuna.trial import TrialState, create_trial

from hscc_search.config import StudyConfig
from hscc_search.evaluation.quality import measure_quality
from hscc_search.evaluation.scores import kept_scores
from hscc_search.pareto.confidence import Truth, confidence
from hscc_search.pareto.objectives import Objective
from hscc_search.pareto.points import Measured, Point
from hscc_search.storage import existing_storage
from hscc_search.study.record import TrialRecord
from hscc_search.study.stored_study import find_study, read_study
from hscc_search.study.study import run_study

TRIALS, IMAGES, CLASSES = 10_000, 400, ("a", "b", "c", "d")
LABELS = np.random.default_rng(0).integers(0, len(CLASSES), IMAGES)


def networks(count):
    """Networks that are the better the later they come."""
    chance = np.random.default_rng(1)
    for number in range(count):
        sure = 1 + 2 * number / count
        logits = chance.normal(size=(IMAGES, len(CLASSES))) + sure * np.eye(len(CLASSES))[LABELS]
        scores = kept_scores(logits.astype(np.float32))
        metrics = {"flops": 1e6 + number, "parameters": 1.0, "accuracy": 0.5, "auroc": 0.5}
        yield Measured(metrics, {}, scores.argmax(axis=1).astype("<u2").tobytes(), scores=scores)


def reading(folder):
    """Time reading a study that has the trials of the digits study and others made up."""
    config = StudyConfig.from_file(
        "digits", storage=f"sqlite:///{folder}/studies.db", trials=3, objectives=["flops", "auroc"]
    )
    run_study(config, "cpu")
    storage = existing_storage(config.storage)
    study = find_study(storage, config.name)
    model = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])[0]
    bytes_of_scores = 0
    for measured in networks(TRIALS):
        attributes = TrialRecord(measured, model.params, {}, ()).stored()
        bytes_of_scores += sum(len(value["text"]) for key, value in attributes.items() if key.startswith("scores:"))
        trial = create_trial(
            state=TrialState.COMPLETE,
            params=model.params,
            distributions=model.distributions,
            values=[measured["flops"], measured["auroc"]],
            user_attrs=attributes,
        )
        storage.create_new_trial(study._study_id, trial)
    start = time.perf_counter()
    points = read_study(config.storage, config.name).points
    seconds = time.perf_counter() - start
    assert points[-1].scores.shape == (IMAGES, len(CLASSES))
    print(f"{len(points):,} trials read in {seconds:.2f} s, {bytes_of_scores / TRIALS:,.0f} bytes of scores each")


def probabilities(count=300):
    points = []
    for trial, network in enumerate(networks(count)):
        predicted = np.frombuffer(network.predictions, "<u2")
        quality = measure_quality(predicted, LABELS, CLASSES, scores=network.scores, asked=["auroc"])
        metrics = {**network.metrics, **quality.metrics}
        points.append(Point(metrics, {}, network.predictions, trial, {}, scores=network.scores))
    for metric in ("accuracy", "auroc"):
        start = time.perf_counter()
        confidence(points, (Objective("flops", False), Objective(metric, True)), Truth(LABELS, CLASSES))
        print(f"probabilities of {count} trials for {metric}: {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    probabilities()
    with tempfile.TemporaryDirectory() as folder:
        reading(Path(folder))
