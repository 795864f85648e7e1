"""Tests that the ground point of an object does not move if an obstacle hides the lower part of the object."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.unit.analytics.test_tracker import detections
from vision.analytics.camera_analytics import Analytics
from vision.analytics.tracker import Tracker
from vision.config.analytics import CameraAnalytics
from vision.types import Event

WIDTH, HEIGHT = 1280, 720
LINE_Y = 360.0
TALL = 200.0
HIDDEN_FROM_S = 3.0
Foot = Callable[[float], tuple[float, float]]


def events_of(
    foot: Foot, visible: Callable[[float], float], fps: float, duration_s: float = 9.0, jitter: float = 0.0
) -> list[Event]:
    """Return the events of a person of whom only the upper part is detected.

    `visible` returns the detected fraction of the height at a time in seconds.
    """
    rng = np.random.default_rng(1)
    section = CameraAnalytics.model_validate(
        {
            "lines": [{"name": "line", "points": [[0, LINE_Y], [WIDTH, LINE_Y]]}],
            "zones": [{"name": "near", "polygon": [[0, LINE_Y], [WIDTH, LINE_Y], [WIDTH, 700], [0, 700]]}],
        }
    )
    tracker, analytics = Tracker(None, (WIDTH, HEIGHT)), Analytics(section, "gate", ["person"], WIDTH, HEIGHT)
    events: list[Event] = []
    for number in range(round(duration_s * fps)):
        time_s = number / fps
        x, y = foot(time_s)
        box = np.array([x - 40, y - TALL, x + 40, y - TALL + visible(time_s) * TALL])
        box += rng.normal(0.0, jitter * TALL, 4)
        captured_ns = round((1.0 + time_s) * 1e9)
        x1, y1, x2, y2 = box.tolist()
        events += analytics.update(tracker.update(detections(((x1, y1, x2, y2), 0.8)), captured_ns), captured_ns)
    return events


def standing(y: float) -> Foot:
    return lambda _: (400.0, y)


def hidden_for(seconds: float, part: float) -> Callable[[float], float]:
    return lambda time_s: part if HIDDEN_FROM_S <= time_s < HIDDEN_FROM_S + seconds else 1.0


@pytest.mark.parametrize("fps", [5.0, 10.0, 25.0])
@pytest.mark.parametrize("seconds", [0.6, 1.2, 4.5])
@pytest.mark.parametrize("part", [0.4, 0.55, 0.75])
def test_feet_hidden_next_to_a_line_are_no_crossing(fps: float, seconds: float, part: float) -> None:
    for y in range(375, 465, 15):
        events = events_of(standing(y), hidden_for(seconds, part), fps)
        assert [event.kind for event in events] == ["zone_entered"]


@pytest.mark.parametrize("jitter", [0.01, 0.02])
def test_jitter_of_the_boxes_changes_nothing(jitter: float) -> None:
    events = events_of(standing(420.0), hidden_for(1.2, 0.55), 10.0, jitter=jitter)
    assert [event.kind for event in events] == ["zone_entered"]


def test_person_walking_behind_a_low_wall_stays_on_one_side() -> None:
    events = events_of(lambda time_s: (200.0 + 60.0 * time_s, 410.0), hidden_for(3.0, 0.5), 10.0)
    assert [event.kind for event in events] == ["zone_entered"]


@pytest.mark.parametrize("fps", [5.0, 10.0, 25.0])
def test_crossing_behind_a_low_wall_is_counted_once(fps: float) -> None:
    events = events_of(lambda time_s: (400.0, 230.0 + 40.0 * time_s), hidden_for(2.0, 0.5), fps)
    crossings = [event for event in events if event.kind == "line_crossed"]
    assert [event.data["direction"] for event in crossings] == ["in"]


def test_lower_part_that_stays_hidden_is_forgotten_after_five_seconds() -> None:
    events = events_of(standing(400.0), hidden_for(60.0, 0.5), 10.0, duration_s=12.0)
    kinds = [event.kind for event in events]
    assert kinds == ["zone_entered", "line_crossed", "zone_left"]
    assert (events[1].at_ns - 1_000_000_000) / 1e9 == pytest.approx(HIDDEN_FROM_S + 5.0, abs=1.0)


def test_person_who_crouches_keeps_the_feet() -> None:
    """The top edge of the box moves down. Nothing is hidden, so the anchor must not move."""
    section = CameraAnalytics.model_validate({"lines": [{"name": "line", "points": [[0, LINE_Y], [WIDTH, LINE_Y]]}]})
    tracker, analytics = Tracker(None, (WIDTH, HEIGHT)), Analytics(section, "gate", ["person"], WIDTH, HEIGHT)
    events: list[Event] = []
    for number in range(80):
        top = 320.0 if 30 <= number < 50 else 200.0
        captured_ns = number * 100_000_000 + 1
        tracks = tracker.update(detections(((360.0, top, 440.0, 400.0), 0.8)), captured_ns)
        assert tracks.hidden_px is None or not tracks.hidden_px.any()
        events += analytics.update(tracks, captured_ns)
    assert events == []


@pytest.mark.parametrize("fps", [5.0, 10.0])
def test_turning_car_has_no_hidden_part(fps: float) -> None:
    """The height of the car's box decreases, while its top edge and its width remain the same."""
    tracker = Tracker(None, (WIDTH, HEIGHT))
    for number in range(round(3 * fps)):
        height = 200.0 - min(max(number / fps - 1.0, 0.0), 1.0) * 90.0
        box = (400.0, 200.0, 600.0, 200.0 + height)
        tracks = tracker.update(detections((box, 0.8)), round(number / fps * 1e9))
        assert tracks.hidden_px is None
