"""The path `/api/history`, which returns the counts of a camera over hours and days, as the columns of plots."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from itertools import chain
from pathlib import Path
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from vision.errors import ConfigError
from vision.outputs.page.history import History, LiveHistory, Sample, Series, archived_samples, history_of
from vision.outputs.page.settings import PageSettings
from vision.outputs.page.state import encode

_STEPS_S: Final = {6: 300, 24: 1800, 7 * 24: 6 * 3600, 30 * 24: 86_400}
"""For each number of hours that can be requested, the length of a bucket in seconds."""

_DAY_S: Final = 86_400


class HistoryRoutes:
    """Endpoint that returns counts from the configured archive, or else from the memory of this process."""

    def __init__(self, settings: PageSettings, live: LiveHistory | None) -> None:
        self._archive = None if settings.archive is None else Path(settings.archive)
        self._live = live

    def routes(self) -> list[BaseRoute]:
        """Return the Starlette routes of this class."""
        return [Route("/api/history", self.history)]

    def history(self, request: Request) -> Response:
        """Respond with the counts of a camera. Starlette calls this method in a thread, because it reads files.

        The status is 400 if the query is not valid, and 503 if the archive cannot be read.
        """
        query = request.query_params
        try:
            hours, offset_min = int(query.get("hours", "24")), int(query.get("offset_min", "0"))
            step_s = _STEPS_S[hours]
            local = timezone(timedelta(minutes=offset_min))
        except (ValueError, KeyError, OverflowError):
            text = f"expected hours out of {', '.join(map(str, _STEPS_S))}, and offset_min of less than a day"
            return JSONResponse({"code": "query", "error": text}, 400)
        try:
            history = self._history(query.get("camera", ""), hours * 3600, step_s, offset_min * 60)
        except ConfigError as error:
            return JSONResponse({"code": error.code, "error": str(error)}, 503)
        plots = [plot for series in history.series for plot in _plots(history.times, series)]
        content = {"status": _status(history, local), "times": history.times, "plots": plots}
        return Response(encode(content), media_type="application/json")

    def _history(self, camera: str, length_s: int, step_s: int, offset_s: int) -> History:
        until_s = time.time()
        since_s = until_s - length_s
        if self._archive is None:
            return (self._live or LiveHistory()).history(camera, since_s, until_s)
        samples = _by_day(self._archive, camera, since_s - _DAY_S, until_s)
        return history_of(samples, step_s=step_s, offset_s=offset_s, since_s=since_s, until_s=until_s)


def _plots(times: list[int], series: Series) -> list[dict[str, Any]]:
    """Return the plots of one line or zone for the page, from its counts. `times` are the starts of the buckets."""
    if series.kind == "line":
        return [_plot(f"Line {series.name}: crossings", times, {"in": series.first, "out": series.second})]
    columns, occupancy = {"entered": series.first, "left": series.second}, {"objects": series.occupancy}
    return [
        _plot(f"Zone {series.name}: objects", times, columns),
        _plot(f"Zone {series.name}: most objects at the same time", times, occupancy),
    ]


def _plot(title: str, times: list[int], columns: dict[str, list[int]]) -> dict[str, Any]:
    """Return a plot with columns by label, and one row for each bucket that has a value other than 0."""
    rows = [row for row in zip(times, *columns.values(), strict=True) if any(row[1:])]
    return {"title": title, "columns": columns, "rows": rows}


def _status(history: History, local: timezone) -> str:
    """Return a text that states the source of the plots, and the missing counts.

    `local` is the time zone of the browser.
    """
    sentences = []
    if history.source == "memory":
        since = datetime.fromtimestamp(history.since_s, local)
        counts = f"the counts that this page's process has received since {since:%Y-%m-%d %H:%M}"
        sentences.append(f"No archive is configured, so these are {counts}.")
    if not history.series:
        sentences.append("This camera has counted nothing in this time.")
    return " ".join(sentences)


def _by_day(folder: Path, camera: str, since_s: float, until_s: float) -> Iterator[Sample]:
    """Yield the archived samples from `since_s` to `until_s` (UTC). At most the samples of one day are in memory."""
    days = range(int(since_s) // _DAY_S, int(until_s) // _DAY_S + 1)
    return chain.from_iterable(
        archived_samples(folder, camera, max(since_s, day * _DAY_S), min(until_s, (day + 1) * _DAY_S)) for day in days
    )
