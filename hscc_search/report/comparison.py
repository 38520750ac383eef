"""A comparison of methods as a JSON summary and a page with its figure."""

import json
from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go

from hscc_search.comparison.summary import Summary
from hscc_search.files import written_whole
from hscc_search.report.figures import ACCENT, DENSE, FAINT, INK

# Colours of the peers, in the order in which they occur.
_PEERS = ("#5f3dc4", "#2b8a3e", "#e67700", "#a61e4d", "#364fc7", "#087f5b")


def write_comparison(study: str, summaries: Sequence[Summary], folder: Path) -> None:
    """Write ``summary.json`` and ``comparison.html`` into a comparison's folder."""
    with written_whole(folder / "summary.json") as temporary:
        tree = [summary.stored() for summary in summaries]
        temporary.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    with written_whole(folder / "comparison.html") as temporary:
        draw_comparison(study, summaries).write_html(temporary, include_plotlyjs=True, config={"displaylogo": False})


def draw_comparison(study: str, summaries: Sequence[Summary]) -> go.Figure:
    """Draw accuracy over the ratio of FLOPs with standard errors: a line per method and stage.

    Lines are dashed where networks are fine-tuned, and dotted where they are refined.
    """
    colours = _colours([summary.method for summary in summaries])
    lines: dict[str, list[Summary]] = {}
    for summary in summaries:
        lines.setdefault(summary.name, []).append(summary)
    figure = go.Figure([_line(line, colours.get(line[0].method, FAINT)) for line in lines.values()])
    figure.update_layout(
        title=f"{study}: accuracy on the test parts, mean over splits ± standard error over images",
        xaxis_title="times fewer FLOPs (one multiply-add is two FLOPs)",
        yaxis_title="accuracy in %",
        template="plotly_white",
        font={"color": INK},
        width=1000,
        height=640,
    )
    return figure


def _colours(methods: Sequence[str]) -> dict[str, str]:
    """The colours of HSCC, the dense network and the peers by name; the controls of HSCC are left out."""
    peers = [method for method in dict.fromkeys(methods) if not method.startswith(("hscc", "dense"))]
    return {**dict(zip(peers, _PEERS * len(peers), strict=False)), "hscc": ACCENT, "dense": DENSE}


def _line(summaries: Sequence[Summary], colour: str) -> go.Scatter:
    """The line of one method at one stage."""
    first = summaries[0]
    points = [
        (summary.flops_ratio, summary.accuracy) for summary in summaries if summary.flops_ratio and summary.accuracy
    ]
    points.sort(key=lambda point: point[0])
    dash = "dot" if first.refined else "dash" if first.epochs else "solid"
    return go.Scatter(
        x=[ratio for ratio, _ in points],
        y=[100 * accuracy.value for _, accuracy in points],
        error_y={"type": "data", "array": [100 * accuracy.se for _, accuracy in points], "thickness": 1},
        name=first.name,
        mode="lines+markers",
        line={"color": colour, "dash": dash, "width": 3 if first.method == "hscc" else 1.5},
        hovertemplate="%{x:.2f}x fewer FLOPs<br>accuracy %{y:.2f} %<extra>" + first.name + "</extra>",
    )
