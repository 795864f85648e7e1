"""The path `/api/events`, which lists events."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from vision.errors import ConfigError
from vision.messaging.times import utc_ns
from vision.outputs.page.events import EventFilter, EventReader, parse_cursor
from vision.outputs.page.media import Media
from vision.outputs.page.state import encode


class EventRoutes:
    """Endpoint that lists events, with the addresses of their snapshots and videos."""

    def __init__(self, reader: EventReader, media: Media) -> None:
        self._reader = reader
        self._media = media

    def routes(self) -> list[BaseRoute]:
        """Return the Starlette routes of the list of events."""
        return [Route("/api/events", self.events)]

    def events(self, request: Request) -> Response:
        """Respond with one page of events. Starlette calls this method in a thread, because it reads files.

        The status is 400 if the query is not valid, and 503 if the events cannot be read.
        """
        query = request.query_params
        try:
            chosen = EventFilter(
                camera=query.get("camera", ""),
                kind=query.get("kind", ""),
                since_us=_time(query.get("since", "")),
                until_us=_time(query.get("until", "")),
            )
            cursor = parse_cursor(query.get("cursor", ""))
        except ValueError as error:
            return JSONResponse({"code": "query", "error": f"cannot understand {error}"}, 400)
        try:
            page = self._reader.page(chosen, cursor, _PAGE)
        except ConfigError as error:
            return JSONResponse({"code": error.code, "error": str(error)}, 503)
        events, problem = self._media.described(page.events)
        content = {
            "events": events,
            "next": None if page.next is None else str(page.next),
            "source": page.source,
            "problem": problem,
            "end": _ENDS[page.source] if page.next is None else "",
        }
        return Response(encode(content), media_type="application/json")


_PAGE: Final = 50
_ENDS: Final = {
    "memory": "These are the events since this page's process started. To keep events, set state_dir in the "
    "configuration.",
    "journal": "There are no older events. To keep more events, configure an archive, or raise publish.max_events.",
    "archive": "There are no older events in the archive.",
}


def _time(text: str) -> int | None:
    """Parse an RFC 3339 time to µs since 1970 (UTC). Return None for an empty string.

    Raise `ValueError` if the time is not valid.
    """
    return utc_ns(text) // 1000 if text else None
