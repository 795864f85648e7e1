"""Tests of the positions, the legibility, and the sizes of the shapes and texts that `Overlay` draws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from vision.config import CameraAnalytics, LineConfig, ZoneConfig
from vision.config.analytics import Units
from vision.drawing.overlay import (
    CLASS_COLORS,
    FALSE_COLOR,
    LINE_COLOR,
    RIM,
    WHITE,
    ZONE_COLORS,
    Overlay,
    Rect,
    class_color,
    ink_on,
    text_mask,
    zone_words,
)

Frame = NDArray[np.uint8]


def grey(height_px: int = 240, width_px: int = 320, value: int = 100) -> Frame:
    return np.full((height_px, width_px, 3), value, np.uint8)


def is_color(frame: Frame, x: int, y: int, color: tuple[int, int, int]) -> bool:
    return tuple(int(channel) for channel in frame[y, x]) == color


def count(frame: Frame, color: tuple[int, int, int]) -> int:
    return int((frame == np.array(color, np.uint8)).all(axis=2).sum())


def boxes(*rows: tuple[float, float, float, float]) -> NDArray[np.float32]:
    return np.array(rows, np.float32).reshape(-1, 4)


def contrast(first: tuple[int, int, int], second: tuple[int, int, int]) -> float:
    """Return the contrast ratio (1 to 21) of two colors, as defined by WCAG 2.2. Text needs a ratio of at least 4.5."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def luminance(color: tuple[int, int, int]) -> float:
    linear = [(c / 255 / 12.92) if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
    return 0.0722 * linear[0] + 0.7152 * linear[1] + 0.2126 * linear[2]


@pytest.mark.parametrize("color", [*CLASS_COLORS, *ZONE_COLORS, LINE_COLOR, FALSE_COLOR, WHITE, RIM])
def test_plate_text_has_the_higher_contrast(color: tuple[int, int, int]) -> None:
    assert contrast(ink_on(color), color) >= 4.5
    assert contrast(ink_on(color), color) == max(contrast(RIM, color), contrast(WHITE, color))


def test_label_is_the_same_on_any_background() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (240, 320, 3)).astype(np.uint8)
    plates = []
    for frame in (grey(value=0), grey(value=255), noise):
        rect = Overlay(frame).plate("person 12", 40, 50, class_color(0))
        plates.append(frame[rect.top : rect.bottom, rect.left : rect.right])
    assert np.array_equal(plates[0], plates[1])
    assert np.array_equal(plates[0], plates[2])
    assert (plates[0].max(axis=2) < 100).sum() > 20  # dark letters on a light plate


@pytest.mark.parametrize("letters_px", [7, 9, 17, 35, 70])
def test_capitals_have_the_requested_height(letters_px: int) -> None:
    rows = np.flatnonzero((text_mask("H", letters_px) > 127).any(axis=1))
    assert rows[-1] - rows[0] + 1 == pytest.approx(letters_px, abs=1.01)


def test_blank_text_has_a_mask() -> None:
    assert text_mask(" ", 9).shape[1] > 0
    assert not text_mask("", 9).any()


def test_letters_and_strokes_grow_with_the_frame() -> None:
    sizes = [Overlay(grey(height, height * 4 // 3)) for height in (120, 576, 1080, 2160)]
    letters = [overlay.letters_px for overlay in sizes]
    assert letters == sorted(letters)
    assert letters[-1] > 3 * letters[0]
    assert sizes[-1].stroke_px > sizes[0].stroke_px


def test_box_is_drawn_around_its_object() -> None:
    frame = grey()
    Overlay(frame).objects(boxes((50, 60, 100, 150)), [""], [class_color(1)])
    for x, y in ((50, 100), (100, 100), (75, 60), (75, 150)):
        assert is_color(frame, x, y, class_color(1))
    assert is_color(frame, 75, 100, (100, 100, 100))
    assert is_color(frame, 40, 100, (100, 100, 100))


def test_first_object_is_drawn_on_top() -> None:
    frame = grey()
    Overlay(frame).objects(boxes((50, 60, 100, 150), (50, 60, 100, 150)), ["", ""], [class_color(0), class_color(1)])
    assert count(frame, class_color(0)) > 0
    assert count(frame, class_color(1)) == 0


@pytest.mark.parametrize(
    "box",
    [(-500, -500, 900, 900), (319, 239, 400, 300), (0, 0, 0, 0), (310, 0, 330, 10), (1e9, 1e9, 2e9, 2e9)],
)
def test_box_beyond_the_frame_is_drawn_at_the_edge(box: tuple[float, float, float, float]) -> None:
    frame = grey()
    Overlay(frame).objects(boxes(box), ["person 1"], [class_color(0)])
    assert count(frame, class_color(0)) > 0


def test_box_that_is_not_finite_is_left_out() -> None:
    frame = grey()
    Overlay(frame).objects(boxes((np.nan, 0, 10, 10), (0, 0, np.inf, 10)), ["a", "b"], [WHITE, WHITE])
    assert np.array_equal(frame, grey())


def test_labels_do_not_overlap_each_other_or_the_banner() -> None:
    overlay = Overlay(grey())
    overlay.banner("north", "7 found")
    overlay.objects(boxes((50, 0, 90, 80), (55, 100, 95, 200), (55, 102, 95, 202)), ["a", "b", "c"], [WHITE] * 3)
    plates = overlay._occupied
    assert len(plates) == 4
    assert not any(one.overlaps(other) for one, other in itertools.combinations(plates, 2))


def test_label_at_the_edge_stays_in_the_frame() -> None:
    overlay = Overlay(grey())
    overlay.objects(boxes((300, 220, 319, 239)), ["a long label"], [WHITE])
    (plate,) = overlay._occupied
    assert 0 <= plate.left < plate.right <= 320
    assert 0 <= plate.top < plate.bottom <= 240


def test_plate_wider_than_the_frame_is_cut_off() -> None:
    assert Overlay(grey(40, 30)).plate("words that need far more room\nand lines", -50, 90, WHITE).right == 30


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        (Rect(0, 0, 2, 2), Rect(1, 1, 3, 3), True),
        (Rect(0, 0, 2, 2), Rect(2, 0, 4, 2), False),
        (Rect(0, 0, 2, 2), Rect(0, 2, 2, 4), False),
    ],
)
def test_rects_that_share_an_area_overlap(one: Rect, other: Rect, overlap: bool) -> None:
    assert one.overlaps(other) is overlap
    assert other.overlaps(one) is overlap


def drawn_line(direction: str, points: object = ((20.0, 120.0), (300.0, 120.0))) -> Frame:
    frame = grey()
    line = LineConfig.model_validate({"name": "door", "points": points, "direction": direction})
    Overlay(frame).analytics(CameraAnalytics(lines=(line,)))
    return frame


@pytest.mark.parametrize(
    ("direction", "above", "below"), [("in", False, True), ("out", True, False), ("both", True, True)]
)
def test_arrows_point_in_the_directions_of_crossings(direction: str, above: bool, below: bool) -> None:
    """The line is drawn from left to right. An object that moves down crosses the line in the direction `in`."""
    middle = drawn_line(direction)[:, 100:220]  # without the plate at the line's beginning
    assert (count(middle[:110], LINE_COLOR) > 50) is above
    assert (count(middle[130:], LINE_COLOR) > 50) is below


def test_reversed_line_has_a_reversed_arrow() -> None:
    frame = drawn_line("in", ((300.0, 120.0), (20.0, 120.0)))[:, 100:220]
    assert count(frame[:110], LINE_COLOR) > 50
    assert count(frame[130:], LINE_COLOR) == 0


def test_line_is_drawn_from_point_to_point() -> None:
    frame = drawn_line("in")
    stroke = frame[120, 200:290].astype(int)
    assert np.abs(stroke - np.array(LINE_COLOR)).max() < 60


def square(**limits: object) -> ZoneConfig:
    corners = ((0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75))
    return ZoneConfig.model_validate({"name": "queue", "polygon": corners, **limits})


@pytest.mark.parametrize(("units", "whole"), [("fraction", 1), ("percent", 100)])
def test_zones_in_fractions_and_percent_are_scaled_to_the_frame(units: Units, whole: float) -> None:
    frame = grey()
    corners = tuple((x * whole, y * whole) for x, y in square().polygon)
    Overlay(frame).analytics(CameraAnalytics(units=units, zones=(square().model_copy(update={"polygon": corners}),)))
    changed = np.argwhere((frame != 100).any(axis=2))
    assert changed.min(axis=0) == pytest.approx([60, 80], abs=3)
    assert changed.max(axis=0) == pytest.approx([180, 240], abs=3)
    assert is_color(frame, 160, 60, ZONE_COLORS[0])
    tinted = frame[170, 160].astype(int)  # inside the zone, below its name
    assert tinted == pytest.approx(100 + 0.18 * (np.array(ZONE_COLORS[0]) - 100), abs=2)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({}, "queue"),
        ({"crowd_threshold": 5}, "queue\ncrowded above 5"),
        ({"crowd_threshold": 0, "crowded_for_s": 2.5, "dwell_s": 30.0}, "queue\ncrowded above 0 for 2.5 s\ndwell 30 s"),
    ],
)
def test_zone_text_has_its_limits(limits: dict[str, object], words: str) -> None:
    assert zone_words(square(**limits)) == words


def test_counters_change_the_frame() -> None:
    section = CameraAnalytics.model_validate(
        {
            "lines": ({"name": "door", "points": ((20.0, 120.0), (300.0, 120.0))},),
            "zones": ({"name": "queue", "polygon": ((20.0, 20.0), (120.0, 20.0), (120.0, 90.0))},),
        }
    )
    frames = []
    for crossed, inside in ((0, 0), (1, 0), (1, 1), (1, 1)):
        frame = grey()
        Overlay(frame).analytics(section, crossed={"door": {"in": crossed}}, inside={"queue": inside})
        frames.append(frame)
    assert not np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[1], frames[2])
    assert np.array_equal(frames[2], frames[3])


@pytest.mark.parametrize("shift", [-1000.0, 0.0, 1000.0])
def test_zone_beyond_the_frame_is_clipped(shift: float) -> None:
    frame = grey()
    overlay = Overlay(frame)
    corners = np.array([[10, 10], [300, 20], [200, 230]], float) + shift
    overlay._zone(corners, [], ZONE_COLORS[0])
    assert (count(frame, ZONE_COLORS[0]) > 0) is (shift == 0.0)


def test_hole_of_a_zone_is_not_tinted() -> None:
    hole = [(0.4, 0.4), (0.6, 0.4), (0.6, 0.6), (0.4, 0.6)]
    polygon = [(0.2, 0.2), (0.8, 0.2), (0.8, 0.8), (0.2, 0.8)]
    section = CameraAnalytics.model_validate(
        {"units": "fraction", "zones": [{"name": "queue", "polygon": polygon, "holes": [hole]}]}
    )
    frame, untouched = grey(), grey()
    Overlay(frame).analytics(section, crossed={}, inside={"queue": 0})
    height, width = frame.shape[:2]
    middle, beside = (height // 2 + 20, width // 2 + 20), (height // 2, round(0.3 * width))
    assert np.array_equal(frame[middle], untouched[middle])
    assert not np.array_equal(frame[beside], untouched[beside])


def test_trail_fades_towards_its_beginning() -> None:
    frame = grey()
    Overlay(frame).trail(np.array([[x, 120.0] for x in range(20, 300, 10)]), WHITE)
    old, new = frame[120, 40:60].mean(), frame[120, 260:280].mean()
    assert old + 40 < new


def test_dashed_box_has_gaps() -> None:
    frame = grey()
    Overlay(frame).dashed_box(boxes((50, 60, 150, 200))[0], WHITE, "missed")
    side = (frame[70:190, 50] == 255).all(axis=1)
    assert 0.2 < side.mean() < 0.8


def test_banner_changes_only_the_upper_edge() -> None:
    frame = grey()
    Overlay(frame).banner("left", "right")
    assert (frame > 180).sum() > 60
    assert np.array_equal(frame[60:], grey()[60:])


def test_ground_points_are_drawn_in_configuration_drawings_only() -> None:
    ground = {
        "points": ((60.0, 150.0), (160.0, 150.0), (200.0, 220.0), (30.0, 220.0)),
        "metres": ((0.0, 0.0), (3.0, 0.0), (3.0, 4.5), (0.0, 4.5)),
    }
    configured, running = grey(), grey()
    Overlay(configured).analytics(CameraAnalytics.model_validate({"ground": ground}))
    Overlay(running).analytics(CameraAnalytics.model_validate({"ground": ground}), crossed={}, inside={})
    assert count(configured, WHITE) > 200
    assert np.array_equal(running, grey())


def test_names_of_lines_stay_above_boxes() -> None:
    overlay = Overlay(grey())
    plate = overlay.plate("in 3", 100, 100, LINE_COLOR)
    area = np.s_[plate.top : plate.bottom, plate.left : plate.right]
    before = overlay.frame[area].copy()
    overlay.objects(boxes((90, 90, plate.right - 2, plate.bottom - 2)), [""], [WHITE])
    assert np.array_equal(overlay.frame[area], before)
