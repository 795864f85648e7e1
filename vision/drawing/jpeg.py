"""`JpegEncoder`, which encodes frames of every pixel format as JPEGs without OpenCV."""

from __future__ import annotations

from fractions import Fraction
from typing import Final

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from vision.types import PixelFormat, YuvEncoding

av.logging.set_level(None)  # FFmpeg's log calls Python code from FFmpeg's threads, which can deadlock

_FORMATS: Final = {"bgr": "bgr24", "bgrx": "bgr0", "nv12": "nv12", "i420": "yuv420p"}
_QUALITY: Final = 4  # quantizer of FFmpeg, from 2 (best) to 31
_BT709, _BT601 = 1, 5  # AVColorSpace of FFmpeg
_LIMITED_RANGE, _FULL_RANGE = 1, 2  # AVColorRange of FFmpeg


class JpegEncoder:
    """Encoder of frames as JPEG files. It is not thread-safe."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        self._contexts: dict[tuple[int, int], VideoCodecContext] = {}

    def encode(
        self, pixels: NDArray[np.uint8], pixel_format: PixelFormat, yuv: YuvEncoding, *, max_width_px: int
    ) -> bytes:
        """Return a JPEG of a frame, scaled down to at most `max_width_px` if the frame is wider.

        `pixels` is a uint8 array whose shape `vision.types.frame_shape` returns. `yuv` is the color encoding of NV12
        and I420 frames, and has no meaning for other formats.
        """
        if pixel_format == "bgrx":
            pixels = np.ascontiguousarray(pixels[..., :3])
            pixel_format = "bgr"
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=_FORMATS[pixel_format])
        scale = min(1.0, max_width_px / frame.width)
        width_px, height_px = (max(2, round(side * scale / 2) * 2) for side in (frame.width, frame.height))
        is_yuv = pixel_format in {"nv12", "i420"}
        image = self._reformatter.reformat(
            frame,
            width_px,
            height_px,
            format="yuvj420p",
            src_colorspace=_BT709 if yuv.startswith("bt709") else _BT601,
            dst_colorspace=_BT601,
            src_color_range=_LIMITED_RANGE if is_yuv and not yuv.endswith("-full") else _FULL_RANGE,
            dst_color_range=_FULL_RANGE,
        )
        image.pts = None
        return b"".join(bytes(packet) for packet in self._context(width_px, height_px).encode(image))

    def _context(self, width_px: int, height_px: int) -> VideoCodecContext:
        size = width_px, height_px
        if size not in self._contexts:
            self._contexts.clear()
            context = VideoCodecContext.create("mjpeg", "w")
            assert isinstance(context, VideoCodecContext)
            context.width, context.height, context.pix_fmt = width_px, height_px, "yuvj420p"
            context.time_base, context.thread_count = Fraction(1, 25), 1
            context.qmin = context.qmax = _QUALITY
            self._contexts[size] = context
        return self._contexts[size]
