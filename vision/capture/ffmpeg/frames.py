"""From FFmpeg's decoded frames to our buffers and types.

H.264 and H.265 cameras are decoded to I420, which detectors take as it is: planes are copied, and no colour is computed
on the CPU. Motion JPEG of most cameras is 4:2:2, which none of our formats is: that is converted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

import numpy as np
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from vision.capture.planes import Plane, planes_of
from vision.errors import SizeChanged, SourceError
from vision.types import PixelFormat, YuvEncoding, frame_shape

_OURS: Final[Mapping[str, PixelFormat]] = {
    "yuv420p": "i420",
    "yuvj420p": "i420",
    "nv12": "nv12",
    "bgr24": "bgr",
    "bgr0": "bgrx",
}
_THEIRS: Final[Mapping[PixelFormat, str]] = {"i420": "yuv420p", "nv12": "nv12", "bgr": "bgr24", "bgrx": "bgr0"}

# AVColorSpace and AVColorRange of FFmpeg's libavutil/pixfmt.h, whose numbers are part of its ABI.
_BT709_LIKE: Final = (1, 9, 10)  # BT.709; BT.2020, of which it is the nearest that detectors know
_UNSAID: Final = (0, 2)  # frames in RGB, and those of streams that do not say
_BT709: Final = 1
_BT601: Final = 5
_LIMITED_RANGE: Final = 1
_FULL_RANGE: Final = 2
_FULL: Final = "yuvj"  # how FFmpeg's names of formats for full range begin


def choose_format(decoded: str, height_px: int, width_px: int, pixel_formats: tuple[PixelFormat, ...]) -> PixelFormat:
    """What to deliver frames in that FFmpeg calls `decoded`: as they are where the detector takes that, else bgr.

    Raises:
        SourceError: the sides are odd, and the detector takes no format that can have those.
    """
    odd = height_px % 2 or width_px % 2
    possible = [one for one in pixel_formats if not odd or one in {"bgr", "bgrx"}]
    if not possible:
        raise SourceError(
            f"expected frames with even sides for {', '.join(pixel_formats)}, got {width_px}x{height_px}",
            hint="choose another frame size in the camera's settings",
        )
    as_it_is = _OURS.get(decoded)
    if as_it_is in possible:
        return as_it_is
    return "bgr" if "bgr" in possible else possible[0]


class Encoded(Protocol):
    """A frame that says how its numbers mean colours, as those of other decoders than FFmpeg do."""

    @property
    def yuv(self) -> YuvEncoding: ...


def encoding_of(frame: VideoFrame | Encoded) -> YuvEncoding:
    """How the numbers of a frame mean colours. Where the stream does not say, its size decides, as in TVs."""
    if not isinstance(frame, VideoFrame):
        return frame.yuv
    matrix = int(frame.colorspace)
    bt709 = frame.height >= 720 if matrix in _UNSAID else matrix in _BT709_LIKE
    numbers = int(frame.color_range)  # a stream that was of full range, and is no more, keeps FFmpeg's name for that
    full = numbers == _FULL_RANGE or (numbers != _LIMITED_RANGE and frame.format.name.startswith(_FULL))
    if bt709:
        return "bt709-full" if full else "bt709"
    return "bt601-full" if full else "bt601"


class FrameWriter:
    """Writes frames of one stream into buffers, all in one format."""

    def __init__(self, pixel_format: PixelFormat) -> None:
        self._pixel_format = pixel_format
        self._reformatter = VideoReformatter()  # keeps what FFmpeg prepares for a size, 0.3 ms a frame

    def write(self, frame: VideoFrame, out: NDArray[np.uint8]) -> None:
        """Copy `frame` into `out`, whose shape must be that of `vision.types.frame_shape`.

        Raises:
            SizeChanged: the frame needs a buffer of another shape.
            SourceError: FFmpeg's frame is not laid out as it says.
        """
        if out.shape != _shape(frame, self._pixel_format):
            raise SizeChanged(frame.height, frame.width)
        if _OURS.get(frame.format.name) != self._pixel_format:
            frame = self._converted(frame)
        flat, start = out.reshape(-1), 0
        for source, layout in zip(frame.planes, self._layout(frame), strict=False):
            end = start + layout.rows * layout.row_bytes
            flat[start:end].reshape(layout.rows, layout.row_bytes)[...] = _rows(source, layout)
            start = end
        if start != flat.size:
            raise SourceError(f"expected a frame of {flat.size} bytes, FFmpeg gave {start}")

    def _converted(self, frame: VideoFrame) -> VideoFrame:
        """To our format. Numbers keep their meaning where the colours stay apart from the brightness."""
        encoding = encoding_of(frame)
        matrix = _BT709 if encoding.startswith("bt709") else _BT601
        numbers = _FULL_RANGE if encoding.endswith("-full") else _LIMITED_RANGE
        if numbers == _LIMITED_RANGE and frame.format.name.startswith(_FULL):
            frame = self._renamed(frame)
        planar = self._pixel_format in {"i420", "nv12"}
        return self._reformatter.reformat(
            frame,
            format=_THEIRS[self._pixel_format],
            src_colorspace=matrix,
            # RGB has no matrix. Another one than the source's makes PyAV 12 tell FFmpeg the range of the source at all.
            dst_colorspace=matrix if planar else _BT709 + _BT601 - matrix,
            src_color_range=numbers,
            dst_color_range=numbers if planar else _FULL_RANGE,
        )

    def _renamed(self, frame: VideoFrame) -> VideoFrame:
        """The same numbers in the format for limited range: FFmpeg converts by the name, whatever it is told."""
        name = frame.format.name.replace(_FULL, "yuv")
        return self._reformatter.reformat(frame, format=name, src_color_range=_FULL_RANGE, dst_color_range=_FULL_RANGE)

    def _layout(self, frame: VideoFrame) -> tuple[Plane, ...]:
        strides = [plane.line_size for plane in frame.planes]
        return planes_of(self._pixel_format, frame.height, frame.width, strides, [0] * len(strides))


def _shape(frame: VideoFrame, pixel_format: PixelFormat) -> tuple[int, ...] | None:
    try:
        return frame_shape(frame.height, frame.width, pixel_format)
    except ValueError:
        return None  # odd sides: whoever is told the new size finds no buffer for it either


def _rows(plane: VideoPlane, layout: Plane) -> NDArray[np.uint8]:
    """The frame's part of a plane, (rows, row_bytes): a view. FFmpeg pads rows to suit itself."""
    memory = np.frombuffer(memoryview(plane), np.uint8)
    if not 0 < layout.row_bytes <= layout.stride or layout.end > memory.size:
        raise SourceError(
            f"expected {layout.rows} rows of {layout.row_bytes} bytes, got rows of {layout.stride} in {memory.size}"
        )
    return np.lib.stride_tricks.as_strided(memory, (layout.rows, layout.row_bytes), (layout.stride, 1), writeable=False)
