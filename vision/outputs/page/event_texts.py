"""The texts of an event in the lists of the page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from vision.outputs.page.events import StoredEvent
from vision.outputs.page.texts import Rows, rows_of, words

KINDS: Final = {
    "line_crossed": "crossed the line",
    "zone_entered": "entered the zone",
    "zone_left": "left the zone",
    "crowded": "crowd",
    "dwelling": "stayed in the zone",
    "rule": "rule",
    "camera_lost": "camera lost",
    "camera_back": "camera back",
    "camera_frozen": "camera frozen",
    "camera_moved": "camera moved",
    "camera_covered": "camera covered",
    "camera_realigned": "camera realigned",
    "recording_stopped": "recording stopped",
    "recording_resumed": "recording resumed",
    "disk_low": "disk low",
    "disk_free": "disk free",
    "storage_stopped": "storage stopped",
    "storage_resumed": "storage resumed",
    "events_lost": "events lost",
    "gpu_unused": "GPU unused",
    "started": "program started",
}
"""For each kind of event that the filter offers, the words for the title of an event."""

KIND_OPTIONS: Final = [(kind, words(kind)) for kind in KINDS]
"""The kinds and their names for the filter."""

_SHOWN: Final = ("in", "out", "begin", "end")  # directions and phases that a title contains


def texts_of(event: StoredEvent) -> dict[str, Any]:
    """Return the title and the rows of an event, and a key that no other event has."""
    identity = [event.camera, event.at, event.kind, event.name, event.track_id, event.number]
    return {"key": json.dumps(identity), "title": _title(event), "rows": _rows(event)}


def _title(event: StoredEvent) -> str:
    """Return a short description, such as "person crossed the line door (in)"."""
    data: Mapping[str, Any] = event.data
    found = data.get("class")
    how = next((value for key in ("direction", "phase") if (value := data.get(key)) in _SHOWN), None)
    kind = KINDS.get(event.kind, words(event.kind))
    parts = [found if isinstance(found, str) else "", kind, event.name, f"({how})" if how else ""]
    return " ".join(filter(None, parts))


def _rows(event: StoredEvent) -> Rows:
    rows = rows_of({key: value for key, value in event.data.items() if (key, value) != ("phase", "instant")})
    return [*rows, (event.verdict.check, event.verdict.answer)] if event.verdict is not None else rows
