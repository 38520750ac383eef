"""Plotly figures of a study. Each is two steps: plain data first, then the drawing of it."""

import math
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from hscc_search.search.front import Point, knee
from hscc_search.search.study import Study

INK, FAINT, ACCENT, DENSE = "#1f2933", "#9aa5b1", "#0b7285", "#c92a2a"


@dataclass(frozen=True)
class FrontInfo:
    """What the front's figure shows.

    Attributes:
        study: its name.
        dense: the dense network.
        members: the front, by ascending FLOPs.
        others: finished trials that are beaten.
        knee: the member that is marked, None for an empty front.
    """

    study: str
    dense: Point
    members: tuple[Point, ...]
    others: tuple[Point, ...]
    knee: Point | None


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
    """Divide a study's finished trials into the front and the rest."""
    members = study.front
    numbers = {point.trial for point in members}
    return FrontInfo(
        study=study.config.name,
        dense=study.dense,
        members=tuple(members),
        others=tuple(point for point in study.points if point.trial not in numbers),
        knee=knee(members) if members else None,
    )


def layers_info(study: Study, trial: int) -> LayersInfo:
    """The plan of one trial."""
    layers = study.plans[trial]
    return LayersInfo(
        trial=trial,
        names=tuple(layer.name for layer in layers),
        dense=tuple(layer.macs_dense for layer in layers),
        compressed=tuple(layer.macs for layer in layers),
        notes=tuple(layer.summary for layer in layers),
    )


def draw_front(info: FrontInfo) -> go.Figure:
    """GFLOPs per image against accuracy on the validation part, with bootstrap standard errors."""
    figure = go.Figure()
    if info.others:
        figure.add_trace(
            go.Scatter(
                x=[point.flops / 1e9 for point in info.others],
                y=[point.accuracy for point in info.others],
                mode="markers",
                name="other trials",
                marker={"color": FAINT, "size": 7, "opacity": 0.6},
                text=[_hover(point, info.dense) for point in info.others],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    if info.members:
        figure.add_trace(
            go.Scatter(
                x=[point.flops / 1e9 for point in info.members],
                y=[point.accuracy for point in info.members],
                error_y={
                    "type": "data",
                    "array": [point.accuracy_se for point in info.members],
                    "thickness": 1,
                    "width": 3,
                    "color": "rgba(11, 114, 133, 0.4)",
                },
                mode="lines+markers",
                # Between two trials nothing was measured: what is reached is the lower accuracy.
                line={"color": ACCENT, "shape": "hv", "width": 1.5},
                marker={"color": ACCENT, "size": 9},
                name="front (± 1 standard error)",
                text=[_hover(point, info.dense) for point in info.members],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    if info.knee is not None:
        figure.add_trace(
            go.Scatter(
                x=[info.knee.flops / 1e9],
                y=[info.knee.accuracy],
                mode="markers",
                name=f"knee: trial {info.knee.trial}, {info.dense.flops / info.knee.flops:.1f}x fewer FLOPs",
                marker={"symbol": "circle-open", "size": 18, "color": ACCENT, "line": {"width": 2.5}},
                hoverinfo="skip",
            )
        )
    figure.add_trace(
        go.Scatter(
            x=[info.dense.flops / 1e9],
            y=[info.dense.accuracy],
            error_y={"type": "data", "array": [info.dense.accuracy_se], "thickness": 1, "width": 3},
            mode="markers",
            name="dense network",
            marker={"symbol": "diamond", "size": 12, "color": DENSE},
            text=[_hover(info.dense, info.dense)],
            hovertemplate="%{text}<extra></extra>",
        )
    )
    figure.update_layout(**_layout(f"{info.study}: FLOPs against accuracy"), legend={"orientation": "h", "y": -0.2})
    ticks = _log_ticks([point.flops / 1e9 for point in (*info.members, *info.others, info.dense)])
    figure.update_xaxes(
        title="GFLOPs per image (1 multiply-add = 2 FLOPs), logarithmic",
        type="log",
        tickvals=ticks,
        ticktext=[f"{tick:g}" for tick in ticks],
        **_axis(),
    )
    figure.update_yaxes(title="accuracy, validation part", tickformat=".0%", **_axis())
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


def _hover(point: Point, dense: Point) -> str:
    lines = [
        "dense network" if point.trial is None else f"trial {point.trial}",
        *(f"{name} {value:.4g}" for name, value in point.settings.items()),
        f"accuracy {point.accuracy:.4f} ± {point.accuracy_se:.4f}",
        f"macro F1 {point.macro_f1:.4f}",
        f"{point.macs / 1e9:.4f} GMACs, {point.flops / 1e9:.4f} GFLOPs ({dense.flops / point.flops:.2f}x fewer)",
        f"{point.parameters:,} parameters ({dense.parameters / point.parameters:.2f}x fewer)",
    ]
    return "<br>".join(lines)


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
