"""The Plotly figure of a trial's region maps. Pages draw theirs over the mean image in the browser."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from hscc_search.compression.divided import DividedLayer
from hscc_search.pareto.points import Point
from hscc_search.study.stored_study import Study

# Layers that a figure shows, and Okabe and Ito's colours, which are told apart without red and green.
_MOST_LAYERS = 6
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#787878")


def divided_trial(study: Study) -> Point | None:
    """Find the trial whose regions are shown: the knee or, if that is undivided, the most probable one of the front.

    None where no trial of the front has a layer of several regions.
    """
    probability, knee = study.confidence.probability, study.confidence.knee
    order = sorted(study.front, key=lambda point: (point.trial != knee, -probability[point.trial]))
    return next((point for point in order if _with_regions(study.divided_of(point.trial))), None)


def draw_regions(study: Study, point: Point) -> go.Figure:
    """Draw the output map of each layer that a trial divides into regions, six at most, with the regions numbered."""
    layers = _with_regions(study.divided_of(point.trial))[:_MOST_LAYERS]
    figure = make_subplots(1, len(layers), subplot_titles=[layer.name.replace("<", "&lt;") for layer in layers])
    for column, layer in enumerate(layers, start=1):
        labels = label_map(layer)
        count = len(layer.clusters)
        colours = [_COLOURS[region % len(_COLOURS)] for region in range(count)]
        figure.add_trace(
            go.Heatmap(
                z=labels,
                zmin=0.5,
                zmax=count + 0.5,
                colorscale=[[(region + end) / count, colours[region]] for region in range(count) for end in (0, 1)],
                showscale=False,
                hovertemplate="row %{y}, column %{x}: region %{z}<extra></extra>",
            ),
            row=1,
            col=column,
        )
        square = {"scaleanchor": f"x{column if column > 1 else ''}", "constrain": "domain"}
        figure.update_yaxes(visible=False, autorange="reversed", row=1, col=column, **square)
    figure.update_xaxes(visible=False, constrain="domain")
    figure.update_layout(
        title=f"{point.name}: regions of its divided layers, on their output maps",
        height=300,
        plot_bgcolor="white",
        margin={"l": 10, "r": 10, "t": 70, "b": 10},
    )
    return figure


def label_map(layer: DividedLayer) -> np.ndarray:
    """The region of each position of a layer's output map, from 1, int64, shape (height, width)."""
    labels = np.zeros(layer.output_size, np.int64)
    for piece in layer.pieces:
        labels[piece.top : piece.bottom, piece.left : piece.right] = piece.region + 1
    return labels


def _with_regions(layers: Sequence[DividedLayer]) -> list[DividedLayer]:
    return [layer for layer in layers if len(layer.clusters) > 1]
