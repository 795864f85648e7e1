"""Tests of zones that reach the edge of the frame, and of zones with holes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.unit.analytics.test_camera_analytics import Place, along, analytics, play, walk, zone
from tests.unit.analytics.test_reference import from_border, is_inside
from vision.analytics.geometry import ZoneSet
from vision.config.analytics import CameraAnalytics
from vision.types import Tracks

SIZE = 1000  # of the frame of `analytics`, px
WHOLE_FRAME = ((0, 0), (SIZE, 0), (SIZE, SIZE), (0, SIZE))
ANCHOR_AT_EDGE = {"left": "center-left", "right": "center-right", "top": "top-center", "bottom": "bottom-center"}
BOX_AT_EDGE = {
    "left": (0, 450, 60, 550),
    "right": (940, 450, 1000, 550),
    "top": (450, 0, 550, 60),
    "bottom": (450, 900, 550, 1000),
}
Box = tuple[float, float, float, float]


def seen(box: Box, track_id: int = 7) -> Tracks:
    return Tracks(
        np.array([box], np.float32),
        np.ones(1, np.float32),
        np.zeros(1, np.int32),
        np.array([track_id], np.int64),
        np.zeros(1, np.int64),
    )


def square(low: float, high: float) -> list[Place]:
    return [(low, low), (high, low), (high, high), (low, high)]


# --- zones that reach the edge of the frame ---------------------------------------------------------------------------


@pytest.mark.parametrize("edge", sorted(BOX_AT_EDGE))
@pytest.mark.parametrize("units", ["pixels", "percent", "fraction"])
def test_object_cut_off_by_the_edge_is_inside_the_whole_frame(edge: str, units: str) -> None:
    whole = {"pixels": 1.0, "percent": 0.1, "fraction": 0.001}[units]
    polygon = [(x * whole, y * whole) for x, y in WHOLE_FRAME]
    stage = analytics(units=units, zones=[zone(polygon, anchor=ANCHOR_AT_EDGE[edge])])
    events = play(stage, [seen(BOX_AT_EDGE[edge])] * 40)
    assert [event.kind for event in events] == ["zone_entered"]
    assert stage.counts().occupancy == {"queue": 1}


@pytest.mark.parametrize("edge", sorted(BOX_AT_EDGE))
@pytest.mark.parametrize("beyond", [0.5, 5.0, 200.0])
def test_object_beyond_the_edge_stays_inside(edge: str, beyond: float) -> None:
    sign = -1.0 if edge in ("left", "top") else 1.0
    shift = np.array([1, 0, 1, 0]) if edge in ("left", "right") else np.array([0, 1, 0, 1])
    box = np.array(BOX_AT_EDGE[edge]) + sign * beyond * shift
    stage = analytics(zones=[zone(WHOLE_FRAME, anchor=ANCHOR_AT_EDGE[edge])])
    play(stage, [seen((450, 450, 550, 550))] * 5 + [seen(tuple(box))] * 40)
    assert stage.counts().occupancy == {"queue": 1}


def test_last_pixel_is_the_edge() -> None:
    stage = analytics(zones=[zone(((0, 500), (999, 500), (999, 999), (0, 999)))])
    events = play(stage, [seen((450, 900, 550, 1000))] * 40)
    assert [event.kind for event in events] == ["zone_entered"]


@pytest.mark.parametrize("height", [100.0, 300.0])
def test_object_that_walks_along_the_edge_enters_and_leaves_once(height: float) -> None:
    half = ((500, 500), (1000, 500), (1000, 1000), (500, 1000))
    stage = analytics(zones=[zone(half)])
    boxes = [(x - 20, 1000 - height, x + 20, 1000.0) for x in [*range(100, 900, 10), *range(900, 100, -10)]]
    events = play(stage, [seen(box) for box in boxes])
    assert [event.kind for event in events] == ["zone_entered", "zone_left"]
    assert [event.data["how"] for event in events] == ["crossed", "crossed"]


def test_jitter_at_the_edge_causes_no_events() -> None:
    rng = np.random.default_rng(0)
    boxes = [(450, 900, 550, 1000 + offset) for offset in rng.normal(0, 5, 300)]
    stage = analytics(zones=[zone(WHOLE_FRAME)])
    events = play(stage, [seen(box) for box in boxes])
    assert [event.kind for event in events] == ["zone_entered"]


def test_side_next_to_the_edge_can_be_left() -> None:
    stage = analytics(zones=[zone(((0, 0), (1000, 0), (1000, 960), (0, 960)))])
    events = walk(stage, along((500, 700), (500, 999), steps=40))
    assert [event.kind for event in events] == ["zone_entered", "zone_left"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-200, 1200), st.floats(-200, 1200)), min_size=1, max_size=20))
def test_whole_frame_contains_every_point(points: list[Place]) -> None:
    places = np.array([complex(*point) for point in points])[:, None]
    zones = ZoneSet([[WHOLE_FRAME]], (SIZE, SIZE))
    assert zones.contain(places).all()
    assert (zones.distances_to_border(places[:, 0], np.zeros(len(points), np.intp)) > 1e6).all()


# --- holes ------------------------------------------------------------------------------------------------------------

HOLES: dict[str, Sequence[Sequence[Place]]] = {
    "one": [square(400, 600)],
    "two": [square(250, 350), square(500, 700)],
    "triangle": [[(300, 300), (700, 400), (350, 650)]],
    "reversed": [square(400, 600)[::-1]],
    "concave": [[(300, 300), (700, 300), (700, 700), (600, 700), (600, 400), (300, 400)]],
}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(HOLES)), st.lists(st.tuples(st.floats(150, 850), st.floats(150, 850)), min_size=1))
def test_points_in_holes_are_outside(name: str, points: list[Place]) -> None:
    rings = [square(200, 800), *HOLES[name]]
    zones = ZoneSet([rings, [square(0, 900)]], (SIZE, SIZE))
    places = np.array([complex(*point) for point in points])
    found = zones.contain(places[:, None])[:, 0]
    distances = zones.distances_to_border(places, np.zeros(len(points), np.intp))
    for point, value, distance in zip(points, found, distances, strict=True):
        assert distance == pytest.approx(min(from_border(point, ring) for ring in rings), abs=1e-6)
        if distance > 1e-6:
            assert value == (sum(is_inside(point, ring) for ring in rings) == 1)


@pytest.mark.parametrize("name", sorted(HOLES))
def test_path_through_a_hole_leaves_and_enters_again(name: str) -> None:
    stage = analytics(zones=[zone(holes=HOLES[name])])
    middle = np.mean(HOLES[name][0], axis=0) if name != "concave" else (650, 350)
    events = walk(stage, [(230, 770)] * 3 + [tuple(middle)] * 3 + [(230, 770)] * 3)
    assert [event.kind for event in events] == ["zone_entered", "zone_left", "zone_entered"]
    assert stage.counts().occupancy == {"queue": 1}


@pytest.mark.parametrize(
    ("holes", "code"),
    [
        ([square(700, 900)], "hole-outside"),
        ([square(850, 900)], "hole-outside"),
        ([square(100, 900)], "hole-outside"),
        ([square(200, 400)], "hole-outside"),  # touches the outline
        ([square(300, 500), square(400, 600)], "holes-overlap"),
        ([square(300, 700), square(400, 600)], "holes-overlap"),
        ([square(400, 600), square(300, 700)], "holes-overlap"),
        ([square(300, 500), square(500, 600)], "holes-overlap"),
        ([[(300, 300), (500, 500), (500, 300), (300, 500)]], "crossing-sides"),
    ],
)
def test_hole_that_does_not_fit_is_refused(holes: Any, code: str) -> None:
    with pytest.raises(ValidationError) as caught:
        CameraAnalytics.model_validate({"zones": [zone(holes=holes)]})
    (fault,) = caught.value.errors()
    assert fault["loc"][:3] == ("zones", 0, "holes")
    assert fault["ctx"]["error"].code == code
