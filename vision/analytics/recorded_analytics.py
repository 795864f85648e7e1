"""`RecordedAnalytics` evaluates many archived frames together, with the same results as `Analytics`.

`ObjectAnalytics` finds the events of single objects. `RecordedAnalytics` adds the counts and the events of crowds.
Because counts and crowds depend on all objects, `RecordedAnalytics` processes the frames in order.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Final

import numpy as np

from vision.analytics.camera_analytics import Analytics
from vision.analytics.frame_clock import FrameTimes
from vision.analytics.object_analytics import ObjectEvent
from vision.config.analytics import CameraAnalytics
from vision.types import Event, Tracks

_ROUNDING_S: Final = 1e-6  # larger than the rounding errors of a time
_END: Final = 1 << 62  # larger than the index of every frame


class RecordedAnalytics(Analytics):
    """Analytics of archived frames. Frames are numbered from 0 in each `load`.

    After `load`, call `seek` and `update` for each frame that `next_frame` returns, and then `finish`.
    """

    ended: Sequence[ObjectEvent] = ()
    """Events of objects that end the epoch. The caller sets them before `restart`."""
    _found: Sequence[ObjectEvent] = ()
    _times: FrameTimes | None = None  # None if no zone detects crowds

    def _watch(self, config: CameraAnalytics) -> None:
        super()._watch(config)
        self._zones = {zone.name: number for number, zone in enumerate(config.zones)}

    def load(self, found: Sequence[ObjectEvent], captured_ns: Sequence[int]) -> None:
        """Load the next frames. Call `finish` before the next `load` and before a new epoch.

        Args:
            found: events of the objects in these frames, in the order of the frames.
            captured_ns: capture time of each frame in nanoseconds.
        """
        self._found, self._next, self._at = found, 0, -1
        self._frames: list[int] = []  # heap of frames to judge although they have no event of an object
        self._number = len(captured_ns)
        if any(zone.crowd_threshold is not None for zone in self._config.zones):
            self._times = FrameTimes(self._objects.clock, captured_ns)
            self._await_pauses(self._times)
            self._await_crowds()

    def next_frame(self) -> int | None:
        """Return the number of the next frame to evaluate, or None if there is no such frame."""
        found = self._found[self._next].frame if self._next < len(self._found) else _END
        frame = min(found, self._frames[0]) if self._frames else found
        return None if frame == _END else frame

    def add_frame(self, frame: int) -> None:
        """Make `next_frame` also return `frame`, which must not be before the current frame."""
        heappush(self._frames, frame)

    def seek(self, frame: int) -> None:
        """Select the frame that the next call to `update` evaluates."""
        self._at, self._is_awaited = frame, False
        while self._frames and self._frames[0] <= frame:
            heappop(self._frames)
            self._is_awaited = True

    def update(self, tracks: Tracks, captured_ns: int) -> tuple[Event, ...]:  # noqa: ARG002 - as in `Analytics`
        """Evaluate the frame that the latest `seek` selected, and return its events. `tracks` is not used.

        If the frame has no event of an object at a zone, crowding can change only if `add_frame` added the frame.
        """
        first = self._next
        while self._next < len(self._found) and self._found[self._next].frame == self._at:
            self._next += 1
        found = self._found[first : self._next]
        events = [self._counted(each, captured_ns) for each in found]
        if self._times is not None and (self._is_awaited or any(each.name in self._zones for each in found)):
            clock = self._objects.clock
            self._times.seek(clock, self._at)
            step_s = clock.advance(captured_ns)
            is_pause = step_s > clock.memory_s(self._forget_s)
            for zone, data in self._crowds.update(clock.now_s, unobserved=is_pause):
                events.append(self._event("crowded", self._config.zones[zone], None, captured_ns, data))
            self._await_crowds()
        return tuple(events)

    def restart(self, width_px: int, height_px: int, at_ns: int) -> tuple[Event, ...]:
        events = tuple(self._counted(found, at_ns) for found in self.ended)
        return events + super().restart(width_px, height_px, at_ns)

    def occupancy(self) -> dict[str, int]:
        """Return the number of objects in each zone."""
        return dict(zip(self._zones, self._crowds.occupants, strict=True))

    def finish(self) -> None:
        """Set the clock to the end of the frames of the latest `load`."""
        if self._times is not None:
            self._times.seek(self._objects.clock, self._number)

    def _await_pauses(self, times: FrameTimes) -> None:
        """Make `next_frame` return the first frame after each long time without frames.

        The observation of crowding restarts at this frame.
        """
        for frame in (np.array(times.steps_s) > times.memory_s(self._forget_s)).nonzero()[0].tolist():
            self.add_frame(frame)

    def _await_crowds(self) -> None:
        """Make `next_frame` return the next frame in which crowding can start or end, if there is one."""
        due_s = self._crowds.due_s()
        if due_s < math.inf and self._times is not None:
            due = max(self._at + 1, bisect_left(self._times.now_s, due_s - _ROUNDING_S))
            if due < self._number:
                self.add_frame(due)

    def _counted(self, found: ObjectEvent, at_ns: int) -> Event:
        """Count a crossing, entry, or exit. Return the event with the resulting counts."""
        _, kind, name, track_id, data = found
        if kind == "line_crossed":
            data.update(self._count_crossing(name, data["direction"], data["class"]))
        elif kind == "zone_entered":
            data.update(self._count_passage(self._zones[name], "entered", data["class"]))
        elif kind == "zone_left":
            data.update(self._count_passage(self._zones[name], "left", data["class"]))
        return Event(kind, name, self._camera_id, track_id, at_ns, data)
