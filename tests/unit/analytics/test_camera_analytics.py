"""Tests of the lines, zones, crowding, speeds, and counters of one camera."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from pydantic import ValidationError

from tests.soak.counting import count, differences
from tests.soak.traffic import Traffic
from vision.analytics.camera_analytics import Analytics
from vision.analytics.geometry import GroundPlane, ZoneSet
from vision.config.analytics import CameraAnalytics
from vision.config.fields import INCONSISTENT
from vision.state.counters import CameraCounters
from vision.state.database import StateDatabase
from vision.types import Event, Tracks

STEP_NS = 100_000_000
CLASSES = ("person", "bicycle", "car")
Place = tuple[float, float]


def tracks(*objects: tuple[int, Place] | tuple[int, Place, int], height: float = 100.0) -> Tracks:
    """Return tracks of objects with a width of 40 px and a height of `height` px.

    Each object is (id, foot point) or (id, foot point, class).
    """
    feet = np.array([entry[1] for entry in objects], np.float32).reshape(-1, 2)
    boxes = np.stack([feet[:, 0] - 20, feet[:, 1] - height, feet[:, 0] + 20, feet[:, 1]], axis=1)
    return Tracks(
        boxes_xyxy=boxes,
        scores=np.full(len(objects), 0.9, np.float32),
        class_ids=np.array([entry[2] if len(entry) > 2 else 0 for entry in objects], np.int32),
        track_ids=np.array([entry[0] for entry in objects], np.int64),
        age_ms=np.zeros(len(objects), np.int64),
    )


def analytics(
    width: int = 1000, height: int = 1000, counters: CameraCounters | None = None, **config: Any
) -> Analytics:
    return Analytics(CameraAnalytics.model_validate(config), "gate", CLASSES, width, height, counters=counters)


def line(points: Sequence[Place] = ((500, 0), (500, 1000)), **more: Any) -> dict[str, Any]:
    return {"name": "door", "points": points, **more}


def zone(polygon: Sequence[Place] = ((200, 200), (800, 200), (800, 800), (200, 800)), **more: Any) -> dict[str, Any]:
    return {"name": "queue", "polygon": polygon, **more}


def walk(stage: Analytics, places: Iterable[Place], track_id: int = 7, class_id: int = 0) -> list[Event]:
    return play(stage, [tracks((track_id, place, class_id)) for place in places])


_now_ns = 0


def play(stage: Analytics, frames: Iterable[Tracks], step_ns: int = STEP_NS) -> list[Event]:
    """Process the frames one after another, and return the events. The clock continues from the previous call."""
    global _now_ns  # noqa: PLW0603 - the one clock of these tests
    events: list[Event] = []
    for frame in frames:
        _now_ns += step_ns
        events += stage.update(frame, _now_ns)
    return events


def kinds(events: Iterable[Event]) -> list[tuple[str, str]]:
    return [(event.kind, event.data["phase"]) for event in events]


def along(*corners: Place, steps: int = 10) -> list[Place]:
    """Return a path through `corners`, with `steps` steps between successive corners."""
    path = [corners[0]]
    for (x0, y0), (x1, y1) in pairwise(corners):
        path += [(x0 + (x1 - x0) * k / steps, y0 + (y1 - y0) * k / steps) for k in range(1, steps + 1)]
    return path


# --- lines ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "path", "direction"),
    [
        # Seen from the first point towards the second, `in` is from left to right.
        (((100, 500), (900, 500)), ((500, 300), (500, 700)), "in"),  # drawn to the right: downwards
        (((100, 500), (900, 500)), ((500, 700), (500, 300)), "out"),
        (((900, 500), (100, 500)), ((500, 300), (500, 700)), "out"),  # drawn to the left
        (((500, 100), (500, 900)), ((700, 500), (300, 500)), "in"),  # drawn downwards: to the left
        (((500, 900), (500, 100)), ((300, 500), (700, 500)), "in"),  # drawn upwards: to the right
        (((100, 100), (900, 900)), ((700, 300), (300, 700)), "in"),  # drawn to the lower right
    ],
)
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_crossing_from_left_to_right_is_in(
    points: Sequence[Place], path: Sequence[Place], direction: str, steps: int
) -> None:
    stage = analytics(lines=[line(points)])
    (event,) = walk(stage, along(*path, steps=steps))
    assert (event.kind, event.name, event.camera_id, event.track_id) == ("line_crossed", "door", "gate", 7)
    assert event.data["direction"] == direction and event.data["phase"] == "instant"
    assert stage.counts().lines["door"][direction] == 1 and stage.counts().lines["door"][f"{direction}:person"] == 1


@pytest.mark.parametrize(
    ("path", "crossings"),
    [
        ([(300, 500), (700, 500)], ["out"]),
        ([(300, 500), (700, 500), (300, 500)], ["out", "in"]),
        ([(300, 500), (489, 500), (300, 500)], []),  # turned back before the line
        ([(300, 500), (509, 500), (300, 500)], []),  # hardly beyond the line: within the margin of 10 px
        ([(300, 500), (519, 500), (300, 500)], []),  # slightly beyond the line, for a moment
        ([(300, 500), (521, 500), (300, 500)], ["out", "in"]),  # clearly beyond the line: twice the margin
        ([(300, 500), *[(511, 500)] * 6, (300, 500)], ["out", "in"]),  # slightly beyond the line, for half a second
        ([(300, 500), *[(511, 500)] * 5, (300, 500)], []),
        ([(300, 500), *[(511, 500), (509, 500)] * 3, (300, 500)], ["out", "in"]),  # with small movements there
        ([(300, 500), *[(511, 500), (511, 500), (499, 500), (499, 500)] * 3, (300, 500)], []),  # back over the line
        ([(300, 500), (509, 500), (491, 500), (509, 500), (491, 500), (700, 500)], ["out"]),  # jitters on the line
        ([(300, 500), (500, 500), (700, 500)], ["out"]),  # exactly on the line
        ([(300, 500), (500, 500), (300, 500)], []),
        ([(500, 500), (700, 500)], []),  # appeared on it: the side is unknown
        ([(491, 500), (700, 500)], []),  # appeared within the margin: jitter can have hidden its side
        ([(489, 500), (700, 500)], ["out"]),  # appeared just before the line
        ([(497, 500), (489, 500), (700, 500)], ["out"]),
        ([(503, 500), (497, 500), (700, 500), (300, 500)], ["in"]),
    ],
)
def test_crossing_is_counted_once(path: list[Place], crossings: list[str]) -> None:
    stage = analytics(lines=[line()])
    assert [event.data["direction"] for event in walk(stage, path)] == crossings


@pytest.mark.parametrize(
    ("path", "crossings"),
    [
        ([(300, 100), (700, 100)], []),  # passes beyond the end
        ([(300, 100), (700, 100), (700, 500), (300, 500)], ["in"]),  # around the end and back through
        ([(300, 500), (700, 500), (700, 100), (300, 100), (300, 500), (700, 500)], ["out", "out"]),  # around the end
        ([(488, 500), (512, 100), (700, 100)], ["out"]),  # the path meets the line at y = 300
        ([(488, 290), (512, 100), (700, 100)], []),  # the path meets only the extension of the line
    ],
)
def test_path_around_the_end_of_a_line_is_not_counted(path: list[Place], crossings: list[str]) -> None:
    stage = analytics(lines=[line(((500, 200), (500, 800)))])
    assert [event.data["direction"] for event in walk(stage, path)] == crossings


def test_crossing_during_occlusion_is_counted() -> None:
    stage = analytics(lines=[line()])
    path = [tracks((7, (300, 500))), *[tracks()] * 10, tracks((7, (700, 500)))]
    assert kinds(play(stage, path)) == [("line_crossed", "instant")]


@pytest.mark.parametrize(("direction", "expected"), [("in", ["in"]), ("out", ["out"]), ("both", ["out", "in"])])
def test_only_the_configured_direction_is_counted(direction: str, expected: list[str]) -> None:
    stage = analytics(lines=[line(direction=direction)])
    assert [event.data["direction"] for event in walk(stage, [(300, 500), (700, 500), (300, 500)])] == expected
    counts = stage.counts().lines["door"]
    assert counts["in"] + counts["out"] == len(expected)


@pytest.mark.parametrize("anchor", ["bottom-center", "center", "top-center", "center-left", "center-right"])
def test_anchor_decides_on_a_crossing(anchor: str) -> None:
    offset = {
        "bottom-center": (0.0, 0.0),
        "center": (0.0, -50.0),
        "top-center": (0.0, -100.0),
        "center-left": (-20.0, -50.0),
        "center-right": (20.0, -50.0),
    }[anchor]
    vertical = line(((500 + offset[0], 0), (500 + offset[0], 1000)), anchor=anchor)
    horizontal = line(((0, 500 + offset[1]), (1000, 500 + offset[1])), anchor=anchor) | {"name": "sill"}
    stage = analytics(lines=[vertical, horizontal])
    assert walk(stage, [(400, 400), (489, 489)]) == []
    assert [event.name for event in walk(stage, [(521, 489), (521, 521)])] == ["door", "sill"]


@pytest.mark.parametrize(
    ("xs", "jitter", "crossings"),
    [
        # Each object moves by 2 px per frame. The margin is 4 px if it moves smoothly, and 10 px if its box jitters.
        (range(492, 600, 2), 0.0, ["out"]),  # first detected 8 px from the line
        (range(492, 600, 2), 5.0, []),
        (range(497, 600, 2), 0.0, []),  # first detected within the margin
        ([*range(440, 510, 2), *range(510, 440, -2)], 0.0, ["out", "in"]),  # 10 px beyond the line for a second
        ([*range(440, 510, 2), *range(510, 440, -2)], 5.0, []),
        ([*range(440, 502, 2), *range(502, 440, -2)], 0.0, []),
        (range(440, 508, 2), 0.0, ["out"]),  # lost 6 px beyond the line
        (range(440, 508, 2), 5.0, []),
    ],
)
def test_margin_of_a_line_grows_with_the_jitter_of_the_box(
    xs: Iterable[float], jitter: float, crossings: list[str]
) -> None:
    """The jitter is perpendicular to the motion, so it does not change the distances from the line."""
    stage = analytics(lines=[line()])
    path = [(float(x), 500.0 + (jitter if at // 2 % 2 else -jitter)) for at, x in enumerate(xs)]
    events = [*walk(stage, path), *play(stage, [tracks()] * 16)]
    assert [event.data["direction"] for event in events] == crossings


@pytest.mark.parametrize(
    ("fps", "jitter", "crossings"),
    [
        *[(fps, 0.0, ["out"]) for fps in (30.0, 10.0, 5.0, 2.5, 1.0)],
        *[(fps, 10.0, list[str]()) for fps in (30.0, 10.0, 5.0, 2.5)],
    ],
)
def test_a_turn_is_not_measured_as_jitter_at_any_frame_rate(fps: float, jitter: float, crossings: list[str]) -> None:
    """The object turns by 153 degrees in 4 s, and is lost 6 px beyond the line. The jitter is parallel to the line."""
    stage = analytics(lines=[line()])
    angles = np.arange(round(4 * fps), -1, -1) / fps / 1.5
    places = np.column_stack([506 - 150 * np.sin(angles), 500 + 150 * (1 - np.cos(angles))])
    places[:, 1] += jitter * (-1.0) ** (np.arange(len(places)) // math.ceil(fps / 8))  # of every measured position
    path = [tracks((7, (float(x), float(y)))) for x, y in places]
    events = play(stage, [*path, *[tracks()] * round(3 * fps)], round(1e9 / fps))
    assert [event.data["direction"] for event in events] == crossings


@pytest.mark.parametrize(
    ("before", "crossings"), [((450, 500), ["out"]), ((600, 500), []), ((450, 1200), []), (None, [])]
)
def test_path_starts_before_the_first_published_box(before: Place | None, crossings: list[str]) -> None:
    stage = analytics(lines=[line(((500, 300), (500, 700)))])
    first = tracks((7, (550, 500)), (8, (900, 500)))
    previous = np.full((2, 4), np.nan, np.float32)
    if before is not None:
        previous[0] = tracks((7, before)).boxes_xyxy[0]
    events = play(stage, [replace(first, previous_xyxy=previous), tracks((7, (560, 500)))])
    assert [event.data["direction"] for event in events] == crossings


def test_other_classes_are_not_counted() -> None:
    stage = analytics(lines=[line(classes=["car", "bicycle"])], zones=[zone(classes=["person"])])
    for class_id, track_id in ((0, 1), (1, 2), (2, 3), (77, 4), (-1, 5)):
        walk(stage, along((100, 500), (900, 500)), track_id, class_id)
    assert stage.counts().lines["door"] == {"in": 0, "out": 2, "out:bicycle": 1, "out:car": 1}
    assert stage.counts().zones["queue"] == {"entered": 1, "left": 1, "entered:person": 1, "left:person": 1}


def test_unnamed_classes_count_if_all_classes_do() -> None:
    stage = analytics(lines=[line()])
    (event,) = walk(stage, [(300, 500), (700, 500)], class_id=77)
    assert event.data["class"] == "77" and event.data["class_id"] == 77


@pytest.mark.integration
@settings(max_examples=150, deadline=None)
@given(
    path=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=2, max_size=30),
    ends=st.tuples(*[st.integers(0, 1000)] * 4).filter(lambda e: e[:2] != e[2:] and max(e) > 1),
)
def test_in_and_out_alternate_on_an_infinite_line(path: list[Place], ends: tuple[int, ...]) -> None:
    """The events `in` and `out` alternate on any path across an infinite line."""
    x0, y0, x1, y1 = ends
    stage = analytics(lines=[line(((x0, y0), (x1, y1)))])
    length = math.hypot(x1 - x0, y1 - y0)
    stage._line_watch.place(
        [((x0 - 999.0 * (x1 - x0), y0 - 999.0 * (y1 - y0)), (x1 + 999.0 * (x1 - x0), y1 + 999.0 * (y1 - y0)))]
    )
    directions = [event.data["direction"] for event in walk(stage, path, track_id=1)]
    assert all(a != b for a, b in pairwise(directions))
    sides = [((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) / length for x, y in path]
    clear = [side > 0 for side in sides if abs(side) > 20.01]
    if len(clear) == len(path):
        assert len(directions) == sum(a != b for a, b in pairwise(clear))


def test_object_lost_slightly_beyond_a_line_has_crossed_it() -> None:
    """A camera often sees nothing behind a door, so its last view of a person is slightly beyond the line."""
    stage = analytics(lines=[line()])
    assert walk(stage, [(300, 500), (490, 500), (511, 500)]) == []
    (event,) = play(stage, [tracks()] * 16)
    assert event.data["direction"] == "out" and event.track_id == 7 and stage.counts().lines["door"]["out"] == 1
    assert len(stage._objects.table.ids) == 0


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ([(300, 500), (490, 500), (509, 500)], {}),  # within the margin
        ([(300, 500), (490, 500), (511, 500)], {"direction": "in"}),
        ([(300, 500), (490, 500), (511, 500)], {"classes": ["car"]}),
        ([(511, 500)], {}),  # appeared beyond the line
        ([(300, 100), (511, 100)], {"points": ((500, 200), (500, 800))}),  # beyond the end of the line
    ],
)
def test_object_lost_near_a_line_has_not_always_crossed_it(path: list[Place], more: dict[str, Any]) -> None:
    stage = analytics(lines=[line(**more)])
    assert [*walk(stage, path), *play(stage, [tracks()] * 16)] == []


@pytest.mark.parametrize(
    ("path", "crossings"),
    [
        ([(300, 500), (700, 500)], ["out"]),  # hidden for longer than a lost track counts as present
        ([(300, 500), (511, 500), (300, 500)], ["out", "in"]),  # counted when it was lost
        ([(300, 500), (511, 500), (700, 500)], ["out"]),
        ([(300, 500), (509, 500), (495, 500), (300, 500)], []),
        ([(495, 500), (505, 500), (700, 500)], []),
    ],
)
def test_lost_object_that_returns_with_its_id_continues_its_path(path: list[Place], crossings: list[str]) -> None:
    stage = analytics(lines=[line()])
    events = [event for place in path for event in play(stage, [tracks((7, place)), *[tracks()] * 20])]
    assert [event.data["direction"] for event in events] == crossings


@pytest.mark.parametrize(("absent_s", "crossings"), [(59, 1), (61, 0)])
def test_path_of_a_lost_object_ends_after_a_minute(absent_s: int, crossings: int) -> None:
    stage = analytics(lines=[line()])
    walk(stage, [(300, 500)])
    play(stage, [tracks()] * (10 * absent_s))
    assert len(walk(stage, [(700, 500)])) == crossings
    assert len(stage._line_watch._absent) == 0


# Boxes of 40 x 100 px below a line at y = 940: the frame cuts off those that end at y = 1000.
@pytest.mark.parametrize(
    ("line_y", "feet_y", "crossings"),
    [
        (993, (1000, 800), ["out"]),  # enters the frame
        (993, (999, 800), ["out"]),
        (993, (998, 800), []),  # not cut off
        (996, (1000, 800), []),  # within half of the margin
        (993, (800, 1000), ["in"]),  # leaves the frame
        (993, (800, 998), []),
        (996, (800, 1000), []),
        (993, (800, 1000, 990, 800), []),
    ],
)
def test_edge_of_the_frame_halves_the_margin(line_y: float, feet_y: Sequence[float], crossings: list[str]) -> None:
    stage = analytics(lines=[line(((0, line_y), (1000, line_y)))])
    events = [*walk(stage, [(500, y) for y in feet_y]), *play(stage, [tracks()] * 16)]
    assert [event.data["direction"] for event in events] == crossings


@given(
    inside=st.lists(st.floats(0, 300), min_size=1, max_size=40),
    noise=st.lists(st.floats(-3.9, 3.9), min_size=40, max_size=40),
    present=st.lists(st.sampled_from([1, 1, 1, 2, 5, 20]), min_size=40, max_size=40),
)
@settings(max_examples=80, deadline=None)
def test_no_crossing_is_invented_by_noise_below_the_margin(
    inside: list[float], noise: list[float], present: list[int]
) -> None:
    """An object of 100 px stays on one side. Its anchor is wrong by less than 4 px, and the object is often hidden."""
    stage = analytics(lines=[line()])
    places = [500 + offset + error for offset, error in zip(inside, noise, strict=False)]
    frames = [
        frame for x, steps in zip(places, present, strict=False) for frame in (tracks((7, (x, 500))), *_no(steps))
    ]
    assert play(stage, [*frames, *_no(20)]) == []


@given(
    sides=st.lists(
        st.lists(st.floats(20.1, 300), min_size=1, max_size=4).map(tuple)
        | st.floats(10.1, 300).map(lambda x: (x,) * 6),
        min_size=2,
        max_size=8,
    ),
    step=st.sampled_from([1, 2, 5, 14]),
)
@settings(max_examples=80, deadline=None)
def test_no_crossing_is_missed_of_an_object_that_stays_on_each_side(sides: list[tuple[float, ...]], step: int) -> None:
    """Each visit to a side reaches far beyond the line, or remains beyond the margin for half a second."""
    stage = analytics(lines=[line()])
    places = [
        (500 + (distance if at % 2 else -distance), 500.0) for at, visit in enumerate(sides) for distance in visit
    ]
    events = play(stage, [tracks((7, place)) for place in places], step_ns=step * STEP_NS)
    assert [event.data["direction"] for event in events] == [("out", "in")[at % 2] for at in range(len(sides) - 1)]


def _no(frames: int) -> list[Tracks]:
    return [tracks()] * (frames - 1)


def test_new_epoch_counts_an_object_slightly_beyond_a_line() -> None:
    stage = analytics(lines=[line()])
    walk(stage, [(300, 500), (490, 500), (511, 500)])
    assert kinds(stage.restart(1000, 1000, _now_ns)) == [("line_crossed", "instant")]


# --- zones ------------------------------------------------------------------------------------------------------------


def test_zone_reports_entering_and_leaving() -> None:
    stage = analytics(zones=[zone()])
    events = walk(stage, along((100, 500), (500, 500), (900, 500), steps=8))
    assert kinds(events) == [("zone_entered", "instant"), ("zone_left", "instant")]
    entered, left = events
    assert entered.data["how"] == left.data["how"] == "crossed"
    assert entered.data["occupancy"] == 1 and left.data["occupancy"] == 0
    assert left.data["stayed_s"] == pytest.approx((left.at_ns - entered.at_ns) * 1e-9)
    assert stage.counts().zones["queue"]["entered"] == stage.counts().zones["queue"]["left"] == 1


@pytest.mark.parametrize(
    ("path", "entries"),
    [
        ([(100, 500), (209, 500), (100, 500)], 0),  # within the margin
        ([(100, 500), (211, 500), (100, 500)], 1),
        ([(100, 500), (211, 500), (191, 500), (209, 500), (191, 500), (500, 500)], 1),  # jitters at the border
        ([(500, 500)], 1),  # appears inside
        ([(201, 500)], 1),  # appears at the border
        ([(100, 500), (900, 500)], 0),  # jumps over the zone
    ],
)
def test_jitter_at_a_border_enters_a_zone_once(path: list[Place], entries: int) -> None:
    stage = analytics(zones=[zone()])
    walk(stage, path)
    assert stage.counts().zones["queue"]["entered"] == entries


def test_object_lost_in_a_zone_leaves_it_after_forget_s() -> None:
    stage = analytics(zones=[zone(dwell_s=0.5)])
    play(stage, [tracks((7, (500, 500)))] * 11)
    assert play(stage, [tracks()] * 15) == []
    assert stage.counts().occupancy == {"queue": 1}
    ended, left = play(stage, [tracks()])
    assert (ended.kind, ended.data["phase"], ended.data["stayed_s"]) == ("dwelling", "end", 1.0)
    assert left.data["how"] == "lost" and left.data["stayed_s"] == 1.0 and left.track_id == 7
    assert stage.counts().occupancy == {"queue": 0} and len(stage._objects.table.ids) == 0


def test_dwelling_begins_once_per_stay_and_ends() -> None:
    stage = analytics(zones=[zone(dwell_s=1.0)])
    events = walk(stage, [(500.0, 500.0)] * 30 + [(900.0, 500.0)])
    assert kinds(events) == [
        ("zone_entered", "instant"),
        ("dwelling", "begin"),
        ("dwelling", "end"),
        ("zone_left", "instant"),
    ]
    assert events[1].data["stayed_s"] == 1.0 and events[2].data["stayed_s"] == 3.0
    assert {event.track_id for event in events} == {7}


def test_dwelling_of_a_hidden_object_begins_when_it_is_detected_again() -> None:
    stage = analytics(zones=[zone(dwell_s=1.0)])
    here, hidden, others = tracks((7, (500, 500))), tracks(), tracks((8, (500, 500)))
    assert kinds(play(stage, [*[here] * 8, *[hidden] * 3, *[others] * 2])) == [("zone_entered", "instant")] * 2
    (begin,) = play(stage, [here])
    assert (begin.kind, begin.track_id, begin.data["stayed_s"]) == ("dwelling", 7, 1.3)


def crowd(*numbers: int) -> Iterator[Tracks]:
    for number in numbers:
        yield tracks(*((at + 1, (300 + 40 * at, 500)) for at in range(number)))


def test_crowding_begins_above_and_ends_at_or_below() -> None:
    stage = analytics(zones=[zone(crowd_threshold=2)])
    events = [event for event in play(stage, crowd(1, 2, 3, 4)) if event.kind == "crowded"]
    assert [dict(event.data) for event in events] == [{"phase": "begin", "occupancy": 3, "above": 2}]
    events = [event for event in play(stage, [*crowd(4), *[*crowd(2)] * 20]) if event.kind == "crowded"]
    (end,) = events
    assert end.data["phase"] == "end" and end.data["most"] == 4 and end.data["occupancy"] == 2
    assert end.track_id is None and end.name == "queue"


def test_crowding_lasts_crowded_for_s_without_a_break() -> None:
    """First, one person leaves briefly every second, so the zone is not crowded for 1.5 s. Then the person stays."""
    stage = analytics(zones=[zone(crowd_threshold=2, crowded_for_s=1.5)])
    inside = [(1, (300, 500)), (2, (400, 500))]
    out, back = tracks(*inside, (3, (100, 500))), tracks(*inside, (3, (500, 500)))
    restless = [event for event in play(stage, [*[out] * 2, *[back] * 10] * 5) if event.kind == "crowded"]
    assert restless == []
    (begin,) = (event for event in play(stage, [*[out] * 2, *[back] * 16]) if event.kind == "crowded")
    assert begin.data["phase"] == "begin"
    (end,) = (event for event in play(stage, [*[out] * 10, *[back] * 2, *[out] * 16]) if event.kind == "crowded")
    assert end.data["phase"] == "end" and end.data["lasted_s"] > 3


def test_restart_ends_states_and_keeps_counters() -> None:
    stage = analytics(zones=[zone(crowd_threshold=1, dwell_s=0.2)])
    play(stage, [*crowd(2)] * 5)
    events = stage.restart(1000, 1000, _now_ns)
    assert sorted(kinds(events)) == [("crowded", "end"), *[("dwelling", "end")] * 2, *[("zone_left", "instant")] * 2]
    assert stage.counts().occupancy == {"queue": 0} and stage.counts().zones["queue"]["entered"] == 2


@pytest.mark.parametrize(("units", "whole"), [("fraction", 1.0), ("percent", 100.0)])
def test_fractions_and_percent_follow_the_frame_size(units: str, whole: float) -> None:
    stage = analytics(640, 480, units=units, lines=[line(((0.5 * whole, 0.0), (0.5 * whole, whole)))])
    assert len(walk(stage, [(300, 200), (345, 200)])) == 1
    stage.restart(1280, 960, _now_ns)
    assert walk(stage, [(300, 200), (345, 200)]) == []
    assert len(walk(stage, [(600, 200), (680, 200)])) == 1


# --- time and memory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump_s", [-3600.0, -0.3, 0.0])
def test_backward_clock_jump_keeps_objects(jump_s: float) -> None:
    stage = analytics(lines=[line()], zones=[zone(dwell_s=100)])
    before = [(100_000_000 * k, (300.0, 500.0)) for k in range(20)]
    after = [(2_000_000_000 + round(jump_s * 1e9) + 100_000_000 * k, (300.0 + 30 * k, 500.0)) for k in range(10)]
    events = [event for at_ns, place in (*before, *after) for event in stage.update(tracks((7, place)), at_ns)]
    assert kinds(events) == [("zone_entered", "instant"), ("line_crossed", "instant")]


@pytest.mark.parametrize("jump_s", [5.0, 86_400.0])
def test_forward_clock_jump_forgets_objects_and_starts_no_state(jump_s: float) -> None:
    stage = analytics(zones=[zone(dwell_s=3, crowd_threshold=1, crowded_for_s=3)])
    play(stage, [*crowd(2)] * 10)
    events = play(stage, crowd(2), step_ns=round(jump_s * 1e9))
    assert kinds(events) == [("zone_left", "instant")] * 2 + [("zone_entered", "instant")] * 2
    assert all(event.data["stayed_s"] <= 1 for event in events if event.kind == "zone_left")


def test_object_is_forgotten_after_forget_s() -> None:
    stage = analytics(lines=[line()], zones=[zone()])
    sizes = []
    for at in range(300):
        play(stage, [tracks((at + 1, (400, 400)), (at + 2, (600, 400)))])
        sizes.append(len(stage._objects.table.ids))
    assert max(sizes) <= 2 + 16


def test_ids_in_any_order_keep_their_state() -> None:
    rng = np.random.default_rng(5)
    stage = analytics(lines=[line()])
    people = {int(i): float(x) for i, x in zip(rng.permutation(40) + 1, rng.uniform(50, 450, 40), strict=True)}
    crossed: list[int] = []
    for step in range(0, 1000, 20):
        present = [i for i in rng.permutation(list(people)) if rng.random() < 0.8]
        frame = tracks(*((int(i), (people[int(i)] + step, 20.0 * i)) for i in present))
        crossed += [event.track_id or 0 for event in play(stage, [frame])]
    assert sorted(crossed) == sorted(people)


# --- motion -----------------------------------------------------------------------------------------------------------

ROAD: dict[str, list[Place]] = {
    "points": [(400, 400), (600, 400), (900, 900), (100, 900)],
    "metres": [(0, 40), (8, 40), (8, 0), (0, 0)],
}


def on_frame(x_m: float, y_m: float) -> Place:
    """Return the position in the frame of a point on the road. This function is the inverse of the code under test."""
    plane = GroundPlane([(0, 0), (8, 0), (8, 40), (0, 40)], [(100, 900), (900, 900), (600, 400), (400, 400)])
    return plane.to_meters(x_m, y_m)


def motion(stage: Analytics) -> tuple[float, float]:
    """Return the speed in km/h and the direction in degrees of the only object."""
    (_,) = stage._objects.table.ids
    return stage._objects.motion(0)


@pytest.mark.parametrize("speed_kmh", [5.0, 30.0, 50.0])
@pytest.mark.parametrize("fps", [5.0, 10.0, 30.0])
def test_speed_does_not_depend_on_frame_rate_and_jitter(speed_kmh: float, fps: float) -> None:
    rng = np.random.default_rng(4)
    stage = analytics(ground=ROAD)
    for at in range(round(2 * fps)):
        x, y = on_frame(4.0, 1.0 + speed_kmh / 3.6 * at / fps)
        jitter = rng.normal(0, 0.3, 2)
        stage.update(tracks((7, (x + jitter[0], y + jitter[1]))), round(at / fps * 1e9))
    speed, heading = motion(stage)
    assert speed == pytest.approx(speed_kmh, rel=0.1, abs=1.0)
    assert min(heading, 360 - heading) < 10  # upwards in the frame


@pytest.mark.parametrize(
    ("step", "heading_deg"), [((0, -9), 0), ((9, 0), 90), ((0, 9), 180), ((-9, 0), 270), ((9, 9), 135)]
)
def test_heading_is_the_direction_of_travel(step: Place, heading_deg: float) -> None:
    stage = analytics(lines=[line()])
    walk(stage, [(500 + step[0] * k, 500 + step[1] * k) for k in range(15)])
    _, heading = motion(stage)
    assert (heading - heading_deg + 180) % 360 - 180 == pytest.approx(0, abs=0.5)


def test_standing_and_new_objects_have_no_motion() -> None:
    stage = analytics(ground=ROAD)
    walk(stage, [(500, 800)])
    assert all(math.isnan(value) for value in motion(stage))
    walk(stage, [(500, 800)] * 20)
    speed, heading = motion(stage)
    assert speed == pytest.approx(0, abs=1e-6) and math.isnan(heading)


def test_no_speed_without_a_ground_plane() -> None:
    stage = analytics(lines=[line()])
    (event,) = walk(stage, along((300, 500), (700, 500)))
    assert "speed_kmh" not in event.data and event.data["heading_deg"] == 90


def test_events_carry_the_speed() -> None:
    stage = analytics(ground=ROAD, lines=[line(((0, 700), (1000, 700)))])
    (event,) = walk(stage, [on_frame(4.0, 0.5 * k) for k in range(60)])
    assert event.data["speed_kmh"] == pytest.approx(18.0, rel=0.05)


def test_points_above_the_horizon_are_not_on_the_ground() -> None:
    stage = analytics(ground=ROAD)
    walk(stage, [(500, 100 + k) for k in range(20)])
    assert math.isnan(motion(stage)[0])
    walk(stage, along((500, 700), (500, 900)))
    assert motion(stage)[0] > 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 8), st.floats(0, 40)), min_size=1, max_size=5))
def test_ground_plane_is_the_inverse_of_its_projection(places: list[Place]) -> None:
    plane = GroundPlane(ROAD["points"], ROAD["metres"])
    assert [plane.to_meters(*on_frame(*place)) for place in places] == [
        pytest.approx(place, abs=1e-6) for place in places
    ]


@pytest.mark.parametrize(
    ("key", "corners"),
    [
        ("points", [(0, 0), (10, 10), (20, 20), (0, 30)]),
        ("points", [(0, 0), (10, 10), (10, 0), (0, 10)]),
        ("metres", [(0, 0), (8, 0), (2, 2), (0, 8)]),
        ("metres", [(0, 0), (0, 0), (8, 8), (0, 8)]),
    ],
)
def test_ground_points_without_an_area_are_refused(key: str, corners: list[Place]) -> None:
    with pytest.raises(ValidationError) as caught:
        CameraAnalytics.model_validate({"ground": ROAD | {key: corners}})
    (error,) = caught.value.errors()
    assert (error["loc"], error["ctx"]["error"].code) == (("ground", key), "not-convex")


def test_three_ground_points_are_refused() -> None:
    with pytest.raises(ValidationError) as caught:
        CameraAnalytics.model_validate({"ground": ROAD | {"points": [(0, 0), (10, 0), (10, 10)]}})
    assert [(error["loc"], error["type"]) for error in caught.value.errors()] == [(("ground", "points"), "too_short")]


def test_ground_points_must_fit_the_unit() -> None:
    with pytest.raises(ValidationError) as caught:
        CameraAnalytics.model_validate({"units": "fraction", "ground": ROAD})
    assert [error["type"] for error in caught.value.errors()] == [INCONSISTENT]


# --- geometry ---------------------------------------------------------------------------------------------------------


def is_inside(point: Place, polygon: Sequence[Place]) -> bool:
    """Return True if the point is inside the polygon.

    This function sums the angles between the corners. The code under test uses a different, faster method.
    """
    x, y = point
    total = 0.0
    for (x0, y0), (x1, y1) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        a, b = (x0 - x, y0 - y), (x1 - x, y1 - y)
        total += math.atan2(a[0] * b[1] - a[1] * b[0], a[0] * b[0] + a[1] * b[1])
    return abs(total) > math.pi


def from_border(point: Place, polygon: Sequence[Place]) -> float:
    """Return the distance from a point to the nearest side of a polygon, computed side by side."""
    nearest = math.inf
    for (x0, y0), (x1, y1) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        share = ((point[0] - x0) * (x1 - x0) + (point[1] - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2)
        share = min(max(share, 0.0), 1.0)
        nearest = min(nearest, math.hypot(point[0] - x0 - share * (x1 - x0), point[1] - y0 - share * (y1 - y0)))
    return nearest


@st.composite
def stars(draw: st.DrawFn) -> list[Place]:
    """Draw a random polygon with dents around (50, 50)."""
    radii = draw(st.lists(st.floats(5, 45), min_size=3, max_size=12))
    turn = 2 * math.pi / len(radii)
    return [(50 + r * math.cos(k * turn + 0.1), 50 + r * math.sin(k * turn + 0.1)) for k, r in enumerate(radii)]


@pytest.mark.integration
@settings(max_examples=150, deadline=None)
@given(st.lists(stars(), min_size=1, max_size=4), st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1))
def test_zone_containment_and_distance_match_the_geometry_of_the_polygon(
    polygons: list[list[Place]], points: list[Place]
) -> None:
    zones = ZoneSet([[polygon] for polygon in polygons])
    places = np.array([complex(*point) for point in points])[:, None]
    found = zones.contain(places)
    assert found.shape == (len(points), len(polygons))
    assert np.array_equal(found, zones.contain(np.repeat(places, len(polygons), axis=1)))
    at, which = np.indices(found.shape).reshape(2, -1)
    distance = zones.distances_to_border(places[at, 0], which).reshape(found.shape)
    for (point, polygon), value in np.ndenumerate(found):
        assert distance[point, polygon] == pytest.approx(from_border(points[point], polygons[polygon]), abs=1e-6)
        if distance[point, polygon] > 1e-6:
            assert value == is_inside(points[point], polygons[polygon])


def test_adjacent_zones_share_no_point() -> None:
    zones = ZoneSet([[[(0, 0), (50, 0), (50, 50), (0, 50)]], [[(50, 0), (100, 0), (100, 50), (50, 50)]]])
    assert (zones.contain(np.array([complex(x, 25) for x in range(1, 100)])[:, None]).sum(axis=1) == 1).all()


@pytest.mark.parametrize(
    ("point", "distance"), [((5, 5), 5.0), ((5, 1), 1.0), ((-3, 5), 3.0), ((13, 14), 5.0), ((10, 10), 0.0)]
)
def test_distance_to_a_border_is_that_to_the_nearest_side(point: Place, distance: float) -> None:
    zones = ZoneSet([[[(0, 0), (10, 0), (10, 10), (0, 10)]], [[(0, 0), (900, 0), (900, 900), (500, 901), (0, 900)]]])
    found = zones.distances_to_border(np.array([complex(*point)]), np.array([0]))
    assert found[0] == pytest.approx(distance)


# --- simulated traffic ------------------------------------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.parametrize(("seed", "fps"), [(1, 5.0), (2, 10.0)])
def test_counts_of_simulated_traffic_are_exact(seed: int, fps: float) -> None:
    traffic = Traffic(300.0, fps=fps, seed=seed)
    counted = count(traffic)
    assert traffic.truth.objects > 50 and sum(traffic.truth.crossings.values()) > 100 and traffic.truth.dwellers > 5
    assert differences(counted) == []
    assert counted.most_remembered <= 12


def test_simulated_traffic_detects_a_wrong_counter() -> None:
    counted = count(Traffic(60.0, seed=3))
    counted.counts["west"]["in"] += 1
    assert len(differences(counted)) == 1


# --- counters ---------------------------------------------------------------------------------------------------------


def test_counters_survive_a_restart(tmp_path: Path) -> None:
    for run in range(3):
        with closing(StateDatabase(tmp_path / "state")) as state:
            stage = analytics(counters=state.counters("gate"), lines=[line()])
            assert stage.counts().lines["door"]["out"] == run
            (event,) = walk(stage, [(300, 500), (700, 500)], class_id=2)
            assert event.data["total_out"] == run + 1
    with closing(StateDatabase(tmp_path / "state")) as state:
        assert state.counters("gate")["door", "out:car"] == 3
