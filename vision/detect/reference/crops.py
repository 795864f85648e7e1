"""Reader of parts of frames for second models, and encoder of frames as JPEG images. Both need OpenCV."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.detect.reference.yuv import FRACTION_BITS, yuv_coefficients
from vision.drawing.frame_size import with_frame_size
from vision.drawing.privacy import Hide
from vision.types import Frame, YuvEncoding


class _Scratch:
    """Memory that is reused for temporary arrays, one at a time. It grows when a larger array is requested."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def array(self, *shape: int) -> NDArray[np.uint8]:
        size = math.prod(shape)
        if size > len(self._memory):
            self._memory = np.empty(size, np.uint8)
        return self._memory[:size].reshape(shape)


class PartReader:
    """Reader of rectangular parts of frames, in any pixel format, as BGR images. It is not thread-safe."""

    def __init__(self) -> None:
        self._planes = _Scratch()
        self._yuv = _Scratch()
        self._bgr = _Scratch()

    def read(self, frame: Frame, left: int, top: int, right: int, bottom: int) -> NDArray[np.uint8]:
        """Return a part of a frame as uint8 BGR (H, W, 3). `right` and `bottom` are exclusive.

        The array is valid until the next call or the end of the frame's lease.

        Raises:
            ValueError: the part is empty or not within the frame.
        """
        width_px, height_px = frame.meta.width_px, frame.meta.height_px
        if not (0 <= left < right <= width_px and 0 <= top < bottom <= height_px):
            raise ValueError(f"expected a part of {width_px}x{height_px} pixels, got {left, top, right, bottom}")
        if frame.pixel_format == "bgr":
            return frame.pixels[top:bottom, left:right]
        if frame.pixel_format == "bgrx":
            bgr = self._bgr.array(bottom - top, right - left, 3)
            cv2.cvtColor(frame.pixels[top:bottom, left:right], cv2.COLOR_BGRA2BGR, dst=bgr)
            return bgr
        # Four pixels share their chroma, so the converted part starts and ends at even coordinates.
        even_left, even_top = left & ~1, top & ~1
        planes = self._copied(frame, even_left, even_top, right + right % 2, bottom + bottom % 2)
        bgr = self._converted(planes, frame)
        return bgr[top - even_top : bottom - even_top, left - even_left : right - even_left]

    def _copied(self, frame: Frame, left: int, top: int, right: int, bottom: int) -> NDArray[np.uint8]:
        """Return a contiguous copy of a part of a YUV frame, in the same format. The coordinates must be even."""
        rows, columns, height_px = bottom - top, right - left, frame.meta.height_px
        out = self._planes.array(rows * 3 // 2, columns)
        out[:rows] = frame.pixels[top:bottom, left:right]
        chroma = frame.pixels[height_px:]
        if frame.pixel_format == "nv12":
            out[rows:] = chroma[top // 2 : bottom // 2, left:right]
        else:
            both = chroma.reshape(2, height_px // 2, -1)
            out[rows:].reshape(2, rows // 2, columns // 2)[:] = both[:, top // 2 : bottom // 2, left // 2 : right // 2]
        return out

    def _converted(self, planes: NDArray[np.uint8], frame: Frame) -> NDArray[np.uint8]:
        """Convert the YUV planes of a part of `frame` to uint8 BGR (H, W, 3)."""
        height_px, width_px = len(planes) * 2 // 3, planes.shape[1]
        bgr = self._bgr.array(height_px, width_px, 3)
        interleaved, encoding = frame.pixel_format == "nv12", frame.meta.yuv
        if encoding == "bt601":
            cv2.cvtColor(planes, cv2.COLOR_YUV2BGR_NV12 if interleaved else cv2.COLOR_YUV2BGR_I420, dst=bgr)
            return bgr
        luma, chroma = planes[:height_px], planes[height_px:]
        if interleaved:
            blue_red = cv2.split(chroma.reshape(height_px // 2, width_px // 2, 2))
        else:
            blue_red = tuple(chroma.reshape(2, height_px // 2, width_px // 2))
        repeated = [cv2.resize(plane, (width_px, height_px), interpolation=cv2.INTER_NEAREST) for plane in blue_red]
        yuv = self._yuv.array(height_px, width_px, 3)
        cv2.merge([np.maximum(luma, np.uint8(yuv_coefficients(encoding)[0])), *repeated], yuv)
        cv2.transform(yuv, _matrix(encoding), dst=bgr)
        return bgr


@functools.cache
def _matrix(encoding: YuvEncoding) -> NDArray[np.float32]:
    """Return the (3, 4) matrix that converts (Y, U, V, 1) to (blue, green, red)."""
    black, *factors = yuv_coefficients(encoding)
    luma, u_blue, u_green, v_green, v_red = (factor / (1 << FRACTION_BITS) for factor in factors)
    rows = np.array([[luma, u_blue, 0], [luma, u_green, v_green], [luma, 0, v_red]])
    return np.column_stack([rows, -rows @ (black, 128, 128)]).astype(np.float32)


Pixels: TypeAlias = NDArray[np.uint8]


class JpegEncoder:
    """Encoder of frames and of parts of frames, in any pixel format, as JPEG images. It is not thread-safe."""

    def __init__(self, *, max_side_px: int = 1280, quality: int = 85, hide: Hide | None = None) -> None:
        """Create an encoder.

        Args:
            max_side_px: maximum length of the longer side of an image. Larger images are scaled down.
            quality: JPEG quality from 1 to 100.
            hide: function that hides parts of each image before anything is drawn. None hides nothing. The attribute
                `hide` can be replaced at any time.
        """
        self.hide = hide
        self._max_side_px = max_side_px
        self._options = [cv2.IMWRITE_JPEG_QUALITY, quality]
        self._parts = PartReader()

    def encode(self, frame: Frame, draw: Callable[[NDArray[np.uint8]], None] | None = None) -> bytes:
        """Encode a frame. Return the contents of a JPEG file.

        If the frame is scaled down, a comment in the file contains the size of the frame (`vision.drawing.frame_size`).

        Args:
            draw: function that draws on a full-size copy of the frame, uint8 BGR (H, W, 3). None means that nothing is
                drawn.

        Raises:
            ValueError: OpenCV cannot encode the frame.
        """
        width_px, height_px = frame.meta.width_px, frame.meta.height_px
        image = self._read(frame, 0, 0, width_px, height_px)
        if draw is not None:
            image = image.copy()
            draw(image)
        encoded = self._encoded(image)
        if max(width_px, height_px) <= self._max_side_px:
            return encoded
        return with_frame_size(encoded, width_px, height_px)

    def encode_part(self, frame: Frame, box_xyxy: tuple[float, float, float, float]) -> bytes:
        """Encode the part of a frame in a box, which can extend beyond the frame. Return the contents of a JPEG file.

        Raises:
            ValueError: OpenCV cannot encode the part.
        """
        x1, y1, x2, y2 = box_xyxy
        left, top = min(max(0, int(x1)), frame.meta.width_px - 1), min(max(0, int(y1)), frame.meta.height_px - 1)
        right = max(left + 1, min(frame.meta.width_px, math.ceil(x2)))
        bottom = max(top + 1, min(frame.meta.height_px, math.ceil(y2)))
        return self._encoded(self._read(frame, left, top, right, bottom))

    def _read(self, frame: Frame, left: int, top: int, right: int, bottom: int) -> NDArray[np.uint8]:
        part, meta, hide = self._parts.read(frame, left, top, right, bottom), frame.meta, self.hide
        if hide is None:
            return part
        image: Pixels = part.copy()
        hide(image, meta.camera_id, (meta.width_px, meta.height_px), (left, top))
        return image

    def _encoded(self, image: NDArray[np.uint8]) -> bytes:
        height_px, width_px = image.shape[:2]
        scale = self._max_side_px / max(width_px, height_px)
        if scale < 1:
            size = (max(1, round(width_px * scale)), max(1, round(height_px * scale)))
            image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
        done, data = cv2.imencode(".jpg", image, self._options)
        if not done:
            raise ValueError(f"OpenCV cannot encode a JPEG of {width_px}x{height_px} pixels")
        return data.tobytes()
