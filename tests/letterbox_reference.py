"""Slow reference implementation of the pre-processing for CPU and GPU, without rounding between steps."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vision.detect.reference.letterbox import Letterbox, taps
from vision.detect.reference.yuv import FRACTION_BITS, yuv_coefficients
from vision.types import PixelFormat, YuvEncoding


def to_bgr(pixels: NDArray[np.uint8], pixel_format: PixelFormat, encoding: YuvEncoding = "bt601") -> NDArray[np.uint8]:
    """Convert a frame to BGR (H, W, 3), uint8.

    The four pixels of a 2x2 block of NV12 or I420 share their chroma, without interpolation. Like `cv2.cvtColor`, the
    function uses integer arithmetic. For ``bt601``, both results are identical.
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
    """Return the planes Y, U, and V (H, W). Chroma values are repeated for the pixels that share them."""
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
    """Letterbox a frame. Return BGR levels from 0 to 255 as float32 (3, H, W), without normalization.

    The interpolation is bilinear (`taps`). YUV formats are converted first (`to_bgr`) and sampled as BGR. The result is
    not rounded, so implementations in 8 bits differ by up to one level.
    """
    bgr = to_bgr(pixels, pixel_format, encoding).astype(np.float64)
    width_px, height_px = letterbox.content(bgr.shape[1], bgr.shape[0])
    top, bottom = taps(height_px, bgr.shape[0])
    left, right = taps(width_px, bgr.shape[1])
    rows = bgr[top.pixels] * top.weight[:, None, None] + bgr[bottom.pixels] * bottom.weight[:, None, None]
    content = rows[:, left.pixels] * left.weight[:, None] + rows[:, right.pixels] * right.weight[:, None]
    canvas = np.full((3, model_height_px, model_width_px), fill, np.float32)
    y, x = letterbox.pad_y_px, letterbox.pad_x_px
    canvas[:, y : y + height_px, x : x + width_px] = content.transpose(2, 0, 1)
    return canvas


def normalized(
    bgr_levels: NDArray[np.float32],
    color: Literal["bgr", "rgb"],
    scale: float,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> NDArray[np.float32]:
    """Normalize BGR levels (3, H, W): ``(level * scale - mean) / std``. Return the channels in the order `color`."""
    ordered = bgr_levels if color == "bgr" else bgr_levels[::-1]
    column = (slice(None), None, None)
    levels = ordered.astype(np.float64) * scale
    result: NDArray[np.float32] = ((levels - np.array(mean)[column]) / np.array(std)[column]).astype(np.float32)
    return result
