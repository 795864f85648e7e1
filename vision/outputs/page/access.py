"""Rules for requests to the page.

* The header `Host` must contain an IP address, or a known name of this machine. Otherwise, a website could give its own
  name the address of this machine, and read the page in the browser of a visitor (DNS rebinding).
* A request that a different website makes must neither read data nor change anything. Browsers name the website in the
  header `Origin`, or show in `Sec-Fetch-Site` that it differs. Only links to the start page are permitted.
* If a token is configured, a request needs the token, or the cookie that a person receives by logging in with the
  token. Requests for the login form and for static files need neither.
* The body of a request is limited to `MAX_BODY_BYTES`.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

MAX_BODY_BYTES: Final = 1 << 20
SESSION_S: Final = 30 * 86_400
"""Time in seconds after which a person must log in again."""

_READING: Final = ("GET", "HEAD")
_OPEN_PATHS: Final = ("/static/", "/login")


class Sessions:
    """Creates and checks the values of the login cookie. A value stays valid after a restart with the same token."""

    def __init__(self, token: str, clock: Callable[[], float] = time.time) -> None:
        self._token = token.encode()
        self._clock = clock

    def accepts_token(self, given: str) -> bool:
        """Return True if `given` is the token."""
        return hmac.compare_digest(given.encode(), self._token)

    def new(self) -> str:
        """Return the value of a new cookie, which is valid for `SESSION_S` seconds."""
        return self._signed(int(self._clock()) + SESSION_S)

    def accepts_cookie(self, value: str) -> bool:
        """Return True if `value` comes from `new` and has not expired."""
        end, _, _ = value.partition(".")
        if not (end.isascii() and end.isdigit() and len(end) < 16) or int(end) < self._clock():
            return False
        return hmac.compare_digest(value.encode(), self._signed(int(end)).encode())

    def _signed(self, end_s: int) -> str:
        text = f"vision page {end_s}".encode()
        return f"{end_s}.{hmac.new(self._token, text, hashlib.sha256).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason why a request is refused: the HTTP status, a code for programs, and a text for people."""

    status: int
    code: str
    text: str


_TOO_LONG: Final = Refusal(413, "too-long", f"expected a body of at most {MAX_BODY_BYTES} bytes")


class AccessRules:
    """ASGI middleware that enforces the rules for requests to the page (see the module), and handles the login."""

    def __init__(self, app: ASGIApp, login_page: ASGIApp, *, token: str | None, hosts: tuple[str, ...] = ()) -> None:
        """Protect an application.

        Args:
            app: the application.
            login_page: application that responds with the login form. It replaces the start page before the login.
            token: token that clients need, or None if clients need no token.
            hosts: names under which a reverse proxy serves the page.
        """
        self._app = app
        self._login_page = login_page
        self._sessions = None if token is None else Sessions(token)
        self._proxies = {host.lower() for host in hosts}
        name = socket.gethostname().lower()
        self._names = {"localhost", name, f"{name}.local"} | self._proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an allowed request or web socket to the application.

        Otherwise, respond with the refusal, or with the login page if the person must log in.
        """
        if scope["type"] not in ("http", "websocket"):
            return
        connection = HTTPConnection(scope)
        is_page = scope["type"] == "http" and scope["method"] in _READING and scope["path"] == "/"
        refusal = self._refusal(connection, is_page=is_page)
        if scope["type"] == "websocket":
            await (self._app if refusal is None else WebSocketClose(1008, refusal.code))(scope, receive, send)
            return
        limited = _LimitedBody(receive)
        if refusal is not None:
            app: ASGIApp = _refused(refusal)
        elif scope["path"] == "/login" and scope["method"] == "POST":
            app = await self._login(Request(scope, limited.receive))
        else:
            app = self._app if self._is_open(scope["path"]) or self._is_logged_in(connection) else self._login_page
        await app(scope, limited.receive, send)

    def _refusal(self, connection: HTTPConnection, *, is_page: bool) -> Refusal | None:
        headers = connection.headers
        if not self._is_known(_name_of(headers.get("host", ""))):
            text = "unknown name in the address: use the IP address of this machine, or add the name to page.hosts"
            return Refusal(421, "unknown-host", text)
        if not self._is_same_site(headers, is_page=is_page):
            return Refusal(403, "other-site", "the request comes from a different website")
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit() and len(length) < 16) or int(length) > MAX_BODY_BYTES:
            return _TOO_LONG
        if not is_page and not self._is_open(connection.scope["path"]) and not self._is_logged_in(connection):
            return Refusal(401, "login-needed", "expected the token or a cookie: log in at the start page")
        return None

    def _is_known(self, name: str) -> bool:
        if name in self._names:
            return True
        try:  # the name of a website is never an IP address
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _is_same_site(self, headers: Headers, *, is_page: bool) -> bool:
        """Return False if a header shows that the request is from a different website.

        A request for a page is allowed if it has no header ``Origin``, because other websites can link to the page.
        """
        origin = headers.get("origin")
        if origin is not None:
            place = origin.partition("://")[2].lower()
            return place == headers.get("host", "").lower() or _name_of(place) in self._proxies
        return is_page or headers.get("sec-fetch-site", "none") in ("same-origin", "none")

    @staticmethod
    def _is_open(path: str) -> bool:
        return path.startswith(_OPEN_PATHS)

    def _is_logged_in(self, connection: HTTPConnection) -> bool:
        if self._sessions is None:
            return True
        scheme, _, given = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._sessions.accepts_token(given):
            return True
        return self._sessions.accepts_cookie(connection.cookies.get(_cookie_name(connection), ""))

    async def _login(self, request: Request) -> Response:
        """Return a response with a cookie if the login form contains the token. Otherwise, return the login form."""
        try:
            body = await request.body()
        except ClientDisconnect:
            return _refused(_TOO_LONG)
        given = parse_qs(body.decode(errors="replace")).get("token", [""])[0].strip()
        if self._sessions is None or not self._sessions.accepts_token(given):
            return RedirectResponse("/#token", 303)  # the style of the form shows a note
        response = RedirectResponse("/", 303)
        response.set_cookie(
            _cookie_name(request),
            self._sessions.new(),
            max_age=SESSION_S,
            httponly=True,
            samesite="strict",
            secure=request.headers.get("origin", "").startswith("https://"),
        )
        return response


class _LimitedBody:
    """Receiver of the body of a request. If the body is too long, the application sees a closed connection."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._nbytes = 0

    async def receive(self) -> Message:
        message = await self._receive()
        self._nbytes += len(message.get("body", b""))
        return {"type": "http.disconnect"} if self._nbytes > MAX_BODY_BYTES else message


def _refused(refusal: Refusal) -> Response:
    return JSONResponse({"code": refusal.code, "error": refusal.text}, refusal.status)


def _name_of(place: str) -> str:
    """Return the host in ``HOST`` or ``HOST:PORT``, in lower case. Return "" if `place` has a different form."""
    try:
        return (urlsplit(f"//{place}").hostname or "") if not set(place) & set("/?#@\\") else ""
    except ValueError:
        return ""


def _cookie_name(connection: HTTPConnection) -> str:
    """Return the cookie's name. The name contains the port, because browsers send a cookie to all ports of a host."""
    return f"vision-{connection.headers.get('host', '').rpartition(':')[2]}"
