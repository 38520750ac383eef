"""Who may ask a served page for what.

A page on this machine's own address is reached by every web page that the user has open elsewhere, and a name that
somebody else owns may be made to mean this machine. So without a token only names of this machine are answered to
(``Host``), and it is always checked where a request came from (``Origin``, ``Sec-Fetch-Site``). Beyond this machine a
token is needed; it is compared in constant time, and kept in a cookie after the first visit.
"""

import hmac
import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from hscc_search.errors import StorageError, one_line

_Environment = dict[str, Any]
_Application = Callable[[_Environment, Callable[..., Any]], Iterable[bytes]]

_COOKIE, _PARAMETER = "hscc_token", "token"
# Characters of a token at least.
_SHORTEST = 16
_READING = ("GET", "HEAD")


@dataclass(frozen=True)
class Guard:
    """The rules of a server.

    Attributes:
        token: that a request must carry, in a cookie, in ``?token=`` or as ``Authorization: Bearer``; None needs none.
        edit: whether requests may change studies, which optuna-dashboard does.
    """

    token: str | None = None
    edit: bool = False


def new_token() -> str:
    """Draw a token."""
    return secrets.token_urlsafe(24)


def read_token(path: Path) -> str:
    """Read a token from a file of one line.

    Raises:
        StorageError: it is too short to be one, or cannot be read.
    """
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read the token in {path}: {one_line(error)}") from error
    if len(token) < _SHORTEST or not re.fullmatch(r"[A-Za-z0-9._~-]+", token):
        raise StorageError(
            f"{path} holds no token: use at least {_SHORTEST} letters, digits, hyphens and underscores on one line"
        )
    return token


def is_local(host: str) -> bool:
    """Whether a name or an address is only reached from this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def guarded(application: _Application, guard: Guard) -> _Application:
    """Let through the requests that a guard allows; the others are answered with one line."""

    def answer(environment: _Environment, start: Callable[..., Any]) -> Iterable[bytes]:
        status, reason = _refusal(environment, guard)
        if status is not None:
            return _line(start, status, reason)
        if guard.token is not None and _in_address(environment) is not None:
            return _into_cookie(environment, start)
        return application(environment, start)

    return answer


def _refusal(environment: _Environment, guard: Guard) -> tuple[HTTPStatus | None, str]:
    host = _host_name(environment.get("HTTP_HOST", ""))
    if host is None or not (is_local(host) or guard.token is not None):
        return (
            HTTPStatus.MISDIRECTED_REQUEST,
            "this server answers to names of this machine: with --token-file it answers to others",
        )
    origin = environment.get("HTTP_ORIGIN")
    elsewhere = environment.get("HTTP_SEC_FETCH_SITE") in ("cross-site", "same-site")
    if (origin is not None and urlsplit(origin).netloc != environment.get("HTTP_HOST")) or (
        elsewhere and environment.get("HTTP_SEC_FETCH_MODE") != "navigate"
    ):
        return HTTPStatus.FORBIDDEN, "requests of other pages are not answered"
    if environment["REQUEST_METHOD"] not in _READING and not guard.edit:
        return HTTPStatus.METHOD_NOT_ALLOWED, "this dashboard only shows studies"
    if guard.token is not None and not _has_token(environment, guard.token):
        return HTTPStatus.UNAUTHORIZED, "a token is needed: open the address that the server printed"
    return None, ""


def _host_name(header: str) -> str | None:
    """The name in a Host header, in lower case, without the port; None where it is malformed."""
    try:
        parts = urlsplit(f"//{header}")
        parts.port  # noqa: B018  (checks it)
        return parts.hostname
    except ValueError:
        return None


def _has_token(environment: _Environment, token: str) -> bool:
    bearer = environment.get("HTTP_AUTHORIZATION", "")
    given = [_in_address(environment), _in_cookie(environment), bearer.removeprefix("Bearer ") if bearer else None]
    wanted = token.encode()
    return any(hmac.compare_digest(each.encode("utf-8", "replace"), wanted) for each in given if each is not None)


def _in_address(environment: _Environment) -> str | None:
    values = parse_qs(environment.get("QUERY_STRING", "")).get(_PARAMETER)
    return values[0] if values else None


def _in_cookie(environment: _Environment) -> str | None:
    try:
        cookies = SimpleCookie(environment.get("HTTP_COOKIE", ""))
    except CookieError:
        return None
    return cookies[_COOKIE].value if _COOKIE in cookies else None


def _into_cookie(environment: _Environment, start: Callable[..., Any]) -> Iterable[bytes]:
    """Keep the token of the address in a cookie, and go to the same address without it."""
    rest = parse_qs(environment.get("QUERY_STRING", ""))
    token = rest.pop(_PARAMETER)[0]
    path = "/" + environment.get("PATH_INFO", "/").lstrip("/")  # two slashes would lead to another server
    query = f"?{urlencode(rest, doseq=True)}" if rest else ""
    headers = [
        ("Location", quote(path) + query),
        ("Set-Cookie", f"{_COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/"),
        ("Content-Length", "0"),
    ]
    start(f"{HTTPStatus.SEE_OTHER.value} {HTTPStatus.SEE_OTHER.phrase}", headers)
    return [b""]


def _line(start: Callable[..., Any], status: HTTPStatus, line: str) -> Iterable[bytes]:
    body = line.encode()
    start(
        f"{status.value} {status.phrase}",
        [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))],
    )
    return [body]
