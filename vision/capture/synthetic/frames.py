"""Synthetic frames with known content: coloured rectangles that move over grey, at even coordinates.

Frames are drawn directly into the caller's buffer. That costs as much as copying a prepared frame, needs no memory for
a cycle of frames, and never repeats a frame. Even coordinates make a box the same in every pixel format, because NV12
and I420 have one colour for each 2x2 pixels.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vision.test_pattern import FAKE_COLORS
from vision.types import PixelFormat

GREY: Final = 114
_LANE_PX: Final = 8  # smallest lane: 2 px of gap on both sides, and a visible object
_SLOWEST_PX, _FASTEST_PX = 2.0, 6.0  # per frame


@dataclass(frozen=True, slots=True)
class _Object:
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
    """A position that moves back and forth between `start` and `start + span` (even numbers)."""

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
    """Moving rectangles, each in a lane of its own, so that none touches another unless they `overlap`.

    Raises:
        ValueError: there are more objects than lanes.
    """

    height_px: int
    width_px: int
    objects: int
    seed: int = 0
    overlap: bool = False

    def __post_init__(self) -> None:
        most = self.most_objects(self.height_px, self.width_px)
        if not 0 <= self.objects <= most:
            raise ValueError(
                f"expected 0 to {most} objects in {self.width_px}x{self.height_px} pixels, got {self.objects}"
            )

    @staticmethod
    def most_objects(height_px: int, width_px: int) -> int:
        """Return the number of lanes that fit."""
        return height_px // _LANE_PX if width_px >= _LANE_PX else 0

    @cached_property
    def _objects(self) -> tuple[_Object, ...]:
        rng = random.Random(self.seed)
        return tuple(self._object(lane, rng) for lane in range(self.objects))

    def _object(self, lane: int, rng: random.Random) -> _Object:
        lane_px = _even(self.height_px / self.objects)
        height_px = max(2, _even((lane_px - 4) * rng.uniform(0.5, 1.0)))
        width_px = max(2, min(_even(height_px * rng.uniform(0.4, 1.5)), _even(self.width_px / 4)))
        x = _Path(
            0, _even(self.width_px - width_px), rng.uniform(0, self.width_px), rng.uniform(_SLOWEST_PX, _FASTEST_PX)
        )
        if self.overlap:
            y = _Path(
                0, _even(self.height_px - height_px), rng.uniform(0, self.height_px), rng.uniform(0.5, _SLOWEST_PX)
            )
        else:
            y = _Path(
                lane * lane_px + 2, _even(lane_px - 4 - height_px), rng.uniform(0, lane_px), rng.uniform(0.5, 1.0)
            )
        return _Object(rng.randrange(len(FAKE_COLORS)), width_px, height_px, x, y)

    def truth(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Return the boxes (N, 4) float32 xyxy in pixels and class ids (N,) int32. Later objects cover earlier ones."""
        boxes = [one.box(index) for one in self._objects]
        class_ids = [one.class_id for one in self._objects]
        return np.array(boxes, np.float32).reshape(-1, 4), np.array(class_ids, np.int32)

    def draw(self, index: int, out: NDArray[np.uint8], pixel_format: PixelFormat) -> None:
        """Write frame `index` into `out`, a C-contiguous array of `vision.types.frame_shape`."""
        planes = self._planes(out, pixel_format)
        for plane, colour in zip(planes, _colours((GREY, GREY, GREY), pixel_format), strict=True):
            _fill(plane, colour)
        for one in self._objects:
            x1, y1, x2, y2 = one.box(index)
            for plane, colour in zip(planes, _colours(FAKE_COLORS[one.class_id], pixel_format), strict=True):
                step, channels = self.height_px // plane.shape[0], len(colour)
                _fill(plane[y1 // step : y2 // step, x1 // step * channels : x2 // step * channels], colour)

    def _planes(self, out: NDArray[np.uint8], pixel_format: PixelFormat) -> tuple[NDArray[np.uint8], ...]:
        """Return views of (rows, bytes of a row). A plane of half the rows has half the columns too."""
        height_px, width_px = self.height_px, self.width_px
        if pixel_format in ("bgr", "bgrx"):
            return (out.reshape(height_px, -1),)
        luma, chroma = out[:height_px], out[height_px:].reshape(-1)
        if pixel_format == "nv12":
            return luma, chroma.reshape(height_px // 2, width_px)
        half = (height_px // 2, width_px // 2)
        return luma, chroma[: chroma.size // 2].reshape(half), chroma[chroma.size // 2 :].reshape(half)


def _colours(bgr: tuple[int, int, int], pixel_format: PixelFormat) -> tuple[tuple[int, ...], ...]:
    """One colour in the channels of each plane."""
    if pixel_format == "bgr":
        return (bgr,)
    if pixel_format == "bgrx":
        return ((*bgr, GREY),)
    y, u, v = _yuv_bt601(*bgr)
    return ((y,), (u, v)) if pixel_format == "nv12" else ((y,), (u,), (v,))


def _yuv_bt601(blue: int, green: int, red: int) -> tuple[int, int, int]:
    """ITU-R BT.601, 8 bits, 16 to 235 for black to white."""
    y = 16 + (65.481 * red + 128.553 * green + 24.966 * blue) / 255
    u = 128 + (-37.797 * red - 74.203 * green + 112.0 * blue) / 255
    v = 128 + (112.0 * red - 93.786 * green - 18.214 * blue) / 255
    return round(y), round(u), round(v)


def _fill(plane: NDArray[np.uint8], colour: tuple[int, ...]) -> None:
    """Fill a rectangle of (rows, bytes) with one colour, row by row: pixel by pixel NumPy is much slower."""
    if len(set(colour)) == 1:
        plane[...] = colour[0]
    else:
        plane[...] = np.tile(np.array(colour, np.uint8), plane.shape[1] // len(colour))


def _even(number: float) -> int:
    return int(number) // 2 * 2
