"""Tests of access to the page: host names, other websites, tokens, and request sizes."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import closing

import pytest

from tests.unit.outputs.page.client import TOKEN, client_of
from vision.outputs.page import live
from vision.outputs.page.access import MAX_BODY_BYTES, SESSION_S, Sessions
from vision.outputs.page.live_hub import LiveHub
from vision.outputs.page.live_scene import LiveSettings

STATE = "/api/state"


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8080", "localhost:8080", "192.0.2.7", "[::1]:8080", "LOCALHOST", socket.gethostname(),
     f"{socket.gethostname()}.local:80", "cams.example.com"],
)  # fmt: skip
def test_name_of_this_machine_is_answered(host: str) -> None:
    assert client_of(hosts=("cams.example.com",)).get(STATE, headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8080", "evil.example@127.0.0.1", "", "[::1",
     "127.0.0.1/evil.example", "cams.example.com.evil.example", "127.1", "0x7f000001", "\xff"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", STATE, "/static/x/app.js", "/login"])
def test_unknown_host_is_refused(host: str, path: str) -> None:
    client = client_of(hosts=("cams.example.com",))
    response = client.get(path, headers={"host": host.encode("latin-1")})
    assert response.status_code == 421
    assert response.json()["code"] == "unknown-host"


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:3000"},
        {"origin": "null"},
        {"origin": "http://evil.example@127.0.0.1:8080"},
        {"origin": "file://"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_other_website_is_refused(headers: dict[str, str], method: str) -> None:
    response = client_of().request(method, STATE, headers=headers)
    assert (response.status_code, response.json()["code"]) == (403, "other-site")


def test_own_requests_and_links_from_other_websites_are_answered() -> None:
    client = client_of(hosts=("cams.example.com",))
    assert client.get(STATE, headers={"origin": "http://127.0.0.1:8080"}).status_code == 200
    assert client.get(STATE, headers={"sec-fetch-site": "same-origin"}).status_code == 200
    assert client.get("/", headers={"sec-fetch-site": "cross-site"}).status_code == 200
    proxied = {"origin": "https://cams.example.com", "sec-fetch-site": "same-origin"}
    assert client.get(STATE, headers=proxied).status_code == 200


@pytest.mark.parametrize(
    "path",
    [STATE, "/api/events", "/api/history", "/api/health", "/api/snapshots/a.jpg", "/api/recordings/a.mp4", "/x"],
)
@pytest.mark.parametrize("given", ["", "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", TOKEN, "Bearer \xff"])
def test_wrong_token_is_refused(path: str, given: str) -> None:
    client = client_of(token=TOKEN)
    response = client.get(path, headers={"authorization": given.encode("latin-1")} if given else {})
    assert (response.status_code, response.json()["code"]) == (401, "login-needed")
    assert client.get(f"{path}?token={TOKEN}").status_code == 401


@pytest.mark.parametrize(
    ("headers", "accepted"),
    [
        ({"authorization": f"Bearer {TOKEN}"}, True),
        ({}, False),
        ({"authorization": f"Bearer {TOKEN}x"}, False),
        ({"cookie": "session=guessed"}, False),
        ({"authorization": f"Bearer {TOKEN}", "origin": "http://evil.example"}, False),
        ({"authorization": f"Bearer {TOKEN}", "host": "evil.example"}, False),
    ],
)
def test_live_view_needs_the_token_and_the_own_website(headers: dict[str, str], accepted: bool) -> None:
    with closing(LiveHub(LiveSettings(), "tcp://127.0.0.1:1")) as hub:
        client = client_of(token=TOKEN, more=live.routes(hub))
        assert client.accepts_websocket("/api/live", headers) == accepted


def test_token_in_the_header_is_accepted() -> None:
    assert client_of(token=TOKEN).get(STATE, headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_login_sets_a_cookie_that_scripts_cannot_read() -> None:
    client = client_of(token=TOKEN)
    start = client.get("/")
    assert 'action="/login"' in start.text
    failed = client.post("/login", data={"token": f"{TOKEN}x"})
    assert failed.status_code == 303
    assert not client.cookies
    response = client.post("/login", data={"token": TOKEN})
    assert (response.status_code, response.headers["location"]) == (303, "/")
    cookie = response.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "secure" not in cookie
    assert TOKEN not in cookie
    assert client.get(STATE).status_code == 200
    assert 'action="/login"' not in client.get("/").text
    secure = client_of(token=TOKEN, hosts=("cams.example.com",))
    response = secure.post("/login", data={"token": TOKEN}, headers={"origin": "https://cams.example.com"})
    assert "secure" in response.headers["set-cookie"].lower()


def test_login_from_another_website_is_refused() -> None:
    client = client_of(token=TOKEN)
    headers = {"origin": "http://evil.example"}
    assert client.post("/login", data={"token": TOKEN}, headers=headers).status_code == 403
    assert not client.cookies


def test_cookie_expires_and_ends_with_the_token() -> None:
    now_s = 1e9
    sessions = Sessions(TOKEN, lambda: now_s)
    cookie = sessions.new()
    now_s += SESSION_S - 1
    assert sessions.accepts_cookie(cookie)
    assert not Sessions(f"{TOKEN}x", lambda: now_s).accepts_cookie(cookie)
    end, _, signature = cookie.partition(".")
    for changed in (
        f"{int(end) + 1}.{signature}",
        f"{end}.{signature[:-1]}",
        end,
        "",
        "x.y",
        f"{'9' * 99}.{signature}",
    ):
        assert not sessions.accepts_cookie(changed)
    now_s += 2
    assert not sessions.accepts_cookie(cookie)


@pytest.mark.parametrize("length", [str(MAX_BODY_BYTES + 1), "-1", "x", "9" * 30])
def test_announced_body_that_is_too_long_is_refused(length: str) -> None:
    response = client_of().post("/login", content=b"x", headers={"content-length": length})
    assert (response.status_code, response.json()["code"]) == (413, "too-long")


def test_streamed_body_that_is_too_long_ends_the_request() -> None:
    sent = 0

    async def parts() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b"x" * (MAX_BODY_BYTES // 10)

    client = client_of(token=TOKEN)
    assert client.post("/login", content=parts()).status_code == 413
    assert sent < 100
    assert not client.cookies


def test_every_answer_has_security_headers() -> None:
    client = client_of(token=TOKEN)
    for path in ("/", STATE, "/nowhere", "/static/x/app.js"):
        headers = client.get(path).headers
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers
