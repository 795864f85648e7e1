"""Tests of the true crossings of a line, and of the error of a count."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from tests.unit.evaluation_tables import Row, boxes
from vision.config import CameraAnalytics, LineConfig
from vision.config.analytics import Units
from vision.evaluation.crossings import LineScore, score_lines, true_crossings
from vision.evaluation.passes import Video
from vision.types import Event

SIZE = (320, 240)
DOWN = ((100.0, 50.0), (100.0, 150.0))  # in the direction of the line, the right side is where x is smaller
WIDTH, HEIGHT = 20.0, 100.0  # the margin is 4 px


def line(points: object = DOWN, **options: object) -> LineConfig:
    return LineConfig.model_validate({"name": "door", "points": points, "anchor": "center", **options})


def walk(*places: tuple[float, float] | None, object_id: int = 1) -> list[Row]:
    """Return the rows of an object whose center is at `places` from frame 1 on. For None, the object is absent."""
    return [
        (frame, object_id, place[0] - WIDTH / 2, place[1] - HEIGHT / 2, WIDTH, HEIGHT)
        for frame, place in enumerate(places, start=1)
        if place is not None
    ]


def crossings(config: LineConfig, *rows: Row, units: Units = "pixels", interval_s: float = 0.1) -> list[str]:
    return list(true_crossings(config, units, boxes(*rows), Video("", 100, *SIZE, interval_s)))


def along(*xs: float, y: float = 100.0) -> list[tuple[float, float]]:
    return [(x, y) for x in xs]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (along(80, 90, 110, 120), ["out"]),
        (along(120, 80), ["in"]),
        (along(80, 120, 80), ["out", "in"]),
        (along(80, 90), []),
        (along(80), []),
        (along(80, 120, y=40), []),  # beyond the upper end of the line
        (along(80, 120, y=160), []),
        (along(80, 120, y=50), ["out"]),  # the end point belongs to the line
        (along(80, 99, 101, 99, 102, 98), []),  # jitter on the line, then back
        (along(80, 98, 102, 98, 102, 98, 120), ["out"]),  # jitter counts once
        (along(98, 102), []),  # on the line from its start to its end
        (along(97, 120), []),  # starts on the line
        (along(80, 103), []),  # ends on the line
        (along(95, 105), ["out"]),
        (along(80, 105, 80), []),  # slightly beyond the line, for less than half a second
        (along(80, *[105] * 5, 80), []),
        (along(80, *[105] * 6, 80), ["out", "in"]),
        (along(80, 105, *[101] * 5, 80), ["out", "in"]),
        (along(80, 109, 80), ["out", "in"]),
        ([*along(80, 105), *[None] * 16, *along(80)], ["out", "in"]),  # lost beyond it
        ([*along(80, 105), *[None] * 13, *along(80)], []),
        (along(80, 100, 100, 100, 120), ["out"]),
        (along(80, 100, 100, 80), []),
        ([(80, 100), (80, 30), (120, 30), (120, 100)], []),  # around the end of the line
        ([(80, 30), (120, 170)], ["out"]),  # one step through the middle of the line
    ],
)
def test_path_has_its_crossings(path: list[tuple[float, float] | None], expected: list[str]) -> None:
    assert crossings(line(), *walk(*path)) == expected


@pytest.mark.parametrize(
    ("line_x", "xs", "expected"),
    [
        (13.0, (10, 100), ["out"]),  # enters the frame of 320 px at its left edge
        (12.0, (11, 100), []),  # hardly beyond the line
        (14.0, (12, 100), []),  # the edge does not cut it off
        (307.0, (200, 310), ["out"]),  # leaves the frame at its right edge
        (307.0, (200, 308), []),
        (13.0, (100, 10, 100), []),
    ],
)
def test_edge_of_the_frame_halves_the_margin(line_x: float, xs: Sequence[float], expected: list[str]) -> None:
    assert crossings(line(((line_x, 50.0), (line_x, 150.0))), *walk(*along(*xs))) == expected


def test_jitter_scales_with_the_object() -> None:
    small: list[Row] = [(frame, 1, x - 2.0, 98.0, 4.0, 4.0) for frame, x in enumerate((80, 98, 102, 98, 120), start=1)]
    assert crossings(line(), *small) == ["out", "in", "out"]


@pytest.mark.parametrize(("missing", "expected"), [(600, ["out"]), (601, [])])
def test_long_gap_splits_a_path(missing: int, expected: list[str]) -> None:
    path = [*along(70, 80), *[None] * (missing - 1), *along(120, 130)]
    assert crossings(line(), *walk(*path)) == expected


def test_reversed_line_reverses_directions() -> None:
    assert crossings(line((DOWN[1], DOWN[0])), *walk(*along(80, 120))) == ["in"]


def test_downward_path_crosses_a_rightward_line_in() -> None:
    assert crossings(line(((50.0, 100.0), (150.0, 100.0))), *walk((100, 80), (100, 120))) == ["in"]


def test_objects_have_separate_paths() -> None:
    rows = [*walk(*along(80, 90), object_id=1), *walk(None, None, *along(110, 120), object_id=2)]
    assert crossings(line(), *rows) == []


def test_points_can_be_fractions_or_percent() -> None:
    fractions = line(((100 / 320, 50 / 240), (100 / 320, 150 / 240)))
    assert crossings(fractions, *walk(*along(80, 120)), units="fraction") == ["out"]
    percent = line(((100 / 3.2, 50 / 2.4), (100 / 3.2, 150 / 2.4)))
    assert crossings(percent, *walk(*along(80, 120)), units="percent") == ["out"]


@pytest.mark.parametrize(
    ("anchor", "place"),
    [
        ("center", (100, 100)),
        ("bottom-center", (100, 50)),
        ("top-center", (100, 150)),
        ("center-left", (110, 100)),
        ("center-right", (90, 100)),
    ],
)
def test_anchor_point_crosses(anchor: str, place: tuple[float, float]) -> None:
    """A diagonal line passes through (100, 100). The object crosses it only if the object's anchor crosses it."""
    diagonal = line(((90.0, 90.0), (110.0, 110.0)), anchor=anchor)
    x, y = place
    assert crossings(diagonal, *walk((x - 8, y + 8), (x + 8, y - 8))) == ["out"]
    assert crossings(diagonal, *walk((x + 42, y + 58), (x + 58, y + 42))) == []


def crossed(
    name: str, direction: str, class_name: str | None = "person", kind: str = "line_crossed"
) -> tuple[int, Event]:
    data = {"direction": direction} | ({"class": class_name} if class_name is not None else {})
    return 1, Event(kind, name, "cam", 1, 0, data)


def scored(section: CameraAnalytics, truth: Sequence[Row], *events: tuple[int, Event]) -> list[LineScore]:
    return score_lines(section, boxes(*truth), events, "person", Video("", 100, *SIZE, 0.1))


def test_counts_are_scored_by_line_and_direction() -> None:
    section = CameraAnalytics(lines=(line(), line(name="exit", direction="out"), line(name="cars", classes=("car",))))
    events = [
        crossed("door", "in"),
        crossed("door", "in", None),  # a pipeline that does not report classes
        crossed("door", "out", "car"),
        crossed("door", "out", kind="zone_left"),
        crossed("exit", "out"),
        crossed("cars", "in"),
    ]
    scores = scored(section, walk(*along(80, 120, 80, 120)), *events)
    assert scores == [LineScore("door", "in", 1, 2), LineScore("door", "out", 2, 0), LineScore("exit", "out", 2, 1)]
    assert [score.error for score in scores] == [1.0, 1.0, 0.5]


@pytest.mark.parametrize(("true", "counted", "error"), [(0, 0, 0.0), (0, 1, math.inf), (4, 3, 0.25), (4, 5, 0.25)])
def test_count_error_is_relative_to_the_true_count(true: int, counted: int, error: float) -> None:
    assert LineScore("door", "in", true, counted).error == error
