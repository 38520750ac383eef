"""A comparison of methods as a JSON summary and a page with its figure."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from hscc_search.comparison.folder import read_comparison
from hscc_search.comparison.summary import Summary, summarise
from hscc_search.errors import ConfigError
from hscc_search.files import written_whole
from hscc_search.pareto.points import Measured
from hscc_search.report.figures import ACCENT, DENSE, FAINT, INK
from hscc_search.study.stored_study import Study

# Symbols of the peers among the trials of a study, other than those of trials.
_SYMBOLS = ("triangle-up-open", "triangle-down-open", "pentagon-open", "hourglass-open", "cross-open")
# Colours of the peers, in the order in which they occur.
_PEERS = ("#5f3dc4", "#2b8a3e", "#e67700", "#a61e4d", "#364fc7", "#087f5b")


def write_comparison(study: str, summaries: Sequence[Summary], folder: Path) -> None:
    """Write ``summary.json`` and ``comparison.html`` into a comparison's folder."""
    with written_whole(folder / "summary.json") as temporary:
        tree = [summary.stored() for summary in summaries]
        temporary.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    with written_whole(folder / "comparison.html") as temporary:
        draw_comparison(study, summaries).write_html(temporary, include_plotlyjs=True, config={"displaylogo": False})


def peers_of(study: Study, folder: Path) -> list[dict[str, Any]]:
    """Place the peers of a comparison among the trials of a study, as JSON-compatible values.

    A comparison measures on the test parts of several splits: a peer's accuracy on the page is that of the study's
    dense network plus the paired difference there, with the difference's error. HSCC's own networks are left out.

    Args:
        study: whose page shows them.
        folder: of the comparison.

    Returns:
        Name, symbol, metrics and errors of each method at each budget and stage.

    Raises:
        ConfigError: the folder holds no comparison, or one of a network of another name or of other images.
    """
    record, networks = read_comparison(folder)
    for name, there, here in (
        ("images", record.fingerprint, study.record.fingerprint),
        ("network", record.config.model.name, study.config.model.name),
    ):
        if there != here:
            raise ConfigError(f"{folder} compares on another study's {name}: name a comparison of {study.config.name}")
    shown = [each for each in summarise(networks) if each.to_dense and each.flops_ratio and each.parameters]
    peers = [each for each in shown if _is_peer(each.method)]
    symbols = dict(zip(dict.fromkeys(each.method for each in peers), _SYMBOLS * len(peers), strict=False))
    return [_peer(study.dense, each, symbols[each.method]) for each in peers]


def _peer(dense: Measured, summary: Summary, symbol: str) -> dict[str, Any]:
    assert summary.flops_ratio and summary.to_dense and summary.parameters
    return {
        "name": f"{summary.name} at {summary.budget:g}x, {summary.splits} split{'' if summary.splits == 1 else 's'}",
        "symbol": symbol,
        "metrics": {
            "flops": dense["flops"] / summary.flops_ratio,
            "macs": dense["macs"] / summary.flops_ratio,
            "parameters": summary.parameters,
            "accuracy": min(1.0, dense["accuracy"] + summary.to_dense.value),
        },
        "errors": {"accuracy": summary.to_dense.se},
    }


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
        modebar={"remove": ["sendChartToCloud"]},
        width=1000,
        height=640,
    )
    return figure


def _is_peer(method: str) -> bool:
    return not method.startswith(("hscc", "dense"))


def _colours(methods: Sequence[str]) -> dict[str, str]:
    """The colours of HSCC, the dense network and the peers by name; the controls of HSCC are left out."""
    peers = list(filter(_is_peer, dict.fromkeys(methods)))
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
