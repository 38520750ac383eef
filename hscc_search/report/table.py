"""The front of a study as rows of text, for the command line and for pages alike."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hscc_search.pareto.objectives import title, written
from hscc_search.pareto.points import Measured, Point
from hscc_search.pareto.selection import why_none_is_feasible
from hscc_search.study.stored_study import Study

# Largest number of columns for sampled values; where each layer has its own values there are more, and none is shown.
_MOST_SAMPLED = 7
# Metrics that every table shows.
_COMMON = ("flops", "macs", "parameters", "accuracy", "macro_f1")


@dataclass(frozen=True)
class TableRow:
    """The row of one network.

    Attributes:
        kind: ``dense``, ``knee`` or ``front``; ``close`` for a trial that cannot be told apart from the front.
        cells: in the order of :func:`columns`.
    """

    kind: str
    cells: tuple[str, ...]


def columns(study: Study) -> tuple[str, ...]:
    """The names of the columns."""
    sampled = [name.replace("_", " ") for name in _sampled(study)]
    costs = ("GMACs", "GFLOPs", "fewer FLOPs", "parameters")
    extra = [title(metric) for metric in _extra(study)]
    return ("trial", *_of_refined(study, "refined"), *sampled, *costs, *extra, *map(title, _of_all(study)), "on front")


def dispensable(study: Study) -> tuple[str, ...]:
    """The columns that a narrow table may leave out, those that matter least first."""
    objectives = {title(objective.metric) for objective in study.objectives}
    extra = [title(metric) for metric in reversed(_extra(study))]
    sampled = [name.replace("_", " ") for name in reversed(_sampled(study))]
    ordered = ("GMACs", "macro F1", "parameters", "GFLOPs", "accuracy", *extra, *sampled, "refined")
    shown = set(columns(study)) - objectives  # maps have no macro F1
    return tuple(name for name in ordered if name in shown)


def rows(study: Study, most_close: int | None = None) -> list[TableRow]:
    """The rows of the dense network, the front, and the trials that cannot be told apart from it.

    Args:
        study: with finished trials or without.
        most_close: largest number of rows of the last kind, the most probable trials first; None has no limit.
    """
    probability = study.confidence.probability
    close = sorted(study.close, key=lambda point: -probability[point.trial])
    return [
        TableRow("dense", _cells(study, study.dense, "dense", {}, "-")),
        *(_trial_row(study, point, "front") for point in study.front),
        *(_trial_row(study, point, "close") for point in close[:most_close]),
    ]


def front_line(study: Study) -> str:
    """The line below the table: the hypervolume, and the numbers of close, infeasible and larger trials."""
    sentences = [] if study.front else [_why_empty(study)]
    sentences.append(f"hypervolume {study.hypervolume:.4f} (reference {reference_text(study)})")
    if study.close:
        sentences.append(f"{len(study.close)} more trials cannot be told apart from the front")
    infeasible = sum(not point.feasible for point in study.points)
    if infeasible and study.front:
        sentences.append(f"{infeasible} of {len(study.points)} trials violate a constraint")
    larger = [point for point in study.front if point["parameters"] > study.dense["parameters"]]
    if larger:
        knee = next((point for point in larger if point.trial == study.confidence.knee), None)
        named = f", the knee too ({knee['parameters'] / study.dense['parameters']:.2f}x)" if knee is not None else ""
        sentences.append(f"{len(larger)} trials of the front have more parameters than the dense network{named}")
    return "; ".join(sentences)


def trials_in_words(study: Study) -> str:
    """The number of finished trials, and how many of them measure others again, refined."""
    searched = len(study.searched.points)
    refined = len(study.points) - searched
    return f"{searched} trials" + (f", {refined} of them refined as well" if refined else "")


def reference_text(study: Study) -> str:
    """The hypervolume's reference point in words."""
    worst, _ = study.reference
    values = zip(study.objectives, worst, strict=True)
    return ", ".join(f"{title(objective.metric)} {written(objective.metric, value)}" for objective, value in values)


def _why_empty(study: Study) -> str:
    return why_none_is_feasible(study.points) if study.points else "no trial is finished yet"


def _sampled(study: Study) -> list[str]:
    """Names of the sampled values that have a column."""
    names = list(study.points[0].sample) if study.points else []
    return names if len(names) <= _MOST_SAMPLED else []


def _of_refined(study: Study, cell: str) -> list[str]:
    """A cell of the column on refining, which is there where a trial is refined."""
    return [cell] if any(point.refined for point in study.points) else []


def _how_refined(point: Point) -> str:
    if not point.refined:
        return "-"
    if point.refines is not None:
        return f"trial {point.refines}"
    return "yes" if point.refined["best_epoch"] else "in vain"


def _of_all(study: Study) -> list[str]:
    """The metrics of answers that every table shows; maps have no macro F1."""
    return [metric for metric in ("accuracy", "macro_f1") if metric in study.dense.metrics]


def _extra(study: Study) -> list[str]:
    """The metrics that the study asks for and that have no column in every table."""
    return [metric for metric in study.config.asked_metrics if metric not in _COMMON]


def _trial_row(study: Study, point: Point, kind: str) -> TableRow:
    probability = study.confidence.probability[point.trial]
    cells = _cells(study, point, str(point.trial), point.sample, f"{probability:.2f}", _how_refined(point))
    return TableRow("knee" if point.trial == study.confidence.knee else kind, cells)


def _cells(
    study: Study, network: Measured, name: str, sample: Mapping[str, Any], probability: str, refined: str = "-"
) -> tuple[str, ...]:
    return (
        name,
        *_of_refined(study, refined),
        *(_sampled_value(sample.get(sampled)) for sampled in _sampled(study)),
        f"{network['macs'] / 1e9:.4f}",
        f"{network['flops'] / 1e9:.4f}",
        f"{study.dense['flops'] / network['flops']:.2f}x",
        f"{network['parameters']:,.0f}",
        *(_measured(network, metric) for metric in _extra(study)),
        *(_measured(network, metric) for metric in _of_all(study)),
        probability,
    )


def _measured(network: Measured, metric: str) -> str:
    error = network.errors.get(metric)
    return written(metric, network[metric]) + (f" ± {error:.4f}" if error is not None else "")


def _sampled_value(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, (int, float)) else str(value)
