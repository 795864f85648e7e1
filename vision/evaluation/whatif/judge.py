"""`Judge` runs the stages of `vision run` for lines, zones, and rules on archived frames.

The tracker rounds its boxes to the precision of messages, so the archive contains exactly the values that the live
analytics read. Therefore, the same configuration yields the same events, bit for bit.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from vision.analytics.frame_clock import FrameTimes
from vision.analytics.object_analytics import ObjectAnalytics, ObjectEvent
from vision.analytics.recorded_analytics import RecordedAnalytics
from vision.analytics.reset_schedule import ResetSchedule
from vision.config import AppConfig
from vision.config.analytics import CameraAnalytics
from vision.outputs.archive.rows import ArchivedBlock
from vision.stages.analytics import AnalyticsStage
from vision.stages.rules import RuleStage
from vision.state.counters import CameraCounters, CounterRow
from vision.types import Counts, Event, FrameMeta, Result, Tracks

_NO_TRACKS: Final = Tracks(*np.zeros((5, 0)))
_ROUNDING_S: Final = 1e-6  # larger than the rounding errors of a time


@dataclass(frozen=True, slots=True)
class FoundEvents:
    """Events of the objects in a block."""

    ended: Sequence[ObjectEvent]  # events that end the previous epoch, in the order of track ids
    events: Sequence[ObjectEvent]  # events in the frames of the block, in order


class Judge:
    """Factory of the stages that apply the analytics and the rules of a configuration to the frames of one camera."""

    def __init__(self, config: AppConfig, camera: str, class_names: Sequence[str]) -> None:
        self._config = config
        self._camera = camera
        self._class_names = class_names
        self._sections: dict[str, CameraAnalytics] = {
            name: section for name, section in config.analytics.items() if name == camera
        }

    def stages(self, earlier: Counts | None = None) -> Callable[[Result], Result]:
        """Return a function that adds the events and counts of the analytics and the rules to archived results.

        The function holds the state of one run of the program. The counters continue from the counts `earlier`. If
        `earlier` is None, the counters start at 0.
        """
        state = None if earlier is None else _EarlierCounters(self._camera, earlier)
        forget_s = self._config.track.lost_s
        analytics = AnalyticsStage(self._sections, self._class_names, forget_s=forget_s, state=state)
        rules = RuleStage(self._config.rules, self._sections)
        return lambda result: rules(analytics(result))

    def recorded_stages(self, earlier: Counts | None = None) -> RecordedStages:
        """Return an object that applies the analytics and the rules to blocks of archived frames.

        The object holds the state of one run of the program. `earlier` is as in `stages`.
        """
        state = None if earlier is None else _EarlierCounters(self._camera, earlier)
        forget_s = self._config.track.lost_s
        analytics = RecordedStage(self._sections, self._class_names, forget_s=forget_s, state=state)
        return RecordedStages(self._camera, analytics, RuleStage(self._config.rules, self._sections))

    def object_analytics(self, frame_size_px: tuple[int, int]) -> ObjectAnalytics | None:
        """Return the part of the analytics that evaluates single objects, or None if there are no lines or zones."""
        section = self._sections.get(self._camera)
        if section is None:
            return None
        forget_s = self._config.track.lost_s
        return ObjectAnalytics(section, self._camera, self._class_names, *frame_size_px, forget_s=forget_s)


class RecordedStage(AnalyticsStage):
    """Stage that evaluates the lines and zones of one camera in archived frames, many frames together.

    It works like `AnalyticsStage`, but with `RecordedAnalytics` instead of `Analytics`.
    """

    def _open(self, camera_id: str, size: tuple[int, int]) -> RecordedAnalytics:
        return self._new_analytics(RecordedAnalytics, camera_id, size)

    def begin(
        self, meta: FrameMeta, ended: Sequence[ObjectEvent]
    ) -> tuple[RecordedAnalytics, ResetSchedule, tuple[Event, ...]] | None:
        """Start the epoch of the frame `meta`, unless this epoch has already started.

        `ended` contains the events of objects that end the previous epoch.

        Returns:
            The analytics of the camera, the schedule of its counters, and the events that end the previous epoch. The
            result is None if the camera has no lines or zones.
        """
        if meta.camera_id not in self._sections:
            return None
        known = self._cameras.get(meta.camera_id)
        if known is not None and isinstance(known.analytics, RecordedAnalytics):
            known.analytics.ended = ended
        watched, events = self._watched(meta)
        assert isinstance(watched.analytics, RecordedAnalytics)
        return watched.analytics, watched.resets, events

    def counts(self, camera_id: str) -> Counts | None:
        """Return the current counts of the camera, or None if it has no lines or zones."""
        watched = self._cameras.get(camera_id)
        return None if watched is None else self._counts(camera_id, watched.analytics, watched.frame_size)


class RecordedStages:
    """Analytics and rules of one camera in one run of the program, for blocks of archived frames."""

    def __init__(self, camera: str, analytics: RecordedStage, rules: RuleStage) -> None:
        self._camera = camera
        self._analytics = analytics
        self._rules = rules

    def counts(self) -> Counts | None:
        """Return the counts after the latest frame, or None if there are no lines or zones."""
        return self._analytics.counts(self._camera)

    def judge(self, block: ArchivedBlock, found: FoundEvents) -> Iterator[tuple[int, tuple[Event, ...]]]:
        """Evaluate the frames of a block. Yield the index and the events of each frame that has events."""
        begun = self._analytics.begin(_meta(self._camera, block, 0), found.ended)
        if begun is None:
            return
        analytics, resets, events = begun
        captured_ns, at_us = block.tracks.captured_ns, block.at_us.tolist()
        analytics.load(found.events, captured_ns)
        reports = _Reports(self._rules, self._camera, block)
        analytics.add_frame(0)
        while (at := analytics.next_frame()) is not None:
            analytics.seek(at)
            period_s = resets.starts_period(at_us[at] * 1000)
            if period_s is not None:
                events += analytics.start_period(period_s, captured_ns[at])
            events += analytics.update(_NO_TRACKS, captured_ns[at])
            if reports.are_possible(at, events):
                events += reports.of_frame(at, events, analytics.occupancy())
                if reports.due < len(block.frames):
                    analytics.add_frame(reports.due)
            if resets.next_ns is not None:
                (later,) = (block.at_us[at + 1 :] * 1000 >= resets.next_ns).nonzero()
                if len(later):
                    analytics.add_frame(at + 1 + int(later[0]))
            if events:
                yield at, events
            events = ()
        reports.finish()
        analytics.finish()


class _Reports:
    """Finder of what the rules of a camera report in each frame of one block of archived frames."""

    def __init__(self, rules: RuleStage, camera: str, block: ArchivedBlock) -> None:
        self.due = 0
        """Index of the next frame that can have a report without an event that causes the report."""
        self._rules, self._camera, self._block = rules, camera, block
        self._causes, self._clock = rules.causes(camera), rules.clock(camera)
        self._times = None if self._clock is None else FrameTimes(self._clock, block.tracks.captured_ns)

    def are_possible(self, at: int, events: Sequence[Event]) -> bool:
        """Return True if the rules can report something in the frame with the index `at`, whose events are `events`."""
        if self._times is None:
            return False
        return at >= self.due or any((event.kind, event.name) in self._causes for event in events)

    def of_frame(self, at: int, events: Sequence[Event], occupancy: Mapping[str, int]) -> tuple[Event, ...]:
        """Return the reports of the frame with the index `at`. `occupancy` is the number of objects in each zone."""
        assert self._clock is not None and self._times is not None
        self._times.seek(self._clock, at)
        block, camera = self._block, self._camera
        reports = self._rules.judge(camera, block.epoch, block.tracks.captured_ns[at], events, occupancy)
        self.due = bisect_left(self._times.now_s, self._rules.due_s(camera) - _ROUNDING_S, at + 1)
        return reports

    def finish(self) -> None:
        """Set the clock of the rules to the end of the block, so that the next block continues from there."""
        if self._clock is not None and self._times is not None:
            self._times.seek(self._clock, len(self._block.frames))


def _meta(camera: str, block: ArchivedBlock, at: int) -> FrameMeta:
    """Return the description of the frame with the index `at` in a block."""
    captured_ns, captured_utc_ns = block.tracks.captured_ns[at], int(block.at_us[at]) * 1000
    return FrameMeta(camera, block.frames[at], block.epoch, captured_ns, captured_utc_ns, *block.frame_size_px)


class _EarlierCounters:
    """Counters that start from the counts of a previous run of the program. Their changes are never stored."""

    def __init__(self, camera: str, counts: Counts) -> None:
        totals = {**counts.lines, **counts.zones}
        self._rows: list[CounterRow] = [
            (camera, name, key, value) for name, values in totals.items() for key, value in values.items()
        ]

    def counters(self, camera_id: str) -> CameraCounters:
        return CameraCounters(self, camera_id)

    def load_counters(self, camera_id: str) -> list[CounterRow]:
        return [row for row in self._rows if row[0] == camera_id]

    def store_counters(self, rows: Sequence[CounterRow]) -> bool:
        return bool(rows)
