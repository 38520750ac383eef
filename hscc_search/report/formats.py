"""The front of a study as JSON and CSV, for other programs."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing Optuna takes seconds, and JSON and CSV need only the study that is passed in
    from hscc_search.pareto.points import Measured, Point
    from hscc_search.report.measured import OnDevice
    from hscc_search.study.stored_study import Study


def front_json(study: "Study", measured: "Sequence[OnDevice]" = ()) -> str:
    """Write the front and the trials that cannot be told apart from it as JSON, with all measurements.

    Args:
        study: to write.
        measured: what was measured of its trials on devices.
    """
    worst, best = study.reference
    metrics = [objective.metric for objective in study.objectives]
    tree = {
        "study": study.config.name,
        "trials": len(study.searched.points),
        "refined trials": len(study.points) - len(study.searched.points),
        "objectives": {objective.metric: objective.direction for objective in study.objectives},
        "hypervolume": study.hypervolume,
        "reference": dict(zip(metrics, worst, strict=True)),
        "ideal": dict(zip(metrics, best, strict=True)),
        "knee": study.confidence.knee,
        # Constraints apply to trials only.
        "dense": {**_measured_tree(study.dense), "violations": {}},
        "notices": list(study.record.notices),
        "front": [_point_tree(study, point) for point in study.front],
        "close": [_point_tree(study, point) for point in study.close],
        **({"measured": [asdict(each) for each in measured]} if measured else {}),
    }
    return json.dumps(tree, indent=2)


def front_csv(study: "Study") -> str:
    """Write the dense network and the front as comma-separated values with a header."""
    sampled = list(study.front[0].sample) if study.front else []
    metrics, errors = list(study.dense.metrics), list(study.dense.errors)

    def measured(network: "Measured") -> list[float]:
        return [*(network[metric] for metric in metrics), *(network.errors[metric] for metric in errors)]

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", *sampled, *metrics, *(f"{metric}_se" for metric in errors), "probability", "refines"])
    writer.writerow(["dense", *("" for _ in sampled), *measured(study.dense), "", ""])
    for point in study.front:
        sample = [point.sample.get(name, "") for name in sampled]
        refines = "" if point.refines is None else point.refines
        writer.writerow([point.trial, *sample, *measured(point), study.confidence.probability[point.trial], refines])
    return text.getvalue()


def _point_tree(study: "Study", point: "Point") -> dict[str, Any]:
    return {
        "trial": point.trial,
        "sample": dict(point.sample),
        **_measured_tree(point),
        "violations": dict(point.violations),
        "probability": study.confidence.probability[point.trial],
        "refined": dict(point.refined),
        "refines": point.refines,
    }


def _measured_tree(network: "Measured") -> dict[str, Any]:
    return {"metrics": dict(network.metrics), "errors": dict(network.errors)}
