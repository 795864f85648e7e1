"""Drawing of lines, zones, and objects on a frame, for `vision draw`, annotated videos, and snapshots.

Sizes are proportional to the frame. Text is on a colored plate and strokes have a dark rim, so that both are visible on
any background. Letters are drawn at four times their size and then scaled down, because thin strokes that OpenCV draws
directly are hard to read.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.config import CameraAnalytics, LineConfig, Point, ZoneConfig
from vision.config.analytics import GroundConfig, Units, pixels_per_unit
from vision.drawing.skeleton import drawn_keypoints
from vision.types import Mask, Shapes, rotated_corners

Frame: TypeAlias = NDArray[np.uint8]
Color: TypeAlias = tuple[int, int, int]
"""Levels of blue, green, and red, from 0 to 255."""

CLASS_COLORS: Final[tuple[Color, ...]] = (
    (247, 195, 79),
    (77, 183, 255),
    (132, 199, 129),
    (146, 98, 240),
    (118, 241, 255),
    (200, 104, 186),
    (172, 182, 77),
    (101, 138, 255),
    (174, 164, 144),
    (117, 231, 220),
)
LINE_COLOR: Final[Color] = (60, 225, 255)
ZONE_COLORS: Final[tuple[Color, ...]] = ((255, 160, 120), (140, 220, 120), (190, 130, 255), (120, 200, 255))
WHITE: Final[Color] = (255, 255, 255)
FALSE_COLOR: Final[Color] = (90, 90, 255)
RIM: Final[Color] = (24, 24, 24)

_LETTER_SHARE: Final = 0.016  # height of a capital letter, as a fraction of the frame's shorter side
_MIN_LETTERS_PX: Final = 7
_STROKE_SHARE: Final = 1 / 360
_FILL: Final = 0.18  # opacity of a zone's color inside the zone
_MASK_FILL: Final = 0.4  # opacity of an object's color on its mask
_OVERSIZE: Final = 4  # factor by which letters are drawn larger and scaled down
_SHIFT: Final = 4  # number of fractional bits of OpenCV's coordinates
_FONT: Final = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(frozen=True, slots=True)
class Rect:
    """Rectangle in pixels. `right` and `bottom` are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    def overlaps(self, other: Rect) -> bool:
        apart = self.left >= other.right or other.left >= self.right
        return not (apart or self.top >= other.bottom or other.top >= self.bottom)


class Overlay:
    """Drawing tool that changes one frame, (H, W, 3) uint8 BGR.

    Each method draws on top of existing drawings, except that `objects` keeps names and counters above the boxes.
    """

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.height_px, self.width_px = frame.shape[:2]
        side_px = min(self.height_px, self.width_px)
        self.letters_px = max(_MIN_LETTERS_PX, round(side_px * _LETTER_SHARE))
        self._pad_px = max(2, round(0.5 * self.letters_px))  # between text and the edge of its plate
        self.stroke_px = max(2, round(side_px * _STROKE_SHARE))
        self._occupied: list[Rect] = []
        self._plates: list[tuple[Rect, str, Color]] = []

    def analytics(
        self,
        section: CameraAnalytics,
        *,
        crossed: Mapping[str, Mapping[str, int]] | None = None,
        inside: Mapping[str, int] | None = None,
    ) -> None:
        """Draw every zone and line of a camera and, if `crossed` is None, the ground points.

        Args:
            section: configuration of the camera's zones, lines, and ground points.
            crossed: number of crossings by line and direction (``in``, ``out``). If None, draw no numbers.
            inside: number of objects by zone. If None, draw the configured limits of each zone instead.
        """
        colors = itertools.cycle(ZONE_COLORS)
        zones = [(zone, self._to_pixels(zone.polygon, section.units), next(colors)) for zone in section.zones]
        for zone, corners, color in zones:
            self._zone(corners, [self._to_pixels(hole, section.units) for hole in zone.holes], color)
        if section.ground is not None and crossed is None:
            self._plan(section.ground, self._to_pixels(section.ground.points, section.units))
        for line in section.lines:
            self._line(line, self._to_pixels(line.points, section.units), (crossed or {}).get(line.name))
        for zone, corners, color in zones:
            words = zone_words(zone) if inside is None else f"{zone.name}: {inside.get(zone.name, 0)}"
            self._name(words, _inner_point(corners), color)

    def _to_pixels(self, points: Iterable[Point], units: Units) -> NDArray[np.float64]:
        """Return the positions of points in this frame, as an array (N, 2) of x and y in pixels."""
        return np.array(list(points), np.float64) * pixels_per_unit(units, self.width_px, self.height_px)

    def _zone(self, corners: NDArray[np.float64], holes: Sequence[NDArray[np.float64]], color: Color) -> None:
        rings = [np.rint(ring).astype(np.int32) for ring in (corners, *holes)]
        whole = rings[0]
        left, top = np.maximum(whole.min(axis=0), 0)
        right, bottom = np.minimum(whole.max(axis=0) + 1, (self.width_px, self.height_px))
        if left < right and top < bottom:
            area = self.frame[top:bottom, left:right]
            tinted = area.copy()
            cv2.fillPoly(tinted, [ring - (left, top) for ring in rings], color)  # by the even-odd rule
            cv2.addWeighted(tinted, _FILL, area, 1.0 - _FILL, 0.0, dst=area)
        for ring in (corners, *holes):
            self._path(ring, color, closed=True)

    def _plan(self, ground: GroundConfig, corners: NDArray[np.float64]) -> None:
        """Draw the four ground points at `corners`, each with its position in meters."""
        self._dashes(corners, WHITE)
        for corner, (x, y) in zip(corners, ground.metres, strict=True):
            self._disc(corner, self.stroke_px, WHITE)
            self._name(f"{x:g}, {y:g} m", corner, WHITE)

    def _line(self, line: LineConfig, ends: NDArray[np.float64], crossed: Mapping[str, int] | None) -> None:
        self._path(ends, LINE_COLOR, closed=False)
        for end in ends:
            self._disc(end, self.stroke_px * 2, LINE_COLOR)
        along = ends[1] - ends[0]
        to_the_right = np.array([-along[1], along[0]]) / max(float(np.hypot(*along)), 1e-9)
        arrows = [("in", to_the_right), ("out", -to_the_right)]
        shown = [arrow for arrow in arrows if line.direction in (arrow[0], "both")]
        for place, (direction, way) in zip((0.4, 0.6) if len(shown) == 2 else (0.5,), shown, strict=True):
            count = "" if crossed is None else f" {crossed.get(direction, 0)}"
            self._arrow(ends[0] + place * along, way, f"{direction}{count}")
        self._name(line.name, ends[0], LINE_COLOR)

    def objects(
        self,
        boxes_xyxy: NDArray[np.float32],
        labels: Sequence[str],
        colors: Sequence[Color],
        shapes: Shapes | None = None,
    ) -> None:
        """Draw objects with their labels, the first object on top. Leave out empty labels and infinite or NaN boxes.

        Args:
            boxes_xyxy: (N, 4) in pixels. If `shapes` has rotated boxes, the rotated boxes are drawn instead.
            labels: text of each object.
            colors: color of each object.
            shapes: masks, keypoints, and rotated boxes of the objects. None means that there are none.
        """
        rows = [row for row in zip(boxes_xyxy, labels, colors, strict=True) if np.isfinite(row[0]).all()][::-1]
        rotated = None if shapes is None else shapes.rotated_boxes
        if rotated is not None:
            for corners, color in list(zip(rotated_corners(rotated), colors, strict=True))[::-1]:
                self._path(corners, color, closed=True)
        else:
            for box, _, color in rows:
                self._box(box, color)
        if shapes is not None:
            self._shapes(shapes, colors)
        for rect, words, plate_color in self._plates:  # names and counters stay on top of the boxes
            self._draw_plate(rect, words, plate_color)
        for box, label, color in rows:
            if label:
                self._tag(box, label, color)

    def _box(self, box_xyxy: NDArray[np.float32], color: Color) -> None:
        x1, y1, x2, y2 = self._corners(box_xyxy)
        cv2.rectangle(self.frame, (x1, y1), (x2, y2), RIM, self.stroke_px + 2)
        cv2.rectangle(self.frame, (x1, y1), (x2, y2), color, self.stroke_px)

    def _shapes(self, shapes: Shapes, colors: Sequence[Color]) -> None:
        """Tint the masks of objects, then draw their keypoints. In both steps, draw the first object last."""
        for mask, color in list(zip(shapes.masks or (), colors, strict=False))[::-1]:
            self._mask(mask, color)
        for points, color in list(zip(() if shapes.keypoints is None else shapes.keypoints, colors, strict=False))[
            ::-1
        ]:
            self._skeleton(points, color)

    def _mask(self, mask: Mask, color: Color) -> None:
        x1, y1, x2, y2 = np.rint(mask.region_xyxy).astype(int).tolist()
        size = (max(1, x2 - x1), max(1, y2 - y1))
        left, top = max(0, -x1), max(0, -y1)  # part of the region outside the frame
        area = self.frame[max(0, y1) : max(0, y1 + size[1]), max(0, x1) : max(0, x1 + size[0])]
        if not area.size:
            return
        opacity = cv2.resize(mask.cells.astype(np.uint8) * 255, size, interpolation=cv2.INTER_LINEAR)
        inside = opacity[top : top + area.shape[0], left : left + area.shape[1]] > 127
        area[inside] = np.rint(area[inside] * (1.0 - _MASK_FILL) + np.array(color) * _MASK_FILL).astype(np.uint8)

    def _skeleton(self, points: NDArray[np.float32], color: Color) -> None:
        """Draw the keypoints (K, 3) of one object, except those with low scores. The columns are x, y (px), and score.

        If there are 17 keypoints, as in COCO, also draw the limbs, which connect the keypoints.
        """
        sure, limbs = drawn_keypoints(points[:, 2].tolist())
        at = points[:, :2].astype(np.float64)
        for limb in limbs:
            self._path(at[list(limb)], color, closed=False)
        for point in at[sure]:
            self._disc(point, self.stroke_px, color)

    def dashed_box(self, box_xyxy: NDArray[np.float32], color: Color, label: str = "") -> None:
        """Draw a box with a dashed outline and a label, for example for an object that the detector missed.

        `box_xyxy` (4,) contains the left, top, right, and bottom edges in pixels.
        """
        x1, y1, x2, y2 = self._corners(box_xyxy)
        self._dashes(np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], np.float64), color)
        if label:
            self._tag(box_xyxy, label, color)

    def trail(self, points: NDArray[np.float64], color: Color) -> None:
        """Draw a line through the positions of an object, (N, 2) in pixels, oldest first. Older parts are darker."""
        fixed = _fixed(points)
        for at in range(1, len(fixed)):
            share = 0.3 + 0.7 * at / len(fixed)
            faded = tuple(round(channel * share + RIM[0] * (1 - share)) for channel in color)
            cv2.line(self.frame, fixed[at - 1], fixed[at], faded, self.stroke_px, cv2.LINE_AA, _SHIFT)

    def banner(self, words: str, right: str = "") -> None:
        """Draw a dark strip along the top edge of the frame, with text on the left and on the right."""
        pad = self.letters_px
        bottom = min(self.height_px, 3 * self.letters_px)
        strip = self.frame[:bottom]
        cv2.addWeighted(strip, 0.3, np.full_like(strip, RIM[0]), 0.7, 0.0, dst=strip)
        letters = text_mask(words, self.letters_px)
        top = (bottom - letters.shape[0]) // 2
        _ink(self.frame, letters, pad, top, WHITE)
        self._occupied.append(Rect(0, 0, self.width_px, bottom))
        if right:
            letters = text_mask(right, self.letters_px)
            _ink(self.frame, letters, self.width_px - pad - letters.shape[1], top, WHITE)

    def plate(self, words: str, left: int, top: int, color: Color) -> Rect:
        """Draw the lines of `words` on a plate of `color`, and return the rectangle of the plate.

        `left` and `top` are the position of the plate in pixels. If necessary, the plate is moved into the frame.
        """
        rect = self._plate_at(words, left, top)
        self._draw_plate(rect, words, color)
        self._occupied.append(rect)
        self._plates.append((rect, words, color))
        return rect

    def _draw_plate(self, rect: Rect, words: str, color: Color) -> None:
        self.frame[rect.top : rect.bottom, rect.left : rect.right] = color
        below = rect.top + self._pad_px // 2
        for letters in self._lines_of(words):
            _ink(self.frame, letters, rect.left + self._pad_px, below, ink_on(color))
            below += letters.shape[0]

    def _corners(self, box_xyxy: NDArray[np.float32]) -> tuple[int, int, int, int]:
        """Return the corners of a box, rounded to pixels, and clipped to the frame so that each side is visible."""
        high = np.array([self.width_px, self.height_px] * 2) - 1
        x1, y1, x2, y2 = np.clip(np.rint(box_xyxy), 0, high).astype(int).tolist()
        return x1, y1, x2, y2

    def _path(self, points: NDArray[np.float64], color: Color, *, closed: bool) -> None:
        fixed = [np.array(_fixed(points), np.int32)]
        cv2.polylines(self.frame, fixed, closed, RIM, self.stroke_px + 2, cv2.LINE_AA, _SHIFT)
        cv2.polylines(self.frame, fixed, closed, color, self.stroke_px, cv2.LINE_AA, _SHIFT)

    def _dashes(self, corners: NDArray[np.float64], color: Color) -> None:
        """Draw the outline of a polygon as a dashed line."""
        dash_px = 4.0 * self.stroke_px
        for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            length_px = float(np.hypot(*(end - start)))
            for along_px in np.arange(0.0, length_px, 2 * dash_px):
                shares = np.array([[along_px], [min(along_px + dash_px, length_px)]]) / length_px
                self._path(start + shares * (end - start), color, closed=False)

    def _disc(self, center: NDArray[np.float64], radius_px: int, color: Color) -> None:
        at = _fixed(center[None])[0]
        cv2.circle(self.frame, at, (radius_px + 1) << _SHIFT, RIM, -1, cv2.LINE_AA, _SHIFT)
        cv2.circle(self.frame, at, radius_px << _SHIFT, color, -1, cv2.LINE_AA, _SHIFT)

    def _arrow(self, start: NDArray[np.float64], way: NDArray[np.float64], words: str) -> None:
        length = 3.5 * self.letters_px
        tip = start + way * length
        side = np.array([-way[1], way[0]]) * 0.35 * length
        self._path(np.array([start, tip - way * 0.2 * length]), LINE_COLOR, closed=False)
        head = np.array([tip, tip - way * 0.5 * length + side, tip - way * 0.5 * length - side])
        self._path(head, LINE_COLOR, closed=True)
        cv2.fillPoly(self.frame, [np.array(_fixed(head), np.int32)], LINE_COLOR, cv2.LINE_AA, _SHIFT)
        plate = self._plate_at(words, 0, 0)
        size = np.array([plate.right, plate.bottom])
        corner = tip + way * (0.5 * np.abs(way) @ size + self.stroke_px) - size / 2
        self.plate(words, round(corner[0]), round(corner[1]), LINE_COLOR)

    def _name(self, words: str, point: NDArray[np.float64], color: Color) -> None:
        """Draw a plate with text at a point, or above or below the point if another plate is already there."""
        size = self._plate_at(words, 0, 0)
        x, y = round(point[0] - size.right / 2), round(point[1] - size.bottom / 2)
        step = size.bottom + 2
        places = [(x, y + step * turn) for turn in (0, -1, 1, -2, 2, -3, 3)]
        self._place(places, words, color)

    def _tag(self, box_xyxy: NDArray[np.float32], label: str, color: Color) -> None:
        """Draw a plate with a label above, below, or inside a box, if possible without covering another plate."""
        x1, y1, x2, y2 = self._corners(box_xyxy)
        size = self._plate_at(label, 0, 0)
        left, right = x1 - self.stroke_px // 2, x2 - size.right
        places = [(left, y1 - size.bottom), (left, y2), (right, y1 - size.bottom), (right, y2), (left, y1), (right, y1)]
        self._place(places, label, color)

    def _place(self, places: Sequence[tuple[int, int]], words: str, color: Color) -> None:
        """Draw a plate with text at the first of `places` (left, top) that is free and not above or below the frame.

        If no place is free, draw the plate at the first place.
        """
        left, top = next((place for place in places if self._fits(words, *place)), places[0])
        self.plate(words, left, top, color)

    def _fits(self, words: str, left: int, top: int) -> bool:
        rect = self._plate_at(words, left, top)
        return rect.top == top and not any(rect.overlaps(other) for other in self._occupied)

    def _plate_at(self, words: str, left: int, top: int) -> Rect:
        """Return the rectangle of a plate with the text `words` at (`left`, `top`).

        If necessary, move the rectangle into the frame.
        """
        lines = self._lines_of(words)
        width = max(letters.shape[1] for letters in lines) + 2 * self._pad_px
        height = sum(letters.shape[0] for letters in lines) + self._pad_px
        left = max(0, min(left, self.width_px - width))
        top = max(0, min(top, self.height_px - height))
        return Rect(left, top, min(left + width, self.width_px), min(top + height, self.height_px))

    def _lines_of(self, words: str) -> list[NDArray[np.uint8]]:
        return [text_mask(line, self.letters_px) for line in words.split("\n")]


def zone_words(zone: ZoneConfig) -> str:
    """Return the name of a zone and its configured limits as text, each on its own line."""
    limits = [zone.name]
    if zone.crowd_threshold is not None:
        lasting = f" for {zone.crowded_for_s:g} s" if zone.crowded_for_s else ""
        limits.append(f"crowded above {zone.crowd_threshold}{lasting}")
    if zone.dwell_s is not None:
        limits.append(f"dwell {zone.dwell_s:g} s")
    return "\n".join(limits)


def class_color(class_id: int) -> Color:
    """Return the color in which objects of a class are drawn. The colors repeat after ten classes."""
    return CLASS_COLORS[class_id % len(CLASS_COLORS)]


def ink_on(color: Color) -> Color:
    """Return the text color for a background: dark if its relative luminance (WCAG 2.2) exceeds 0.2, else white."""
    shares = [channel / 255 for channel in color]
    blue, green, red = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares)
    return RIM if 0.0722 * blue + 0.7152 * green + 0.2126 * red > 0.2 else WHITE


@lru_cache(maxsize=4096)
def text_mask(words: str, letters_px: int) -> NDArray[np.uint8]:
    """Return the opacity mask of a line of text, (height, width) uint8.

    `letters_px` is the height of capital letters. The mask is taller than this, so that ascenders and descenders fit.

    Characters that OpenCV's font lacks become question marks.
    """
    scale, thickness = _font_size(letters_px * _OVERSIZE)
    rise, fall = round(1.15 * letters_px) * _OVERSIZE, round(0.4 * letters_px) * _OVERSIZE
    (width, _), _ = cv2.getTextSize(words, _FONT, scale, thickness)
    canvas = np.zeros((rise + fall, width + 4 * thickness + 4 * letters_px), np.uint8)
    cv2.putText(canvas, words, (2 * thickness, rise), _FONT, scale, 255, thickness, cv2.LINE_AA)
    columns = np.flatnonzero(canvas.any(axis=0))
    if not len(columns):
        return np.zeros(((rise + fall) // _OVERSIZE, letters_px), np.uint8)
    canvas = canvas[:, columns[0] : columns[-1] + 1]
    size = (-(-canvas.shape[1] // _OVERSIZE), canvas.shape[0] // _OVERSIZE)
    mask = np.asarray(cv2.resize(canvas, size, interpolation=cv2.INTER_AREA), np.uint8)
    mask.setflags(write=False)
    return mask


@lru_cache(maxsize=64)
def _font_size(capital_px: int) -> tuple[float, int]:
    """Return OpenCV's font scale and line thickness for capital letters that are `capital_px` high.

    The scale is measured, because fonts differ between OpenCV versions.
    """
    thickness = max(1, round(capital_px * 0.13))
    scale = capital_px / 22
    for _ in range(3):
        canvas = np.zeros((3 * capital_px, 3 * capital_px), np.uint8)
        cv2.putText(canvas, "H", (capital_px, 2 * capital_px), _FONT, scale, 255, thickness)
        rows = np.flatnonzero(canvas.any(axis=1))
        scale *= capital_px / (rows[-1] - rows[0] + 1)
    return scale, thickness


def _ink(frame: Frame, letters: NDArray[np.uint8], left: int, top: int, color: Color) -> None:
    """Draw the letters of an opacity mask at (`left`, `top`), and clip the letters at the edges of the frame."""
    x, y = max(left, 0), max(top, 0)
    area = frame[y : top + letters.shape[0], x : left + letters.shape[1]]
    opacity = letters[y - top :, x - left :][: area.shape[0], : area.shape[1], None].astype(np.float32) / 255
    area[...] = np.rint(area * (1 - opacity) + np.array(color, np.float32) * opacity).astype(np.uint8)


def _fixed(points: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Convert points (N, 2) to OpenCV's fixed-point coordinates, which have `_SHIFT` fractional bits."""
    return [(int(x), int(y)) for x, y in np.rint(points * (1 << _SHIFT))]


def _inner_point(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the point inside a polygon that is approximately farthest from the border.

    The name of a zone is drawn there.
    """
    low, high = corners.min(axis=0), corners.max(axis=0)
    scale = 200.0 / max(float((high - low).max()), 1.0)
    shape = np.ceil((high - low) * scale).astype(int) + 3
    mask = np.zeros((int(shape[1]), int(shape[0])), np.uint8)
    cv2.fillPoly(mask, [np.rint((corners - low) * scale + 1).astype(np.int32)], 1)
    depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
    row, column = np.unravel_index(int(np.argmax(depth)), depth.shape)
    point: NDArray[np.float64] = (np.array([column, row], np.float64) - 1) / scale + low
    return point
