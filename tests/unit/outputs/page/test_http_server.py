"""Tests that the server closes connections of clients that do not read, and serves all other clients."""

from __future__ import annotations

import socket
import threading

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.page.harness import until
from vision.messaging.http_server import SecurityHeaders, http_server


async def _large(_request: Request) -> Response:
    return Response(b"x" * 50_000_000)


def test_client_that_does_not_read_is_disconnected() -> None:
    app = SecurityHeaders(Starlette(routes=[Route("/large", _large)]), {"x-test": "1"})
    server = http_server(app, connections=4, request_s=2.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        with socket.create_connection(("127.0.0.1", port), timeout=60) as silent:
            silent.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            until(lambda: server.server_state.connections, "the server does not accept the connection")
            until(lambda: not server.server_state.connections, "the server keeps the connection")
        response = httpx.get(f"http://127.0.0.1:{port}/large", timeout=60)
        assert (len(response.content), response.headers["x-test"]) == (50_000_000, "1")
        server.should_exit = True
        thread.join()
