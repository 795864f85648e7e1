"""HTTP endpoints of the editor of lines, zones, ground points, and masks.

================================== ====================================================================================
path                               response
================================== ====================================================================================
GET  /api/editor/CAMERA            the current lines, zones, ground points, and masks, and what the editor can do
POST /api/editor/CAMERA/check      the faults of a draft, each with its key and its line, and the draft as YAML
POST /api/editor/CAMERA/estimate   how the events of the last hour would differ with a draft
POST /api/editor/CAMERA/apply      what was changed, after the draft was applied to the program, and saved if possible
================================== ====================================================================================

The editor validates a draft together with the rest of the file, as `vision check` does. When the draft is applied, the
running program validates it again. A draft that is based on outdated lines and zones, or on an outdated file, is
refused.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from vision.config import load_config
from vision.errors import ConfigError, Fault, Unavailable, VisionError
from vision.messaging.control_protocol import (
    AnalyticsReply,
    ChangedReply,
    FaultEntry,
    GetAnalyticsRequest,
    RefusedRequest,
    SetAnalyticsRequest,
    StatusReply,
    StatusRequest,
    ask,
    own_folder,
    socket_name,
)
from vision.outputs.page.editor_draft import (
    Checked,
    DraftFile,
    DraftToApply,
    decode_draft,
    decode_draft_to_apply,
    drawn_of,
    masks_of,
    revision,
    section,
    with_drawn,
    with_masks,
    yaml_of,
)
from vision.outputs.page.editor_estimate import Estimator
from vision.outputs.page.settings import PageSettings

log = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 256 * 1024
_ANSWER_S: Final = 8.0  # shorter than the time that the server permits for a request
_PROGRESS_S: Final = 2.0
_STATUS: Final = {
    "unknown-camera": 404,
    "changed-meanwhile": 409,
    "file-changed": 409,
    "read-only": 403,
    "not-json": 415,
    "too-large": 413,
    "estimate-busy": 429,
}
_UNSAVED: Final = {
    "shipped": "This configuration belongs to the program, so changes last until the program ends.",
    "camera-not-in-file": "This camera is not in the configuration file, so changes last until the program ends.",
    "not-writable": "The configuration file cannot be written, so changes last until the program ends.",
}
_READ_ONLY: Final = "This page cannot change the program. Copy the YAML instead."
_DIFFERS: Final = "The editor shows the running program, which differs from its file."
_Decoded = TypeVar("_Decoded")


def routes(settings: PageSettings) -> list[BaseRoute]:
    """Return the routes of the editor. Return no routes if the program has no configuration file."""
    if settings.config_file is None:
        return []
    editor = Editor(DraftFile(Path(settings.config_file), settings.class_names), can_change=settings.edit)
    return [
        Route("/api/editor/{camera}", answering(editor.show)),
        Route("/api/editor/{camera}/check", answering(editor.check), methods=["POST"]),
        Route("/api/editor/{camera}/estimate", answering(editor.estimate), methods=["POST"]),
        Route("/api/editor/{camera}/apply", answering(editor.apply), methods=["POST"]),
    ]


class Editor:
    """The endpoints of the editor. All methods run in one event loop."""

    def __init__(self, file: DraftFile, *, can_change: bool) -> None:
        self._file = file
        self._can_change = can_change
        self._socket = own_folder() / socket_name(file.path)
        self._estimator = Estimator()
        self._applying = asyncio.Lock()

    async def show(self, request: Request) -> Response:
        """Respond with the lines, zones, ground points, and masks of a camera."""
        return JSONResponse(await asyncio.to_thread(self._state, _camera(request)))

    async def check(self, request: Request) -> Response:
        """Respond with the faults of a draft, and the draft as YAML."""
        camera, draft = _camera(request), await _draft(request, decode_draft)
        document = await asyncio.to_thread(self._file.read)
        checked = await asyncio.to_thread(self._file.check, document, camera, draft)
        return JSONResponse({"faults": _as_json(checked.faults), "yaml": yaml_of(document, camera, draft)})

    async def estimate(self, request: Request) -> Response:
        """Respond with the difference that a draft makes to the events of the last hour.

        If the estimate fails, the status is also 200, because the response starts before the estimate ends.
        """
        camera, draft = _camera(request), await _draft(request, decode_draft)
        document = await asyncio.to_thread(self._file.read)
        checked = await asyncio.to_thread(self._file.check, document, camera, draft)
        config = _without_faults(checked)
        running = await asyncio.to_thread(load_config, self._file.path, self._file.environ)

        estimate = self._estimator.estimate(running, config, camera)
        return StreamingResponse(_when_done(estimate), media_type="application/json")

    async def apply(self, request: Request) -> Response:
        """Apply a draft, and respond with the changes and whether the changes were saved.

        Raises:
            ConfigError: the setting `page.edit` is False, the draft is not valid, or the file has changed.
            RefusedRequest: the program has refused the draft.
            Unavailable: the program does not reply.
        """
        if not self._can_change:
            hint = "set `page.edit: true`, or copy the YAML of the draft"
            raise ConfigError("this page cannot change the program", hint=hint, code="read-only")
        camera, draft = _camera(request), await _draft(request, decode_draft_to_apply)
        async with self._applying:
            return JSONResponse(await asyncio.to_thread(self._apply, camera, draft))

    # --- in other threads ---------------------------------------------------------------------------------------------

    def _state(self, camera: str) -> dict[str, Any]:
        running = self._running(camera)
        state: dict[str, Any] = {
            "camera": camera,
            "version": running.version,
            **drawn_of(running.analytics),
            "privacy": masks_of(running.privacy),
            "can_change": self._can_change,
            "size": self._size(camera),
        }
        try:
            document = self._file.read()
        except ConfigError as error:
            text = str(error)
            return state | {"revision": "", "unsaved": "unreadable", "message": text, "notice": self._notice(text)}
        unsaved = self._file.unsaved(document, camera)
        differs = drawn_of(section(document, "analytics", camera)) != drawn_of(running.analytics)
        differs |= masks_of(section(document, "privacy", camera)) != masks_of(running.privacy)
        message = _UNSAVED.get(unsaved, "")
        return state | {
            "revision": revision(document),
            "unsaved": unsaved,
            "message": message,
            "notice": self._notice(message, _DIFFERS if differs else ""),
            "differs_from_file": differs,
            "has_archive": document.root.child("archive") is not None,
        }

    def _notice(self, *messages: str) -> str:
        """Join `messages` to the text that the editor shows first.

        The first message states why changes cannot be saved to the file. If the page cannot change the program, a text
        that says so replaces this message.
        """
        texts = messages if self._can_change else (_READ_ONLY, *messages[1:])
        return " ".join(filter(None, texts))

    def _size(self, camera: str) -> tuple[int, int] | None:
        """Return the width and height of the camera's frames in pixels. Return None if they are not known."""
        try:
            reply = ask(self._socket, StatusRequest(), timeout_s=_ANSWER_S)
        except Unavailable:  # the program is starting
            return None
        assert isinstance(reply, StatusReply)
        sizes = {each.camera: (each.width, each.height) for each in reply.cameras}
        width_px, height_px = sizes.get(camera, (None, None))
        return None if width_px is None or height_px is None else (width_px, height_px)

    def _running(self, camera: str) -> AnalyticsReply:
        reply = ask(self._socket, GetAnalyticsRequest(camera=camera), timeout_s=_ANSWER_S)
        assert isinstance(reply, AnalyticsReply)
        return reply

    def _apply(self, camera: str, draft: DraftToApply) -> dict[str, Any]:
        document = self._file.read()
        if revision(document) != draft.revision:
            text = f"{self._file.path} has changed since it was read"
            raise ConfigError(text, hint="open the editor again", code="file-changed")
        unsaved = self._file.unsaved(document, camera)
        checked = self._file.check(document, camera, draft)
        _without_faults(checked)
        running = self._running(camera)
        request = SetAnalyticsRequest(
            camera=camera,
            analytics=with_drawn(running.analytics, draft),
            privacy=with_masks(running.privacy, draft),
            version=draft.version,
        )
        reply = ask(self._socket, request, timeout_s=_ANSWER_S)
        assert isinstance(reply, ChangedReply)
        message = _UNSAVED.get(unsaved, "")
        if not unsaved and checked.text != document.text:
            try:
                self._file.write(checked.text)
            except (OSError, VisionError) as error:
                unsaved, message = "not-writable", f"{_UNSAVED['not-writable']} {error}"
                log.warning("the draft was applied, but not saved: %s", error)
        return {"changed": reply.stages, "unsaved": unsaved, "message": message}


# --- requests and responses -------------------------------------------------------------------------------------------


def answering(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """Return an endpoint that responds with the error as JSON if `endpoint` raises a `VisionError`."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except VisionError as error:
            status = _STATUS.get(error.code, 503 if error.exit_code == Unavailable.exit_code else 422)
            return JSONResponse(_error(error), status)

    return answer


async def _when_done(result: Awaitable[dict[str, Any]]) -> AsyncIterator[bytes]:
    """Yield the result as JSON once it is available.

    Until then, yield spaces, because the server closes idle connections. If the browser closes the connection, cancel
    the computation of the result.
    """
    work = asyncio.ensure_future(result)
    try:
        while not work.done():
            await asyncio.wait([work], timeout=_PROGRESS_S)
            yield b" "
        try:
            content = work.result()
        except VisionError as error:
            content = _error(error)
        yield msgspec.json.encode(content)
    finally:
        work.cancel()


def _error(error: VisionError) -> dict[str, Any]:
    faults = error.reply.faults if isinstance(error, RefusedRequest) else error.faults
    return {"code": error.code, "error": error.args[0], "hint": error.hint, "faults": _as_json(faults)}


def _as_json(faults: Sequence[Fault] | Sequence[FaultEntry]) -> list[dict[str, Any]]:
    """Return faults for JSON, each with the `text` that the editor shows: the line, the key, and the message."""
    content: list[dict[str, Any]] = msgspec.to_builtins(faults)
    for fault in content:
        line = f"line {fault['line']}" if fault.get("line") else ""
        fault["text"] = ": ".join(filter(None, (line, fault.get("key"), fault["message"])))
    return content


def _without_faults(checked: Checked) -> Any:
    """Return the whole configuration that contains a checked draft. Raise `ConfigError` if the draft has faults."""
    if checked.config is None:
        raise ConfigError("the draft has errors", code="draft-invalid", faults=checked.faults)
    return checked.config


def _camera(request: Request) -> str:
    return str(request.path_params["camera"])


async def _draft(request: Request, decode: Callable[[bytes], _Decoded]) -> _Decoded:
    """Return the draft of the shapes of a camera, which `decode` reads from the body of a request."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise ConfigError("expected a draft as application/json", code="not-json")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            text = f"expected a draft of at most {MAX_BODY_BYTES} bytes"
            raise ConfigError(text, hint="use fewer points", code="too-large")
    try:
        return decode(bytes(body))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"expected a draft: {error}", code="draft-invalid") from error
