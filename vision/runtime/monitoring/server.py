"""HTTP server for metrics and health, which runs in a process of its own.

It subscribes to the program like any other subscriber, so requests cannot delay the program. It knows neither the
cameras' configuration nor their passwords. No part of a request is used as the name of a file.

========== ============================================================================= ==========
path       response                                                                      token
========== ============================================================================= ==========
/livez     200 if the program works or is starting, otherwise 503                        no
/readyz    200 if the program works and a camera delivers frames, otherwise 503          no
/healthz   200 if the program works and each camera delivers frames or has ended,        yes
           otherwise 503; the states of the cameras as JSON
/metrics   metrics in the text format of Prometheus                                      yes
========== ============================================================================= ==========

The last column shows which paths require the token, if one is configured.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vision.client import Subscription
from vision.messaging.curve import KeyPair
from vision.messaging.schema import KINDS
from vision.runtime.monitoring.metrics import ProgramState

_CONNECTIONS: Final = 64
_HEAD_BYTES: Final = 16_384
_REQUEST_S: Final = 10.0  # time for a request, and for the next one of the same connection
_SILENT_STATUSES: Final = 5.0  # number of missing status messages after which the program counts as hanging
_SHORTEST_SILENCE_S: Final = 10.0
_HEADERS: Final = [
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


class SecurityHeaders:
    """ASGI middleware that adds headers to each response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one HTTP request. Ignore other connections, such as web sockets."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        if scope["type"] != "http":  # such as a web socket
            return
        await self._app(scope, receive, send_with_headers)


class Endpoints:
    """The paths of the server, and their responses."""

    def __init__(self, state: ProgramState, *, token: str | None, interval_s: float) -> None:
        """Create the endpoints.

        Args:
            state: receives the messages of the program.
            token: token that clients must send as ``Authorization: Bearer TOKEN``; None means that none is needed.
            interval_s: interval between two status messages.
        """
        self._state = state
        self._token = token
        self._silence_s = max(_SHORTEST_SILENCE_S, _SILENT_STATUSES * interval_s)

    def app(self) -> ASGIApp:
        """Return the ASGI application."""
        routes = [
            Route("/livez", self.livez),
            Route("/readyz", self.readyz),
            Route("/healthz", self._protected(self.healthz)),
            Route("/metrics", self._protected(self.metrics)),
        ]
        return SecurityHeaders(Starlette(routes=routes))

    def _protected(
        self, endpoint: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def check_token(request: Request) -> Response:
            given = request.headers.get("authorization", "").encode()
            if self._token is not None and not hmac.compare_digest(given, f"Bearer {self._token}".encode()):
                return PlainTextResponse("a token is required\n", 401, {"www-authenticate": "Bearer"})
            return await endpoint(request)

        return check_token

    async def livez(self, _request: Request) -> Response:
        """Respond with 200 if the program works or is starting, otherwise with 503."""
        return _answer(problem=self._problem() or "")

    async def readyz(self, _request: Request) -> Response:
        """Respond with 200 if the program works and at least one camera delivers frames, otherwise with 503."""
        problem = self._problem()
        node, cameras, _ = self._state.status()
        if node is None:
            problem = "starting"
        elif not problem and not any(camera.state == "streaming" for camera in cameras.values()):
            problem = "no camera delivers frames"
        return _answer(problem=problem or "")

    async def healthz(self, _request: Request) -> Response:
        """Respond with the states of the program and of all cameras."""
        node, cameras, age_s = self._state.status()
        problem = self._problem() or ("starting" if node is None else "")
        states = {name: camera.state for name, camera in sorted(cameras.items())}
        healthy = not problem and all(state in ("streaming", "ended") for state in states.values())
        content: dict[str, Any] = {"healthy": healthy, "problem": problem or None, "cameras": states}
        if node is not None:
            content |= {"node": node.node, "uptime_s": node.uptime_s, "status_age_s": round(age_s, 3)}
        return JSONResponse(content, 200 if healthy else 503)

    async def metrics(self, _request: Request) -> Response:
        """Respond with all metrics."""
        return Response(self._state.exposition(), media_type=CONTENT_TYPE_LATEST)

    def _problem(self) -> str:
        node, _, age_s = self._state.status()
        if node is not None and age_s > self._silence_s:
            return f"no status for {age_s:.0f} s"
        return ""


def _answer(*, problem: str) -> Response:
    return PlainTextResponse(f"{problem or 'ok'}\n", 503 if problem else 200)


class HttpServer(uvicorn.Server):
    """A server that also closes each connection on which no new request has started for `request_s` seconds."""

    def __init__(self, config: uvicorn.Config, request_s: float) -> None:
        super().__init__(config)
        self._request_s = request_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._sweeper = asyncio.create_task(self._sweep())

    async def _sweep(self) -> None:
        since: dict[Any, tuple[object, float]] = {}
        while True:
            await asyncio.sleep(self._request_s / 10)
            now_s = time.monotonic()
            # The cycle of a connection is its present request, or its last one.
            since = {
                each: found if (found := since.get(each)) and found[0] is cycle else (cycle, now_s)
                for each in self.server_state.connections
                for cycle in [getattr(each, "cycle", None)]
            }
            for connection, (_, began_s) in since.items():
                if now_s - began_s > self._request_s:
                    connection.transport.abort()


def http_server(app: ASGIApp, request_s: float = _REQUEST_S) -> HttpServer:
    """Return the server of an application. A connection has `request_s` seconds for each request (`HttpServer`)."""
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        server_header=False,
        date_header=False,
        lifespan="off",
        ws="none",
        http="h11",
        loop="asyncio",
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=_HEAD_BYTES,
        proxy_headers=False,
    )
    return HttpServer(config, request_s)


def _follow(state: ProgramState, subscription: Subscription) -> None:
    with contextlib.suppress(Exception), subscription:  # the program has ended
        for item in subscription.items():
            state.add(item)
    os._exit(1)  # the program starts this process again


def serve(options: Mapping[str, Any]) -> None:
    """Serve requests until standard input closes. Then end the process.

    `vision.runtime.monitoring.process.MonitoringProcess` creates the `options`.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the program ends this process
        signal.signal(number, signal.SIG_IGN)
    keys = KeyPair(*options["keys"]) if options["keys"] else None
    state = ProgramState()
    subscription = Subscription(options["address"], kinds=KINDS, key=keys, silence_s=1e6)
    endpoints = Endpoints(state, token=options["token"], interval_s=options["interval_s"])
    server = http_server(endpoints.app())
    listener = socket.socket(fileno=options["listener"])
    threading.Thread(target=_follow, args=(state, subscription), daemon=True).start()
    threading.Thread(target=_run, args=(server, listener), daemon=True).start()
    sys.stdin.read()
    os._exit(0)


def _run(server: uvicorn.Server, listener: socket.socket) -> None:
    with contextlib.suppress(Exception):
        server.run(sockets=[listener])
    os._exit(1)  # the program starts this process again


def main() -> None:
    """Run the process. The first line of standard input contains the options as JSON."""
    serve(json.loads(sys.stdin.readline()))
