"""`OpenStates`, which remembers each state, such as a crowded zone, that has begun and not ended.

Two events report the start and the end of a state. Normally, the same part of the program publishes both. If this part
cannot report the end, `OpenStates` creates this event: after a result worker ended unexpectedly, after the program was
killed, or after the camera was removed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterable, Iterator
from typing import Final

from vision.errors import MessageError
from vision.messaging import codec
from vision.messaging.schema import EventMessage
from vision.messaging.times import rfc3339
from vision.state.events import StateKey

_MOST: Final = 10_000
"""Maximum number of states, because a stage can report starts without ends. The oldest state is forgotten first."""

_OF_THE_START: Final = {"speed_kmh", "heading_deg", "occupancy", "stayed_s", "lasted_s", "suppressed"}
"""Keys of `data` whose values describe the moment of the start."""


VIEW_FAULTS: Final = {"camera_moved": "moved", "camera_covered": "covered"}
"""Faults of the view of a camera, by the kind of their events."""

_VIEW: Final = "view"  # name of these events


class OpenStates:
    """The open states: for example, crowded zones whose start was reported by an event, but whose end was not.

    This class is not thread-safe.
    """

    def __init__(self) -> None:
        self._starts: dict[StateKey, EventMessage] = {}

    def follow(self, events: Iterable[EventMessage]) -> dict[StateKey, EventMessage | None]:
        """Update the open states with events, and return the states that changed.

        The value of a state is the event that reports its start, or None if the state has ended, or was
        forgotten because too many states are open.
        """
        changed: dict[StateKey, EventMessage | None] = {}
        for event in events:
            phase, key = event.data.get("phase"), (event.camera, event.kind, event.name, event.track_id)
            if event.amends is not None or phase not in ("begin", "end"):
                continue
            self._starts.pop(key, None)
            changed[key] = None
            if phase == "begin":
                self._starts[key] = changed[key] = event
            if len(self._starts) > _MOST:
                oldest = next(iter(self._starts))
                del self._starts[oldest]
                changed[oldest] = None
        return changed

    def view_fault(self, camera: str) -> str | None:
        """Return the fault of a camera's view, such as `moved`. Return None if there is no fault."""
        open_faults = (fault for kind, fault in VIEW_FAULTS.items() if (camera, kind, _VIEW, None) in self._starts)
        return next(open_faults, None)

    def ends(self, cameras: Collection[str] | None = None) -> list[EventMessage]:
        """Return an event without a number for the end of each open state.

        The states stay open until `follow` receives these events.

        Args:
            cameras: ids of the cameras whose states end. If None, all states end.
        """
        return [end_of(start) for start in self._starts.values() if cameras is None or start.camera in cameras]


def end_of(start: EventMessage) -> EventMessage:
    """Return an event, with the current time, that ends the state that `start` reported.

    The event omits values such as the occupancy, because their values at the end are not known.
    """
    data = {name: value for name, value in start.data.items() if name not in _OF_THE_START}
    return EventMessage(
        **codec.UNNUMBERED,
        camera=start.camera,
        epoch=start.epoch,
        frame=0,
        at=rfc3339(time.time_ns()),
        at_monotonic_ns=time.monotonic_ns(),
        kind=start.kind,
        name=start.name,
        track_id=start.track_id,
        data={**data, "phase": "end", "interrupted": True},
    )


def decoded(starts: Iterable[bytes]) -> Iterator[EventMessage]:
    """Decode the stored events `starts`, and yield them. Skip events that cannot be decoded."""
    for payload in starts:
        with contextlib.suppress(MessageError):
            yield codec.decode_as(EventMessage, payload, "state")
