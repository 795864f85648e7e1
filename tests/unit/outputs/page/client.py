"""Client that sends requests to the page application without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Scope

from vision.outputs.page.history import LiveHistory
from vision.outputs.page.server import application
from vision.outputs.page.settings import PageSettings
from vision.outputs.page.state import PageState

TOKEN = "0123456789abcdef"


class Client:
    """Client that sends requests to an application. Like a browser, it sends `cookies` with each request."""

    def __init__(self, app: ASGIApp, base_url: str = "http://127.0.0.1:8080") -> None:
        self._app = app
        self._base_url = base_url
        self.cookies: dict[str, str] = {}

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url=self._base_url, cookies=self.cookies) as client:
                response = await client.request(method, path, **options)
                self.cookies.update({str(name): value for name, value in response.cookies.items()})
                return response

        return asyncio.run(send())

    def accepts_websocket(self, path: str, headers: dict[str, str]) -> bool:
        """Return True if the application accepts a WebSocket connection with these headers."""
        received: list[Message] = [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1001}]
        sent: list[Message] = []

        async def receive() -> Message:
            return received.pop(0)

        async def send(message: Message) -> None:
            sent.append(message)

        fields = [(name.encode(), value.encode()) for name, value in ({"host": "127.0.0.1:8080"} | headers).items()]
        scope: Scope = {
            **{
                "type": "websocket",
                "asgi": {"version": "3.0"},
                "scheme": "ws",
                "path": path,
                "raw_path": path.encode(),
            },
            **{"query_string": b"", "headers": fields, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8080)},
            **{"subprotocols": [], "state": {}},
        }
        asyncio.run(self._app(scope, receive, send))  # type: ignore[arg-type]
        return bool(sent[0]["type"] == "websocket.accept")


def client_of(state: PageState | None = None, more: Sequence[BaseRoute] = (), **settings: Any) -> Client:
    """Return a client of a page with the given state, additional routes, and settings."""
    state = state or PageState(1.0, LiveHistory())
    return Client(application(PageSettings(address="tcp://127.0.0.1:1", **settings), state, more))
