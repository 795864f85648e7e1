"""HTTP server of the processes that serve browsers and monitoring systems, with limits against hostile clients."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import uvicorn
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from vision.messaging.helper_process import show_life

_HEAD_BYTES: Final = 16_384
_REQUEST_S: Final = 10.0
_MESSAGE_BYTES: Final = 65_536  # maximum size of a message from a web socket's client
_SENT: Final = "vision.sent"  # key of a request's scope: number of parts of the response that were sent


class SecurityHeaders:
    """ASGI middleware that adds headers to each response, unless the response already contains them.

    The middleware also ends requests whose client has disconnected, because such a request would otherwise cause a
    traceback in the log.
    """

    def __init__(self, app: ASGIApp, headers: Mapping[str, str]) -> None:
        """Create the middleware, which adds `headers`. The names of headers must be in lower case."""
        self._app = app
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request or web socket. Count the parts of its response, which `HttpServer` regards as progress."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                present = {name.lower() for name, _ in message["headers"]}
                added = [header for header in self._headers if header[0] not in present]
                message["headers"] = [*message["headers"], *added]
            await send(message)
            scope[_SENT] = scope.get(_SENT, 0) + 1

        with contextlib.suppress(ClientDisconnect):  # the client has gone before the end of its request
            await self._app(scope, receive, send_with_headers)


class HttpServer(uvicorn.Server):
    """An HTTP server that closes each connection that makes no progress for `request_s` seconds.

    Progress is the start of a request, and each part of a response that was sent. `SecurityHeaders` counts these parts,
    so the application must use it. Web sockets have no such limit.
    """

    def __init__(self, config: uvicorn.Config, request_s: float) -> None:
        super().__init__(config)
        self._request_s = request_s
        self.is_helper = False  # if True, the main process observes whether the event loop works

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._sweeper = asyncio.create_task(self._sweep())

    async def _sweep(self) -> None:
        since: dict[H11Protocol, tuple[tuple[object, int], float]] = {}
        while True:
            await asyncio.sleep(self._request_s / 10)
            if self.is_helper:
                show_life()
            now_s = time.monotonic()
            # The cycle of a connection is its present request, or its last one.
            since = {
                each: found if (found := since.get(each)) and found[0] == progress else (progress, now_s)
                for each in self.server_state.connections
                if isinstance(each, H11Protocol)
                for progress in [_progress(each)]
            }
            for connection, (_, began_s) in since.items():
                if now_s - began_s > self._request_s:
                    connection.transport.abort()


def _progress(connection: H11Protocol) -> tuple[object, int]:
    cycle = connection.cycle
    return cycle, 0 if cycle is None else cycle.scope.get(_SENT, 0)  # type: ignore[return-value]


def http_server(
    app: ASGIApp, *, connections: int, request_s: float = _REQUEST_S, web_sockets: bool = False
) -> HttpServer:
    """Return an HTTP server for an application.

    Args:
        app: the ASGI application.
        connections: maximum number of connections at the same time.
        request_s: time in seconds for each request, and for each part of its response (`HttpServer`).
        web_sockets: if True, accept web sockets. This needs the package websockets.
    """
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        server_header=False,
        date_header=False,
        lifespan="off",
        ws="websockets-sansio" if web_sockets else "none",
        ws_max_size=_MESSAGE_BYTES,
        ws_per_message_deflate=False,  # video is compressed already
        http="h11",
        loop="asyncio",
        limit_concurrency=connections,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=_HEAD_BYTES,
        proxy_headers=False,
    )
    return HttpServer(config, request_s)


def serve_until_input_closes(
    server: HttpServer,
    listener: socket.socket,
    follow: Callable[[], None],
    on_line: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve requests until standard input closes, and then end the process. Meanwhile, run `follow` in another thread.

    `follow` is a loop, for example one that receives messages. Pass each line of standard input, which contains new
    options, to `on_line`. Also end the process if `follow` or the server ends, so that
    `vision.messaging.helper_process` restarts the process.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the program ends this process
        signal.signal(number, signal.SIG_IGN)
    server.is_helper = True
    for work in (follow, lambda: server.run(sockets=[listener])):
        threading.Thread(target=_run_to_end, args=(work,), daemon=True).start()
    for line in sys.stdin:
        on_line(line)
    os._exit(0)


def _run_to_end(work: Callable[[], Any]) -> None:
    with contextlib.suppress(Exception):
        work()
    os._exit(1)
