"""The process that serves the page.

It subscribes to the messages of the program like any other subscriber, so browsers cannot delay the program. The page
settings, which it receives from the program, contain no address and no password of a camera.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from vision.messaging.http_server import SecurityHeaders, http_server, serve_until_input_closes
from vision.outputs.hardware import GpuSampler, disks, memory, temperatures
from vision.outputs.page import editor, live
from vision.outputs.page.access import AccessRules
from vision.outputs.page.assets import Assets
from vision.outputs.page.event_routes import EventRoutes
from vision.outputs.page.events import EventReader
from vision.outputs.page.history import LiveHistory
from vision.outputs.page.history_routes import HistoryRoutes
from vision.outputs.page.live_hub import LiveHub
from vision.outputs.page.media import Media
from vision.outputs.page.overview import machine_rows, overview, program_rows
from vision.outputs.page.settings import PageSettings
from vision.outputs.page.state import PageState, encode, follow

_CONNECTIONS: Final = 256
_HEADERS: Final = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "media-src 'self' blob:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}


class Page:
    """The endpoints of the page itself, of the state of the program and the machine, and of the editor."""

    def __init__(self, settings: PageSettings, state: PageState, assets: Assets) -> None:
        self._gpus: GpuSampler | None = None  # opened when somebody looks
        self._settings = settings
        self._state = state
        self._assets = assets

    def routes(self) -> list[BaseRoute]:
        """Return the Starlette routes of this class and of the editor."""
        return [
            Route("/", self.index),
            Route("/static/{version}/{name:path}", self.static),
            Route("/api/state", self.state),
            Route("/api/health", self.health),
            *editor.routes(self._settings),
        ]

    async def index(self, _request: Request) -> Response:
        """Respond with the page."""
        return self._assets.page("index.html")

    async def login_form(self, _request: Request) -> Response:
        """Respond with the form for the login."""
        return self._assets.page("login.html")

    async def static(self, request: Request) -> Response:
        """Respond with a file that the page needs, such as a script, from `Assets`."""
        return self._assets.file(request.path_params["version"], request.path_params["name"])

    async def state(self, request: Request) -> Response:
        """Respond with the state of the program and of all cameras, with the details of the camera in the query."""
        state = overview(self._state.snapshot(), request.query_params.get("camera", ""))
        content = {**state, "assets": self._assets.version, "edit": self._settings.edit}
        return Response(encode(content), media_type="application/json")

    def health(self, _request: Request) -> Response:
        """Respond with the state of the program and of the machine. Starlette calls this method in a thread."""
        if self._gpus is None:
            self._gpus = GpuSampler()
        names = ("state_dir", "recordings", "snapshots", "archive")
        folders = [(name, Path(folder)) for name in names if (folder := getattr(self._settings, name)) is not None]
        machine = {
            "gpus": self._gpus.read(),
            "disks": disks([*folders, ("system", Path("/"))]),
            "temperatures": temperatures(),
            "memory": memory(),
        }
        node = self._state.snapshot().node
        rows = [*(program_rows(node) if node is not None else ()), *machine_rows(machine)]
        return Response(encode({"rows": rows}), media_type="application/json")


def application(settings: PageSettings, state: PageState, more: Sequence[BaseRoute] = ()) -> ASGIApp:
    """Return the ASGI application. `more` are additional routes, such as those of the live view."""
    page = Page(settings, state, Assets())
    media = Media(settings)
    routes = [*page.routes(), *media.routes(), *EventRoutes(EventReader(settings, state), media).routes()]
    routes += HistoryRoutes(settings, state.history).routes()
    app = Starlette(routes=[*routes, *more])
    login = Starlette(routes=[Route("/", page.login_form)])
    return SecurityHeaders(AccessRules(app, login, token=settings.token, hosts=settings.hosts), _HEADERS)


def serve(options: Mapping[str, Any]) -> None:
    """Serve the page until standard input closes, or the subscription fails. Then end the process.

    `vision.outputs.page.process.PageProcess` creates the `options`.
    """
    settings = _settings_of(options)
    state = PageState(settings.interval_s, LiveHistory() if settings.archive is None else None)
    hub = LiveHub(settings.live, settings.address, settings.key_pair)
    server = http_server(application(settings, state, live.routes(hub)), connections=_CONNECTIONS, web_sockets=True)
    listener = socket.socket(fileno=options["listener"])

    def reconfigure(line: str) -> None:
        hub.reconfigure(_settings_of(json.loads(line)).live)

    serve_until_input_closes(server, listener, partial(follow, state, settings), reconfigure)


def _settings_of(options: Mapping[str, Any]) -> PageSettings:
    return msgspec.convert(options["settings"], PageSettings)


def main() -> None:
    """Run the process. The first line of standard input contains the options as JSON."""
    serve(json.loads(sys.stdin.readline()))
