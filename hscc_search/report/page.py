"""HTML pages of a study: one that needs nothing else, and the same one served live."""

from pathlib import Path

import plotly.io
from jinja2 import Environment, FileSystemLoader
from plotly.offline import get_plotlyjs

from hscc_search.files import written_whole
from hscc_search.pareto.objectives import title, violations
from hscc_search.report.figures import draw_front, draw_growth, draw_layers, front_info, growth_info, layers_info
from hscc_search.report.table import columns, front_line, rows
from hscc_search.search.catalogue import StudyStatus
from hscc_search.search.stored_study import Study

_TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
# Seconds after which the page of a study that still runs is drawn again.
_REFRESH = 15
# Of the trials that cannot be told apart from the front so many are listed; the figure shows all.
_CLOSE = 25


def write_page(study: Study, path: Path) -> None:
    """Write the front as one HTML file that renders with the network off."""
    with written_whole(path) as temporary:
        temporary.write_text(front_page(study, script_url=None), encoding="utf-8")
        temporary.chmod(0o644)


def front_page(study: Study, script_url: str | None) -> str:
    """The page of a study's front.

    Args:
        study: from :func:`hscc_search.search.stored_study.read_study`.
        script_url: where a live page finds plotly.js; None puts it into the page.
    """
    info = front_info(study)
    figures = [draw_front(info)]
    if info.knee is not None and info.knee.trial is not None:
        figures += [draw_layers(layers_info(study, info.knee.trial)), draw_growth(growth_info(study))]
    running = script_url is not None and len(study.points) < study.config.trials
    return _TEMPLATES.get_template("front.html.j2").render(
        title=f"hscc-search: {study.config.name}",
        live=script_url is not None,
        refresh=_REFRESH if running else None,
        script=True,
        script_url=script_url,
        script_text="" if script_url else get_plotlyjs(),
        config=study.config,
        aims=[f"{'high' if one.maximise else 'low'} {title(one.metric)}" for one in study.objectives],
        bounds=list(violations(study.config, study.dense.metrics)),
        classes=study.classes,
        finished=len(study.points),
        wanted=study.config.trials,
        failed=len(study.failures),
        failures=study.failures,
        figures=[
            plotly.io.to_html(
                figure,
                full_html=False,
                include_plotlyjs=False,
                config={"displaylogo": False, "responsive": True},
            )
            for figure in figures
        ],
        columns=columns(study),
        rows=rows(study, most_close=_CLOSE),
        line=front_line(study),
    )


def studies_page(studies: list[StudyStatus]) -> str:
    """The page that lists the studies of a storage."""
    return _TEMPLATES.get_template("studies.html.j2").render(title="hscc-search: studies", studies=studies)
