import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hscc_search.errors import StorageError
from hscc_search.report.guard import Guard, cookie, guarded, is_local, new_token, read_token

TOKEN = "a-token-of-some-length"
COOKIE = "=".join(cookie(TOKEN))


def inner(environment, start):
    start("200 OK", [("Content-Type", "text/plain")])
    return [b"let through"]


def ask(guard, path="/", method="GET", query="", **headers):
    """Status, headers and body of the answer to a request."""
    environment = {"PATH_INFO": path, "REQUEST_METHOD": method, "QUERY_STRING": query, "HTTP_HOST": "localhost:8080"}
    environment |= {f"HTTP_{name.upper()}": value for name, value in headers.items() if value is not None}
    answered = []
    body = b"".join(guarded(inner, guard)(environment, lambda *given: answered.append(given)))
    status, fields = answered[0]
    return int(status.split()[0]), dict(fields), body


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:8080", "127.9.9.9"])
def test_this_machine_may_read(host):
    assert ask(Guard(), host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "localhost/evil.example",
        "evil.example@localhost",
        "localhost?a",
        "localhost\n",
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "",
        "[",
        "localhost:x",
        "a@b",
    ],
)
def test_a_name_that_is_none_of_this_machine_is_refused(host):
    assert ask(Guard(), host=host)[0] == 421


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:9999"},
        {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"},
        {"sec_fetch_site": "same-site", "sec_fetch_mode": "cors"},
        {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "iframe"},
        {"origin": "http://["},
        {"origin": "localhost:8080"},
    ],
    ids=str,
)
@pytest.mark.parametrize("guard", [Guard(), Guard(edit=True), Guard(TOKEN)], ids=["reading", "editing", "token"])
def test_requests_of_other_pages_are_refused(guard, headers):
    assert ask(guard, method="POST", cookie=COOKIE, **headers)[0] == 403
    assert ask(guard, cookie=COOKIE, **headers)[0] == 403


def test_a_link_from_another_page_may_be_followed():
    followed = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    assert ask(Guard(), **followed)[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get", "ANYTHING"])
def test_only_reading_is_allowed_unless_editing_is(method):
    assert ask(Guard(), method=method)[0] == 405
    assert ask(Guard(edit=True), method=method)[0] == 200
    assert ask(Guard(TOKEN, edit=True), method=method)[0] == 401


def test_a_token_is_needed_and_kept_in_a_cookie():
    guard = Guard(TOKEN)
    assert ask(guard)[0] == 401
    assert ask(guard, host="a-server.example", cookie=COOKIE)[0] == 200
    assert ask(guard, authorization=f"Bearer {TOKEN}")[0] == 200
    status, headers, _ = ask(guard, path="/front/my study", query=f"token={TOKEN}&known=0-3")
    assert status == 303
    assert headers["Location"] == "/front/my%20study?known=0-3"
    assert headers["Set-Cookie"].startswith(f"{COOKIE}; HttpOnly; SameSite=Strict")
    for other in ("a/b=x", 'p={"a": 1}', "n=\xfc"):
        assert ask(guard, cookie=f"{other}; {COOKIE}")[0] == 200
    assert ask(guard, authorization=TOKEN)[0] == 401
    bogus = "token=bogus%3B%20Domain%3Dx%0d%0aX:%20y"
    status, headers, _ = ask(guard, query=bogus, cookie=COOKIE)
    assert status == 200
    assert "Set-Cookie" not in headers


def test_a_cookie_does_not_tell_the_token_and_servers_of_one_machine_have_cookies_of_their_own():
    other = f"{TOKEN}-and-another"
    both = f"{COOKIE}; {'='.join(cookie(other))}"
    assert TOKEN not in both
    for token in (TOKEN, other):
        assert ask(Guard(token), cookie=both)[0] == 200
    name, value = cookie(TOKEN)
    for wrong in (
        f"{name}={TOKEN}",
        f"{name}={value[:-1]}",
        f"{cookie(other)[0]}={value}",
        f"hscc_token={TOKEN}",
        name,
    ):
        assert ask(Guard(TOKEN), cookie=wrong)[0] == 401
    # A cookie of the same name that another server of this machine has set does not lock anybody out.
    assert ask(Guard(TOKEN), cookie=f"{name}=x; {COOKIE}")[0] == 200


def test_a_token_is_compared_as_a_whole_wherever_it_stands():
    for wrong in (TOKEN[:-1], f"{TOKEN}x", TOKEN.upper(), "", f" {TOKEN}", f"{TOKEN}\0"):
        assert ask(Guard(TOKEN), query=f"token={wrong}")[0] == 401
        assert ask(Guard(TOKEN), authorization=f"Bearer {wrong}")[0] == 401
    assert ask(Guard(TOKEN), query=f"token=x&token={TOKEN}")[0] == 401
    assert ask(Guard(TOKEN), authorization=f"bearer {TOKEN}")[0] == 200


def test_answers_run_nothing_unless_they_say_so_themselves():
    _, headers, _ = ask(Guard())
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert headers["X-Content-Type-Options"] == "nosniff"

    def page(environment, start):
        start("200 OK", [("content-security-policy", "script-src 'self'")])
        return []

    started = []
    environment = {"REQUEST_METHOD": "GET", "HTTP_HOST": "localhost"}
    assert guarded(page, Guard())(environment, lambda *given: started.append(given)) == []
    policies = [value for name, value in started[0][1] if name.lower() == "content-security-policy"]
    assert policies == ["script-src 'self'"]


def test_no_page_of_this_server_is_framed():
    for guard in (Guard(), Guard(TOKEN)):
        for headers in ({}, {"host": "evil.example"}, {"authorization": f"Bearer {TOKEN}"}):
            assert ask(guard, **headers)[1]["X-Frame-Options"] == "DENY"


@pytest.mark.parametrize("path", ["//evil.example/", "/\\evil.example", "/a\r\nSet-Cookie: x=y", "http://evil.example"])
def test_the_way_after_the_token_leads_nowhere_else(path):
    _, headers, _ = ask(Guard(TOKEN), path=path, query=f"token={TOKEN}")
    assert headers["Location"].startswith("/")
    assert not headers["Location"].startswith(("//", "/\\"))
    assert "\r" not in headers["Location"]


@settings(max_examples=200)
@given(
    st.dictionaries(
        st.sampled_from(["host", "origin", "cookie", "authorization", "sec_fetch_site"]), st.text(max_size=40)
    ),
    st.text(max_size=30),
    st.text(max_size=40),
    st.text(alphabet=string.printable, max_size=10),
)
def test_whatever_is_sent_nobody_gets_in_without_the_token(headers, path, query, method):
    status, _, body = ask(Guard(TOKEN), path=path, query=query, method=method, **headers)
    assert status in (401, 403, 405, 421)
    assert b"let through" not in body


def test_local_names():
    assert all(map(is_local, ["localhost", "127.0.0.1", "::1", "LOCALHOST"]))
    assert not any(map(is_local, ["0.0.0.0", "::", "192.168.0.1", "example.org", ""]))


def test_tokens_are_long_and_new_and_files_of_them_are_checked(tmp_path):
    assert new_token() != new_token()
    assert len(new_token()) >= 32
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    assert read_token(path) == TOKEN
    for text in ("short", "", "two words of a token", "a-token;with-others-in-it", "ä" * 20, "a" * 5000):
        path.write_text(text)
        with pytest.raises(StorageError, match="holds no token"):
            read_token(path)
    path.write_bytes(b"\xff\xfe" * 20)
    with pytest.raises(StorageError, match="holds no token"):
        read_token(path)
    for irregular in (Path("/dev/zero"), tmp_path):
        with pytest.raises(StorageError, match="is no regular file: give one that holds a token on one line"):
            read_token(irregular)
    with pytest.raises(StorageError, match=r"cannot read the token in .*nowhere"):
        read_token(tmp_path / "nowhere")
