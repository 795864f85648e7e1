"""Snapshots and recorded video for the page.

Only JPEG files in the folder of the snapshots, and files that the index of the recordings contains, are served.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from vision.errors import ConfigError
from vision.outputs.page.event_texts import texts_of
from vision.outputs.page.events import StoredEvent
from vision.outputs.page.settings import PageSettings
from vision.outputs.recording.index import DamagedIndex, RecordingIndex

_SNAPSHOT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.jpg")


class Media:
    """The snapshots and recordings to which events refer."""

    def __init__(self, settings: PageSettings) -> None:
        self._snapshots = None if settings.snapshots is None else Path(settings.snapshots)
        self._recordings = None if settings.recordings is None else Path(settings.recordings)
        self._index = None if settings.state_dir is None else Path(settings.state_dir)

    def routes(self) -> list[BaseRoute]:
        """Return the Starlette routes of snapshots and recordings."""
        return [
            Route("/api/snapshots/{name}", self.snapshot),
            Route("/api/recordings/{name:path}", self.recording),
        ]

    def described(self, events: Iterable[StoredEvent]) -> tuple[list[dict[str, Any]], str]:
        """Return the events as dictionaries for JSON, with their texts and URLs, and the text of a problem, if any.

        Each dictionary gets the keys ``snapshot`` and, if the recordings can be read, ``clip``. A value is None if the
        event has no such file. The text of the problem states why the recordings cannot be read. It is empty if they
        can be read.
        """
        found = [(event, msgspec.to_builtins(event) | texts_of(event)) for event in events]
        for event, content in found:
            name = Path(event.snapshot or "").name
            content["snapshot"] = f"/api/snapshots/{quote(name)}" if self._has_snapshot(name) else None
        try:
            with self._opened_index() as index:
                for event, content in found:
                    content["clip"] = None if index is None else self._clip(index, event)
        except (ConfigError, DamagedIndex, OSError, sqlite3.Error) as error:
            return [content for _, content in found], f"The index of the recordings cannot be read: {error}"
        return [content for _, content in found], ""

    async def snapshot(self, request: Request) -> Response:
        """Respond with the JPEG file of an event, or with the status 404 if there is no such file."""
        name = request.path_params["name"]
        if self._snapshots is None or not self._has_snapshot(name):
            return _missing()
        return FileResponse(self._snapshots / name, media_type="image/jpeg")

    def recording(self, request: Request) -> Response:
        """Respond with a recorded file that the index lists, or with the part of it that the header `Range` requests.

        The status is 404 if the index cannot be read or does not list the file, or if the file is missing.
        """
        name = request.path_params["name"]
        with contextlib.suppress(ConfigError, DamagedIndex, OSError, sqlite3.Error), self._opened_index() as index:
            path = None if index is None or index.file_named(name) is None else self._recorded(name)
            if path is not None:
                return FileResponse(path, media_type="video/mp4")
        return _missing()

    def _has_snapshot(self, name: str) -> bool:
        return self._snapshots is not None and bool(_SNAPSHOT.fullmatch(name)) and _is_file(self._snapshots / name)

    def _recorded(self, name: str) -> Path | None:
        """Return the path of a recorded file, or None if the file is missing, is a link, or is outside the folder."""
        assert self._recordings is not None
        path = self._recordings / name
        is_inside = path.resolve().is_relative_to(self._recordings.resolve())
        return path if is_inside and _is_file(path) else None

    def _clip(self, index: RecordingIndex, event: StoredEvent) -> dict[str, Any] | None:
        at_utc_ns = event.at_us * 1000
        file = index.file_at(event.camera, at_utc_ns)
        if file is None or self._recorded(file.name) is None:
            return None
        offset_s = max(0.0, (at_utc_ns - file.start_utc_ns) / 1e9)
        return {"url": f"/api/recordings/{quote(file.name)}", "offset_s": round(offset_s, 3), "bytes": file.nbytes}

    @contextmanager
    def _opened_index(self) -> Iterator[RecordingIndex | None]:
        """Open the index of the recordings, and yield it. Yield None if nothing has been recorded."""
        if self._recordings is None or self._index is None:
            yield None
            return
        try:
            index = RecordingIndex(self._index, read_only=True)
        except FileNotFoundError:
            yield None
            return
        with contextlib.closing(index):
            yield index


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _missing() -> Response:
    return JSONResponse({"code": "no-file", "error": "this file does not exist, or was deleted"}, 404)
