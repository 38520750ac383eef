"""HTML pages: a study to explore, as one file that needs no network or served live, and the list of studies."""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader
from plotly.offline import get_plotlyjs

from hscc_search.files import written_whole
from hscc_search.pareto.objectives import title
from hscc_search.report.explorer import study_data, trial_data, trials_data
from hscc_search.report.table import reference_text
from hscc_search.resources import resource_folder
from hscc_search.storage import without_password
from hscc_search.study.catalogue import StudyStatus
from hscc_search.study.stored_study import Study

_TEMPLATES = Environment(loader=FileSystemLoader(resource_folder("dashboards")), autoescape=True)
# Trials whose layers and answers a file holds: the front, and the most probable of those close to it.
_MOST_DETAILS = 60


def write_page(study: Study, path: Path, storage: str) -> None:
    """Write the page of a study, read from a storage, as one HTML file that needs no internet connection."""
    with written_whole(path) as temporary:
        temporary.write_text(frozen_page(study, storage), encoding="utf-8")


def frozen_page(study: Study, storage: str) -> str:
    """Render the page of a study with everything that it needs inside.

    Args:
        study: as it stands.
        storage: URL that it was read from, which an export command names.
    """
    probability = study.confidence.probability
    close = sorted(study.close, key=lambda point: -probability[point.trial])
    shown = [*study.front, *close][:_MOST_DETAILS]
    details = {point.trial: trial_data(study, point) for point in shown}
    return _page(study, {**_content(study, without_password(storage)), "details": details}, live=False)


def live_page(study: Study, storage: str) -> str:
    """Render the page of a study that fetches what is new.

    Args:
        study: as it stands.
        storage: URL that an export command names, without a password.
    """
    content = {**_content(study, storage), "live": f"/data/{quote(study.config.name)}", "dashboard": "/dashboard"}
    return _page(study, content, live=True)


def studies_page(studies: list[StudyStatus], edit: bool) -> str:
    """Render the page that lists the studies of a storage; ``edit`` says whether optuna-dashboard may change them."""
    return _TEMPLATES.get_template("studies.html.j2").render(title="hscc-search: studies", studies=studies, edit=edit)


def resource(name: str) -> str:
    """The text of a script or a style sheet of the pages."""
    return (resource_folder("dashboards") / name).read_text(encoding="utf-8")


def _content(study: Study, storage: str) -> dict[str, Any]:
    # A folder name that needs no quotes in a shell.
    folder = re.sub(r"[^\w.-]", "-", study.config.name)
    bounded = [bound.metric for bound in study.config.constraints]
    return {
        "study": {**study_data(study, storage), "folder": folder},
        "trials": trials_data(study),
        "bounded": [*bounded, *(name for name in ("megabytes", "parameters") if name in study.dense.metrics)],
    }


def _page(study: Study, content: dict[str, Any], live: bool) -> str:
    inside = {"style": resource("explorer.css"), "plotly": get_plotlyjs(), "script": resource("explorer.js")}
    return _TEMPLATES.get_template("front.html.j2").render(
        title=f"hscc-search: {study.config.name}",
        live=live,
        study=content["study"],
        objectives=[f"{objective.direction} {title(objective.metric)}" for objective in study.objectives],
        reference=reference_text(study),
        inspection=study.record.inspection,
        data=json_in_page(content),
        **({} if live else inside),
    )


def json_in_page(tree: Any) -> str:
    """Write values as JSON that can stand in a script element: nothing in it ends the element."""
    text = json.dumps(tree, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
