"""Tests of lines and zones that change while objects are tracked. A change of one shape must not affect the others."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.analytics.test_camera_analytics import Place, along, analytics, kinds, line, tracks, zone
from vision.analytics.camera_analytics import Analytics
from vision.config.analytics import CameraAnalytics
from vision.state.database import StateDatabase
from vision.types import Event

STEP_NS = 100_000_000
DOOR, QUEUE = line(), zone(crowd_threshold=1, dwell_s=2.0)
OTHERS: Sequence[dict[str, Any]] = (
    {"lines": [DOOR], "zones": [QUEUE]},
    {"lines": [DOOR, line(((0, 300), (1000, 300)), name="south")], "zones": [QUEUE]},
    {"lines": [line(((300, 0), (300, 900)), name="west", anchor="center"), DOOR], "zones": [QUEUE]},
    {"lines": [DOOR], "zones": [zone(((100, 100), (900, 100), (500, 600)), name="yard", anchor="top-center"), QUEUE]},
    {"lines": [DOOR], "zones": [QUEUE, zone(((400, 400), (600, 400), (500, 900)), name="yard", dwell_s=1.0)]},
)
"""Configurations that all contain the same line and the same zone."""


class Scene:
    """Analytics of one camera, and the frames of the camera."""

    def __init__(self, **config: Any) -> None:
        self.stage = analytics(**config)
        self.now_ns = 10**12

    def step(self, *objects: tuple[int, Place]) -> list[Event]:
        self.now_ns += STEP_NS
        return list(self.stage.update(tracks(*objects), self.now_ns))

    def walk(self, path: Sequence[Place]) -> list[Event]:
        return [event for place in path for event in self.step((7, place))]

    def change(self, **config: Any) -> list[Event]:
        section = CameraAnalytics.model_validate(config)
        return list(self.stage.reconfigure(section, 1.5, self.now_ns + STEP_NS))


def counted(stage: Analytics) -> tuple[Any, Any, Any]:
    counts = stage.counts()
    return counts.lines["door"], counts.zones["queue"], counts.occupancy["queue"]


def of_kept(events: Sequence[Event]) -> list[Event]:
    return [event for event in events if event.name in ("door", "queue")]


coordinates = st.tuples(st.integers(0, 1000), st.integers(100, 1000))
frames = st.lists(st.lists(coordinates, min_size=3, max_size=3), min_size=20, max_size=40)
hidden = st.lists(st.tuples(st.integers(0, 39), st.integers(0, 2)), max_size=12)


@given(corners=frames, hidden=hidden, changes=st.lists(st.tuples(st.integers(1, 39), st.integers(0, 4)), max_size=6))
@settings(max_examples=15, deadline=None)
def test_unchanged_lines_and_zones_do_not_notice_a_change(
    corners: list[list[Place]], hidden: list[tuple[int, int]], changes: list[tuple[int, int]]
) -> None:
    left_alone, changed = Scene(**OTHERS[0]), Scene(**OTHERS[0])
    for number, places in enumerate(corners):
        for at, which in changes:
            if at == number:
                assert of_kept(changed.change(**OTHERS[which])) == []
        objects = [(track, place) for track, place in enumerate(places, 1) if (number, track - 1) not in hidden]
        assert of_kept(left_alone.step(*objects)) == of_kept(changed.step(*objects))
        assert counted(left_alone.stage) == counted(changed.stage)


def test_moved_line_counts_from_its_new_place_and_keeps_its_total() -> None:
    scene = Scene(lines=[line()])
    scene.walk(along((300, 500), (600, 500)))
    assert scene.stage.counts().lines["door"]["out"] == 1
    assert scene.change(lines=[line(((800, 0), (800, 1000)))]) == []
    assert kinds(scene.walk(along((600, 500), (950, 500)))) == [("line_crossed", "instant")]
    assert scene.stage.counts().lines["door"]["out"] == 2


@pytest.mark.parametrize("anchor", ["bottom-center", "top-center", "center-left"])
def test_line_that_is_moved_over_a_standing_object_counts_nothing(anchor: str) -> None:
    scene = Scene(lines=[line(((800, 0), (800, 1000)))])
    scene.walk([(500, 500)] * 20)
    scene.change(lines=[line(((300, 0), (300, 1000)), anchor=anchor)])
    assert scene.walk([(500, 500)] * 20) == []
    assert kinds(scene.walk(along((500, 500), (100, 500)))) == [("line_crossed", "instant")]


def test_object_in_a_changed_zone_leaves_the_old_one_and_enters_the_new_one() -> None:
    scene = Scene(zones=[zone(dwell_s=1.0, crowd_threshold=0)])
    scene.walk([(500, 500)] * 20)
    events = scene.change(zones=[zone(((100, 100), (900, 100), (900, 900), (100, 900)))])
    assert [(event.kind, event.data["phase"], event.data.get("how")) for event in events] == [
        ("dwelling", "end", None),
        ("zone_left", "instant", "changed"),
        ("crowded", "end", None),
        ("zone_entered", "instant", "appeared"),
    ]
    counts = scene.stage.counts()
    assert (counts.zones["queue"]["entered"], counts.zones["queue"]["left"], counts.occupancy["queue"]) == (2, 1, 1)
    assert kinds(scene.walk(along((500, 500), (500, 990)))) == [("zone_left", "instant")]


def test_removed_zone_ends_its_states() -> None:
    scene = Scene(zones=[zone(dwell_s=1.0)])
    scene.walk([(500, 500)] * 20)
    assert kinds(scene.change()) == [("dwelling", "end"), ("zone_left", "instant")]
    assert scene.walk([(500, 500)] * 5) == []


def test_thresholds_of_a_zone_change_without_a_new_stay() -> None:
    scene = Scene(zones=[zone(dwell_s=50.0, crowd_threshold=5)])
    scene.walk([(500, 500)] * 20)
    assert scene.change(zones=[zone(dwell_s=3.0, crowd_threshold=0)]) == []
    events = scene.walk([(500, 500)] * 20)
    assert kinds(events) == [("crowded", "begin"), ("dwelling", "begin")]
    assert events[1].data["stayed_s"] == pytest.approx(3.0, abs=0.11)
    assert kinds(scene.change(zones=[zone(dwell_s=3.0)])) == [("crowded", "end")]


def test_counts_continue_in_the_database(tmp_path: Path) -> None:
    with closing(StateDatabase(tmp_path)) as state:
        scene = Scene(counters=state.counters("gate"), lines=[line()])
        scene.walk(along((300, 500), (700, 500)))
        scene.change(lines=[line(name="other")])
        scene.walk(along((700, 500), (300, 500)))
        scene.change(lines=[line(name="other"), line(((600, 0), (600, 1000)))])
        scene.walk(along((300, 500), (700, 500)))
        assert scene.stage.counts().lines["door"]["out"] == 2
        assert state.counters("gate")["door", "out"] == 2
