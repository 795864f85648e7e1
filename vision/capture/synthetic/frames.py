"""Synthetic frames with known content: colored rectangles that move over gray, at even coordinates.

Frames are drawn directly into the caller's buffer. Drawing takes as long as copying a prepared frame, needs no memory
for prepared frames, and never repeats a frame. With even coordinates, a box is the same in every pixel format, because
NV12 and I420 have one color for each 2x2 pixels.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vision.capture.planes import split_planes
from vision.drawing.test_pattern import FAKE_COLORS
from vision.errors import SourceError
from vision.types import PixelFormat

GRAY: Final = 114
_LANE_PX: Final = 8  # height of the smallest lane: a visible object, with a gap of 2 px on both sides
_SLOWEST_PX, _FASTEST_PX = 2.0, 6.0  # speed limits of the rectangles, per frame


@dataclass(frozen=True, slots=True)
class _Object:
    """A rectangle of one class, and the paths of its left and top coordinates."""

    class_id: int
    width_px: int
    height_px: int
    x: _Path
    y: _Path

    def box(self, index: int) -> tuple[int, int, int, int]:
        left, top = self.x.at(index), self.y.at(index)
        return left, top, left + self.width_px, top + self.height_px


@dataclass(frozen=True, slots=True)
class _Path:
    """A coordinate, in pixels, that moves back and forth between `start` and `start + span`, both even numbers."""

    start: int
    span: int
    phase: float
    step: float  # per frame

    def at(self, index: int) -> int:
        if self.span == 0:
            return self.start
        along = (self.phase + self.step * index) % (2 * self.span)
        return self.start + _even(along if along <= self.span else 2 * self.span - along)


@dataclass(frozen=True)
class Scene:
    """Scene of moving rectangles, whose colors and paths depend on `seed`.

    Unless `overlap` is True, each rectangle has its own lane, so that rectangles do not touch.

    Raises:
        SourceError: `objects` is negative or exceeds `most_objects`.
    """

    height_px: int
    width_px: int
    objects: int
    seed: int = 0
    overlap: bool = False

    def __post_init__(self) -> None:
        most = self.most_objects(self.height_px, self.width_px)
        if not 0 <= self.objects <= most:
            raise SourceError(
                f"synthetic: expected 0 to {most} objects in {self.width_px}x{self.height_px} pixels, "
                f"got {self.objects}",
                code="synthetic-address",
            )

    @staticmethod
    def most_objects(height_px: int, width_px: int) -> int:
        """Return the maximum number of objects in a frame of this size, or 0 if the frame is too narrow or too low."""
        return height_px // _LANE_PX if width_px >= _LANE_PX else 0

    @cached_property
    def _objects(self) -> tuple[_Object, ...]:
        rng = random.Random(self.seed)
        return tuple(self._object(lane, rng) for lane in range(self.objects))

    def _object(self, lane: int, rng: random.Random) -> _Object:
        lane_px = _even(self.height_px / self.objects)
        height_px = max(2, _even((lane_px - 4) * rng.uniform(0.5, 1.0)))
        width_px = max(2, min(_even(height_px * rng.uniform(0.4, 1.5)), _even(self.width_px / 4)))
        x_phase, x_step = rng.uniform(0, self.width_px), rng.uniform(_SLOWEST_PX, _FASTEST_PX)
        x = _Path(0, _even(self.width_px - width_px), x_phase, x_step)
        if self.overlap:
            top, room_px, fastest_px = 0, self.height_px, _SLOWEST_PX
        else:
            top, room_px, fastest_px = lane * lane_px + 2, lane_px, 1.0
        span = _even(room_px - (0 if self.overlap else 4) - height_px)
        y = _Path(top, span, rng.uniform(0, room_px), rng.uniform(0.5, fastest_px))
        return _Object(rng.randrange(len(FAKE_COLORS)), width_px, height_px, x, y)

    def truth(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Return the boxes, (N, 4) float32 xyxy in pixels, and the class ids, (N,) int32, of frame `index`."""
        boxes = [shape.box(index) for shape in self._objects]
        class_ids = [shape.class_id for shape in self._objects]
        return np.array(boxes, np.float32).reshape(-1, 4), np.array(class_ids, np.int32)

    def draw(self, index: int, out: NDArray[np.uint8], pixel_format: PixelFormat) -> None:
        """Draw frame `index` into `out`, a C-contiguous array of the frame's shape.

        Each object covers the objects that are drawn before it.
        """
        planes = [
            plane.reshape(len(plane), -1) for plane in split_planes(out, self.height_px, self.width_px, pixel_format)
        ]
        for plane, color in zip(planes, _plane_colors((GRAY, GRAY, GRAY), pixel_format), strict=True):
            _fill(plane, color)
        for shape in self._objects:
            x1, y1, x2, y2 = shape.box(index)
            for plane, color in zip(planes, _plane_colors(FAKE_COLORS[shape.class_id], pixel_format), strict=True):
                step, channels = self.height_px // len(plane), len(color)  # subsampled equally in both directions
                _fill(plane[y1 // step : y2 // step, x1 // step * channels : x2 // step * channels], color)


@cache
def _plane_colors(bgr: tuple[int, int, int], pixel_format: PixelFormat) -> tuple[tuple[int, ...], ...]:
    """Return the values of a color in each plane. YUV follows ITU-R BT.601 in 8 bits: 16 is black, 235 is white."""
    if pixel_format == "bgr":
        return (bgr,)
    if pixel_format == "bgrx":
        return ((*bgr, GRAY),)
    blue, green, red = bgr
    y = round(16 + (65.481 * red + 128.553 * green + 24.966 * blue) / 255)
    u = round(128 + (-37.797 * red - 74.203 * green + 112.0 * blue) / 255)
    v = round(128 + (112.0 * red - 93.786 * green - 18.214 * blue) / 255)
    return ((y,), (u, v)) if pixel_format == "nv12" else ((y,), (u,), (v,))


def _fill(plane: NDArray[np.uint8], color: tuple[int, ...]) -> None:
    """Fill a (rows, bytes) rectangle with one color. NumPy writes whole rows much faster than single pixels."""
    if len(set(color)) == 1:
        plane[...] = color[0]
    else:
        plane[...] = np.tile(np.array(color, np.uint8), plane.shape[1] // len(color))


def _even(number: float) -> int:
    return int(number) // 2 * 2
