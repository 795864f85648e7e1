"""Tests of the checks of `analytics`: lines must be crossable, and polygons must enclose an area."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision.config import LineConfig, ZoneConfig
from vision.config.analytics import check_line, check_polygon
from vision.config.wording import InvalidValue

Polygon = tuple[tuple[float, float], ...]


@pytest.mark.parametrize(
    "polygon",
    [
        ((0, 0), (1, 0), (0, 1)),
        ((0, 0), (0, 1), (1, 0)),  # in the opposite direction
        ((0, 0), (4, 0), (4, 4), (2, 1), (0, 4)),  # with a notch
        ((0, 0), (2, 0), (4, 0), (4, 4)),  # a corner on a straight side
        ((0.1, 0.1), (0.2, 0.2), (0.3, 0.3), (0.3, 0.1)),  # straight in decimal numbers, but not in binary fractions
        ((0, 0), (1e-9, 0), (0, 1e-9)),
        ((0, 0), (10, 0), (10, 10), (8, 10), (8, 2), (2, 2), (2, 10), (0, 10)),  # a U
    ],
)
def test_polygon_with_an_area_is_accepted(polygon: Polygon) -> None:
    for turn in range(len(polygon)):
        turned = polygon[turn:] + polygon[:turn]
        assert check_polygon(turned) == turned
        assert check_polygon(turned[::-1]) == turned[::-1]


@pytest.mark.parametrize(
    ("polygon", "code"),
    [
        (((0, 0), (4, 4), (4, 0), (0, 4)), "crossing-sides"),  # a bow tie
        (((0, 0), (1, 0), (2, 0)), "no-area"),
        (((0, 0), (1, 1), (3, 3), (2, 2)), "crossing-sides"),
        (((0, 0), (4, 0), (2, 0), (2, 4)), "crossing-sides"),  # folds back
        (((0, 0), (4, 0), (4, 4), (2, 0), (0, 4)), "crossing-sides"),  # touches
        (((0, 0), (4, 0), (4, 4), (0, 0)), "closed-polygon"),
        (((0, 0), (4, 0), (4, 0), (4, 4)), "repeated-point"),
        (((0, 0), (4, 0), (4, 4), (0, 4), (4, 0.0)), "repeated-point"),
        (((0.1, 0.1), (0.3, 0.3), (0.2, 0.2), (0.3, 0.1)), "crossing-sides"),
        (((0, 0), (0, 0), (0, 0)), "closed-polygon"),
    ],
)
def test_polygon_without_area_or_with_crossing_sides_is_refused(polygon: Polygon, code: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        check_polygon(polygon)
    assert caught.value.code == code


angles = st.lists(st.integers(0, 359), min_size=3, max_size=20, unique=True).map(sorted)


@given(angles, st.floats(100, 4000))
def test_corners_in_order_around_a_circle_are_accepted(degrees: list[int], radius: float) -> None:
    corners = tuple(
        (
            round(5000 + radius * math.cos(angle), 3),
            round(5000 + radius * math.sin(angle), 3),
        )
        for angle in map(math.radians, degrees)
    )
    assert check_polygon(corners) == corners


@given(st.lists(st.integers(0, 359), min_size=4, max_size=12, unique=True).map(sorted), st.data())
def test_corners_out_of_order_around_a_circle_are_refused(degrees: list[int], data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(degrees) - 2))
    degrees[first], degrees[first + 1] = degrees[first + 1], degrees[first]
    corners = tuple(
        (round(math.cos(angle), 9) + 2, round(math.sin(angle), 9) + 2) for angle in map(math.radians, degrees)
    )
    with pytest.raises(InvalidValue) as caught:
        check_polygon(corners)
    assert caught.value.code == "crossing-sides"


def test_line_of_no_length_is_refused() -> None:
    assert check_line(((0, 0), (0, 1))) == ((0, 0), (0, 1))
    with pytest.raises(InvalidValue) as caught:
        check_line(((3, 4), (3.0, 4.0)))
    assert caught.value.code == "no-length"


def test_zone_and_line_defaults() -> None:
    line = LineConfig(name="a", points=((0, 0), (9, 9)))
    zone = ZoneConfig(name="b", polygon=((0, 0), (9, 0), (9, 9)))
    assert (line.direction, line.anchor, line.classes) == ("both", "bottom-center", None)
    assert (zone.crowd_threshold, zone.crowded_for_s, zone.dwell_s, zone.anchor) == (None, 0.0, None, "bottom-center")
