"""The `analytics:` section: lines and zones on the frames of each camera.

Coordinates start at the frame's upper left corner: x increases to the right, and y increases downward. Their unit is
pixels of the source frame, or fractions or percent of the frame's width and height. This module does not know the size
of the frame, so the stage warns about lines and zones entirely outside the frame when it receives the first frame.

The sides of a line are left and right as seen from its first point toward its second. Crossing from left to right is
``in``, and from right to left is ``out``. For example, an object that moves down the frame crosses a line from (0, 5)
to (9, 5) ``in``.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations, pairwise
from math import lcm
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from vision.config.checks import analytics_conflicts
from vision.config.fields import ClassNames, ConfigSection, Day, FilePath, Identifier, free_of
from vision.config.wording import InvalidValue

Anchor: TypeAlias = Literal["bottom-center", "center", "top-center", "center-left", "center-right"]
"""Point of a box that represents the object. ``bottom-center`` is where a person touches the floor."""

_Coordinate = Annotated[float, Field(ge=0, le=16384)]
_Meter = Annotated[float, Field(ge=-10_000, le=10_000)]
Point: TypeAlias = Annotated[tuple[_Coordinate, _Coordinate], Field(title="points [x, y]")]
Meters: TypeAlias = Annotated[tuple[_Meter, _Meter], Field(title="points [x, y] in meters")]
Units: TypeAlias = Literal["pixels", "fraction", "percent"]


def check_line(points: tuple[Point, Point]) -> tuple[Point, Point]:
    """Return the points of a line if they differ; otherwise, raise `InvalidValue`."""
    if points[0] == points[1]:
        raise InvalidValue("no-length", "two different points", "a line without length cannot be crossed")
    return points


def check_polygon(polygon: tuple[Point, ...]) -> tuple[Point, ...]:
    """Return the corners of a polygon if its sides do not cross.

    The computation is exact for the decimals as written, so that 0.1, 0.2, and 0.3 are evenly spaced.

    Raises:
        InvalidValue: a point is repeated, the area is zero, or two sides meet at more than their common corner.
    """
    corners = _whole_numbers(polygon)
    if corners[0] == corners[-1]:
        raise InvalidValue("closed-polygon", "a first and a last point that differ", "a polygon closes by itself")
    if len(set(corners)) < len(corners):
        raise InvalidValue("repeated-point", "a polygon without repeated points")
    if len(corners) == 3 and _turn(*corners) == 0:
        raise InvalidValue("no-area", "a polygon that encloses an area", "its points lie on one line")
    if crossing := _crossing_sides(corners):
        first, second = crossing
        advice = f"the side after point {first + 1} meets the side after point {second + 1}: "
        advice += "list the points in order around the area"
        raise InvalidValue("crossing-sides", "a polygon whose sides do not cross", advice)
    return polygon


def check_holes(outline: Sequence[Point], holes: Sequence[Sequence[Point]]) -> None:
    """Check that every hole lies within the outline, and that no two holes share a point.

    Raises:
        InvalidValue: a hole touches the outline or another hole, or lies outside the outline or inside another hole.
    """
    points = _whole_numbers([point for ring in (outline, *holes) for point in ring])
    rings = []
    for ring in (outline, *holes):
        rings.append(points[: len(ring)])
        points = points[len(ring) :]
    for number, hole in enumerate(rings[1:], 1):
        if _rings_meet(hole, rings[0]) or not _encloses(rings[0], hole[0]):
            raise InvalidValue("hole-outside", "holes within the polygon", f"hole {number} touches it or is outside it")
        for other, earlier in enumerate(rings[1:number], 1):
            if _rings_meet(hole, earlier) or _encloses(earlier, hole[0]) or _encloses(hole, earlier[0]):
                advice = f"holes {other} and {number} overlap: draw them as one"
                raise InvalidValue("holes-overlap", "holes without common points", advice)


TimeOfDay: TypeAlias = Annotated[
    str, Field(pattern=r"^(?:[01][0-9]|2[0-3]):[0-5][0-9]$", title='a time of the day, such as "06:30"')
]
Polygon: TypeAlias = Annotated[tuple[Point, ...], Field(min_length=3, max_length=100), AfterValidator(check_polygon)]


class LineConfig(ConfigSection):
    """A line that objects cross."""

    name: Identifier
    """Name of the line in events, unique among the lines and zones of the camera."""
    points: Annotated[tuple[Point, Point], AfterValidator(check_line)]
    """End points of the line, [[x1, y1], [x2, y2]], in the camera's units."""
    direction: Literal["in", "out", "both"] = "both"
    """Crossings to report; in: from left to right, seen from the first point toward the second."""
    classes: ClassNames | None = None
    """Classes to count; all published classes if absent."""
    anchor: Anchor = "bottom-center"
    """Point of an object's box that crosses the line."""


class ZoneConfig(ConfigSection):
    """An area that objects enter, leave, and stay in."""

    name: Identifier
    """Name of the zone in events, unique among the lines and zones of the camera."""
    polygon: Polygon
    """Corners, [[x, y], ...], in the camera's units and in order around the area; the polygon closes by itself."""
    holes: tuple[Polygon, ...] = Field(default=(), max_length=20)
    """Areas within the polygon that do not belong to the zone, each a list of points."""
    crowd_threshold: int | None = Field(default=None, ge=0, le=10_000)
    """Number of objects above which the zone is crowded; never crowded if absent."""
    crowded_for_s: float = Field(default=0.0, ge=0, le=86_400)
    """Seconds above the threshold before crowding starts, and at or below the threshold before crowding ends."""
    dwell_s: Day | None = None
    """Seconds inside the zone after which an object is reported; never reported if absent."""
    classes: ClassNames | None = None
    """Classes to count; all published classes if absent."""
    anchor: Anchor = "bottom-center"
    """Point of an object's box that must be inside the zone."""

    @property
    def rings(self) -> tuple[tuple[Point, ...], ...]:
        """The outline of the zone, followed by its holes."""
        return self.polygon, *self.holes

    @field_validator("holes")
    @classmethod
    def _holes_fit(cls, holes: tuple[tuple[Point, ...], ...], info: ValidationInfo) -> tuple[tuple[Point, ...], ...]:
        if "polygon" in info.data:
            check_holes(info.data["polygon"], holes)
        return holes


def check_corners(corners: tuple[Point, ...]) -> tuple[Point, ...]:
    """Return four points if they are in order around a convex area; otherwise, raise `InvalidValue`."""
    exact = _whole_numbers(corners)
    turns = {_turn(exact[index - 2], exact[index - 1], exact[index]) for index in range(len(exact))}
    if turns not in ({1}, {-1}) or _crossing_sides(exact) is not None:
        expected = "4 points in order around a convex area"
        raise InvalidValue("not-convex", expected, "no three of them can be on one line")
    return corners


class GroundConfig(ConfigSection):
    """Four points on the ground with known positions, from which speeds are computed."""

    points: Annotated[tuple[Point, ...], Field(min_length=4, max_length=4), AfterValidator(check_corners)]
    """Four points on the ground, [[x, y], ...], in the camera's units, in order around an area."""
    metres: Annotated[tuple[Meters, ...], Field(min_length=4, max_length=4), AfterValidator(check_corners)]
    """Positions of the same four points on the ground, [[x, y], ...], in meters from any origin."""


class CameraAnalytics(ConfigSection):
    """Lines, zones, and ground points of one camera."""

    units: Units = "pixels"
    """Unit of every point: pixels, or fractions (0 to 1) or percent (0 to 100) of the frame's width and height."""
    lines: tuple[LineConfig, ...] = Field(default=(), max_length=100)
    """Lines that objects cross."""
    zones: tuple[ZoneConfig, ...] = Field(default=(), max_length=100)
    """Areas that objects enter, leave, and stay in."""
    reset_at: tuple[TimeOfDay, ...] = Field(default=(), max_length=24)
    """Times of the day, such as "00:00", at which the counters start at zero again; local time of the machine."""
    accuracy: FilePath | None = None
    """File from `vision eval --accuracy`, from which an interval for each total is computed; none if absent."""
    ground: GroundConfig | None = None
    """Four points with known positions, from which speeds in km/h are computed; no speeds if absent."""
    realign: bool = False
    """True if lines and zones follow the scene when the camera is moved; needs OpenCV."""

    _consistent = free_of(analytics_conflicts)


def pixels_per_unit(units: Units, width_px: int, height_px: int) -> tuple[float, float]:
    """Return the length of one unit of x and of y, in pixels, for a frame of this size."""
    whole = {"pixels": None, "fraction": 1.0, "percent": 100.0}[units]
    return (1.0, 1.0) if whole is None else (width_px / whole, height_px / whole)


# --- geometry ---------------------------------------------------------------------------------------------------------


_Corner: TypeAlias = tuple[int, int]


def _whole_numbers(polygon: Sequence[Point]) -> list[_Corner]:
    """Return the points, scaled by one factor to whole numbers, which are exact and faster than fractions."""
    exact = [(Fraction(str(x)), Fraction(str(y))) for x, y in polygon]
    scale = lcm(*(value.denominator for point in exact for value in point))
    return [(int(x * scale), int(y * scale)) for x, y in exact]


def _turn(a: _Corner, b: _Corner, c: _Corner) -> int:
    """Return 1 if the point `c` is right of the line from `a` to `b`, -1 if it is left, or 0 if it is on the line.

    Right and left are as seen from `a` toward `b` in the frame, in which y increases downward.
    """
    product = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
    return (product > 0) - (product < 0)


def _touches(a: _Corner, b: _Corner, c: _Corner) -> bool:
    """Return True if the point `c` lies on the segment from `a` to `b`."""
    within = min(a[0], b[0]) <= c[0] <= max(a[0], b[0]) and min(a[1], b[1]) <= c[1] <= max(a[1], b[1])
    return within and _turn(a, b, c) == 0


def _meet(a: _Corner, b: _Corner, c: _Corner, d: _Corner) -> bool:
    """Return True if segments `ab` and `cd` share a point, as in Cormen et al., Introduction to Algorithms, 33.1."""
    if _turn(c, d, a) * _turn(c, d, b) < 0 and _turn(a, b, c) * _turn(a, b, d) < 0:
        return True
    return _touches(c, d, a) or _touches(c, d, b) or _touches(a, b, c) or _touches(a, b, d)


def _crossing_sides(corners: Sequence[_Corner]) -> tuple[int, int] | None:
    """Return the indices of the first two sides that meet at more than their common corner.

    Return None if no sides do. The side of index `n` starts at corner `n`, counted from 0.
    """
    sides = [*pairwise([*corners, corners[0]])]
    for first, second in combinations(range(len(sides)), 2):
        (a, b), (c, d) = sides[first], sides[second]
        if b == c:
            meets = _touches(a, b, d) or _touches(c, d, a)
        elif d == a:
            meets = _touches(c, d, b) or _touches(a, b, c)
        else:
            meets = _meet(a, b, c, d)
        if meets:
            return first, second
    return None


def _rings_meet(first: Sequence[_Corner], second: Sequence[_Corner]) -> bool:
    """Return True if any side of one polygon shares a point with a side of the other."""
    sides = list(pairwise([*second, second[0]]))
    return any(_meet(a, b, c, d) for a, b in pairwise([*first, first[0]]) for c, d in sides)


def _encloses(ring: Sequence[_Corner], point: _Corner) -> bool:
    """Return True if a point lies inside the polygon, by the even-odd rule. The point must not be on the border."""
    inside = False
    for a, b in pairwise([*ring, ring[0]]):
        if (a[1] > point[1]) != (b[1] > point[1]) and (_turn(a, b, point) > 0) == (b[1] > a[1]):
            inside = not inside
    return inside
