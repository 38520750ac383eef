"""HTML pages: a study to explore, as one file that needs no network or served live, and the list of studies."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader
from plotly.offline import get_plotlyjs

from hscc_search.files import written_whole
from hscc_search.pareto.objectives import title
from hscc_search.pareto.points import Point
from hscc_search.report.explorer import named_images, study_data, trial_data, trials_data
from hscc_search.report.importance import importances
from hscc_search.report.measured import HEADS, OnDevice, measured_rows
from hscc_search.report.table import reference_text
from hscc_search.resources import resource_folder
from hscc_search.storage import without_password
from hscc_search.study.catalogue import StudyStatus
from hscc_search.study.stored_study import Study

_TEMPLATES = Environment(loader=FileSystemLoader(resource_folder("dashboards")), autoescape=True)
# Trials whose layers and answers a file holds, at most, and the bytes that these may take.
_MOST_DETAILS, _MOST_BYTES = 60, 700_000
# Validation images that it shows small, at most.
_MOST_THUMBNAILS = 300


@dataclass(frozen=True, repr=False)
class Page:
    """The page of a study as it stands. In a notebook it shows itself where it is the last value of a cell.

    Attributes:
        html: of the page, with everything that it needs inside: 5 megabytes.
    """

    html: str

    def write(self, path: Path | str) -> None:
        """Write the page as a file that needs no internet connection.

        Raises:
            UnwritableError: it cannot be written there, or there is no room (DiskFullError).
        """
        with written_whole(Path(path)) as temporary:
            temporary.write_text(self.html, encoding="utf-8")

    def _repr_html_(self) -> str:
        # A frame of its own: nothing in it reaches the notebook.
        style = "width: 100%; height: 60rem; border: 0"
        return (
            f'<iframe sandbox="allow-scripts" allow="clipboard-write" style="{style}" srcdoc="{escape(self.html)}">'
            "</iframe>"
        )


def frozen_page(
    study: Study,
    storage: str,
    peers: Sequence[dict[str, Any]] = (),
    draw: Callable[[Iterable[int]], dict[int, str]] | None = None,
    measured: Sequence[OnDevice] = (),
) -> str:
    """Render the page of a study with everything that it needs inside.

    Args:
        study: as it stands.
        storage: URL that it was read from, which an export command names.
        peers: from :func:`hscc_search.report.comparison.peers_of`.
        draw: draws validation images small, see :func:`hscc_search.study.thumbnails.thumbnails`; None shows none.
        measured: what was measured of its trials on devices.
    """
    details = _details(study)
    named = dict.fromkeys(image for detail in details.values() for image in named_images(detail["answers"]))
    thumbnails = draw([*named][:_MOST_THUMBNAILS]) if draw is not None else {}
    frozen = {"details": details, "importances": importances(study), "peers": peers, "thumbnails": thumbnails}
    return _page(study, {**_content(study, without_password(storage)), **frozen}, live=False, measured=measured)


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


def _details(study: Study) -> dict[int, dict[str, Any]]:
    """The layers and answers of trials: of the front, of those close to it, and then of others, while there is room."""
    probability, close = study.confidence.probability, study.confidence.close
    front = {point.trial for point in study.front}

    def order(point: Point) -> tuple[bool, bool, float, int]:
        return point.trial not in front, point.trial not in close, -probability.get(point.trial, 0), point.trial

    details: dict[int, dict[str, Any]] = {}
    size = 0
    for point in sorted(study.points, key=order)[:_MOST_DETAILS]:
        detail = trial_data(study, point)
        size += len(json_in_page(detail))
        if size > _MOST_BYTES:
            break
        details[point.trial] = detail
    return details


def _content(study: Study, storage: str) -> dict[str, Any]:
    bounded = [bound.metric for bound in study.config.constraints]
    return {
        "study": study_data(study, storage),
        "trials": trials_data(study),
        "bounded": [*bounded, *(name for name in ("megabytes", "parameters") if name in study.dense.metrics)],
    }


def _page(study: Study, content: dict[str, Any], live: bool, measured: Sequence[OnDevice] = ()) -> str:
    inside = {
        "style": resource("explorer.css"),
        "plotly": get_plotlyjs(),
        **{name: resource(f"{name}.js") for name in ("pictures", "explorer")},
    }
    return _TEMPLATES.get_template("front.html.j2").render(
        title=f"hscc-search: {study.config.name}",
        live=live,
        study=content["study"],
        objectives=[f"{objective.direction} {title(objective.metric)}" for objective in study.objectives],
        reference=reference_text(study),
        inspection=study.record.inspection,
        measured={"heads": HEADS, "rows": measured_rows(study, measured)} if measured else None,
        data=json_in_page(content),
        **({} if live else inside),
    )


def json_in_page(tree: Any) -> str:
    """Write values as JSON that can stand in a script element: nothing in it ends the element."""
    text = json.dumps(tree, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
