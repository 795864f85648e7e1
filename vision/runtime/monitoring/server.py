"""HTTP server for metrics and health, which runs in its own process.

The server subscribes to the program like any other subscriber, so requests cannot delay the program. The server knows
neither the configuration nor the passwords of the cameras. No part of a request is used as the name of a file.

========== ============================================================================= ==========
path       response                                                                      token
========== ============================================================================= ==========
/livez     200 if the program works or is starting, otherwise 503                        no
/readyz    200 if the program works and a camera delivers frames, otherwise 503          no
/healthz   200 if the program works and each camera delivers frames or has ended,        yes
           otherwise 503; the states of the cameras as JSON
/metrics   metrics in the text format of Prometheus                                      yes
========== ============================================================================= ==========

The last column shows which paths require the token, if a token is configured.
"""

from __future__ import annotations

import hmac
import json
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from vision.client import Subscription
from vision.messaging.curve import KeyPair
from vision.messaging.http_server import SecurityHeaders, http_server, serve_until_input_closes
from vision.messaging.schema import KINDS
from vision.runtime.monitoring.metrics import ProgramState

CONNECTIONS: Final = 64
_SILENT_STATUSES: Final = 5.0  # number of missing status messages after which the program counts as hanging
_SHORTEST_SILENCE_S: Final = 10.0
_HEADERS: Final = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Endpoints:
    """The paths of the server, and their responses."""

    def __init__(self, state: ProgramState, *, token: str | None, interval_s: float) -> None:
        """Create the endpoints.

        Args:
            state: object that receives the messages of the program.
            token: token that clients must send as ``Authorization: Bearer TOKEN``, or None if no token is needed.
            interval_s: interval in seconds between two status messages.
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
        return SecurityHeaders(Starlette(routes=routes), _HEADERS)

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
        """Respond with 200 if the program works or is starting. Otherwise, respond with 503."""
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
        """Respond with the states of the program and of all cameras as JSON.

        The status is 200 if the program works and each camera delivers frames or has ended. Otherwise, the status is
        503.
        """
        node, cameras, age_s = self._state.status()
        problem = self._problem() or ("starting" if node is None else "")
        states = {name: camera.state for name, camera in sorted(cameras.items())}
        healthy = not problem and all(state in ("streaming", "ended") for state in states.values())
        content: dict[str, Any] = {"healthy": healthy, "problem": problem or None, "cameras": states}
        if node is not None:
            content |= {"node": node.node, "uptime_s": node.uptime_s, "status_age_s": round(age_s, 3)}
        return JSONResponse(content, 200 if healthy else 503)

    async def metrics(self, _request: Request) -> Response:
        """Respond with all metrics in the text format of Prometheus."""
        return Response(self._state.exposition(), media_type=CONTENT_TYPE_LATEST)

    def _problem(self) -> str:
        node, _, age_s = self._state.status()
        if node is not None and age_s > self._silence_s:
            return f"no status for {age_s:.0f} s"
        return ""


def _answer(*, problem: str) -> Response:
    return PlainTextResponse(f"{problem or 'ok'}\n", 503 if problem else 200)


def _follow(state: ProgramState, subscription: Subscription) -> None:
    with subscription:
        for item in subscription.items():
            state.add(item)


def serve(options: Mapping[str, Any]) -> None:
    """Serve requests until standard input closes. Then end the process.

    `vision.runtime.monitoring.process.MonitoringProcess` creates the `options`.
    """
    keys = KeyPair(*options["keys"]) if options["keys"] else None
    state = ProgramState()
    subscription = Subscription(options["address"], kinds=KINDS, key=keys, silence_s=1e6)
    endpoints = Endpoints(state, token=options["token"], interval_s=options["interval_s"])
    server = http_server(endpoints.app(), connections=CONNECTIONS)
    listener = socket.socket(fileno=options["listener"])
    serve_until_input_closes(server, listener, partial(_follow, state, subscription))


def main() -> None:
    """Run the process. The first line of standard input contains the options as JSON."""
    serve(json.loads(sys.stdin.readline()))
