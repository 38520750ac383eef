"""Serve optuna-dashboard and the pages of studies on one address.

=================================  ================================================
``/``                              the list of studies
``/front/NAME``                    the page of a study
``/data/NAME?known=0-11``          what is new in it, as JSON
``/data/NAME/trial/7``             the layers and answers of a trial, as JSON
``/data/NAME/importances``         what matters for which objective, as JSON
``/pages/FILE``                    scripts and the style sheet of the pages
anything else                      optuna-dashboard
=================================  ================================================
"""

import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

import optuna_dashboard
import waitress
from optuna.storages import BaseStorage
from plotly.offline import get_plotlyjs

from hscc_search.errors import HsccError, StorageError
from hscc_search.report.explorer import known_trials, trial_data, trials_data
from hscc_search.report.guard import Application, Environment, Guard, guarded, respond
from hscc_search.report.importance import importances
from hscc_search.report.page import json_in_page, live_page, resource, studies_page
from hscc_search.storage import existing_storage, without_password
from hscc_search.study.catalogue import list_studies
from hscc_search.study.stored_study import Study, StudyReader

# Studies that are kept in memory from one request to the next.
_MOST_KEPT = 4
# Nothing runs but the scripts of this server; Plotly sets styles from its script.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_ON_PAGES = [("Content-Security-Policy", _POLICY), ("Referrer-Policy", "no-referrer"), ("Cache-Control", "no-store")]


def application(storage: str, guard: Guard | None = None) -> Application:
    """Make the WSGI application of a storage.

    Args:
        storage: database URL.
        guard: who may ask for what; by default everybody who reaches the address by a name of this machine may read.

    Raises:
        StorageError: the storage cannot be reached.
    """
    opened, guard = existing_storage(storage), guard or Guard()
    dashboard: Application = optuna_dashboard.wsgi(opened)
    read = _reader(opened)

    files = {
        "plotly.js": ("text/javascript", get_plotlyjs().encode()),
        "pictures.js": ("text/javascript", resource("pictures.js").encode()),
        "explorer.js": ("text/javascript", resource("explorer.js").encode()),
        "explorer.css": ("text/css", resource("explorer.css").encode()),
    }

    def answer(environment: Environment, start: Callable[..., Any]) -> Iterable[bytes]:
        path = environment.get("PATH_INFO", "/")
        try:
            if path == "/":
                page = studies_page(list_studies(opened), guard.edit)
                return respond(start, HTTPStatus.OK, "text/html", page, *_ON_PAGES)
            if path.startswith("/pages/"):
                return _file(start, files, path.removeprefix("/pages/"))
            if path.startswith("/front/"):
                page = live_page(read(path.removeprefix("/front/")), without_password(storage))
                return respond(start, HTTPStatus.OK, "text/html", page, *_ON_PAGES)
            if path.startswith("/data/"):
                asked = parse_qs(environment.get("QUERY_STRING", ""))
                return _data(start, read, path.removeprefix("/data/"), asked.get("known", [""])[0])
        except StorageError as error:
            return respond(start, HTTPStatus.NOT_FOUND, "text/plain", str(error))
        except HsccError as error:
            return respond(start, HTTPStatus.CONFLICT, "text/plain", str(error))
        return dashboard(environment, start)

    return guarded(answer, guard)


def serve(storage: str, host: str, port: int, guard: Guard, started: Callable[[str], None]) -> None:
    """Serve the pages of a storage until interrupted.

    Args:
        storage: database URL.
        host: address to listen at.
        port: number of the port to listen at; 0 takes a free one.
        guard: who may ask for what.
        started: called with the address once the server listens.

    Raises:
        StorageError: the storage cannot be reached, or the address is taken.
    """
    try:
        # One address of the name: a server at several has no port of its own.
        *_, (address, *_) = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        server = waitress.create_server(application(storage, guard), host=str(address), port=port)
    except (OSError, ValueError) as error:  # waitress raises ValueError for a host that does not resolve
        raise StorageError(
            f"cannot listen at {host}:{port} ({getattr(error, 'strerror', None) or error}): "
            "choose others with --host and --port"
        ) from error
    started(f"http://{f'[{host}]' if ':' in host else host}:{server.effective_port}")
    try:
        server.run()
    finally:
        server.close()


def _reader(storage: BaseStorage) -> Callable[[str], Study]:
    """Make a function that reads studies of a storage by name, and keeps those that were asked for last."""
    kept: OrderedDict[str, StudyReader] = OrderedDict()
    lock = threading.Lock()

    def read(name: str) -> Study:
        with lock:
            reader = kept.get(name) or StudyReader(storage)
        study = reader.read(name)  # raises where there is none, so that no name of nothing displaces a study
        with lock:
            kept[name] = reader
            kept.move_to_end(name)
            while len(kept) > _MOST_KEPT:
                kept.popitem(last=False)
        return study

    return read


def _file(start: Callable[..., Any], files: dict[str, tuple[str, bytes]], name: str) -> Iterable[bytes]:
    if name not in files:
        return respond(start, HTTPStatus.NOT_FOUND, "text/plain", "there is no such file")
    media_type, content = files[name]
    return respond(start, HTTPStatus.OK, media_type, content, ("Cache-Control", "max-age=3600"))


def _data(start: Callable[..., Any], read: Callable[[str], Study], path: str, known: str) -> Iterable[bytes]:
    """Answer with what is new in a study, with one of its trials, or with the importances of what it samples."""
    name, _, number = path.partition("/trial/")
    study = read(name.removesuffix("/importances"))
    tree: dict[str, Any]
    if name.endswith("/importances"):
        tree = dict(importances(study))
    elif not number:
        tree = trials_data(study, known_trials(known, [point.trial for point in study.points]))
    else:
        point = next((point for point in study.points if str(point.trial) == number), None)
        if point is None:
            return respond(start, HTTPStatus.NOT_FOUND, "text/plain", "there is no such trial")
        tree = trial_data(study, point)
    return respond(start, HTTPStatus.OK, "application/json", json_in_page(tree), ("Cache-Control", "no-store"))
