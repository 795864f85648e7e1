"""The path `/api/history`, which returns the counts of a camera over hours and days."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from vision.errors import ConfigError
from vision.outputs.page.history import History, LiveHistory, Sample, archived_samples, history_of
from vision.outputs.page.settings import PageSettings
from vision.outputs.page.state import encode

_STEPS_S: Final = {6: 300, 24: 1800, 7 * 24: 6 * 3600, 30 * 24: 86_400}
"""For each number of hours that can be requested, the length of a bucket in seconds."""

_DAY_S: Final = 86_400


class HistoryRoutes:
    """Returns counts from the archive if one is configured, otherwise from the memory of this process."""

    def __init__(self, settings: PageSettings, live: LiveHistory | None) -> None:
        self._archive = None if settings.archive is None else Path(settings.archive)
        self._live = live

    def routes(self) -> list[BaseRoute]:
        """Return the Starlette routes of this class."""
        return [Route("/api/history", self.history)]

    def history(self, request: Request) -> Response:
        """Respond with the counts of a camera, status 400 if the query is invalid, or 503 if the archive is unreadable.

        Starlette calls this in a thread, because it reads files.
        """
        query = request.query_params
        try:
            hours, offset_min = int(query.get("hours", "24")), int(query.get("offset_min", "0"))
            step_s = _STEPS_S[hours]
        except (ValueError, KeyError):
            text = f"expected hours out of {', '.join(map(str, _STEPS_S))}, and offset_min as a number"
            return JSONResponse({"code": "query", "error": text}, 400)
        try:
            history = self._history(query.get("camera", ""), hours * 3600, step_s, offset_min * 60)
        except ConfigError as error:
            return JSONResponse({"code": error.code, "error": str(error)}, 503)
        return Response(encode(history), media_type="application/json")

    def _history(self, camera: str, length_s: int, step_s: int, offset_s: int) -> History:
        until_s = time.time()
        since_s = until_s - length_s
        if self._archive is None:
            return (self._live or LiveHistory()).history(camera, since_s, until_s)
        samples = _by_day(self._archive, camera, since_s - _DAY_S, until_s)
        return history_of(samples, step_s=step_s, offset_s=offset_s, since_s=since_s, until_s=until_s)


def _by_day(folder: Path, camera: str, since_s: float, until_s: float) -> Iterator[Sample]:
    """Yield the archived samples from `since_s` to `until_s` (UTC). At most the samples of one day are in memory."""
    days = range(int(since_s) // _DAY_S, int(until_s) // _DAY_S + 1)
    return chain.from_iterable(
        archived_samples(folder, camera, max(since_s, day * _DAY_S), min(until_s, (day + 1) * _DAY_S)) for day in days
    )
