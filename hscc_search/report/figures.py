"""Plotly figures of a study. Each is two steps: plain data first, then the drawing of it."""

import math
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from hscc_search.pareto.objectives import title, written
from hscc_search.pareto.points import Point
from hscc_search.search.stored_study import Study

INK, FAINT, ACCENT, DENSE = "#1f2933", "#9aa5b1", "#0b7285", "#c92a2a"
_BARS = "rgba(11, 114, 133, 0.4)"
_COSTS = ("flops", "macs", "parameters", "megabytes", "latency")


@dataclass(frozen=True)
class FrontInfo:
    """What the front's figure shows.

    Attributes:
        study: its name.
        x: metric of the horizontal axis, a cost where the study has one among its objectives.
        y: metric of the vertical axis.
        plane: whether these two are all objectives, so that the front is a line.
        dense: the dense network.
        members: the front, ascending by the first objective.
        close: trials beside it that cannot be told apart from it.
        others: finished trials that are beaten.
        infeasible: finished trials that do not keep the constraints.
        probability: by trial how surely it is on the front.
        knee: the trial that is marked, None for an empty front.
    """

    study: str
    x: str
    y: str
    plane: bool
    dense: Point
    members: tuple[Point, ...]
    close: tuple[Point, ...]
    others: tuple[Point, ...]
    infeasible: tuple[Point, ...]
    probability: dict[int, float]
    knee: Point | None


@dataclass(frozen=True)
class GrowthInfo:
    """What the hypervolume's figure shows.

    Attributes:
        trials: numbers of the finished trials.
        hypervolumes: after each of them.
        reference: in words, the reference point.
    """

    trials: tuple[int, ...]
    hypervolumes: tuple[float, ...]
    reference: str


@dataclass(frozen=True)
class LayersInfo:
    """What the layers' figure shows: multiply-adds per image and layer, in MACs.

    Attributes:
        trial: the trial that is shown.
        names: layers in execution order.
        dense: before.
        compressed: after.
        notes: total rank of each region, or why a layer was left dense.
    """

    trial: int
    names: tuple[str, ...]
    dense: tuple[int, ...]
    compressed: tuple[int, ...]
    notes: tuple[str, ...]


def front_info(study: Study) -> FrontInfo:
    """Divide a study's finished trials into the front, what is close to it, and the rest."""
    sure = study.confidence
    numbers = {point.trial for point in study.front}
    beside = [point for point in study.points if point.trial not in numbers]
    costs = [objective.metric for objective in study.objectives if not objective.maximise]
    gains = [objective.metric for objective in study.objectives if objective.maximise]
    x = (costs or gains)[0]
    y = next(metric for metric in (*gains, *costs) if metric != x)
    return FrontInfo(
        study=study.config.name,
        x=x,
        y=y,
        plane=len(study.objectives) == 2,
        dense=study.dense,
        members=tuple(study.front),
        close=tuple(point for point in beside if point.trial in sure.close),
        others=tuple(point for point in beside if point.feasible and point.trial not in sure.close),
        infeasible=tuple(point for point in beside if not point.feasible),
        probability=sure.probability,
        knee=next((point for point in study.points if point.trial == sure.knee), None),
    )


def growth_info(study: Study) -> GrowthInfo:
    """The hypervolume after each trial."""
    worst, _ = study.reference
    corner = [
        f"{title(one.metric)} {written(one.metric, value)}" for one, value in zip(study.objectives, worst, strict=True)
    ]
    return GrowthInfo(
        trials=tuple(point.trial for point in study.points if point.trial is not None),
        hypervolumes=tuple(study.hypervolumes()),
        reference=", ".join(corner),
    )


def layers_info(study: Study, trial: int) -> LayersInfo:
    """The plan of one trial."""
    layers = study.plan_of(trial)
    return LayersInfo(
        trial=trial,
        names=tuple(layer.name for layer in layers),
        dense=tuple(layer.macs_dense for layer in layers),
        compressed=tuple(layer.macs for layer in layers),
        notes=tuple(layer.summary for layer in layers),
    )


def draw_front(info: FrontInfo) -> go.Figure:
    """Cost per image against quality on the validation part, with bootstrap standard errors."""
    figure = go.Figure()
    marks = {"color": FAINT, "size": 7, "opacity": 0.6}
    if info.infeasible:
        crosses = {**marks, "size": 8, "symbol": "x-thin-open", "opacity": 1, "line": {"width": 1.5}}
        figure.add_trace(
            _scatter(info, info.infeasible, "does not keep the constraints", mode="markers", marker=crosses)
        )
    if info.others:
        figure.add_trace(_scatter(info, info.others, "beaten trials", mode="markers", marker=marks))
    if info.close:
        rings = {"color": ACCENT, "size": 8, "symbol": "circle-open", "line": {"width": 1.2}}
        name = "cannot be told apart from the front"
        figure.add_trace(_scatter(info, info.close, name, mode="markers", marker=rings))
    if info.members:
        figure.add_trace(
            _scatter(
                info,
                info.members,
                "front (± 1 standard error)" if info.plane else "front",
                mode="lines+markers" if info.plane else "markers",
                # Between two trials nothing was measured: what is reached is the worse of the two.
                line={"color": ACCENT, "shape": "hv" if info.x in _COSTS else "vh", "width": 1.5},
                # A member that other images might not put there is paler.
                marker={
                    "color": ACCENT,
                    "size": 9,
                    "opacity": [0.35 + 0.65 * info.probability[point.trial or 0] for point in info.members],
                },
                **_bars(info, info.members, _BARS),
            )
        )
    if info.knee is not None:
        ring = {"symbol": "circle-open", "size": 18, "color": ACCENT, "line": {"width": 2.5}}
        name = f"knee: trial {info.knee.trial}, {info.dense['flops'] / info.knee['flops']:.1f}x fewer FLOPs"
        figure.add_trace(_scatter(info, (info.knee,), name, mode="markers", marker=ring))
    diamond = {"symbol": "diamond", "size": 12, "color": DENSE}
    bars = _bars(info, (info.dense,), DENSE)
    figure.add_trace(_scatter(info, (info.dense,), "dense network", mode="markers", marker=diamond, **bars))
    figure.update_layout(
        **_layout(f"{info.study}: {title(info.x)} against {title(info.y)}"), legend={"orientation": "h", "y": -0.2}
    )
    points = (*info.members, *info.close, *info.others, *info.infeasible, info.dense)
    figure.update_xaxes(**_metric_axis(info.x, [_scaled(info.x, point) for point in points]), **_axis())
    figure.update_yaxes(**_metric_axis(info.y, [_scaled(info.y, point) for point in points]), **_axis())
    return figure


def draw_growth(info: GrowthInfo) -> go.Figure:
    """The hypervolume over trials."""
    figure = go.Figure(
        go.Scatter(
            x=list(info.trials),
            y=list(info.hypervolumes),
            mode="lines",
            line={"color": ACCENT, "shape": "hv", "width": 2},
            hovertemplate="trial %{x}: %{y:.4f}<extra></extra>",
        )
    )
    figure.update_layout(**{**_layout(f"hypervolume, reference {info.reference}"), "height": 300})
    figure.update_xaxes(title="trial", **_axis())
    figure.update_yaxes(title="share of what could be had", **_axis())
    return figure


def draw_layers(info: LayersInfo) -> go.Figure:
    """Multiply-adds of each layer before and after."""
    figure = go.Figure()
    for name, values, colour in (("dense", info.dense, FAINT), ("compressed", info.compressed, ACCENT)):
        figure.add_trace(
            go.Bar(
                x=list(info.names),
                y=[value / 1e9 for value in values],
                name=name,
                marker={"color": colour},
                text=list(info.notes),
                textposition="none",
                hovertemplate="%{x}: %{y:.4f} GMACs<br>%{text}<extra></extra>",
            )
        )
    figure.update_layout(
        **_layout(f"trial {info.trial}: where the multiply-adds went"), legend={"orientation": "h", "y": -0.2}
    )
    figure.update_xaxes(title="layer, in execution order", type="category", **_axis())
    figure.update_yaxes(title="GMACs per image", **_axis())
    return figure


def _scatter(info: FrontInfo, points: tuple[Point, ...], name: str, **style: Any) -> go.Scatter:
    return go.Scatter(
        x=[_scaled(info.x, point) for point in points],
        y=[_scaled(info.y, point) for point in points],
        name=name,
        text=[_hover(info, point) for point in points],
        hovertemplate="%{text}<extra></extra>",
        **style,
    )


def _bars(info: FrontInfo, points: tuple[Point, ...], colour: str) -> dict[str, Any]:
    """Standard errors, where the vertical axis has any."""
    errors = [point.errors.get(info.y) for point in points]
    if None in errors:
        return {}
    return {"error_y": {"type": "data", "array": errors, "thickness": 1, "width": 3, "color": colour}}


def _scaled(metric: str, point: Point) -> float:
    """A value as its axis has it: FLOPs and MACs in 10^9, parameters in 10^6."""
    return point[metric] / {"flops": 1e9, "macs": 1e9, "parameters": 1e6}.get(metric, 1)


def _metric_axis(metric: str, values: list[float]) -> dict[str, Any]:
    names = {
        "flops": "GFLOPs per image (1 multiply-add = 2 FLOPs)",
        "macs": "GMACs per image (1 multiply-add = 1 MAC)",
        "parameters": "million parameters",
    }
    if metric in _COSTS:
        ticks = _log_ticks(values)
        texts = [f"{tick:g}" for tick in ticks]
        name = f"{names.get(metric, title(metric))}, logarithmic"
        return {"title": name, "type": "log", "tickvals": ticks, "ticktext": texts}
    return {"title": f"{title(metric)}, validation part", "tickformat": ".3~p"}


def _hover(info: FrontInfo, point: Point) -> str:
    flops, parameters = info.dense["flops"] / point["flops"], info.dense["parameters"] / point["parameters"]
    lines = [
        "dense network" if point.trial is None else f"trial {point.trial}",
        *(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in _few(point)),
        *(f"{title(name)} {point[name]:.4f} ± {error:.4f}" for name, error in point.errors.items()),
        f"{point['macs'] / 1e9:.4f} GMACs, {point['flops'] / 1e9:.4f} GFLOPs ({flops:.2f}x fewer)",
        f"{point['parameters']:,.0f} parameters ({parameters:.2f}x fewer)",
    ]
    if "latency" in point.metrics:
        lines.append(f"latency {point['latency']:.3f} ms ({info.dense['latency'] / point['latency']:.2f}x faster)")
    lines += [f"violates {name} by {size:.4g}" for name, size in point.constraints.items() if size > 0]
    if point.trial in info.probability:
        lines.append(f"on the front with probability {info.probability[point.trial]:.2f}")
    return "<br>".join(lines)


def _few(point: Point) -> list[tuple[str, Any]]:
    """The settings, as many as a hover can show."""
    return list(point.settings.items())[:12]


def _log_ticks(values: list[float]) -> list[float]:
    """Round numbers 1, 2, 5 of each power of ten around some values; Plotly alone writes digits without their power."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [float(f"{step}e{power}") for power in range(low, high + 1) for step in (1, 2, 5)]


def _layout(title: str) -> dict[str, Any]:
    return {
        "title": {"text": title, "x": 0, "xref": "paper"},
        "font": {"family": "system-ui, sans-serif", "color": INK, "size": 13},
        "plot_bgcolor": "white",
        "paper_bgcolor": "white",
        "margin": {"l": 70, "r": 20, "t": 50, "b": 60},
        "height": 520,
    }


def _axis() -> dict[str, Any]:
    return {"gridcolor": "#e4e7eb", "linecolor": "#cbd2d9", "zeroline": False, "automargin": True}
