"""What somebody may do to the dashboard's address, and to a page by what a study holds."""

import http.client
import os
import random
import re
import socket
import sqlite3
import time
from contextlib import ExitStack, suppress
from dataclasses import replace

import optuna
import optuna_dashboard
import pytest
from asking import ask, serving
from optuna.trial import TrialState, create_trial

from hscc_search.report.guard import Guard
from hscc_search.report.live import application
from hscc_search.storage import open_storage
from hscc_search.study.record import FAILURE, TrialRecord
from hscc_search.study.stored_study import write_record

TOKEN = "a-token-of-some-length"
# Requests of the fuzz.
REQUESTS = int(os.environ.get("FUZZ", "300"))
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT")
# The routes of both parts, with numbers and names that there are.
ROUTES = (
    "/",
    "/front/made",
    "/data/made",
    "/data/made/trial/0",
    "/pages/explorer.js",
    "/dashboard",
    "/dashboard/studies/1",
    "/api/meta",
    "/api/studies",
    "/api/studies/1",
    "/api/studies/1/rename",
    "/api/studies/1/param_importances",
    "/api/studies/1/plot/slice",
    "/api/studies/1/note",
    "/api/studies/1/preference",
    "/api/studies/1/preference_feedback_component",
    "/api/studies/1/preference/0",
    "/api/studies/1/1/note",
    "/api/studies/1/1/skip",
    "/api/trials/1/tell",
    "/api/trials/1/user-attrs",
    "/api/artifacts/1",
    "/api/artifacts/1/1",
    "/api/artifacts/1/1/ab",
    "/artifacts/1/ab",
    "/artifacts/1/1/ab",
    "/api/llm/trial_filter_query",
    "/api/llm/generate_plotly_graph_query",
    "/api/llm/re_generate_plotly_graph_query",
    "/csv/1",
    "/favicon.ico",
    "/static/bundle.js",
    "/incompatible-rdb-schema",
)
OURS = re.compile(r"/($|pages/|front/|data/)")


def rows_of(url):
    """All that a database holds."""
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        return list(connection.iterdump())


def test_every_route_of_optuna_dashboard_is_among_them(study):
    """So that a new version with a new route fails here."""
    for route in optuna_dashboard.wsgi(open_storage(study.config.storage)).routes:
        pattern = re.sub(r"<[^:>]*:re:([^>]*)>", r"\1", route.rule)
        pattern = re.sub(r"<\w+(:\w+)?>", ".+", pattern)
        assert any(re.fullmatch(pattern, each) for each in ROUTES), route.rule


def test_no_route_is_open_without_the_token_and_none_writes_unless_that_is_allowed(study, stored):
    url = stored(study)
    before = rows_of(url)
    closed, reading = application(url, Guard(TOKEN, edit=True)), application(url)
    sent = {"body": b'{"study_name": "x", "directions": ["minimize"]}', "CONTENT_TYPE": "application/json"}
    for path in ROUTES:
        for method in METHODS:
            assert ask(closed, path, method=method, HTTP_HOST="localhost", **sent)[0] == 401, path
            status, headers, _ = ask(reading, path, method=method, HTTP_HOST="localhost", **sent)
            assert status == 405 or method in ("GET", "HEAD"), (method, path)
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert "Content-Security-Policy" in headers
            for more in ({"HTTP_HOST": "evil.example"}, {"HTTP_ORIGIN": "http://evil.example"}):
                assert ask(reading, path, method=method, **{"HTTP_HOST": "localhost", **more}, **sent)[0] in (403, 421)
    assert rows_of(url) == before


@pytest.mark.parametrize(
    "name",
    ["../explorer.js", "..%2f..%2fetc/passwd", "/etc/passwd", "....//", "explorer.js\0", "explorer.py", "", ".", "%00"],
)
def test_no_path_leads_out_of_the_pages(study, name):
    served = application(study.config.storage)
    for folder in ("/pages/", "/data/", "/data/digits/trial/", "/front/", "/static/", "/static/../"):
        status, _, content = ask(served, f"{folder}{name}")
        if (folder, name) != ("/data/digits/trial/", ""):  # that is the study itself
            assert status in (403, 404), (folder, name)
        assert b"root:" not in content


def bytes_of(chance):
    """One request, of a real route and what may be wrong with it."""
    method = chance.choice(["GET"] * 9 + [*METHODS, "get", "PROPFIND", "X" * 300, "GET\0"])
    path = chance.choice(ROUTES)
    for _ in range(chance.randrange(3)):
        at = chance.randrange(len(path) + 1)
        odd = ["/", "..", "%2e%2e/", "%00", "%ff", "\\", "?", "#", "9" * 30, "-1", "é", "<script>", "//evil.example/"]
        path = path[:at] + chance.choice([*odd, chr(chance.randrange(33, 256))]) + path[at + chance.randrange(2) :]
    query = chance.choice(
        ["", "?known=0-3", "?known=" + "0," * 2000, "?after=x", "?after=-1", "?token=x", "?token=%ff", "?%&=&;"]
    )
    headers = {"Host": "localhost", "Connection": "close"}
    for _ in range(chance.randrange(4)):
        name = chance.choice(
            [
                "Host",
                "Origin",
                "Cookie",
                "Authorization",
                "Sec-Fetch-Site",
                "Content-Type",
                "Accept-Encoding",
                "Range",
                "X-Forwarded-Host",
                "Transfer-Encoding",
                "Content-Length",
                "If-Modified-Since",
                "Expect",
                "X" * 100,
            ]
        )
        headers[name] = chance.choice(
            [
                "",
                "localhost",
                "[",
                "null",
                "http://localhost",
                "hscc_token=x",
                "Bearer x",
                "application/json",
                "gzip;q=0",
                "bytes=0-",
                "chunked",
                "-5",
                "100-continue",
                "\x01",
                "é",
                "a" * 5000,
            ]
        )
    body = chance.choice(
        [b"", b"{}", b"[]", b"null", b'{"study_name": "x", "directions": ["minimize"]}', b"\xff\0", b"{" * 999]
    )
    headers.setdefault("Content-Length", str(len(body)))
    lines = [f"{method} {path}{query} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1", "replace") + body


# Bottle leaves a file to the garbage collector where a range of it is asked for that there is not.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("guard", [Guard(), Guard(TOKEN, edit=True)], ids=["reading", "token"])
def test_whatever_is_sent_nothing_is_written_and_nothing_of_ours_fails(study, stored, guard):
    url = stored(study)
    before = rows_of(url)
    failed = []
    served = application(url, guard)

    def watched(environment, start):
        def noted(status, *rest):
            if status.startswith("5") and OURS.match(environment["PATH_INFO"]):
                failed.append((status, environment["PATH_INFO"]))
            return start(status, *rest)

        try:
            return served(environment, noted)
        except BaseException as error:
            failed.append((error, environment["PATH_INFO"]))
            raise

    chance, answered = random.Random(0), {}
    with serving(watched) as port:
        for _ in range(REQUESTS):
            request = bytes_of(chance)
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                connection.sendall(request)
                connection.shutdown(socket.SHUT_WR)
                status = connection.makefile("rb").readline()[9:12].decode()
            answered[status] = answered.get(status, 0) + 1
    print(f"{REQUESTS} requests, answers by status: {dict(sorted(answered.items()))}")
    assert failed == []
    assert rows_of(url) == before
    assert guard.token is None or not answered.keys() & {"200", "204", "302", "304"}


def test_slow_askers_keep_nobody_waiting_and_are_closed(study):
    connections = 200  # waitress takes 100, unless it is told otherwise
    with ExitStack() as opened, serving(application(study.config.storage), seconds=3) as port:
        slow = [opened.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(connections)]
        began = time.monotonic()
        letters = iter("GET / HTTP/1.1\r\nHost: localhost\r\n" + "X-Slow: 1\r\n" * 99)
        while slow and time.monotonic() - began < 20:
            letter = next(letters).encode()
            for connection in slow:
                with suppress(OSError):  # closed meanwhile
                    connection.send(letter)
            slow = [connection for connection in slow if not closed(connection)]
            asked = time.monotonic()
            other = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            other.request("GET", "/data/digits?known=0-7")
            assert other.getresponse().status == 200
            other.close()
            assert time.monotonic() - asked < 3
            time.sleep(1)
        assert not slow


def closed(connection):
    """Tell whether the other side has closed a connection."""
    connection.setblocking(False)
    try:
        return connection.recv(100) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.setblocking(True)


def test_a_request_that_is_too_large_is_refused_before_anybody_is_asked(study):
    with serving(application(study.config.storage, Guard(TOKEN, edit=True))) as port:
        for head in (f"Content-Length: {2**21}", f"X-Long: {'x' * 2**17}"):
            with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
                connection.sendall(f"POST /api/studies HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n".encode())
                assert connection.makefile("rb").readline()[9:12] in (b"413", b"431")


RUN = "document.title='run'"
EVIL = f'<img src=x onerror="{RUN}"><script>{RUN}</script>[a](javascript:{RUN})</script>'


def renamed(network):
    return {
        each: {name.replace("recall:0", f"recall:{EVIL}"): value for name, value in getattr(network, each).items()}
        for each in ("metrics", "errors")
    }


def hostile_study(study, storage):
    """Store a study that has markup wherever there is text."""
    config = study.config.model_copy(update={"name": "evil", "objectives": ("flops", "accuracy", f"recall:{EVIL}")})
    config = config.model_copy(update={"model": config.model.model_copy(update={"name": EVIL})})
    dense = replace(study.record.dense, measured=replace(study.dense, **renamed(study.dense)))
    record = replace(
        study.record, config=config, classes=(EVIL, *study.record.classes[1:]), notices=(EVIL,), dense=dense
    )
    made = optuna.create_study(study_name="evil", storage=storage, directions=["minimize", "maximize", "maximize"])
    write_record(made, record)
    for point in study.points:
        plan = [replace(layer, name=f"{EVIL}{layer.name}") for layer in study.plan_of(point.trial)]
        measured = replace(point, **renamed(point))
        violated = {EVIL: 0.5} if point.trial == 1 else {}
        values = [measured[name] for name in config.objectives]
        kept = TrialRecord(measured, {**point.sample, EVIL: EVIL}, violated, plan).stored()
        made.add_trial(create_trial(values=values, user_attrs=kept))
    made.add_trial(create_trial(state=TrialState.FAIL, user_attrs={FAILURE: EVIL}))
    foreign = optuna.create_study(study_name=EVIL, storage=storage)
    foreign.optimize(lambda trial: trial.suggest_categorical("x", [0, 1]), 2)
    foreign.set_user_attr(EVIL, EVIL)
    optuna_dashboard.save_note(foreign, EVIL)


def test_nothing_that_a_study_holds_runs_in_a_page(study, stored, chromium):
    storage = open_storage(stored(study))
    hostile_study(study, storage)
    tab = chromium.context.browser.new_context().new_page()
    tab.on("dialog", lambda dialog: pytest.fail(dialog.message))
    with serving(application(str(storage.engine.url))) as port:
        for path, shown in (
            ("/", "evil"),
            ("/front/evil", "document.title"),
            ("/dashboard", "document.title"),
            ("/dashboard/studies/2", "Pareto Front"),
            ("/dashboard/studies/2/trials?numbers=1", "violates"),
            ("/dashboard/studies/2/trials?numbers=8", "It failed"),
            ("/dashboard/studies/2/note", "hypervolume"),
            ("/dashboard/studies/3", "document.title"),
            ("/dashboard/studies/3/note", "document.title"),
        ):
            tab.goto(f"http://127.0.0.1:{port}{path}")
            tab.get_by_text(shown).first.wait_for()
            if path == "/front/evil":
                for box in tab.locator("#trials tbody input").all()[:2]:
                    box.check()
                tab.locator("#compared article").nth(1).locator(".barlayer").first.wait_for()
            tab.wait_for_timeout(300)
            assert tab.title() != "run", path
            # Not even to be stopped by the policy of the page.
            assert tab.locator("[onerror], [src=x], [href^='javascript']").count() == 0, path
    tab.context.close()
