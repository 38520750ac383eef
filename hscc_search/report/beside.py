"""optuna-dashboard beside the pages, with what it does not show by itself.

What it answers about a study is completed on its way: notes on the study and on each of its trials, the front and a
trial's regions as figures, and metrics in place of the records that only hscc-search reads. Nothing of it is stored.
Optuna reads all attributes of a study at once, and optuna-dashboard looks through them for each trial, so that notes of
ten thousand trials in the storage would make both slow; and a study of any version has these. What a user wrote as a
note stays.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from http import HTTPStatus
from io import BytesIO
from typing import Any
from urllib.parse import quote

import optuna_dashboard
from optuna.storages import BaseStorage
from optuna_dashboard._serializer import serialize_frozen_trial

from hscc_search.errors import HsccError
from hscc_search.pareto.objectives import title, violations, written
from hscc_search.pareto.points import Measured, Point
from hscc_search.report.figures import draw_front, front_info
from hscc_search.report.guard import Application, Environment, respond
from hscc_search.report.regions import divided_trial, draw_regions
from hscc_search.report.table import columns, front_line, rows, trials_in_words
from hscc_search.study.record import DIVIDED, MEASURED, PLAN, SCORES, STUDY
from hscc_search.study.stored_study import Study, get_trial

_STUDY_PATH = re.compile(r"/api/studies/\d+/*")
# Rows of a note's table of the front, and trials up to which the figure has the dominated ones, too.
_MOST_ROWS, _MOST_DRAWN = 30, 500
# Pixels of the card that optuna-dashboard draws a figure in.
_HEIGHT = 450
_JSON = ("application/json", "application/json-rpc")


def optuna_pages(storage: BaseStorage, read: Callable[[str], Study]) -> Application:
    """Make optuna-dashboard of a storage, with what it answers completed.

    Args:
        storage: open.
        read: reads a study of it by name.
    """
    dashboard: Application = optuna_dashboard.wsgi(storage)
    drawn: tuple[Study, dict[str, str]] | None = None  # of one study: that is looked at

    def figures_of(study: Study) -> dict[str, str]:
        nonlocal drawn
        found = drawn[1] if drawn is not None and drawn[0] is study else _figures(study)
        drawn = (study, found)
        return found

    def completed(content: bytes) -> bytes:
        tree = json.loads(content)
        try:
            study = read(tree["name"])
            _correct_best(tree, study, storage)
            _complete(tree, study, figures_of(study))
        except HsccError:  # not a study of hscc-search, or one that cannot be read
            return content
        return json.dumps(tree, separators=(",", ":")).encode()

    def answer(environment: Environment, start: Callable[..., Any]) -> Iterable[bytes]:
        environment.setdefault("HTTP_ACCEPT_ENCODING", "")  # without which it fails
        reading = environment["REQUEST_METHOD"] in ("GET", "HEAD")
        if reading and not _STUDY_PATH.fullmatch(environment.get("PATH_INFO", "")):
            return dashboard(environment, start)
        is_object = True if reading else _sends_object(environment)
        status, headers, content = _whole(dashboard, environment)
        if status.startswith("500") and not is_object:
            return respond(start, HTTPStatus.BAD_REQUEST, "text/plain", "send a JSON object, as application/json")
        if status.startswith("200") and environment["REQUEST_METHOD"] == "GET":
            content = completed(content)
        kept = [(name, value) for name, value in headers if name.lower() != "content-length"]
        start(status, kept if status.startswith("204") else [*kept, ("Content-Length", str(len(content)))])
        return [content]

    return answer


def _whole(application: Application, environment: Environment) -> tuple[str, list[tuple[str, str]], bytes]:
    """Status, headers and body of an answer."""
    started: list[tuple[str, list[tuple[str, str]]]] = []
    answered = application(environment, lambda status, headers, *_: started.append((status, headers)))
    try:
        content = b"".join(answered)
    finally:
        if hasattr(answered, "close"):
            answered.close()
    return *started[-1], content


def _sends_object(environment: Environment) -> bool:
    """Tell whether the body of a request is a JSON object; it can be read again."""
    length = environment.get("CONTENT_LENGTH") or "0"
    body = environment["wsgi.input"].read(int(length)) if length.isdecimal() else b""
    environment["wsgi.input"] = BytesIO(body)
    if environment.get("CONTENT_TYPE", "").lower().partition(";")[0].strip() not in _JSON:
        return False
    try:
        return isinstance(json.loads(body), dict)
    except (ValueError, RecursionError):
        return False


def _correct_best(tree: dict[str, Any], study: Study, storage: BaseStorage) -> None:
    """List the front as the best trials, in place: optuna-dashboard takes infeasible ones for the best, too."""
    known = {trial["number"]: trial for trial in (*tree["trials"], *tree["best_trials"])}
    front = sorted(point.trial for point in study.front)
    if missing := set(front) - known.keys():
        number = storage.get_study_id_from_name(study.config.name)
        attributes = storage.get_study_system_attrs(number)
        for trial in missing:
            known[trial] = serialize_frozen_trial(number, get_trial(storage, number, trial), attributes)
    tree["best_trials"] = [known[trial] for trial in front]


def _complete(tree: dict[str, Any], study: Study, figures: Mapping[str, str]) -> None:
    """Add to optuna-dashboard's view of a study, in place."""
    points = {point.trial: point for point in study.points}
    page = f"/front/{quote(study.config.name, safe='')}"
    attributes = [name for name in study.dense.metrics if ":" not in name or name in study.config.objectives]
    # Made once: there may be ten thousand trials.
    beside = {
        name: (f"| {_literal(title(name))} | ", f" | {_with_error(name, study.dense)} |")
        for name in study.dense.metrics
    }
    # A best trial may be one of the trials, and not only equal to one.
    for trial in {id(trial): trial for trial in (*tree["trials"], *tree["best_trials"])}.values():
        point, failure = points.get(trial["number"]), study.failures.get(trial["number"])
        if point is not None:
            _add_note(trial, _trial_note(study, point, page, beside))
            trial["user_attrs"] = [
                *({"key": name, "value": str(point.metrics[name])} for name in attributes if name in point.metrics),
                *(each for each in trial["user_attrs"] if not _is_record(each["key"])),
            ]
        elif failure is not None:
            _add_note(trial, f"It failed: {_literal(failure)}")
    tree["union_user_attrs"] = [
        *({"key": name, "sortable": True} for name in attributes),
        *(each for each in tree["union_user_attrs"] if not _is_record(each["key"])),
    ]
    tree["user_attrs"] = [*_study_attributes(study), *(each for each in tree["user_attrs"] if each["key"] != STUDY)]
    ours = [{"id": name, "graph_object": figure} for name, figure in figures.items()]
    tree["plotly_graph_objects"] = [*ours, *tree["plotly_graph_objects"]]
    _add_note(tree, _study_note(study, page))


def _is_record(key: str) -> bool:
    return key in (MEASURED, PLAN, DIVIDED) or key.startswith(SCORES)


def _study_attributes(study: Study) -> list[dict[str, str]]:
    facts = {
        "model": study.config.model.name,
        "classes": ", ".join(study.record.classes),
        "validation images": str(len(study.record.labels)),
        "constraints": ", ".join(violations(study.config, study.dense.metrics)),
    }
    return [{"key": key, "value": value} for key, value in facts.items() if value]


def _add_note(of: dict[str, Any], text: str) -> None:
    """Give a study or a trial a note; one that a user wrote stays."""
    if of["note"] == {"version": 0, "body": ""}:
        of["note"] = {"version": 0, "body": text}


def _figures(study: Study) -> dict[str, str]:
    """The front, and the regions of a trial on it, as optuna-dashboard takes figures."""
    info = front_info(study)
    if len(study.points) > _MOST_DRAWN:
        info = replace(info, dominated=(), infeasible=())
    figures = {"front": draw_front(info).update_layout(height=_HEIGHT).to_json()}
    if (point := divided_trial(study)) is not None:
        figures["regions"] = draw_regions(study, point).to_json()
    return figures


def _study_note(study: Study, page: str) -> str:
    shown = rows(study, most_close=0)[:_MOST_ROWS]
    return "\n\n".join(
        [
            f"**[Explore this study on its page]({page})**: any two metrics, bounds, trials side by side.",
            _literal(f"{trials_in_words(study)} of {study.config.trials} finished; {front_line(study)}."),
            *map(_literal, study.record.notices),
            _table(columns(study), [row.cells for row in shown]),
        ]
    )


def _trial_note(study: Study, point: Point, page: str, beside: Mapping[str, tuple[str, str]]) -> str:
    """The note on a trial; ``beside`` has by metric what stands before and behind its value in a table."""
    name = point.name if point.refines is None else f"{point.name}, which is trial {point.refines} refined,"
    missed = [f"violates {name} by {size:.4g}" for name, size in point.violations.items() if size]
    values = [
        f"{before}{_with_error(metric, point)}{behind}"
        for metric, (before, behind) in beside.items()
        if metric in point.metrics
    ]
    return "\n\n".join(
        [
            f"**[Explore {name} on the page of its study]({page}#trial={point.trial})**: its layers, its answers class "
            "by class, and the command that exports it.",
            f"{study.dense['flops'] / point['flops']:.2f}x fewer FLOPs and "
            f"{study.dense['parameters'] / point['parameters']:.2f}x fewer parameters than the dense network.",
            *map(_literal, missed),
            "\n".join([f"| metric | {point.name} | dense network |", "| --- | --- | --- |", *values]),
        ]
    )


def _with_error(name: str, network: Measured) -> str:
    error = network.errors.get(name)
    return written(name, network[name]) + ("" if error is None else f" ± {error:.4f}")


def _table(head: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    names = [_literal(name) for name in head]
    lines = [names, ["---"] * len(names), *([_literal(cell) for cell in cells] for cells in body)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _literal(text: str) -> str:
    """A text that Markdown shows as it is: no markup, no link, no line of its own."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))
