"""Judge archived tracks again: run the stages of `vision run` for lines, zones, and rules on the frames of an archive.

The tracker rounds its boxes to the precision of messages, so the archive contains exactly the values that the live
analytics read. Therefore, the same configuration yields the same events, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from vision.config import AppConfig
from vision.config.analytics import CameraAnalytics
from vision.outputs.archive.reader import Archive, ArchivedCounts, ArchivedEvent
from vision.stages.analytics import AnalyticsStage
from vision.stages.rules import RuleStage
from vision.state.counters import CameraCounters, CounterRow
from vision.types import Counts, Result, Tracks

WARM_UP_US: Final = 6 * 3_600_000_000
"""Time before the requested range that is judged too, so that the objects in zones and the states of rules are known
at the start of the range."""

_PROGRESS_FRAMES: Final = 10_000

Box: TypeAlias = tuple[float, float, float, float]


@dataclass(slots=True)
class Judgment:
    """The events of one camera in the requested range, and its last counts."""

    events: list[ArchivedEvent] = field(default_factory=list)
    boxes: dict[tuple[str, int, int, int], Box] = field(default_factory=dict)
    """Boxes x1, y1, x2, y2 in pixels of objects that have an event, by instance, epoch, frame, and track id."""
    counts: Counts | None = None
    frame_size_px: tuple[int, int] | None = None
    frames: int = 0  # number of judged frames, including those before the range


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
    published: Sequence[ArchivedEvent] = (),
    progress: Callable[[int], None] = lambda _frames: None,
) -> Judgment:
    """Judge the frames of a camera from `since_us` to before `until_us`, microseconds since 1970 (UTC).

    Args:
        archive: the archive.
        judge: the configuration.
        camera: name of the camera.
        since_us: start of the range. The frames up to `WARM_UP_US` before it are judged too, but are not in the result.
        until_us: end of the range.
        published: events for whose objects `Judgment.boxes` is needed too.
        progress: function that receives the number of judged frames.
    """
    found, stages, instance = Judgment(), judge.stages(), ""
    wanted: dict[tuple[str, int, int], list[int | None]] = {}
    for each in published:
        wanted.setdefault((each.instance, each.epoch, each.frame), []).append(each.event.track_id)
    initial = initial_counts(archive, camera, since_us - WARM_UP_US, until_us)
    for archived in archive.frames(camera, since_us - WARM_UP_US, until_us):
        if archived.instance != instance:  # the program was started again, with new stages
            instance = archived.instance
            stages = judge.stages(initial.get(instance))
        result = stages(archived.result)
        found.frames += 1
        if not found.frames % _PROGRESS_FRAMES:
            progress(found.frames)
        meta = result.meta
        if meta.captured_utc_ns >= since_us * 1000:
            found.counts, found.frame_size_px = result.counts, (meta.width_px, meta.height_px)
            track_ids = [event.track_id for event in result.events]
            track_ids += wanted.get((instance, meta.epoch, meta.index), ())
            found.boxes.update(boxes_of_tracks(archived.result, instance, track_ids))
            for event in result.events:
                at_us = (meta.captured_utc_ns + event.at_ns - meta.captured_ns) // 1000
                found.events.append(ArchivedEvent(event, instance, meta.epoch, meta.index, at_us))
    return found


def boxes_of_tracks(
    result: Result, instance: str, track_ids: Sequence[int | None]
) -> Iterator[tuple[tuple[str, int, int, int], Box]]:
    """Yield the key in `Judgment.boxes` and the box of each of these tracks that the frame contains."""
    tracks, meta = result.objects, result.meta
    if not track_ids or not isinstance(tracks, Tracks):
        return
    for track_id, box in zip(tracks.track_ids.tolist(), tracks.boxes_xyxy.tolist(), strict=True):
        if track_id in track_ids:
            yield (instance, meta.epoch, meta.index, track_id), tuple(box)


def initial_counts(archive: Archive, camera: str, since_us: int, until_us: int) -> dict[str, Counts]:
    """Return the counts before the first frame of each start of the program in a time range, by instance.

    The first archived counts include the events until then, so these are subtracted. The totals of a line come from
    its first event instead, which contains exact totals.
    """
    events = archive.events(camera, since_us, until_us)
    first: dict[str, ArchivedCounts] = {}
    for counted in archive.counts(camera, since_us, until_us):
        first.setdefault(counted.instance, counted)
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
    """Yield the counter that an event of this kind increases, and whether it belongs to a line or a zone."""
    if kind == "line_crossed":
        yield direction, "line"
    elif kind in ("zone_entered", "zone_left"):
        yield kind.removeprefix("zone_"), "zone"
