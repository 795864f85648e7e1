"""Judge archived tracks again: run the stages of `vision run` for lines, zones, and rules on the frames of an archive.

The tracker rounds its boxes to the precision of messages, so the archive contains exactly the values that the live
analytics read. Therefore, the same configuration yields the same events, bit for bit.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

import numpy as np

from vision.analytics.frame_clock import FrameTimes
from vision.analytics.object_analytics import ObjectAnalytics, ObjectEvent
from vision.analytics.recorded_analytics import RecordedAnalytics
from vision.analytics.reset_schedule import ResetSchedule
from vision.config import AppConfig
from vision.config.analytics import CameraAnalytics
from vision.config.rules import KINDS_OF_LINES, KINDS_OF_ZONES, RULE
from vision.outputs.archive.reader import Archive, ArchivedCounts, ArchivedEvent
from vision.outputs.archive.rows import ArchivedBlock
from vision.stages.analytics import AnalyticsStage
from vision.stages.rules import RuleStage
from vision.state.counters import CameraCounters, CounterRow
from vision.types import Counts, Event, FrameMeta, Result, Timing, Tracks

WARM_UP_US: Final = 6 * 3_600_000_000
"""Time before the requested range that is judged too, so that the objects in zones and the states of rules are known
at the start of the range."""

_PROGRESS_FRAMES: Final = 10_000
_JUDGED: Final = frozenset({*KINDS_OF_LINES, *KINDS_OF_ZONES, RULE, "counters_reset"})
"""Kinds of events that come from lines, zones, and rules. Others, such as `camera_lost`, are not judged again."""

_NO_TIMING: Final = Timing(0, 0, 0)
_NO_TRACKS: Final = Tracks(*np.zeros((5, 0)))
_ROUNDING_S: Final = 1e-6

Box: TypeAlias = tuple[float, float, float, float]


@dataclass(slots=True)
class Judgment:
    """The events of one camera in the requested range, and its last counts."""

    published: list[ArchivedEvent] = field(default_factory=list)
    """The events in the archive."""
    events: list[ArchivedEvent] = field(default_factory=list)
    boxes: dict[tuple[str, int, int, int], Box] = field(default_factory=dict)
    """Boxes x1, y1, x2, y2 in pixels of objects that have an event, by instance, epoch, frame, and track id."""
    counts: Counts | None = None
    frame_size_px: tuple[int, int] | None = None
    frames: int = 0  # number of judged frames, including those before the range


@dataclass(frozen=True, slots=True)
class FoundEvents:
    """The events of the objects in a block."""

    ended: Sequence[ObjectEvent]  # events that end the previous epoch, in the order of track ids
    events: Sequence[ObjectEvent]  # events in the frames of the block, in order


class Judge:
    """Runs the analytics and the rules of a configuration on the frames of one camera."""

    def __init__(self, config: AppConfig, camera: str, class_names: Sequence[str]) -> None:
        self._config = config
        self._camera = camera
        self._class_names = class_names
        self._sections: dict[str, CameraAnalytics] = {
            name: section for name, section in config.analytics.items() if name == camera
        }

    def stages(self, earlier: Counts | None = None) -> Callable[[Result], Result]:
        """Return the stages for one start of the program, as one function.

        The counters continue after `earlier`. If it is None, they start at 0.
        """
        state = None if earlier is None else _EarlierCounters(self._camera, earlier)
        forget_s = self._config.track.lost_s
        analytics = AnalyticsStage(self._sections, self._class_names, forget_s=forget_s, state=state)
        rules = RuleStage(self._config.rules, self._sections)
        return lambda result: rules(analytics(result))

    def recorded_stages(self, earlier: Counts | None = None) -> RecordedStages:
        """Return the stages for one start of the program, as `stages` does, for blocks of frames."""
        state = None if earlier is None else _EarlierCounters(self._camera, earlier)
        forget_s = self._config.track.lost_s
        analytics = RecordedStage(self._sections, self._class_names, forget_s=forget_s, state=state)
        return RecordedStages(self._camera, analytics, RuleStage(self._config.rules, self._sections))

    def object_analytics(self, frame_size_px: tuple[int, int]) -> ObjectAnalytics | None:
        """Return the part of the analytics that concerns single objects; None if there are no lines or zones."""
        section = self._sections.get(self._camera)
        if section is None:
            return None
        forget_s = self._config.track.lost_s
        return ObjectAnalytics(section, self._camera, self._class_names, *frame_size_px, forget_s=forget_s)


class Finder:
    """Finds the events of the objects, block by block."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._started: tuple[str, int] | None = None  # start of the program, and epoch
        self._analytics: ObjectAnalytics | None = None

    def __call__(self, block: ArchivedBlock) -> FoundEvents:
        """Return the events in the next block."""
        ended: Sequence[ObjectEvent] = ()
        if self._started is None or self._started[0] != block.instance:
            self._analytics = self._judge.object_analytics(block.frame_size_px)
        elif self._started[1] != block.epoch and self._analytics is not None:
            ended = self._analytics.end_epoch(block.frame_size_px, block.tracks.captured_ns[0])
        self._started = block.instance, block.epoch
        found = () if self._analytics is None else self._analytics.judge(block.tracks)
        return FoundEvents(ended, found)


class RecordedStage(AnalyticsStage):
    """An `AnalyticsStage` with `RecordedAnalytics`, for one camera."""

    def _open(self, camera_id: str, size: tuple[int, int]) -> RecordedAnalytics:
        return self._new_analytics(RecordedAnalytics, camera_id, size)

    def begin(
        self, meta: FrameMeta, ended: Sequence[ObjectEvent]
    ) -> tuple[RecordedAnalytics, ResetSchedule, tuple[Event, ...]] | None:
        """Start the epoch of the frame of `meta`, unless it has started already.

        `ended` contains the events of objects that end the previous epoch. Return the analytics of the camera, the
        schedule of its counters, and the events that end the previous epoch; None if the camera has no lines or zones.
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
        """Return the present counts of the camera; None if it has no lines or zones."""
        watched = self._cameras.get(camera_id)
        return None if watched is None else self._counts(camera_id, watched.analytics, watched.frame_size)


class RecordedStages:
    """The analytics and the rules of one camera and one start of the program, for blocks of archived frames."""

    def __init__(self, camera: str, analytics: RecordedStage, rules: RuleStage) -> None:
        self._camera = camera
        self._analytics = analytics
        self._rules = rules

    def counts(self) -> Counts | None:
        """Return the counts after the last frame; None if there are no lines or zones."""
        return self._analytics.counts(self._camera)

    def judge(self, block: ArchivedBlock, found: FoundEvents) -> Iterator[tuple[int, tuple[Event, ...]]]:
        """Judge the frames of a block. Yield the index and the events of each frame that has events."""
        begun = self._analytics.begin(_meta(self._camera, block, 0), found.ended)
        if begun is None:
            return
        analytics, resets, events = begun
        captured_ns = block.tracks.captured_ns
        analytics.load(found.events, captured_ns)
        clock = self._rules.clock(self._camera)
        times = None if clock is None else FrameTimes(clock, captured_ns)
        analytics.add_frame(0)
        while (at := analytics.next_frame()) is not None:
            analytics.seek(at)
            period_s = resets.starts_period(int(block.at_us[at]) * 1000)
            if period_s is not None:
                events += analytics.start_period(period_s, captured_ns[at])
            events += analytics.update(_NO_TRACKS, captured_ns[at])
            if clock is not None and times is not None:
                times.seek(clock, at)
                counts = Counts({}, {}, analytics.occupancy())
                meta = _meta(self._camera, block, at)
                events = self._rules(Result(meta, _NO_TRACKS, _NO_TIMING, events=events, counts=counts)).events
                due = bisect_left(times.now_s, self._rules.due_s(self._camera) - _ROUNDING_S, at + 1)
                if due < len(block.frames):
                    analytics.add_frame(due)
            if resets.next_ns is not None:
                (later,) = (block.at_us[at + 1 :] * 1000 >= resets.next_ns).nonzero()
                if len(later):
                    analytics.add_frame(at + 1 + int(later[0]))
            if events:
                yield at, events
            events = ()
        if clock is not None and times is not None:
            times.seek(clock, len(block.frames))
        analytics.finish()


def _meta(camera: str, block: ArchivedBlock, at: int) -> FrameMeta:
    """Return the description of a frame of a block."""
    captured_ns, captured_utc_ns = block.tracks.captured_ns[at], int(block.at_us[at]) * 1000
    return FrameMeta(camera, block.frames[at], block.epoch, captured_ns, captured_utc_ns, *block.frame_size_px)


class _EarlierCounters:
    """Counters that start at the counts of an earlier run of the program. Changes are not stored."""

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


def rejudge(
    archive: Archive,
    judge: Judge,
    camera: str,
    since_us: int,
    until_us: int,
    *,
    progress: Callable[[int], None] = lambda _frames: None,
) -> Judgment:
    """Judge the frames of a camera from `since_us` to before `until_us`, microseconds since 1970 (UTC).

    Args:
        archive: the archive.
        judge: the configuration.
        camera: name of the camera.
        since_us: start of the range. The frames up to `WARM_UP_US` before it are judged too, but are not in the result.
        until_us: end of the range.
        progress: function that receives the number of judged frames.

    Returns:
        The events and counts that the configuration gives, and the events that were published in the range.
    """
    first_us = since_us - WARM_UP_US
    earlier = [each for each in archive.events(camera, first_us, until_us) if each.event.kind in _JUDGED]
    found, reported = Judgment([each for each in earlier if each.at_us >= since_us]), 0
    wanted: dict[tuple[str, int, int], list[int | None]] = {}
    for each in found.published:
        wanted.setdefault((each.instance, each.epoch, each.frame), []).append(each.event.track_id)
    initial = initial_counts(archive, camera, first_us, until_us, earlier)
    stages, find, instance = judge.recorded_stages(), Finder(judge), ""
    for block in archive.blocks(camera, first_us, until_us):
        if block.instance != instance:  # the program was started again, with new stages
            instance = block.instance
            stages = judge.recorded_stages(initial.get(instance))
        _judge_block(found, stages, block, find(block), since_us)
        found.boxes.update(_boxes_in_block(block, _published_in_block(block, wanted)))
        if found.frames // _PROGRESS_FRAMES > reported:
            reported = found.frames // _PROGRESS_FRAMES
            progress(found.frames)
    return found


def _judge_block(
    found: Judgment, stages: RecordedStages, block: ArchivedBlock, events: FoundEvents, since_us: int
) -> None:
    """Judge the frames of a block, and add the results from `since_us` on to `found`."""
    objects: list[tuple[int, int]] = []  # frame and track id of each object that has an event
    for at, judged in stages.judge(block, events):
        if block.at_us[at] >= since_us:
            captured_ns, at_us = block.tracks.captured_ns[at], int(block.at_us[at])
            for event in judged:
                event_us = at_us + (event.at_ns - captured_ns) // 1000
                found.events.append(ArchivedEvent(event, block.instance, block.epoch, block.frames[at], event_us))
            objects += [(at, event.track_id) for event in judged if event.track_id is not None]
    found.boxes.update(_boxes_in_block(block, objects))
    if block.at_us[-1] >= since_us:
        found.counts, found.frame_size_px = stages.counts(), block.frame_size_px
    found.frames += len(block.frames)


def _published_in_block(
    block: ArchivedBlock, wanted: Mapping[tuple[str, int, int], Sequence[int | None]]
) -> Iterator[tuple[int, int]]:
    """Yield the index of the frame and the track id for each published event of an object in a block.

    `wanted` contains the track ids of published events by instance, epoch, and frame.
    """
    for at, frame in enumerate(block.frames) if wanted else ():
        for track_id in wanted.get((block.instance, block.epoch, frame), ()):
            if track_id is not None:
                yield at, track_id


def _boxes_in_block(
    block: ArchivedBlock, objects: Iterable[tuple[int, int]]
) -> Iterator[tuple[tuple[str, int, int, int], Box]]:
    """Yield an entry of `Judgment.boxes` for each of `objects` that the block contains, as `boxes_of_tracks` does.

    An object is given by the index of its frame in the block, and its track id.
    """
    wanted = list(objects)
    if not wanted:
        return
    track_ids, frames = block.tracks.track_ids.tolist(), block.tracks.frames
    bounds = frames.searchsorted(np.arange(len(block.frames) + 1)).tolist()
    found: list[tuple[int, int, int]] = []
    for at, track_id in wanted:
        with suppress(ValueError):  # an object that was lost is not in the frame of its event
            found.append((track_ids.index(track_id, bounds[at], bounds[at + 1]), at, track_id))
    corners = block.tracks.boxes_xyxy[[row for row, _, _ in found]].tolist()
    for (_, at, track_id), (x1, y1, x2, y2) in zip(found, corners, strict=True):
        yield (block.instance, block.epoch, block.frames[at], track_id), (x1, y1, x2, y2)


def boxes_of_tracks(
    result: Result, instance: str, track_ids: Sequence[int | None]
) -> Iterator[tuple[tuple[str, int, int, int], Box]]:
    """Yield an entry of `Judgment.boxes` for each track in the frame of `result` whose id is in `track_ids`.

    `instance` identifies the run of the program. An entry is the key (instance, epoch, frame, track id) and the box.
    """
    tracks, meta = result.objects, result.meta
    if not track_ids or not isinstance(tracks, Tracks):
        return
    for track_id, box in zip(tracks.track_ids.tolist(), tracks.boxes_xyxy.tolist(), strict=True):
        if track_id in track_ids:
            yield (instance, meta.epoch, meta.index, track_id), tuple(box)


def initial_counts(
    archive: Archive, camera: str, since_us: int, until_us: int, events: Sequence[ArchivedEvent]
) -> dict[str, Counts]:
    """Return the counts before the first frame of each start of the program in a time range, by instance.

    `events` contains the archived events of the time range.

    The first archived counts of a start include the events before them, so these events are subtracted. The totals of a
    line come from its first event instead, which contains exact totals.
    """
    first = archive.first_counts(camera, since_us, until_us)
    initial = {instance: _before(counted, events) for instance, counted in first.items()}
    seen: set[tuple[str, str]] = set()
    for archived in events:
        key, event = (archived.instance, archived.event.name), archived.event
        if event.kind == "line_crossed" and key not in seen and archived.instance in initial:
            seen.add(key)
            totals = {each: event.data[f"total_{each}"] for each in ("in", "out")}
            totals[event.data["direction"]] -= 1
            lines = initial[archived.instance].lines
            initial[archived.instance] = replace(
                initial[archived.instance], lines={**lines, event.name: {**lines.get(event.name, {}), **totals}}
            )
    return initial


def _before(counted: ArchivedCounts, events: Sequence[ArchivedEvent]) -> Counts:
    lines = {name: dict(values) for name, values in counted.counts.lines.items()}
    zones = {name: dict(values) for name, values in counted.counts.zones.items()}
    for archived in events:
        event = archived.event
        if archived.instance != counted.instance or event.at_ns > counted.at_ns:
            continue
        for key, shape in _counted_keys(event.kind, event.data.get("direction", "")):
            totals = (lines if shape == "line" else zones).get(event.name, {})
            for each in (key, f"{key}:{event.data.get('class')}"):
                if totals.get(each):
                    totals[each] -= 1
    return Counts(lines, zones, {})


def _counted_keys(kind: str, direction: str) -> Iterator[tuple[str, str]]:
    """Yield the key of the counter that an event of this kind increases, and its owner, ``line`` or ``zone``."""
    if kind == "line_crossed":
        yield direction, "line"
    elif kind in ("zone_entered", "zone_left"):
        yield kind.removeprefix("zone_"), "zone"
