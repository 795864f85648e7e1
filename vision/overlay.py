"""What was configured and what was found, drawn on a frame: one look for `vision draw`, evaluation videos and demos.

Sizes grow with the frame, so that a thumbnail and a 4K frame can both be read. Every letter stands on a plate of
its own and every stroke has a dark rim: the background is whatever a camera shows. Letters are drawn four times too
large and then reduced, because OpenCV 4's thin strokes are hard to read at the size of a label.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.config import CameraAnalytics, LineConfig, Point, ZoneConfig
from vision.config.analytics import GroundConfig, Units, pixels_per_unit

Frame: TypeAlias = NDArray[np.uint8]
Colour: TypeAlias = tuple[int, int, int]
"""Blue, green, red, 0 to 255."""

CLASS_COLOURS: Final[tuple[Colour, ...]] = (
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
LINE_COLOUR: Final[Colour] = (60, 225, 255)
ZONE_COLOURS: Final[tuple[Colour, ...]] = ((255, 160, 120), (140, 220, 120), (190, 130, 255), (120, 200, 255))
WHITE: Final[Colour] = (255, 255, 255)
FALSE_COLOUR: Final[Colour] = (90, 90, 255)
RIM: Final[Colour] = (24, 24, 24)

_LETTERS_OF_SIDE: Final = 0.016  # height of a capital letter, of the frame's shorter side
_LEAST_LETTERS_PX: Final = 7
_STROKE_OF_SIDE: Final = 1 / 360
_FILL: Final = 0.18  # how much of a zone's colour lies over its area
_OVERSIZE: Final = 4
_SHIFT: Final = 4  # bits of a pixel's fraction in OpenCV's coordinates
_FONT: Final = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(frozen=True, slots=True)
class Rect:
    """Whole pixels; `right` and `bottom` lie outside."""

    left: int
    top: int
    right: int
    bottom: int

    def overlaps(self, other: Rect) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


class Overlay:
    """Draws into one frame, (H, W, 3) uint8 BGR, in place. What is drawn first lies below."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.height_px, self.width_px = frame.shape[:2]
        side_px = min(self.height_px, self.width_px)
        self.letters_px = max(_LEAST_LETTERS_PX, round(side_px * _LETTERS_OF_SIDE))
        self.stroke_px = max(2, round(side_px * _STROKE_OF_SIDE))
        self._occupied: list[Rect] = []
        self._plates: list[tuple[Rect, str, Colour]] = []

    # --- what was configured ------------------------------------------------------------------------------------------

    def analytics(
        self,
        section: CameraAnalytics,
        *,
        crossed: Mapping[str, Mapping[str, int]] | None = None,
        inside: Mapping[str, int] | None = None,
    ) -> None:
        """Every zone and line of a camera.

        Args:
            crossed: objects by line and direction (``in``, ``out``); none are shown where absent.
            inside: objects by zone; none are shown, but the zone's limits, where absent.
        """
        for at, zone in enumerate(section.zones):
            corners = self.to_pixels(zone.polygon, section.units)
            self._zone(corners, ZONE_COLOURS[at % len(ZONE_COLOURS)])
        if section.ground is not None and crossed is None:
            self._plan(section.ground, self.to_pixels(section.ground.points, section.units))
        for line in section.lines:
            self._line(line, self.to_pixels(line.points, section.units), (crossed or {}).get(line.name))
        for at, zone in enumerate(section.zones):
            words = zone_words(zone) if inside is None else f"{zone.name}: {inside.get(zone.name, 0)}"
            corners = self.to_pixels(zone.polygon, section.units)
            self._name(words, _inner_point(corners), ZONE_COLOURS[at % len(ZONE_COLOURS)])

    def to_pixels(self, points: Iterable[Point], units: Units) -> NDArray[np.float64]:
        """(N, 2) x, y in pixels of this frame."""
        return np.array(list(points), np.float64) * pixels_per_unit(units, self.width_px, self.height_px)

    def _zone(self, corners: NDArray[np.float64], colour: Colour) -> None:
        whole = np.rint(corners).astype(np.int32)
        left, top = np.maximum(whole.min(axis=0), 0)
        right, bottom = np.minimum(whole.max(axis=0) + 1, (self.width_px, self.height_px))
        if left < right and top < bottom:
            area = self.frame[top:bottom, left:right]
            tinted = area.copy()
            cv2.fillPoly(tinted, [whole - (left, top)], colour)
            cv2.addWeighted(tinted, _FILL, area, 1.0 - _FILL, 0.0, dst=area)
        self._path(corners, colour, closed=True)

    def _plan(self, ground: GroundConfig, corners: NDArray[np.float64]) -> None:
        """Draw the four ground points with their metres."""
        for at in range(4):
            self._dashes(corners[at], corners[(at + 1) % 4], WHITE)
        for corner, (x, y) in zip(corners, ground.metres, strict=True):
            self._disc(corner, self.stroke_px, WHITE)
            self._name(f"{x:g}, {y:g} m", corner, WHITE)

    def _line(self, line: LineConfig, ends: NDArray[np.float64], crossed: Mapping[str, int] | None) -> None:
        self._path(ends, LINE_COLOUR, closed=False)
        for end in ends:
            self._disc(end, self.stroke_px * 2, LINE_COLOUR)
        along = ends[1] - ends[0]
        to_the_right = np.array([-along[1], along[0]]) / max(float(np.hypot(*along)), 1e-9)
        arrows = [("in", to_the_right), ("out", -to_the_right)]
        shown = [arrow for arrow in arrows if line.direction in (arrow[0], "both")]
        for place, (direction, way) in zip((0.4, 0.6) if len(shown) == 2 else (0.5,), shown, strict=True):
            count = "" if crossed is None else f" {crossed.get(direction, 0)}"
            self._arrow(ends[0] + place * along, way, f"{direction}{count}")
        self._name(line.name, ends[0], LINE_COLOUR)

    # --- what was found -----------------------------------------------------------------------------------------------

    def objects(self, boxes_xyxy: NDArray[np.float32], labels: Sequence[str], colours: Sequence[Colour]) -> None:
        """Boxes (N, 4) in pixels with their labels, the first of them on top. An empty label draws none."""
        rows = list(zip(boxes_xyxy, labels, colours, strict=True))[::-1]
        rows = [row for row in rows if np.isfinite(row[0]).all()]
        for box, _, colour in rows:
            self.box(box, colour)
        for rect, words, plate_colour in self._plates:  # names and counters of lines stay above the boxes
            self._draw_plate(rect, words, plate_colour)
        for box, label, colour in rows:
            if label:
                self._tag(box, label, colour)

    def box(self, box_xyxy: NDArray[np.float32], colour: Colour) -> None:
        """One box in pixels."""
        x1, y1, x2, y2 = self._corners(box_xyxy)
        cv2.rectangle(self.frame, (x1, y1), (x2, y2), RIM, self.stroke_px + 2)
        cv2.rectangle(self.frame, (x1, y1), (x2, y2), colour, self.stroke_px)

    def dashed_box(self, box_xyxy: NDArray[np.float32], colour: Colour, label: str = "") -> None:
        """One box in pixels, of dashes: what should have been found and was not."""
        x1, y1, x2, y2 = self._corners(box_xyxy)
        corners = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], np.float64)
        for at in range(4):
            self._dashes(corners[at], corners[(at + 1) % 4], colour)
        if label:
            self._tag(box_xyxy, label, colour)

    def trail(self, points: NDArray[np.float64], colour: Colour) -> None:
        """Where an object came from: (N, 2) in pixels, the oldest first and faintest."""
        fixed = _fixed(points)
        for at in range(1, len(fixed)):
            share = 0.3 + 0.7 * at / len(fixed)
            faded = tuple(round(channel * share + RIM[0] * (1 - share)) for channel in colour)
            cv2.line(self.frame, fixed[at - 1], fixed[at], faded, self.stroke_px, cv2.LINE_AA, _SHIFT)

    # --- words --------------------------------------------------------------------------------------------------------

    def banner(self, words: str, right: str = "") -> None:
        """Draw a dark strip along the upper edge, with words at its left and its right."""
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

    def plate(self, words: str, left: int, top: int, colour: Colour) -> Rect:
        """Words, of one or more lines, on a plate of `colour`, moved into the frame. Returns where it lies."""
        rect = self._plate_at(words, left, top)
        self._draw_plate(rect, words, colour)
        self._occupied.append(rect)
        self._plates.append((rect, words, colour))
        return rect

    def _draw_plate(self, rect: Rect, words: str, colour: Colour) -> None:
        pad = _pad(self.letters_px)
        self.frame[rect.top : rect.bottom, rect.left : rect.right] = colour
        below = rect.top + pad // 2
        for letters in self._lines_of(words):
            _ink(self.frame, letters, rect.left + pad, below, ink_on(colour))
            below += letters.shape[0]

    # --- parts --------------------------------------------------------------------------------------------------------

    def _corners(self, box_xyxy: NDArray[np.float32]) -> tuple[int, int, int, int]:
        """Within the frame, so that no side of a clipped box is invisible."""
        high = np.array([self.width_px, self.height_px] * 2) - 1
        x1, y1, x2, y2 = np.clip(np.rint(box_xyxy), 0, high).astype(int).tolist()
        return x1, y1, x2, y2

    def _path(self, points: NDArray[np.float64], colour: Colour, *, closed: bool) -> None:
        fixed = [np.array(_fixed(points), np.int32)]
        cv2.polylines(self.frame, fixed, closed, RIM, self.stroke_px + 2, cv2.LINE_AA, _SHIFT)
        cv2.polylines(self.frame, fixed, closed, colour, self.stroke_px, cv2.LINE_AA, _SHIFT)

    def _dashes(self, start: NDArray[np.float64], end: NDArray[np.float64], colour: Colour) -> None:
        dash_px, length_px = 4.0 * self.stroke_px, float(np.hypot(*(end - start)))
        for along_px in np.arange(0.0, length_px, 2 * dash_px):
            shares = np.array([[along_px], [min(along_px + dash_px, length_px)]]) / length_px
            self._path(start + shares * (end - start), colour, closed=False)

    def _disc(self, centre: NDArray[np.float64], radius_px: int, colour: Colour) -> None:
        at = _fixed(centre[None])[0]
        cv2.circle(self.frame, at, (radius_px + 1) << _SHIFT, RIM, -1, cv2.LINE_AA, _SHIFT)
        cv2.circle(self.frame, at, radius_px << _SHIFT, colour, -1, cv2.LINE_AA, _SHIFT)

    def _arrow(self, start: NDArray[np.float64], way: NDArray[np.float64], words: str) -> None:
        length = 3.5 * self.letters_px
        tip = start + way * length
        side = np.array([-way[1], way[0]]) * 0.35 * length
        self._path(np.array([start, tip - way * 0.2 * length]), LINE_COLOUR, closed=False)
        head = np.array([tip, tip - way * 0.5 * length + side, tip - way * 0.5 * length - side])
        fixed = [np.array(_fixed(head), np.int32)]
        cv2.polylines(self.frame, fixed, True, RIM, self.stroke_px + 2, cv2.LINE_AA, _SHIFT)
        cv2.fillPoly(self.frame, fixed, LINE_COLOUR, cv2.LINE_AA, _SHIFT)
        plate = self._plate_at(words, 0, 0)
        size = np.array([plate.right, plate.bottom])
        corner = tip + way * (0.5 * np.abs(way) @ size + self.stroke_px) - size / 2
        self.plate(words, round(corner[0]), round(corner[1]), LINE_COLOUR)

    def _name(self, words: str, point: NDArray[np.float64], colour: Colour) -> None:
        """Draw a plate at a point, or beside it if another plate is there."""
        size = self._plate_at(words, 0, 0)
        x, y = round(point[0] - size.right / 2), round(point[1] - size.bottom / 2)
        step = size.bottom + 2
        places = [(x, y + step * turn) for turn in (0, -1, 1, -2, 2, -3, 3)]
        left, top = next((place for place in places if self._fits(words, *place)), places[0])
        self.plate(words, left, top, colour)

    def _tag(self, box_xyxy: NDArray[np.float32], label: str, colour: Colour) -> None:
        """Draw a plate on the box: above it, below it, or within, where it hides no other plate."""
        x1, y1, x2, y2 = self._corners(box_xyxy)
        size = self._plate_at(label, 0, 0)
        left, right = x1 - self.stroke_px // 2, x2 - size.right
        places = [(left, y1 - size.bottom), (left, y2), (right, y1 - size.bottom), (right, y2), (left, y1), (right, y1)]
        fits = [place for place in places if self._fits(label, *place)]
        self.plate(label, *(fits or places)[0], colour)

    def _fits(self, words: str, left: int, top: int) -> bool:
        """Whether a plate would lie there, not moved into the frame, and over no other one."""
        rect = self._plate_at(words, left, top)
        return rect.top == top and not any(rect.overlaps(other) for other in self._occupied)

    def _plate_at(self, words: str, left: int, top: int) -> Rect:
        """Where the plate lies once it is moved into the frame."""
        lines = self._lines_of(words)
        pad = _pad(self.letters_px)
        width = max(letters.shape[1] for letters in lines) + 2 * pad
        height = sum(letters.shape[0] for letters in lines) + pad
        left = max(0, min(left, self.width_px - width))
        top = max(0, min(top, self.height_px - height))
        return Rect(left, top, min(left + width, self.width_px), min(top + height, self.height_px))

    def _lines_of(self, words: str) -> list[NDArray[np.uint8]]:
        return [text_mask(line, self.letters_px) for line in words.split("\n")]


def zone_words(zone: ZoneConfig) -> str:
    """Return a zone's name and its limits, one per line."""
    limits = [zone.name]
    if zone.crowd_threshold is not None:
        lasting = f" for {zone.crowded_for_s:g} s" if zone.crowded_for_s else ""
        limits.append(f"crowded above {zone.crowd_threshold}{lasting}")
    if zone.dwell_s is not None:
        limits.append(f"dwell {zone.dwell_s:g} s")
    return "\n".join(limits)


def class_colour(class_id: int) -> Colour:
    """Return the colour of a class."""
    return CLASS_COLOURS[class_id % len(CLASS_COLOURS)]


def ink_on(colour: Colour) -> Colour:
    """Black or white, whichever contrasts more (WCAG 2.2, relative luminance)."""
    return RIM if contrast(RIM, colour) >= contrast(WHITE, colour) else WHITE


def contrast(one: Colour, other: Colour) -> float:
    """Contrast ratio of WCAG 2.2, 1 to 21; 4.5 is what text needs."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: Colour) -> float:
    linear = [(c / 255 / 12.92) if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.0722 * linear[0] + 0.7152 * linear[1] + 0.2126 * linear[2]


@lru_cache(maxsize=4096)
def text_mask(words: str, letters_px: int) -> NDArray[np.uint8]:
    """Opacity of the words, (height, width) uint8, from the top of the capitals to the bottom of the descenders.

    Characters that OpenCV's font lacks come out as question marks.
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
    """OpenCV's scale and thickness for capitals of this height, measured: fonts differ between its versions."""
    thickness = max(1, round(capital_px * 0.13))
    scale = capital_px / 22
    for _ in range(3):
        canvas = np.zeros((3 * capital_px, 3 * capital_px), np.uint8)
        cv2.putText(canvas, "H", (capital_px, 2 * capital_px), _FONT, scale, 255, thickness)
        rows = np.flatnonzero(canvas.any(axis=1))
        scale *= capital_px / (rows[-1] - rows[0] + 1)
    return scale, thickness


def _ink(frame: Frame, letters: NDArray[np.uint8], left: int, top: int, colour: Colour) -> None:
    """Lay letters over the frame, cut off at its edges."""
    x, y = max(left, 0), max(top, 0)
    area = frame[y : top + letters.shape[0], x : left + letters.shape[1]]
    opacity = letters[y - top :, x - left :][: area.shape[0], : area.shape[1], None].astype(np.float32) / 255
    area[...] = np.rint(area * (1 - opacity) + np.array(colour, np.float32) * opacity).astype(np.uint8)


def _pad(letters_px: int) -> int:
    return max(2, round(0.5 * letters_px))


def _fixed(points: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Points as OpenCV takes them with `_SHIFT`."""
    return [(int(x), int(y)) for x, y in np.rint(points * (1 << _SHIFT))]


def _inner_point(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return about the point of a polygon that is farthest from its border, where its name has most room."""
    low, high = corners.min(axis=0), corners.max(axis=0)
    scale = 200.0 / max(float((high - low).max()), 1.0)
    shape = np.ceil((high - low) * scale).astype(int) + 3
    mask = np.zeros((int(shape[1]), int(shape[0])), np.uint8)
    cv2.fillPoly(mask, [np.rint((corners - low) * scale + 1).astype(np.int32)], 1)
    depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
    row, column = np.unravel_index(int(np.argmax(depth)), depth.shape)
    point: NDArray[np.float64] = (np.array([column, row], np.float64) - 1) / scale + low
    return point
