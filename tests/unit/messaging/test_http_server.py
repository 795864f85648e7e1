"""Tests of requests whose clients have closed the connection."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vision.messaging.http_server import SecurityHeaders


async def _read(request: Request) -> Response:
    return Response(await request.body())


def test_client_that_goes_during_its_request_causes_no_error() -> None:
    sent: list[Any] = []
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    app = SecurityHeaders(Starlette(routes=[Route("/", _read, methods=["POST"])]), {"x-a": "b"})
    scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b""}
    asyncio.run(app(scope, receive, send))
    assert not sent or (b"x-a", b"b") in sent[0]["headers"]
