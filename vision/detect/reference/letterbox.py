"""Geometry of a frame of any size on the model's fixed canvas, and the way back for boxes.

The geometry is computed here for every back-end, in whole pixels, so that boxes of CPU and GPU can be compared.
`sample` is the reference for both: slow, NumPy only, no rounding between the steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vision.detect.reference.yuv import FRACTION_BITS, yuv_coefficients
from vision.types import PixelFormat, YuvEncoding


@dataclass(frozen=True, slots=True)
class Letterbox:
    """A frame scaled by `scale`, its top left corner at (`pad_x_px`, `pad_y_px`) of the canvas.

    The frame covers whole model pixels (`content`), so the exact ratio of each side differs from `scale` by up to
    half a model pixel over its length; `to_source` and `sample` use the exact ratios.
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
        """Return the largest scale at which the whole source lies on the model's canvas; enlarges small frames."""
        scale = min(model_width_px / source_width_px, model_height_px / source_height_px)
        if placement == "top-left":
            return Letterbox(scale, 0, 0)
        width_px, height_px = Letterbox(scale, 0, 0).content(source_width_px, source_height_px)
        return Letterbox(scale, (model_width_px - width_px) // 2, (model_height_px - height_px) // 2)

    def content(self, source_width_px: int, source_height_px: int) -> tuple[int, int]:
        """Return width and height of the scaled frame: nearest whole model pixels, halves up, at least one."""
        return _scaled(source_width_px, self.scale), _scaled(source_height_px, self.scale)

    def to_source(
        self, boxes_xyxy: NDArray[np.float32], source_width_px: int, source_height_px: int
    ) -> NDArray[np.float32]:
        """Return boxes (N, 4) float32 of the canvas as boxes of the source frame, clipped to it, in a new array."""
        width_px, height_px = self.content(source_width_px, source_height_px)
        ratio_x, ratio_y = source_width_px / width_px, source_height_px / height_px
        pad = np.array([self.pad_x_px, self.pad_y_px] * 2, np.float32)
        boxes = (boxes_xyxy - pad) * np.array([ratio_x, ratio_y] * 2, np.float32)
        limit = np.array([source_width_px, source_height_px] * 2, np.float32)
        clipped: NDArray[np.float32] = np.minimum(np.maximum(boxes, np.float32(0), out=boxes), limit, out=boxes)
        return clipped


def _scaled(side_px: int, scale: float) -> int:
    return max(1, math.floor(side_px * scale + 0.5))


def to_bgr(pixels: NDArray[np.uint8], pixel_format: PixelFormat, encoding: YuvEncoding = "bt601") -> NDArray[np.uint8]:
    """Convert to BGR (H, W, 3) uint8. Reference implementation.

    The four pixels of a 2x2 block of NV12 or I420 share their chroma, without interpolation. The arithmetic is that of
    `cv2.cvtColor`, in integers, and the result for ``bt601`` is equal to it bit for bit.
    """
    if pixel_format == "bgr":
        return pixels
    if pixel_format == "bgrx":
        return pixels[..., :3]
    luma, blue, red = _planes(pixels, pixel_format)
    black, y_factor, u_blue, u_green, v_green, v_red = yuv_coefficients(encoding)
    y = np.maximum(luma.astype(np.int64) - black, 0) * y_factor + (1 << FRACTION_BITS - 1)
    u, v = blue.astype(np.int64) - 128, red.astype(np.int64) - 128
    channels = np.stack((y + u_blue * u, y + u_green * u + v_green * v, y + v_red * v), axis=-1)
    bgr: NDArray[np.uint8] = np.clip(channels >> FRACTION_BITS, 0, 255).astype(np.uint8)
    return bgr


def _planes(
    pixels: NDArray[np.uint8], pixel_format: PixelFormat
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Return Y, U and V (H, W), chroma repeated for the pixels that share it."""
    height_px, width_px = pixels.shape[0] * 2 // 3, pixels.shape[1]
    chroma = pixels[height_px:]
    if pixel_format == "nv12":
        blue, red = chroma[:, 0::2], chroma[:, 1::2]
    else:
        blue, red = chroma.reshape(2, height_px // 2, width_px // 2)
    return pixels[:height_px], blue.repeat(2, 0).repeat(2, 1), red.repeat(2, 0).repeat(2, 1)


def sample(
    pixels: NDArray[np.uint8],
    pixel_format: PixelFormat,
    letterbox: Letterbox,
    *,
    model_width_px: int,
    model_height_px: int,
    fill: int,
    encoding: YuvEncoding = "bt601",
) -> NDArray[np.float32]:
    """Letterbox a frame to BGR levels 0..255, float32 (3, H, W), without colour order and normalisation. Reference.

    Bilinear with the pixel-centre convention of `cv2.INTER_LINEAR`: canvas pixel x samples the source at
    ``(x + 0.5 - pad_x_px) * source_width / content_width - 0.5``; positions outside the outermost centres take the
    outermost pixel. YUV formats are converted first (`to_bgr`) and sampled as BGR. The result is not rounded, so
    implementations in 8 bits differ by up to one level.
    """
    bgr = to_bgr(pixels, pixel_format, encoding).astype(np.float64)
    width_px, height_px = letterbox.content(bgr.shape[1], bgr.shape[0])
    top, bottom, y_weight = _taps(height_px, bgr.shape[0])
    left, right, x_weight = _taps(width_px, bgr.shape[1])
    y_weight, x_weight = y_weight[:, None, None], x_weight[:, None]
    rows = bgr[top] * (1 - y_weight) + bgr[bottom] * y_weight
    content = rows[:, left] * (1 - x_weight) + rows[:, right] * x_weight
    canvas = np.full((3, model_height_px, model_width_px), fill, np.float32)
    y, x = letterbox.pad_y_px, letterbox.pad_x_px
    canvas[:, y : y + height_px, x : x + width_px] = content.transpose(2, 0, 1)
    return canvas


def _taps(scaled_px: int, source_px: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Return for each scaled pixel of one axis both source pixels around it, and the second one's weight."""
    position = (np.arange(scaled_px) + 0.5) * (source_px / scaled_px) - 0.5
    position = np.clip(position, 0, source_px - 1)
    first = np.floor(position).astype(np.intp)
    return first, np.minimum(first + 1, source_px - 1), position - first


def normalised(
    bgr_levels: NDArray[np.float32],
    color: Literal["bgr", "rgb"],
    scale: float,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> NDArray[np.float32]:
    """Normalise BGR levels (3, H, W): ``(level * scale - mean) / std``, channels in order `color`. Reference."""
    ordered = bgr_levels if color == "bgr" else bgr_levels[::-1]
    column = (slice(None), None, None)
    levels = ordered.astype(np.float64) * scale
    result: NDArray[np.float32] = ((levels - np.array(mean)[column]) / np.array(std)[column]).astype(np.float32)
    return result


def gain_and_offset(
    scale: float, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return `normalised` as ``level * gain + offset``, float32 (3,) each, in the model's channel order."""
    spread = np.array(std, np.float64)
    return (scale / spread).astype(np.float32), (-np.array(mean, np.float64) / spread).astype(np.float32)
