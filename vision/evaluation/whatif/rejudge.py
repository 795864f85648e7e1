"""Second evaluation of archived tracks: `Rejudgment` finds the events that a configuration would have caused.

It also reads the events that the program published, for a comparison.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple, TypeAlias

import numpy as np

from vision.config.rules import KINDS_OF_LINES, KINDS_OF_ZONES, RULE
from vision.evaluation.whatif.coverage import Coverage
from vision.evaluation.whatif.finding import FoundBlock, Search
from vision.evaluation.whatif.judge import Judge, RecordedStages
from vision.outputs.archive.reader import Archive, ArchivedCounts, ArchivedEvent
from vision.outputs.archive.rows import ArchivedBlock
from vision.types import Counts, Result, Tracks

WARM_UP_US: Final = 6 * 3_600_000_000
"""Time in microseconds before the requested range that is judged, too.

At the start of the range, the objects in zones and the states of rules are therefore known.
"""

_JUDGED: Final = frozenset({*KINDS_OF_LINES, *KINDS_OF_ZONES, RULE, "counters_reset"})
"""Kinds of events that come from lines, zones, and rules. Other events, such as `camera_lost`, are not judged again."""

Box: TypeAlias = tuple[float, float, float, float]
"""A box x1, y1, x2, y2 in pixels."""
Place: TypeAlias = tuple[str, int, int, int]
"""Instance, epoch, frame, and track id of an object that has an event."""


@dataclass(slots=True)
class Judgment:
    """Summary of the events of a configuration for one camera in a time range: numbers of events, and final counts."""

    tallies: Counter[tuple[str, str, str | None]] = field(default_factory=Counter)
    """Number of events by kind, name, and direction. The direction is None for events without a direction."""
    counts: Counts | None = None
    """The last counts; None if there are no frames in the range, or no lines and zones."""
    frame_size_px: tuple[int, int] | None = None
    """Width and height of the last frame; None if there are no frames in the range."""
    frames: int = 0
    """Number of judged frames, including frames before the range."""

    def add(self, events: Iterable[ArchivedEvent]) -> None:
        """Add the numbers of `events` by kind, name, and direction to `tallies`."""
        self.tallies.update((each.event.kind, each.event.name, each.event.data.get("direction")) for each in events)


class Part(NamedTuple):
    """Published and new events in one part of the time range. All events of later parts are later than `settled_us`."""

    published: Sequence[ArchivedEvent]  # the published events
    events: Sequence[ArchivedEvent]  # the new events
    settled_us: int  # microseconds since 1970 (UTC)


class Rejudgment:
    """Evaluation, part by part, of the archived frames of a camera at or after `since_us` and before `until_us`.

    `coverage` and `judgment` are complete when the iterator of `parts` has ended.
    """

    def __init__(self, archive: Archive, judge: Judge, camera: str, since_us: int, until_us: int) -> None:
        """Prepare the evaluation.

        Args:
            archive: the archive.
            judge: the configuration.
            camera: name of the camera.
            since_us: start of the range, in microseconds since 1970 (UTC). The evaluation also covers the frames up to
                `WARM_UP_US` before the range, but their events are not in the result.
            until_us: end of the range, in microseconds since 1970 (UTC).
        """
        self._archive, self._judge, self._camera = archive, judge, camera
        self._since_us, self._until_us = since_us, until_us
        self.coverage = Coverage(since_us, until_us)
        self.judgment = Judgment()

    @property
    def search(self) -> Search:
        """Archived frames that `parts` needs: those of the time range, and `WARM_UP_US` before it."""
        return Search(self._archive, self._judge, self._camera, self._since_us - WARM_UP_US, self._until_us)

    def parts(self, found: Iterable[FoundBlock]) -> Iterator[Part]:
        """Evaluate the blocks that `search` finds. Yield the events, in parts of about an hour."""
        initial = initial_counts(self._archive, self._camera, self._since_us - WARM_UP_US, self._until_us)
        stages, instance, settled_us = self._judge.recorded_stages(), "", -1
        published, events = self._published(), list[ArchivedEvent]()
        next(published)
        for each in found:
            block = each.block
            if block.settled_us > settled_us:
                settled_us = block.settled_us
                yield Part(published.send(settled_us), events, settled_us)
                events = []
            if block.instance != instance:  # the program was started again, with new stages
                instance = block.instance
                stages = self._judge.recorded_stages(initial.get(instance))
            new = [*self._events(stages, each)]
            events += new
            self._add(block, new, stages)
        self.coverage.finish()
        yield Part(published.send(_END_US), events, _END_US)

    def _add(self, block: ArchivedBlock, events: Sequence[ArchivedEvent], stages: RecordedStages) -> None:
        found = self.judgment
        found.add(events)
        found.frames += len(block.frames)
        self.coverage.add(block.at_us)
        if block.at_us[-1] >= self._since_us:
            found.counts, found.frame_size_px = stages.counts(), block.frame_size_px

    def _events(self, stages: RecordedStages, found: FoundBlock) -> Iterator[ArchivedEvent]:
        block = found.block
        at_us, captured_ns = block.at_us.tolist(), block.tracks.captured_ns
        for at, events in stages.judge(block, found.events):
            if at_us[at] >= self._since_us:
                for event in events:
                    event_us = at_us[at] + (event.at_ns - captured_ns[at]) // 1000
                    yield ArchivedEvent(event, block.instance, block.epoch, block.frames[at], event_us)

    def _published(self) -> Generator[list[ArchivedEvent], int, None]:
        """Yield the published events, step by step. The caller sends times in ascending order.

        For each time, yield the published events after the previous time and up to this time. The first value, before
        any time, is an empty list.
        """
        waiting = list[ArchivedEvent]()
        until_us = yield waiting
        for hour in self._archive.hours_of_events(self._camera, self._since_us, self._until_us):
            while min(each.at_us for each in hour) > until_us:
                settled = [each for each in waiting if each.at_us <= until_us]
                waiting = [each for each in waiting if each.at_us > until_us]
                until_us = yield settled
            waiting += [each for each in hour if each.event.kind in _JUDGED]
        while True:
            settled = [each for each in waiting if each.at_us <= until_us]
            waiting = [each for each in waiting if each.at_us > until_us]
            until_us = yield settled


_END_US: Final = 1 << 62  # later than all events
_FRAME_US: Final = 60_000_000  # more than the time between an event and its frame


def boxes_of_events(archive: Archive, camera: str, events: Sequence[ArchivedEvent]) -> dict[Place, Box]:
    """Return the box of the object of each event, in the frame of the event. Omit boxes that the archive lacks."""
    wanted: dict[tuple[str, int, int], list[int]] = {}
    for each in events:
        if each.event.track_id is not None:
            wanted.setdefault((each.instance, each.epoch, each.frame), []).append(each.event.track_id)
    found: dict[Place, Box] = {}
    if wanted:
        times_us = [each.at_us for each in events]
        for block in archive.blocks(camera, min(times_us) - _FRAME_US, max(times_us) + _FRAME_US):
            keys = ((block.instance, block.epoch, frame) for frame in block.frames)
            objects = [(at, track_id) for at, key in enumerate(keys) for track_id in wanted.get(key, ())]
            found.update(_boxes_in_block(block, objects))
    return found


def _boxes_in_block(block: ArchivedBlock, objects: Sequence[tuple[int, int]]) -> Iterator[tuple[Place, Box]]:
    """Yield the `Place` and the box of each of `objects` that the block contains.

    Each object consists of the index of its frame in the block, and its track id.
    """
    if not objects:
        return
    track_ids, frames = block.tracks.track_ids.tolist(), block.tracks.frames
    bounds = frames.searchsorted(np.arange(len(block.frames) + 1)).tolist()
    found: list[tuple[int, int, int]] = []
    for at, track_id in objects:
        with suppress(ValueError):  # an object that was lost is not in the frame of its event
            found.append((track_ids.index(track_id, bounds[at], bounds[at + 1]), at, track_id))
    corners = block.tracks.boxes_xyxy[[row for row, _, _ in found]].tolist()
    for (_, at, track_id), (x1, y1, x2, y2) in zip(found, corners, strict=True):
        yield (block.instance, block.epoch, block.frames[at], track_id), (x1, y1, x2, y2)


def boxes_of_tracks(result: Result, instance: str, track_ids: Sequence[int | None]) -> Iterator[tuple[Place, Box]]:
    """Yield the `Place` and the box of each track of `result` whose id is in `track_ids`.

    `instance` identifies the run of the program.
    """
    tracks, meta = result.objects, result.meta
    if not track_ids or not isinstance(tracks, Tracks):
        return
    for track_id, box in zip(tracks.track_ids.tolist(), tracks.boxes_xyxy.tolist(), strict=True):
        if track_id in track_ids:
            yield (instance, meta.epoch, meta.index, track_id), tuple(box)


def initial_counts(archive: Archive, camera: str, since_us: int, until_us: int) -> dict[str, Counts]:
    """Return the counts before the first frame of each run of the program in a time range, by instance.

    The first archived counts of a run already include the events from its first frame until these counts, so this
    function subtracts those events. For a line, the function uses the totals in the first event of the line, because
    these totals are exact.
    """
    first = archive.first_counts(camera, since_us, until_us)
    until_ns = {instance: counted.at_ns for instance, counted in first.items()}
    events = [*archive.opening_events(camera, since_us, until_us, until_ns)]
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
    """Yield the key of the counter that an event increases, and the kind of shape (``line`` or ``zone``) that has it.

    Yield nothing for kinds of events that increase no counter. `direction` is the direction of a crossing.
    """
    if kind == "line_crossed":
        yield direction, "line"
    elif kind in ("zone_entered", "zone_left"):
        yield kind.removeprefix("zone_"), "zone"
