"""Paths of the live view. A browser receives all cameras over one web socket (`vision.outputs.page.live_format`).

The browser sends JSON: ``{"watch": CAMERA, "codecs": ["h264", "hevc"]}`` with the codecs that it decodes, and
``{"leave": CAMERA}``.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from vision.outputs.page.live_hub import LiveHub
from vision.outputs.page.live_viewer import Viewer

MAX_VIEWERS: Final = 64
MAX_CAMERAS: Final = 100
"""Maximum number of cameras that one browser can watch at the same time."""

STILL_S: Final = 5.0
"""Maximum time in seconds to wait for a still image."""

_INVALID: Final = 1008  # RFC 6455, section 7.4.1
_TRY_LATER: Final = 1013


class _Wish(msgspec.Struct, forbid_unknown_fields=True):
    """A message of a browser: the camera to watch, with the codecs of the browser, or the camera to leave."""

    watch: str | None = None
    codecs: list[str] = []
    leave: str | None = None


_decode = msgspec.json.Decoder(_Wish).decode


def routes(hub: LiveHub) -> list[BaseRoute]:
    """Return the Starlette routes of the live view."""
    view = _LiveRoutes(hub)
    return [WebSocketRoute("/api/live", view.live), Route("/api/still/{camera:path}", view.still)]


class _LiveRoutes:
    """Endpoints of the live view: the web socket of each browser, and single images."""

    def __init__(self, hub: LiveHub) -> None:
        self._hub = hub
        self._viewers = 0

    async def live(self, websocket: WebSocket) -> None:
        """Send live views until the browser disconnects. If there are too many viewers, close the connection."""
        await websocket.accept()
        if self._viewers >= MAX_VIEWERS:
            await websocket.close(_TRY_LATER, "too many viewers")
            return
        self._viewers += 1
        viewer = Viewer()
        sending = asyncio.create_task(_send(websocket, viewer))
        try:
            # A RuntimeError means that a message could not be sent, because the browser has gone.
            with contextlib.suppress(WebSocketDisconnect, RuntimeError):
                await self._follow(websocket, viewer)
        finally:
            self._viewers -= 1
            self._hub.leave(viewer)
            viewer.close()
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
                await sending

    async def _follow(self, websocket: WebSocket, viewer: Viewer) -> None:
        """Process the messages of a browser. Close the connection if a message is invalid."""
        watched: set[str] = set()
        while True:
            try:
                wish = _decode(await websocket.receive_text())
            except (msgspec.MsgspecError, KeyError):  # KeyError: the message is binary
                await websocket.close(_INVALID, "expected watch or leave")
                return
            if wish.leave is not None:
                watched.discard(wish.leave)
                self._hub.leave(viewer, wish.leave)
            if wish.watch is None:
                continue
            watched.add(wish.watch)
            if len(watched) > MAX_CAMERAS:
                await websocket.close(_INVALID, "too many cameras")
                return
            self._hub.watch(viewer, wish.watch, frozenset(wish.codecs))

    async def still(self, request: Request) -> Response:
        """Respond with a frame of a camera as a JPEG. The status is 503 if no frame arrives in time."""
        jpeg = await self._hub.still(request.path_params["camera"], STILL_S)
        if jpeg is None:
            text = "no frame arrived: check that the camera streams"
            return JSONResponse({"code": "no-image", "error": text}, 503)
        return Response(jpeg, media_type="image/jpeg")


async def _send(websocket: WebSocket, viewer: Viewer) -> None:
    while True:
        message = await viewer.take()
        if message:
            await websocket.send_bytes(message)
