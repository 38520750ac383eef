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

import gzip
import re
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

import waitress
from optuna.storages import BaseStorage
from plotly.offline import get_plotlyjs
from waitress.channel import HTTPChannel

from hscc_search.errors import HsccError, StorageError
from hscc_search.report.beside import optuna_pages
from hscc_search.report.explorer import known_trials, named_images, trial_data, trials_data
from hscc_search.report.guard import Application, Environment, Guard, guarded, respond
from hscc_search.report.importance import importances
from hscc_search.report.page import json_in_page, live_page, resource, studies_page
from hscc_search.storage import existing_storage, in_address, without_password
from hscc_search.storage_faults import in_one_line
from hscc_search.study.catalogue import list_studies
from hscc_search.study.record import StudyRecord
from hscc_search.study.stored_study import Study, StudyReader

# Studies that are kept in memory from one request to the next.
_MOST_KEPT = 4
# Bytes from which a body is packed, and how hard: level 5 packs 30 MB a second to a fifth.
_LEAST_PACKED, _EFFORT = 1000, 5
_TAKES_GZIP = re.compile(r"\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))")
# What a request may have: bytes of a head and of a body, and seconds until both are there. Connections at a time.
_MOST_HEAD, _MOST_BODY, _SECONDS, _MOST_CONNECTIONS = 2**16, 2**20, 30, 500
_THREADS = 8
# Nothing runs but the scripts of this server; Plotly sets styles from its script.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_ON_PAGES = [("Content-Security-Policy", _POLICY), ("Referrer-Policy", "no-referrer"), ("Cache-Control", "no-store")]


# Opens the images of a study, and returns what draws them, see :mod:`hscc_search.study.thumbnails`.
OpenImages = Callable[[Study], Callable[[Iterable[int]], dict[int, str]]]


def application(storage: str, guard: Guard | None = None, open_images: OpenImages | None = None) -> Application:
    """Make the WSGI application of a storage.

    Args:
        storage: database URL.
        open_images: opens the images that pages show small; None shows none.
        guard: who may ask for what; by default everybody who reaches the address by a name of this machine may read.

    Raises:
        StorageError: the storage cannot be reached.
    """
    opened, guard = existing_storage(storage), guard or Guard()
    read = _reader(opened)
    dashboard = optuna_pages(opened, read)
    draw = _drawing(open_images) if open_images is not None else None

    files = {
        "plotly.js": ("text/javascript", get_plotlyjs().encode()),
        "pictures.js": ("text/javascript", resource("pictures.js").encode()),
        "explorer.js": ("text/javascript", resource("explorer.js").encode()),
        "explorer.css": ("text/css", resource("explorer.css").encode()),
    }

    def answer(environment: Environment, start: Callable[..., Any]) -> Iterable[bytes]:
        path = environment.get("PATH_INFO", "/")
        send = _Sender(start, bool(_TAKES_GZIP.search(environment.get("HTTP_ACCEPT_ENCODING", ""))))
        try:
            if path == "/":
                return send.page(studies_page(list_studies(opened), guard.edit))
            if path.startswith("/pages/"):
                return send.file(files, path.removeprefix("/pages/"))
            if path.startswith("/front/"):
                return send.page(live_page(read(path.removeprefix("/front/")), without_password(storage)))
            if path.startswith("/data/"):
                name, _, trial = path.removeprefix("/data/").partition("/trial/")
                if name.endswith("/importances"):
                    return send.data(importances(read(name.removesuffix("/importances"))))
                known = parse_qs(environment.get("QUERY_STRING", "")).get("known", [""])[0]
                return send.data(_trial(opened, read(name), trial, draw) if trial else _news(read(name), known))
        except StorageError as error:
            return send.line(HTTPStatus.NOT_FOUND, str(error))
        except HsccError as error:
            return send.line(HTTPStatus.CONFLICT, str(error))
        return dashboard(environment, start)

    return guarded(answer, guard)


def serve(
    storage: str,
    host: str,
    port: int,
    guard: Guard,
    started: Callable[[str], None],
    open_images: OpenImages | None = None,
) -> None:
    """Serve the pages of a storage until interrupted.

    Args:
        storage: database URL.
        host: address to listen at.
        port: number of the port to listen at; 0 takes a free one.
        guard: who may ask for what.
        started: called with the address once the server listens.
        open_images: as for :func:`application`.

    Raises:
        StorageError: the storage cannot be reached, or the address is taken.
    """
    try:
        server = listen(application(storage, guard, open_images), host, port)
    except (OSError, ValueError) as error:  # waitress raises ValueError for a host that does not resolve
        raise StorageError(
            f"cannot listen at {host}:{port} ({getattr(error, 'strerror', None) or error}): "
            "choose others with --host and --port"
        ) from error
    started(f"http://{in_address(host)}:{server.effective_port}")
    try:
        server.run()
    finally:
        server.close()


def listen(served: Application, host: str, port: int, seconds: int = _SECONDS) -> Any:
    """Make a server of waitress that listens at an address, and that slow askers do not occupy.

    Args:
        served: what answers.
        host: address or name.
        port: number; 0 takes a free one.
        seconds: after which a request must be there as a whole.

    Raises:
        OSError, ValueError: the address is taken, or is none.
    """
    # One address of the name: a server at several has no port of its own.
    *_, (address, *_) = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    server = waitress.create_server(
        served,
        host=str(address),
        port=port,
        threads=_THREADS,
        connection_limit=_MOST_CONNECTIONS,
        asyncore_use_poll=True,  # select() takes no more than 1024 files
        channel_timeout=seconds,
        cleanup_interval=max(seconds // 3, 1),
        max_request_header_size=_MOST_HEAD,
        max_request_body_size=_MOST_BODY,
    )
    server.channel_class = _Channel
    return server


class _Channel(HTTPChannel):  # type: ignore[misc]
    """A connection on which a request that never ends is no activity: it is closed as one that is silent."""

    last_activity: float

    def handle_read(self) -> None:
        since = self.last_activity
        begun = self.request is not None
        super().handle_read()
        if begun and self.request is not None:
            self.last_activity = since


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


def _news(study: Study, known: str) -> dict[str, Any]:
    return trials_data(study, known_trials(known, [point.trial for point in study.points]))


def _drawing(open_images: OpenImages) -> Callable[[Study, list[int]], dict[str, Any]]:
    """Make a function that draws images of a study, which are opened once, or says why they cannot be drawn."""
    opened: dict[str, tuple[StudyRecord, Callable[[Iterable[int]], dict[int, str]]]] = {}
    lock = threading.Lock()

    def draw(study: Study, images: list[int]) -> dict[str, Any]:
        with lock:  # images are read once, whoever asks for them
            try:
                name = study.config.name
                if name not in opened or opened[name][0] is not study.record:  # another study of the same name
                    opened[name] = (study.record, open_images(study))
                return {"thumbnails": opened[name][1](images)}
            except HsccError as error:
                return {"no_thumbnails": str(error)}

    return draw


def _trial(
    storage: BaseStorage,
    study: Study,
    number: str,
    draw: Callable[[Study, list[int]], dict[str, Any]] | None,
) -> dict[str, Any]:
    """What a page shows of one trial, with its address in optuna-dashboard.

    Raises:
        StorageError: there is no such trial.
    """
    point = next((point for point in study.points if str(point.trial) == number), None)
    if point is None:
        raise StorageError("there is no such trial")
    name = study.config.name
    with in_one_line(storage):
        address = f"/dashboard/studies/{storage.get_study_id_from_name(name)}/trials?numbers={point.trial}"
    detail = trial_data(study, point)
    return {**detail, **(draw(study, named_images(detail["answers"])) if draw else {}), "dashboard": address}


@dataclass(frozen=True)
class _Sender:
    """Answers to one request.

    Attributes:
        start: of the request.
        gzip: whether the asker takes packed bodies.
    """

    start: Callable[..., Any]
    gzip: bool

    def page(self, text: str) -> Iterable[bytes]:
        return self._send("text/html", text.encode(), *_ON_PAGES)

    def data(self, tree: Any) -> Iterable[bytes]:
        return self._send("application/json", json_in_page(tree).encode(), ("Cache-Control", "no-store"))

    def file(self, files: dict[str, tuple[str, bytes]], name: str) -> Iterable[bytes]:
        if name not in files:
            return self.line(HTTPStatus.NOT_FOUND, "there is no such file")
        return self._send(*files[name], ("Cache-Control", "max-age=3600"))

    def line(self, status: HTTPStatus, text: str) -> Iterable[bytes]:
        return respond(self.start, status, "text/plain", text)

    def _send(self, media_type: str, content: bytes, *headers: tuple[str, str]) -> Iterable[bytes]:
        varying = [*headers, ("Vary", "Accept-Encoding")]
        if self.gzip and len(content) > _LEAST_PACKED:
            content = gzip.compress(content, _EFFORT)
            varying.append(("Content-Encoding", "gzip"))
        return respond(self.start, HTTPStatus.OK, media_type, content, *varying)
