"""Function that reads events from the archive, newest first.

This module needs pyarrow. Therefore, import it only when an archive is read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from vision.messaging.times import rfc3339
from vision.outputs.archive.reader import Archive
from vision.outputs.archive.tables import DAY_US, HOUR_US
from vision.outputs.page.events import EventFilter, StoredEvent

_MAX_WINDOWS: Final = 40


def read_archive(folder: Path, chosen: EventFilter, before_us: int, limit: int) -> tuple[list[StoredEvent], int | None]:
    """Return a page of archived events, newest first.

    Read time ranges of an hour or more, from the newest to the oldest, until at least `limit` events are found.
    Therefore, the page can have more than `limit` events. If 40 ranges contain fewer events, the page has fewer.

    Args:
        folder: folder of the archive.
        chosen: conditions that the events must meet.
        before_us: time before which the events happened, in µs since 1970 (UTC).
        limit: requested number of events.

    Returns:
        The events, and the value of `before_us` for the next page. This value is None if there are no older events.

    Raises:
        ConfigError: there is no archive, or it cannot be read.
    """
    archive = Archive(folder)
    cameras = [chosen.camera] if chosen.camera else archive.cameras("events")
    oldest_us = archive.oldest_event_us()
    if oldest_us is None:
        return [], None
    before_us = before_us if chosen.until_us is None else min(before_us, chosen.until_us)
    oldest_us = max(chosen.since_us or 0, oldest_us)
    found: list[StoredEvent] = []
    window_us = HOUR_US
    for _ in range(_MAX_WINDOWS):
        from_us = max(before_us - window_us, oldest_us)
        if from_us >= before_us:
            return found, None
        events = [
            event
            for name in cameras
            for row in archive.rows("events", name, from_us, before_us)
            for event in [_of_row(name, row)]
            if chosen.accepts(event)
        ]
        found += sorted(events, key=lambda event: event.at_us, reverse=True)
        before_us = from_us
        if len(found) >= limit:
            break
        window_us = min(2 * window_us, DAY_US)
    return found, before_us if before_us > oldest_us else None


def _of_row(camera: str, row: dict[str, Any]) -> StoredEvent:
    return StoredEvent(
        camera=camera,
        at=rfc3339(row["at_utc"] * 1000),
        at_us=row["at_utc"],
        kind=row["kind"],
        name=row["name"],
        track_id=row["track_id"],
        data=json.loads(row["data"]),
        snapshot=row["snapshot"],
        journal=row["journal"],
        number=row["number"],
    )
