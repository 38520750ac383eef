"""The guard of served pages: who may ask for what.

A page on this machine's own address is reached by every web page that the user has open elsewhere, and a name that
somebody else owns may be made to mean this machine. So without a token only names of this machine are answered to
(``Host``), and it is always checked where a request came from (``Origin``, ``Sec-Fetch-Site``). Beyond this machine a
token is needed; it is compared in constant time, and a cookie that is made of it is kept after the first visit.
Browsers send a cookie to every server of a machine, whatever its port: so it does not hold the token itself, and
servers with other tokens have cookies of other names.
"""

import hmac
import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from hscc_search.errors import StorageError, one_line
from hscc_search.files import IrregularFileError, read_up_to

Environment = dict[str, Any]
Application = Callable[[Environment, Callable[..., Any]], Iterable[bytes]]

_PARAMETER = "token"
# Characters of a token.
_SHORTEST, _LONGEST = 16, 4096
_READING = ("GET", "HEAD")
# A name or an address, and a port.
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(:[0-9]{1,5})?")
# Headers of every answer that says nothing else itself: it is shown in no frame, runs nothing, and is what it says.
_USUAL = (
    ("X-Frame-Options", "DENY"),
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Referrer-Policy", "no-referrer"),
)


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
        StorageError: it holds none, or cannot be read.
    """
    try:
        token = read_up_to(path, _LONGEST).decode("ascii", "replace").strip()
    except IrregularFileError as error:
        raise StorageError(f"{path} is no regular file: give one that holds a token on one line") from error
    except OSError as error:
        raise StorageError(f"cannot read the token in {path}: {one_line(error)}") from error
    if not _SHORTEST <= len(token) <= _LONGEST or not re.fullmatch(r"[A-Za-z0-9._~-]+", token):
        raise StorageError(
            f"{path} holds no token: use {_SHORTEST} to {_LONGEST} letters, digits, hyphens and underscores on one line"
        )
    return token


def is_local(host: str) -> bool:
    """Tell whether a name or an address is only reached from this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def guarded(application: Application, guard: Guard) -> Application:
    """Let through the requests that a guard allows; the others are answered with one line."""

    def answer(environment: Environment, start: Callable[..., Any]) -> Iterable[bytes]:
        def careful(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            given = {name.lower() for name, _ in headers}
            return start(status, [*headers, *(each for each in _USUAL if each[0].lower() not in given)], *rest)

        status, reason = _refusal(environment, guard)
        if status is not None:
            return respond(careful, status, "text/plain", reason)
        reading = environment["REQUEST_METHOD"] in _READING
        if guard.token is not None and reading and _same(_in_address(environment), guard.token):
            return _into_cookie(environment, guard.token, careful)
        return application(environment, careful)

    return answer


def respond(
    start: Callable[..., Any], status: HTTPStatus, media_type: str, body: str | bytes, *headers: tuple[str, str]
) -> Iterable[bytes]:
    """Answer a request with a whole body."""
    content = body if isinstance(body, bytes) else body.encode()
    usual = [
        ("Content-Type", f"{media_type}; charset=utf-8"),
        ("Content-Length", str(len(content))),
    ]
    start(f"{status.value} {status.phrase}", [*usual, *headers])
    return [content]


def _refusal(environment: Environment, guard: Guard) -> tuple[HTTPStatus | None, str]:
    host = _host_name(environment.get("HTTP_HOST", ""))
    if host is None or not (is_local(host) or guard.token is not None):
        return (
            HTTPStatus.MISDIRECTED_REQUEST,
            "this server answers to names of this machine: with --token-file it answers to others",
        )
    origin = environment.get("HTTP_ORIGIN")
    elsewhere = environment.get("HTTP_SEC_FETCH_SITE") in ("cross-site", "same-site")
    # A link may be followed from elsewhere; a frame or a script may not.
    fetch = (environment.get("HTTP_SEC_FETCH_MODE"), environment.get("HTTP_SEC_FETCH_DEST"))
    foreign = origin is not None and origin.partition("://")[2] != environment.get("HTTP_HOST")
    if foreign or (elsewhere and fetch != ("navigate", "document")):
        return HTTPStatus.FORBIDDEN, "requests of other pages are not answered"
    if environment["REQUEST_METHOD"] not in _READING and not guard.edit:
        return HTTPStatus.METHOD_NOT_ALLOWED, "this dashboard only shows studies"
    if guard.token is not None and not _has_token(environment, guard.token):
        return (
            HTTPStatus.UNAUTHORIZED,
            "a token is needed, which the server printed or its token file holds: add ?token=TOKEN to the address",
        )
    return None, ""


def _host_name(header: str) -> str | None:
    """The name in a Host header, without the port; None where it is malformed."""
    found = _HOST.fullmatch(header)
    return found["name"].strip("[]") if found else None


def _has_token(environment: Environment, token: str) -> bool:
    bearer = environment.get("HTTP_AUTHORIZATION", "")
    return any(
        [
            _same(_in_address(environment), token),
            _in_cookies(environment, token),
            bearer[:7].lower() == "bearer " and _same(bearer[7:], token),
        ]
    )


def _same(given: str | None, token: str) -> bool:
    """Compare a token with the right one, in a time that does not tell how much of it is right."""
    return given is not None and hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def _in_address(environment: Environment) -> str | None:
    values = parse_qs(environment.get("QUERY_STRING", "")).get(_PARAMETER)
    return values[0] if values else None


def cookie(token: str) -> tuple[str, str]:
    """The name and the value of the cookie that stands for a token, and does not tell it."""
    digest = hmac.new(token.encode(), b"cookie of hscc-search dashboard", "sha256").hexdigest()
    return f"hscc_{digest[:8]}", digest[8:]


def _in_cookies(environment: Environment, token: str) -> bool:
    """Look for the token's cookie among those of a request, which may be of any server of this machine."""
    wanted, right = cookie(token)
    for each in environment.get("HTTP_COOKIE", "").split(";"):
        name, _, value = each.strip().partition("=")
        if name == wanted and _same(value, right):
            return True
    return False


def _into_cookie(environment: Environment, token: str, start: Callable[..., Any]) -> Iterable[bytes]:
    """Keep the token in a cookie, and go to the same address without it."""
    rest = parse_qs(environment.get("QUERY_STRING", ""))
    del rest[_PARAMETER]
    path = "/" + environment.get("PATH_INFO", "/").lstrip("/")  # two slashes would lead to another server
    query = f"?{urlencode(rest, doseq=True)}" if rest else ""
    headers = [
        ("Location", quote(path.encode("latin-1", "replace")) + query),
        ("Set-Cookie", f"{'='.join(cookie(token))}; HttpOnly; SameSite=Strict; Path=/"),
        ("Content-Length", "0"),
    ]
    start(f"{HTTPStatus.SEE_OTHER.value} {HTTPStatus.SEE_OTHER.phrase}", headers)
    return [b""]
