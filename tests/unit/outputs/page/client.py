"""Client that sends requests to the page application without a socket."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from starlette.types import ASGIApp

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


def client_of(state: PageState | None = None, **settings: Any) -> Client:
    """Return a client of a page with the given state and settings."""
    state = state or PageState(1.0, LiveHistory())
    return Client(application(PageSettings(address="tcp://127.0.0.1:1", **settings), state))
