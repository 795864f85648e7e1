"""Conversion of frames of any pixel format to BGR with OpenCV, without allocation.

Networks, second models and JPEGs use it.
"""

from __future__ import annotations

import functools
import math
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.detect.reference.yuv import FRACTION_BITS, yuv_coefficients
from vision.types import PixelFormat, YuvEncoding

_TO_BGR: Final = {"nv12": cv2.COLOR_YUV2BGR_NV12, "i420": cv2.COLOR_YUV2BGR_I420}


class Scratch:
    """Growing memory, returned as contiguous arrays of any shape that fits."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def array(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        size = math.prod(shape)
        if size > len(self._memory):
            self._memory = np.empty(size, np.uint8)
        return self._memory[:size].reshape(shape)


class ToBgr:
    """Converter of one frame after the other. Not thread-safe."""

    def __init__(self) -> None:
        self._converted = Scratch()
        self._yuv = Scratch()

    def convert(
        self, pixels: NDArray[np.uint8], pixel_format: PixelFormat, encoding: YuvEncoding = "bt601"
    ) -> NDArray[np.uint8]:
        """Return a frame as BGR (H, W, 3), in memory that the next call overwrites.

        Returns ``bgr`` and ``bgrx`` (H, W, 4) unchanged.
        """
        if pixel_format in {"bgr", "bgrx"}:
            return pixels
        height_px, width_px = len(pixels) * 2 // 3, pixels.shape[1]
        converted = self._converted.array((height_px, width_px, 3))
        if encoding == "bt601":
            cv2.cvtColor(pixels, _TO_BGR[pixel_format], dst=converted)
        else:
            yuv = _merged(pixels, pixel_format, yuv_coefficients(encoding)[0], self._yuv.array(converted.shape))
            cv2.transform(yuv, _matrix(encoding), dst=converted)
        return converted


def _merged(
    pixels: NDArray[np.uint8], pixel_format: PixelFormat, black: int, out: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Write Y, U and V of each pixel into (H, W, 3), Y no less than black."""
    height_px, width_px = out.shape[:2]
    chroma = pixels[height_px:]
    if pixel_format == "nv12":
        blue_red = cv2.split(chroma.reshape(height_px // 2, width_px // 2, 2))
    else:
        blue_red = tuple(chroma.reshape(2, height_px // 2, width_px // 2))
    size = (width_px, height_px)
    repeated = [cv2.resize(plane, size, interpolation=cv2.INTER_NEAREST) for plane in blue_red]
    cv2.merge([np.maximum(pixels[:height_px], np.uint8(black)), *repeated], out)
    return out


@functools.cache
def _matrix(encoding: YuvEncoding) -> NDArray[np.float32]:
    """Return the matrix (3, 4) from Y, U, V, 1 to blue, green, red."""
    black, *factors = yuv_coefficients(encoding)
    luma, u_blue, u_green, v_green, v_red = (factor / (1 << FRACTION_BITS) for factor in factors)
    rows = np.array([[luma, u_blue, 0], [luma, u_green, v_green], [luma, 0, v_red]])
    return np.column_stack([rows, -rows @ (black, 128, 128)]).astype(np.float32)
