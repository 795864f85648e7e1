"""Parts of frames for second models, and JPEGs of whole frames."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.detect.reference.colour import Scratch, ToBgr
from vision.types import Frame


class PartReader:
    """Reader of parts of frames of any format. Not thread-safe; its memory grows to the largest part."""

    def __init__(self) -> None:
        self._planes = Scratch()
        self._converted = Scratch()
        self._to_bgr = ToBgr()

    def read(self, frame: Frame, left: int, top: int, right: int, bottom: int) -> NDArray[np.uint8]:
        """(bottom - top, right - left, 3) BGR; valid until the next call, and while the frame is.

        Raises:
            ValueError: the part is empty or not within the frame.
        """
        width_px, height_px = frame.meta.width_px, frame.meta.height_px
        if not (0 <= left < right <= width_px and 0 <= top < bottom <= height_px):
            raise ValueError(f"expected a part of {width_px}x{height_px} pixels, got {left, top, right, bottom}")
        if frame.pixel_format == "bgr":
            return frame.pixels[top:bottom, left:right]
        if frame.pixel_format == "bgrx":
            converted = self._converted.array((bottom - top, right - left, 3))
            cv2.cvtColor(frame.pixels[top:bottom, left:right], cv2.COLOR_BGRA2BGR, dst=converted)
            return converted
        # Four pixels share their chroma, so what is converted begins and ends at even coordinates.
        even_left, even_top = left & ~1, top & ~1
        planes = self._copied(frame, even_left, even_top, right + right % 2, bottom + bottom % 2)
        bgr = self._to_bgr.convert(planes, frame.pixel_format, frame.meta.yuv)
        return bgr[top - even_top : bottom - even_top, left - even_left : right - even_left]

    def _copied(self, frame: Frame, left: int, top: int, right: int, bottom: int) -> NDArray[np.uint8]:
        """Return the part as a small frame of the same YUV format."""
        rows, columns, height_px = bottom - top, right - left, frame.meta.height_px
        out = self._planes.array((rows * 3 // 2, columns))
        out[:rows] = frame.pixels[top:bottom, left:right]
        chroma = frame.pixels[height_px:]
        if frame.pixel_format == "nv12":
            out[rows:] = chroma[top // 2 : bottom // 2, left:right]
        else:
            both = chroma.reshape(2, height_px // 2, -1)
            out[rows:].reshape(2, rows // 2, columns // 2)[:] = both[:, top // 2 : bottom // 2, left // 2 : right // 2]
        return out


class JpegEncoder:
    """Encoder of whole frames of any format as JPEGs. Not thread-safe."""

    def __init__(self, *, max_side_px: int = 1280, quality: int = 85) -> None:
        """`max_side_px`: larger frames are made smaller. `quality`: 1 to 100."""
        self._max_side_px = max_side_px
        self._options = [cv2.IMWRITE_JPEG_QUALITY, quality]
        self._parts = PartReader()

    def encode(self, frame: Frame, draw: Callable[[NDArray[np.uint8]], None] | None = None) -> bytes:
        """Return the frame as a JPEG.

        Args:
            draw: draws on a copy of the frame, (H, W, 3) BGR in its full size.
        """
        width_px, height_px = frame.meta.width_px, frame.meta.height_px
        image = self._parts.read(frame, 0, 0, width_px, height_px)
        if draw is not None:
            image = image.copy()
            draw(image)
        scale = self._max_side_px / max(width_px, height_px)
        if scale < 1:
            size = (max(1, round(width_px * scale)), max(1, round(height_px * scale)))
            image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
        done, data = cv2.imencode(".jpg", image, self._options)
        if not done:
            raise ValueError(f"OpenCV cannot make a JPEG of {width_px}x{height_px} pixels")
        return data.tobytes()
