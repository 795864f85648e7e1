"""`PageState`, which keeps the newest messages of the program for the page."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from vision.client import Item, Subscription
from vision.messaging.schema import (
    REMOVED,
    CameraStatusMessage,
    CountsMessage,
    EventMessage,
    NodeStatusMessage,
)
from vision.outputs.page.settings import PageSettings

KEPT_EVENTS: Final = 1000
_SILENT_STATUSES: Final = 5.0  # number of missing status messages after which the program counts as silent
_SHORTEST_SILENCE_S: Final = 10.0


class PageState:
    """The newest status and counts of each camera, the status of the program, and the newest events. Thread-safe."""

    def __init__(self, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Create an empty state. `interval_s` is the time between two status messages."""
        self._silence_s = max(_SHORTEST_SILENCE_S, _SILENT_STATUSES * interval_s)
        self._clock = clock
        self._lock = threading.Lock()
        self._node: NodeStatusMessage | None = None
        self._node_at_s = clock()
        self._cameras: dict[str, CameraStatusMessage] = {}
        self._counts: dict[str, CountsMessage] = {}
        self._events: deque[EventMessage] = deque(maxlen=KEPT_EVENTS)
        self._event_count = 0

    def add(self, item: Item) -> None:
        """Store a message. Ignore other items."""
        with self._lock:
            if isinstance(item, NodeStatusMessage):
                self._node, self._node_at_s = item, self._clock()
            elif isinstance(item, CameraStatusMessage):
                self._cameras[item.camera] = item
                if item.state == REMOVED:
                    del self._cameras[item.camera]
                    self._counts.pop(item.camera, None)
            elif isinstance(item, CountsMessage):
                self._counts[item.camera] = item
            elif isinstance(item, EventMessage):
                self._events.append(item)
                self._event_count += 1

    def events(self) -> list[EventMessage]:
        """Return the newest events, oldest first."""
        with self._lock:
            return list(self._events)

    def snapshot(self) -> dict[str, Any]:
        """Return what the overview shows, for JSON."""
        with self._lock:
            age_s = self._clock() - self._node_at_s
            return {
                "age_s": round(age_s, 3),
                "silent": age_s > self._silence_s,
                "node": self._node,
                "cameras": [self._cameras[name] for name in sorted(self._cameras)],
                "counts": dict(self._counts),
                "events": self._event_count,
            }


def follow(state: PageState, settings: PageSettings) -> None:
    """Pass all messages except detections to `state`, until the subscription fails."""
    with Subscription(
        settings.address, kinds=("status", "counts", "events"), key=settings.key_pair, silence_s=1e6
    ) as subscription:
        for item in subscription.items():
            state.add(item)


encode = msgspec.json.Encoder(order="deterministic").encode
"""Encode a value that can contain messages, as JSON."""
