"""Geometry of a frame that is scaled to the model's canvas, and the conversion of boxes back to the source frame.

All back-ends use this geometry, in whole pixels, so that the boxes of CPU and GPU can be compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Letterbox:
    """Position of a frame on the canvas: scaled by `scale`, with its top left corner at (`pad_x_px`, `pad_y_px`).

    The sides of the scaled frame are rounded to whole model pixels (`content`). Therefore the ratio of each side can
    differ slightly from `scale`. All conversions use the exact ratio.
    """

    scale: float  # model pixels per source pixel
    pad_x_px: int
    pad_y_px: int

    @staticmethod
    def fit(
        source_width_px: int,
        source_height_px: int,
        model_width_px: int,
        model_height_px: int,
        placement: Literal["top-left", "center"],
    ) -> Letterbox:
        """Return the geometry with the largest scale at which the whole frame fits. Small frames are enlarged.

        `placement` is the position of the scaled frame on the canvas.
        """
        scale = min(model_width_px / source_width_px, model_height_px / source_height_px)
        if placement == "top-left":
            return Letterbox(scale, 0, 0)
        width_px, height_px = Letterbox(scale, 0, 0).content(source_width_px, source_height_px)
        return Letterbox(scale, (model_width_px - width_px) // 2, (model_height_px - height_px) // 2)

    def content(self, source_width_px: int, source_height_px: int) -> tuple[int, int]:
        """Return the width and height of the scaled frame, rounded to whole model pixels (halves up, at least 1)."""
        return _scaled(source_width_px, self.scale), _scaled(source_height_px, self.scale)

    def to_source(
        self, boxes_xyxy: NDArray[np.float32], source_width_px: int, source_height_px: int
    ) -> NDArray[np.float32]:
        """Convert boxes (N, 4) from model pixels to source pixels, and clip them to the frame. Return a new array."""
        width_px, height_px = self.content(source_width_px, source_height_px)
        ratio_x, ratio_y = source_width_px / width_px, source_height_px / height_px
        pad = np.array([self.pad_x_px, self.pad_y_px] * 2, np.float32)
        boxes = (boxes_xyxy - pad) * np.array([ratio_x, ratio_y] * 2, np.float32)
        limit = np.array([source_width_px, source_height_px] * 2, np.float32)
        clipped: NDArray[np.float32] = np.minimum(np.maximum(boxes, np.float32(0), out=boxes), limit, out=boxes)
        return clipped

    def ratios(self, source_width_px: int, source_height_px: int) -> NDArray[np.float64]:
        """Return the number of source pixels per model pixel, horizontally and vertically."""
        width_px, height_px = self.content(source_width_px, source_height_px)
        return np.array([source_width_px / width_px, source_height_px / height_px])

    def points_to_source(
        self, points: NDArray[np.floating], source_width_px: int, source_height_px: int
    ) -> NDArray[np.float64]:
        """Convert points (..., 2) from model pixels to source pixels, without clipping. Return a new array."""
        pad = np.array([self.pad_x_px, self.pad_y_px], np.float64)
        converted: NDArray[np.float64] = (points - pad) * self.ratios(source_width_px, source_height_px)
        return converted


def _scaled(side_px: int, scale: float) -> int:
    return max(1, math.floor(side_px * scale + 0.5))


class Tap(NamedTuple):
    """For each pixel of a scaled row or column: the index of one of its source pixels, and this pixel's weight."""

    pixels: NDArray[np.intp]
    weight: NDArray[np.float64]


def taps(scaled_px: int, source_px: int) -> tuple[Tap, Tap]:
    """Return the source pixels before and after each scaled pixel of one axis, and their bilinear weights.

    Pixel centers follow the convention of `cv2.INTER_LINEAR`: scaled pixel x samples the source at
    ``(x + 0.5) * source_px / scaled_px - 0.5``. Positions beyond the outermost centers use the outermost pixel.
    """
    position = (np.arange(scaled_px) + 0.5) * (source_px / scaled_px) - 0.5
    position = np.clip(position, 0, source_px - 1)
    first = np.floor(position).astype(np.intp)
    weight = position - first
    return Tap(first, 1 - weight), Tap(np.minimum(first + 1, source_px - 1), weight)


def gain_and_offset(
    scale: float, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the gain and the offset for which ``level * gain + offset`` equals ``(level * scale - mean) / std``.

    Both are float32 (3,), in the model's channel order.
    """
    spread = np.array(std, np.float64)
    return (scale / spread).astype(np.float32), (-np.array(mean, np.float64) / spread).astype(np.float32)
