"""HTML pages: the front of a study, as a self-contained file or served live, and the list of studies."""

from pathlib import Path

import plotly.graph_objects as go
import plotly.io
from jinja2 import Environment, FileSystemLoader
from plotly.offline import get_plotlyjs

from hscc_search.files import written_whole
from hscc_search.pareto.objectives import title, violations
from hscc_search.report.figures import (
    draw_front,
    draw_hypervolume,
    draw_layers,
    front_info,
    hypervolume_info,
    layers_info,
)
from hscc_search.report.table import columns, front_line, rows
from hscc_search.resources import resource_folder
from hscc_search.study.catalogue import StudyStatus
from hscc_search.study.stored_study import Study

_TEMPLATES = Environment(loader=FileSystemLoader(resource_folder("dashboards")), autoescape=True)
# Seconds after which the live page of an unfinished study reloads.
_REFRESH_SECONDS = 15
# Largest number of rows for trials that cannot be told apart from the front; the figure shows all of them.
_MOST_CLOSE = 25


def write_page(study: Study, path: Path) -> None:
    """Write the front as one HTML file that needs no internet connection."""
    with written_whole(path) as temporary:
        temporary.write_text(front_page(study, script_url=None), encoding="utf-8")


def front_page(study: Study, script_url: str | None) -> str:
    """Render the page of a study's front.

    Args:
        study: from :func:`hscc_search.study.stored_study.read_study`.
        script_url: address of plotly.js for a live page; None puts plotly.js into the page.
    """
    info = front_info(study)
    figures = [draw_front(info)]
    if info.knee is not None:
        figures += [draw_layers(layers_info(study, info.knee.trial)), draw_hypervolume(hypervolume_info(study))]
    unfinished = script_url is not None and len(study.searched.points) < study.config.trials
    return _TEMPLATES.get_template("front.html.j2").render(
        title=f"hscc-search: {study.config.name}",
        live=script_url is not None,
        refresh=_REFRESH_SECONDS if unfinished else None,
        script=True,
        script_url=script_url,
        script_text="" if script_url else get_plotlyjs(),
        config=study.config,
        objectives=[f"{objective.direction} {title(objective.metric)}" for objective in study.objectives],
        constraints=list(violations(study.config, study.dense.metrics)),
        classes=study.record.classes,
        finished=len(study.searched.points),
        refined=len(study.points) - len(study.searched.points),
        wanted=study.config.trials,
        failed=len(study.failures),
        failures=study.failures,
        figures=[_html(figure) for figure in figures],
        columns=columns(study),
        rows=rows(study, most_close=_MOST_CLOSE),
        line=front_line(study),
        notices=study.record.notices,
        inspection=study.record.inspection,
    )


def studies_page(studies: list[StudyStatus]) -> str:
    """Render the page that lists the studies of a storage."""
    return _TEMPLATES.get_template("studies.html.j2").render(title="hscc-search: studies", studies=studies)


def _html(figure: go.Figure) -> str:
    config = {"displaylogo": False, "responsive": True}
    html: str = plotly.io.to_html(figure, full_html=False, include_plotlyjs=False, config=config)
    return html
