"""Serve optuna-dashboard and the Plotly front on one local address, read-only."""

from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import optuna_dashboard
import waitress
from plotly.offline import get_plotlyjs

from hscc_search.errors import HsccError, StorageError
from hscc_search.report.page import front_page, studies_page
from hscc_search.storage import existing_storage
from hscc_search.study.catalogue import list_studies
from hscc_search.study.stored_study import read_study

_Environment = dict[str, Any]
_Application = Callable[[_Environment, Callable[..., Any]], Iterable[bytes]]


def application(storage: str) -> _Application:
    """Make a WSGI application: ``/`` lists the studies, ``/front/NAME`` draws one, optuna-dashboard answers the rest.

    optuna-dashboard has no authentication, and a plain DELETE request removes a study, so all methods but GET and HEAD
    are refused.

    Raises:
        StorageError: the storage cannot be reached.
    """
    opened = existing_storage(storage)
    dashboard: _Application = optuna_dashboard.wsgi(opened)
    script = get_plotlyjs().encode()

    def answer(environment: _Environment, start: Callable[..., Any]) -> Iterable[bytes]:
        path = environment.get("PATH_INFO", "/")
        if environment["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _respond(start, HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", b"this dashboard only shows studies")
        try:
            if path == "/":
                return _respond(start, HTTPStatus.OK, "text/html", studies_page(list_studies(opened)).encode())
            if path == "/plotly.js":
                return _respond(start, HTTPStatus.OK, "text/javascript", script, ("Cache-Control", "max-age=86400"))
            if path.startswith("/front/"):
                study = read_study(opened, unquote(path.removeprefix("/front/")))
                return _respond(start, HTTPStatus.OK, "text/html", front_page(study, script_url="/plotly.js").encode())
        except StorageError as error:
            return _respond(start, HTTPStatus.NOT_FOUND, "text/plain", str(error).encode())
        except HsccError as error:
            return _respond(start, HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", str(error).encode())
        return dashboard(environment, start)

    return answer


def serve(storage: str, host: str, port: int, started: Callable[[str], None]) -> None:
    """Serve the pages of a storage until interrupted.

    Args:
        storage: database URL.
        host: address to listen at.
        port: number of the port to listen at; 0 takes a free one.
        started: called with the address once the server listens.

    Raises:
        StorageError: the storage cannot be reached, or the address is taken.
    """
    try:
        server = waitress.create_server(application(storage), host=host, port=port)
    except (OSError, ValueError) as error:  # waitress raises ValueError for a host that does not resolve
        raise StorageError(
            f"cannot listen at {host}:{port} ({getattr(error, 'strerror', None) or error}): "
            "choose others with --host and --port"
        ) from error
    started(f"http://{host}:{server.effective_port}")
    try:
        server.run()
    finally:
        server.close()


def _respond(
    start: Callable[..., Any], status: HTTPStatus, media_type: str, body: bytes, *headers: tuple[str, str]
) -> Iterable[bytes]:
    usual = [("Content-Type", f"{media_type}; charset=utf-8"), ("Content-Length", str(len(body)))]
    start(f"{status.value} {status.phrase}", [*usual, *headers])
    return [body]
