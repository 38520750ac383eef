"""The front of a study as rows of text, for the command line and for pages alike."""

from dataclasses import dataclass

from hscc_search.pareto.objectives import title, written
from hscc_search.pareto.points import Point
from hscc_search.search.stored_study import Study

# A study that samples for every layer has more settings than a table has room for.
_MOST_SETTINGS = 7
_COMMON = ("flops", "macs", "parameters", "accuracy", "macro_f1")


@dataclass(frozen=True)
class Row:
    """One network.

    Attributes:
        kind: ``dense``, ``knee`` or ``front``; ``close`` for a trial that cannot be told apart from the front.
        cells: as :func:`columns` names them.
    """

    kind: str
    cells: tuple[str, ...]


def columns(study: Study) -> tuple[str, ...]:
    """The table's head."""
    extra = [title(metric) for metric in _extra(study)]
    costs = ("GMACs", "GFLOPs", "fewer FLOPs", "parameters")
    settings = [name.replace("_", " ") for name in _settings(study)]
    return ("trial", *settings, *costs, *extra, "accuracy", "macro F1", "on front")


def rows(study: Study, most_close: int | None = None) -> list[Row]:
    """The dense network, the front, and the trials that cannot be told apart from it.

    Args:
        study: with finished trials or without.
        most_close: of those trials only so many, the most probable ones.
    """
    numbers = {point.trial for point in study.front}
    sure = study.confidence
    close = [point for point in study.points if point.trial in sure.close and point.trial not in numbers]
    close.sort(key=lambda point: -sure.probability[point.trial or 0])
    kinds = {point.trial: "knee" if point.trial == sure.knee else "front" for point in study.front}
    dense = Row("dense", _cells(study, study.dense))
    members = [Row(kinds[point.trial], _cells(study, point)) for point in study.front]
    kind = {True: "knee", False: "close"}
    return [dense, *members] + [
        Row(kind[point.trial == sure.knee], _cells(study, point)) for point in close[:most_close]
    ]


def front_line(study: Study) -> str:
    """What the table cannot say: how much the front covers, and what no longer can be told apart."""
    worst, _ = study.reference
    corner = ", ".join(
        f"{title(one.metric)} {written(one.metric, value)}" for one, value in zip(study.objectives, worst, strict=True)
    )
    beside = len(study.confidence.close - {point.trial for point in study.front})
    infeasible = sum(not point.feasible for point in study.points)
    parts = [] if study.front else [_why_empty(study)]
    parts.append(f"hypervolume {study.hypervolume:.4f} (reference {corner})")
    if beside:
        parts.append(f"{beside} more trials cannot be told apart from the front")
    if infeasible and study.front:
        parts.append(f"{infeasible} of {len(study.points)} trials do not keep the constraints")
    return "; ".join(parts)


def _why_empty(study: Study) -> str:
    if not study.points:
        return "no trial is finished yet"
    nearest = min(study.points, key=lambda point: max(point.constraints.values()))
    name, size = max(nearest.constraints.items(), key=lambda constraint: constraint[1])
    return f"no trial keeps the constraints: trial {nearest.trial} comes nearest, it violates {name} by {size:.4g}"


def _settings(study: Study) -> list[str]:
    names = list(study.points[0].settings) if study.points else []
    return names if len(names) <= _MOST_SETTINGS else []


def _extra(study: Study) -> list[str]:
    """Metrics that this study looks at and others do not."""
    asked = (*study.config.objectives, *(bound.metric for bound in study.config.constraints))
    return [metric for metric in dict.fromkeys(asked) if metric not in _COMMON]


def _cells(study: Study, point: Point) -> tuple[str, ...]:
    probability = study.confidence.probability.get(point.trial, 0.0) if point.trial is not None else None
    return (
        "dense" if point.trial is None else str(point.trial),
        *(_setting(point.settings.get(name)) for name in _settings(study)),
        f"{point['macs'] / 1e9:.4f}",
        f"{point['flops'] / 1e9:.4f}",
        f"{study.dense['flops'] / point['flops']:.2f}x",
        f"{point['parameters']:,.0f}",
        *(_measured(point, metric) for metric in _extra(study)),
        _measured(point, "accuracy"),
        _measured(point, "macro_f1"),
        "-" if probability is None else f"{probability:.2f}",
    )


def _measured(point: Point, metric: str) -> str:
    error = point.errors.get(metric)
    return written(metric, point[metric]) + (f" ± {error:.4f}" if error is not None else "")


def _setting(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, (int, float)) else str(value)
