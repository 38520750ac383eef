"""The Plotly figure of a front, in two steps: gather plain data, then draw it. Pages draw theirs in the browser."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from hscc_search.config.metrics import COSTS, is_share
from hscc_search.pareto.objectives import UNITS, title
from hscc_search.pareto.points import Measured, Point
from hscc_search.study.stored_study import Study

INK, FAINT, ACCENT, DENSE = "#1f2933", "#9aa5b1", "#0b7285", "#c92a2a"
_BARS = "rgba(11, 114, 133, 0.4)"
# Largest number of sampled values in the text of a point; where each layer has its own values there are more.
_MOST_HOVERED = 12


@dataclass(frozen=True)
class FrontInfo:
    """The data of the front's figure.

    Attributes:
        study: its name.
        x: metric of the horizontal axis, a cost where the study has one among its objectives.
        y: metric of the vertical axis.
        two_objectives: whether x and y are the only objectives, so that the front is a line.
        dense: the dense network.
        members: the front, ascending by the first objective.
        close: trials beside it that cannot be told apart from it.
        dominated: the other feasible trials.
        infeasible: trials that violate a constraint.
        probability: by trial the probability that it is on the front.
        knee: the trial to mark, None for an empty front.
    """

    study: str
    x: str
    y: str
    two_objectives: bool
    dense: Measured
    members: tuple[Point, ...]
    close: tuple[Point, ...]
    dominated: tuple[Point, ...]
    infeasible: tuple[Point, ...]
    probability: dict[int, float]
    knee: Point | None


def front_info(study: Study) -> FrontInfo:
    """Divide the finished trials into the front, those close to it, dominated and infeasible ones."""
    near = {point.trial for point in (*study.front, *study.close)}
    rest = [point for point in study.points if point.trial not in near]
    costs = [objective.metric for objective in study.objectives if not objective.on_images]
    qualities = [objective.metric for objective in study.objectives if objective.on_images]
    x = (costs or qualities)[0]
    y = next(metric for metric in (*qualities, *costs) if metric != x)
    return FrontInfo(
        study=study.config.name,
        x=x,
        y=y,
        two_objectives=len(study.objectives) == 2,
        dense=study.dense,
        members=tuple(study.front),
        close=tuple(study.close),
        dominated=tuple(point for point in rest if point.feasible),
        infeasible=tuple(point for point in rest if not point.feasible),
        probability=study.confidence.probability,
        knee=next((point for point in study.points if point.trial == study.confidence.knee), None),
    )


def draw_front(info: FrontInfo) -> go.Figure:
    """Draw two metrics of all trials and the dense network, with bootstrap standard errors of the vertical one."""
    figure = go.Figure([*_trial_traces(info), *_front_traces(info), _dense_trace(info)])
    figure.update_layout(
        **_layout(f"{_plain(info.study)}: {_plain(title(info.x))} against {_plain(title(info.y))}"),
        legend={"orientation": "h", "y": -0.2},
    )
    networks = (*info.members, *info.close, *info.dominated, *info.infeasible, info.dense)
    figure.update_xaxes(**_metric_axis(info.x, [_scaled(info.x, network) for network in networks]), **_axis())
    figure.update_yaxes(**_metric_axis(info.y, [_scaled(info.y, network) for network in networks]), **_axis())
    return figure


def _trial_traces(info: FrontInfo) -> list[go.Scatter]:
    """Infeasible and dominated trials, and those close to the front; kinds that do not occur are left out."""
    dots = {"color": FAINT, "size": 7, "opacity": 0.6}
    crosses = {**dots, "size": 8, "symbol": "x-thin-open", "opacity": 1, "line": {"width": 1.5}}
    rings = {"color": ACCENT, "size": 8, "symbol": "circle-open", "line": {"width": 1.2}}
    kinds = (
        ("violates a constraint", info.infeasible, crosses),
        ("dominated trials", info.dominated, dots),
        ("cannot be told apart from the front", info.close, rings),
    )
    return [_scatter(info, points, name, mode="markers", marker=marker) for name, points, marker in kinds if points]


def _front_traces(info: FrontInfo) -> list[go.Scatter]:
    """The front, a line in the plane of two objectives, and its knee."""
    traces = []
    if info.members:
        # The less probable a member is, the paler it is drawn.
        opacity = [0.35 + 0.65 * info.probability[point.trial] for point in info.members]
        traces.append(
            _scatter(
                info,
                info.members,
                "front (± 1 standard error)" if info.two_objectives else "front",
                mode="lines+markers" if info.two_objectives else "markers",
                # Nothing was measured between two trials, so the line takes the worse value of both objectives.
                line={"color": ACCENT, "shape": "hv" if info.x in COSTS else "vh", "width": 1.5},
                marker={"color": ACCENT, "size": 9, "opacity": opacity},
                **_error_bars(info, info.members, _BARS),
            )
        )
    if info.knee is not None:
        ring = {"symbol": "circle-open", "size": 18, "color": ACCENT, "line": {"width": 2.5}}
        name = f"knee: {info.knee.name}, {info.dense['flops'] / info.knee['flops']:.1f}x fewer FLOPs"
        traces.append(_scatter(info, (info.knee,), name, mode="markers", marker=ring))
    return traces


def _dense_trace(info: FrontInfo) -> go.Scatter:
    return go.Scatter(
        x=[_scaled(info.x, info.dense)],
        y=[_scaled(info.y, info.dense)],
        name="dense network",
        mode="markers",
        marker={"symbol": "diamond", "size": 12, "color": DENSE},
        text=["<br>".join(["dense network", *_hover_lines(info, info.dense)])],
        hovertemplate="%{text}<extra></extra>",
        **_error_bars(info, (info.dense,), DENSE),
    )


def _scatter(info: FrontInfo, points: tuple[Point, ...], name: str, **style: Any) -> go.Scatter:
    return go.Scatter(
        x=[_scaled(info.x, point) for point in points],
        y=[_scaled(info.y, point) for point in points],
        name=name,
        text=[_hover(info, point) for point in points],
        hovertemplate="%{text}<extra></extra>",
        **style,
    )


def _error_bars(info: FrontInfo, networks: Sequence[Measured], colour: str) -> dict[str, Any]:
    """Error bars of one standard error, where the metric of the vertical axis has one; of shares within 0 and 1."""
    below, above = [], []
    for network in networks:
        error = network.errors.get(info.y)
        if error is None:
            return {}
        room = (network[info.y], 1 - network[info.y]) if is_share(info.y) else (error, error)
        below.append(min(error, room[0]))
        above.append(min(error, room[1]))
    bars = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    return {"error_y": {**bars, "thickness": 1, "width": 3, "color": colour}}


def _scaled(metric: str, network: Measured) -> float:
    """A value in the unit of its axis."""
    return network[metric] / UNITS[metric].scale if metric in UNITS else network[metric]


def _metric_axis(metric: str, values: list[float]) -> dict[str, Any]:
    if metric in UNITS:
        ticks = _log_ticks(values)
        texts = [f"{tick:g}" for tick in ticks]
        return {"title": f"{UNITS[metric].axis}, logarithmic", "type": "log", "tickvals": ticks, "ticktext": texts}
    name = f"{_plain(title(metric))}, validation part"
    return {"title": name, "tickformat": ".4~p"} if is_share(metric) else {"title": name}


def _plain(name: str) -> str:
    """A name that may hold the name of a class, with what Plotly would take for markup escaped."""
    return name.replace("&", "&amp;").replace("<", "&lt;")


def _hover(info: FrontInfo, point: Point) -> str:
    sample = list(point.sample.items())[:_MOST_HOVERED]
    lines = [
        point.name + _how_refined(point),
        *(_plain(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}") for name, value in sample),
        *_hover_lines(info, point),
        *(f"violates {_plain(name)} by {size:.4g}" for name, size in point.violations.items() if size > 0),
        f"on the front with probability {info.probability[point.trial]:.2f}",
    ]
    return "<br>".join(lines)


def _how_refined(point: Point) -> str:
    if point.refines is not None:
        return f": trial {point.refines} refined"
    return ", refined" if point.refined else ""


def _hover_lines(info: FrontInfo, network: Measured) -> list[str]:
    """The measurements of a network, compared with the dense one."""
    fewer_flops = info.dense["flops"] / network["flops"]
    fewer_parameters = info.dense["parameters"] / network["parameters"]
    lines = [
        *(f"{_plain(title(name))} {network[name]:.4f} ± {error:.4f}" for name, error in network.errors.items()),
        f"{network['macs'] / 1e9:.4f} GMACs, {network['flops'] / 1e9:.4f} GFLOPs ({fewer_flops:.2f}x fewer)",
        f"{network['parameters']:,.0f} parameters ({fewer_parameters:.2f}x fewer)",
    ]
    if "latency" in network.metrics:
        faster = info.dense["latency"] / network["latency"]
        lines.append(f"latency {network['latency']:.3f} ms ({faster:.2f}x faster)")
    return lines


def _log_ticks(values: list[float]) -> list[float]:
    """Ticks at 1, 2 and 5 times each power of ten around some values; Plotly's own labels lack the power of ten."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [float(f"{step}e{power}") for power in range(low, high + 1) for step in (1, 2, 5)]


def _layout(heading: str) -> dict[str, Any]:
    return {
        "title": {"text": heading, "x": 0, "xref": "paper"},
        "font": {"family": "system-ui, sans-serif", "color": INK, "size": 13},
        "plot_bgcolor": "white",
        "paper_bgcolor": "white",
        "margin": {"l": 70, "r": 20, "t": 50, "b": 60},
        "height": 520,
        "modebar": {"remove": ["sendChartToCloud"]},  # nothing of a study leaves the machine by a click
    }


def _axis() -> dict[str, Any]:
    return {"gridcolor": "#e4e7eb", "linecolor": "#cbd2d9", "zeroline": False, "automargin": True}
