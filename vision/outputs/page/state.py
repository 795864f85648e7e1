"""`PageState` keeps the newest messages of the program for the page."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from vision.client import Item, Subscription
from vision.messaging.schema import (
    REMOVED,
    CameraStatusMessage,
    CountsMessage,
    EventMessage,
    NodeStatusMessage,
)
from vision.outputs.page.history import LiveHistory
from vision.outputs.page.settings import PageSettings

KEPT_EVENTS: Final = 1000
_SILENT_STATUSES: Final = 5.0  # number of missing status messages after which the program counts as silent
_SHORTEST_SILENCE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The newest messages about the program and its cameras at one time, for the texts of the page."""

    node: NodeStatusMessage | None  # None before the first status of the program
    cameras: list[CameraStatusMessage]  # sorted by camera
    counts: dict[str, CountsMessage]  # by camera
    event_count: int  # number of events so far
    age_s: float  # seconds since the last status of the program
    silent: bool  # True if several statuses are missing


class PageState:
    """The newest status and counts of each camera, the status of the program, and the newest events. Thread-safe."""

    def __init__(
        self, interval_s: float, history: LiveHistory | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Create an empty state.

        Args:
            interval_s: time between two status messages, in seconds.
            history: object that receives all counts, or None if counts are not kept.
            clock: function that returns the monotonic time in seconds.
        """
        self.history = history
        self._silence_s = max(_SHORTEST_SILENCE_S, _SILENT_STATUSES * interval_s)
        self._clock = clock
        self._lock = threading.Lock()
        self._node: NodeStatusMessage | None = None
        self._node_at_s = clock()
        self._cameras: dict[str, CameraStatusMessage] = {}
        self._counts: dict[str, CountsMessage] = {}
        self._events: deque[EventMessage] = deque(maxlen=KEPT_EVENTS)
        self._amendments: dict[tuple[str, str, int], EventMessage] = {}
        self._event_count = 0

    def add(self, item: Item) -> None:
        """Store a message with a status, counts, or an event. Ignore other items."""
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
                if self.history is not None:
                    self.history.add(item)
            elif isinstance(item, EventMessage):
                self._add_event(item)

    def _add_event(self, event: EventMessage) -> None:
        self._event_count += 1
        if event.amends is None:
            self._events.append(event)
            return
        key = event.instance, event.camera, event.amends
        self._amendments[key] = event
        if len(self._amendments) > KEPT_EVENTS:
            del self._amendments[next(iter(self._amendments))]

    def events(self) -> list[EventMessage]:
        """Return the newest events, oldest first, with the answers of a language model that have arrived for them."""
        with self._lock:
            return [self._amendments.get((each.instance, each.camera, each.seq), each) for each in self._events]

    def amendments(self) -> dict[tuple[str, str, int], EventMessage]:
        """Return the newest amended events, by instance, camera, and `seq` of the original event."""
        with self._lock:
            return dict(self._amendments)

    def snapshot(self) -> Snapshot:
        """Return the newest status of the program, and the newest status and counts of each camera."""
        with self._lock:
            age_s = self._clock() - self._node_at_s
            return Snapshot(
                node=self._node,
                cameras=[self._cameras[name] for name in sorted(self._cameras)],
                counts=dict(self._counts),
                event_count=self._event_count,
                age_s=age_s,
                silent=age_s > self._silence_s,
            )


def follow(state: PageState, settings: PageSettings) -> None:
    """Pass all messages except detections to `state`, until the subscription fails."""
    with Subscription(
        settings.address, kinds=("status", "counts", "events"), key=settings.key_pair, silence_s=1e6
    ) as subscription:
        for item in subscription.items():
            state.add(item)


encode = msgspec.json.Encoder(order="deterministic").encode
"""Encode a value that can contain messages, as JSON."""
