"""Access to the containers, times, and frames of PyAV. Importing this module disables FFmpeg's log.

FFmpeg's log prints URLs with passwords, and calls Python code from FFmpeg's threads, which can deadlock.

H.264 and H.265 are decoded to I420. Detectors on a GPU accept this format, so the CPU only copies planes. For a
detector on the CPU, FFmpeg converts the frames to BGR. Most cameras send Motion JPEG in 4:2:2, which is not one of the
program's formats, so it is always converted.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import suppress
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from vision.capture.planes import (
    UPRIGHT,
    Orientation,
    allowed_formats,
    copy_planes,
    has_shape,
    split_planes,
    yuv_encoding,
)
from vision.capture.source import plausible_fps
from vision.errors import SizeChanged, SourceError
from vision.types import PixelFormat, YuvEncoding, frame_shape

av.logging.set_level(None)


def _ignore_unknown_side_data() -> None:
    """Make PyAV ignore types of side data that it does not know, such as the EXIF data of FFmpeg 8.

    Otherwise, if a frame has side data of an unknown type, PyAV raises an error for all side data of the frame, so the
    frame's orientation is not accessible.
    """
    if issubclass(Type, Enum):  # False in old versions of PyAV, which contain an old FFmpeg
        setattr(Type, "_missing_", classmethod(lambda cls, _value: cls.DETECTION_BBOXES))  # noqa: B010 - mypy


_ignore_unknown_side_data()

_OURS: Final[Mapping[str, PixelFormat]] = {
    "yuv420p": "i420",
    "yuvj420p": "i420",
    "nv12": "nv12",
    "bgr24": "bgr",
    "bgr0": "bgrx",
}
_THEIRS: Final[Mapping[PixelFormat, str]] = {"i420": "yuv420p", "nv12": "nv12", "bgr": "bgr24", "bgrx": "bgr0"}

# AVColorSpace and AVColorRange of FFmpeg's libavutil/pixfmt.h, whose numbers are part of its ABI.
_BT709_LIKE: Final = (1, 9, 10)  # BT.709, and BT.2020, which detectors do not support; BT.709 is the nearest to it
_UNSPECIFIED: Final = (0, 2)  # RGB frames, and streams that do not specify their matrix
_BT709: Final = 1
_BT601: Final = 5
_LIMITED_RANGE: Final = 1
_FULL_RANGE: Final = 2
_NO_TIMESTAMPS: Final = 0x80  # AVFMT_NOTIMESTAMPS of FFmpeg's libavformat/avformat.h
_FULL: Final = "yuvj"  # prefix of FFmpeg's formats for full range


def open_container(address: str, **options: Any) -> InputContainer:
    """Open a file or URL for reading. The caller must close the container.

    Raises:
        av.FFmpegError, ValueError: the address cannot be opened. The error text contains the address and its password.
    """
    if int(av.__version__.partition(".")[0]) < 19:
        options["metadata_errors"] = "replace"  # metadata that is not UTF-8 must not be an error
    container: InputContainer = av.open(address, mode="r", **options)
    return container


def best_video(container: InputContainer) -> VideoStream | None:
    """Return the video stream that the ``ffmpeg`` command would choose, or None if there is none.

    A cover image is chosen only if the container has no other video stream.
    """
    best = container.streams.best("video")
    return best if isinstance(best, VideoStream) else None


def has_no_times(container: InputContainer) -> bool:
    """Return True for containers without times, such as raw H.264. FFmpeg assumes 25 frames/s for such containers."""
    return bool(container.format.flags & _NO_TIMESTAMPS)


def frame_rate(container: InputContainer, stream: VideoStream) -> float | None:
    """Return the frame rate that the container or the coded video specifies, in frames/s, or None if neither does."""
    if has_no_times(container):
        return plausible_fps(stream.codec_context.framerate)
    return plausible_fps(stream.average_rate or stream.codec_context.framerate)


def time_ns(timed: Packet[Any] | VideoFrame) -> int | None:
    """Return the presentation time of a packet or a frame in ns, or None if the time is missing."""
    return _in_ns(timed.pts, timed.time_base)


def decoding_time_ns(packet: Packet[Any]) -> int | None:
    """Return the decoding time of a packet in ns.

    If the packet has no decoding time, return its presentation time, or None if both are missing.
    """
    return _in_ns(packet.pts if packet.dts is None else packet.dts, packet.time_base)


def _in_ns(time: int | None, time_base: Fraction | None) -> int | None:
    if time is None or time_base is None:
        return None
    return time * time_base.numerator * 1_000_000_000 // time_base.denominator


def choose_format(decoded: str, height_px: int, width_px: int, pixel_formats: tuple[PixelFormat, ...]) -> PixelFormat:
    """Return the format to deliver: the format of the decoder if possible, so that frames need no conversion.

    Otherwise, return bgr if possible, or else the first possible format. `decoded` is FFmpeg's name of the decoder's
    format, and `pixel_formats` are the formats that the detector accepts, cheapest first.

    Raises:
        SourceError: the width or the height is odd, and the detector accepts no format that allows this.
    """
    possible = allowed_formats(pixel_formats, height_px, width_px)
    unconverted = _OURS.get(decoded)
    if unconverted in possible:
        return unconverted
    return "bgr" if "bgr" in possible else possible[0]


def encoding_of(frame: VideoFrame) -> YuvEncoding:
    """Return the color encoding of a frame.

    If the stream does not specify the matrix, derive it from the frame's height. If the stream does not specify the
    range, derive it from the pixel format.
    """
    matrix = int(frame.colorspace)
    bt709 = frame.height >= 720 if matrix in _UNSPECIFIED else matrix in _BT709_LIKE
    color_range = int(frame.color_range)  # counts more than the format's name, which can keep a previous range
    full = color_range == _FULL_RANGE or (color_range != _LIMITED_RANGE and frame.format.name.startswith(_FULL))
    return yuv_encoding(bt709=bt709, full=full)


class FrameWriter:
    """Writer that copies the frames of one stream into buffers, in one format and one orientation.

    A phone that is held upright records rotated frames, and a matrix to rotate them back. The front camera of a phone
    can record mirrored frames. FFmpeg passes the matrix on with each frame, but does not apply it.
    """

    def __init__(self, pixel_format: PixelFormat, orientation: Orientation = UPRIGHT) -> None:
        self._pixel_format = pixel_format
        self._orientation = None if orientation.is_upright else orientation
        self._decoded = np.empty(0, np.uint8)  # a frame before `_orientation` is applied
        self._reformatter = VideoReformatter()  # reuses FFmpeg's setup for a size, 0.3 ms per frame

    def size(self, frame: VideoFrame) -> tuple[int, int]:
        """Return the height and width, in pixels, of the frame that `write` delivers."""
        orientation = self._orientation or UPRIGHT
        return orientation.shown_size(frame.height, frame.width)

    def write(self, frame: VideoFrame, out: NDArray[np.uint8]) -> None:
        """Copy `frame` into `out`, whose shape must equal the result of `vision.types.frame_shape`.

        Raises:
            SizeChanged: the frame needs a buffer of a different shape.
            SourceError: the layout of FFmpeg's frame is inconsistent.
        """
        height_px, width_px = self.size(frame)
        if not has_shape(out, height_px, width_px, self._pixel_format):
            raise SizeChanged(height_px, width_px)
        target = out
        if self._orientation is not None:
            shape = frame_shape(frame.height, frame.width, self._pixel_format)
            if self._decoded.shape != shape:
                self._decoded = np.empty(shape, np.uint8)
            target = self._decoded
        if _OURS.get(frame.format.name) != self._pixel_format:
            frame = self._converted(frame)
        sources = [(np.frombuffer(memoryview(plane), np.uint8), plane.line_size) for plane in frame.planes]
        planes = split_planes(target, frame.height, frame.width, self._pixel_format)
        try:
            copy_planes(sources, planes)
        except ValueError as error:
            raise SourceError(f"FFmpeg's frame is damaged: {error}", code="decoding") from None
        if self._orientation is not None:
            for shown, plane in zip(split_planes(out, height_px, width_px, self._pixel_format), planes, strict=True):
                shown[...] = self._orientation.apply(plane)

    def _converted(self, frame: VideoFrame) -> VideoFrame:
        """Return the frame in the format that `write` delivers. Conversion from YUV to YUV keeps the color encoding."""
        encoding = encoding_of(frame)
        matrix = _BT709 if encoding.startswith("bt709") else _BT601
        color_range = _FULL_RANGE if encoding.endswith("-full") else _LIMITED_RANGE
        if color_range == _LIMITED_RANGE and frame.format.name.startswith(_FULL):
            frame = self._renamed(frame)
        planar = self._pixel_format in {"i420", "nv12"}
        return self._reformatter.reformat(
            frame,
            format=_THEIRS[self._pixel_format],
            src_colorspace=matrix,
            # RGB has no matrix, but PyAV 12 passes the source's range to FFmpeg only if the two matrices differ.
            dst_colorspace=matrix if planar else _BT709 + _BT601 - matrix,
            src_color_range=color_range,
            dst_color_range=color_range if planar else _FULL_RANGE,
        )

    def _renamed(self, frame: VideoFrame) -> VideoFrame:
        """Return a frame with the same pixel values, but a format name that stands for the limited range.

        Call this for frames of limited range whose format name (``yuvj...``) wrongly tells FFmpeg that the range is
        full.
        """
        name = frame.format.name.replace(_FULL, "yuv")
        return self._reformatter.reformat(frame, format=name, src_color_range=_FULL_RANGE, dst_color_range=_FULL_RANGE)


_MATRIX: Final = "DISPLAYMATRIX"


def orientation_of(frame: VideoFrame) -> Orientation | None:
    """Return the orientation of a decoded frame, or `UPRIGHT` if the frame specifies none.

    Return None if the angle is not a multiple of 90 degrees.
    """
    matrix: Any = frame.side_data.get(_MATRIX)
    if matrix is None:
        return UPRIGHT
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))  # AV_FRAME_DATA_DISPLAYMATRIX
    return Orientation.from_matrix(a, b, c, d)


def require_upright(path: Path, stream: VideoStream) -> None:
    """Check that the frames of a recording need no rotation, for a decoder that cannot rotate them.

    Ignore all other errors in the file. `stream` is the video stream of the file.

    Raises:
        SourceError: the frames must be rotated or mirrored.
    """
    with suppress(av.FFmpegError, StopIteration), open_container(str(path.absolute())) as container:
        frame = next(container.decode(container.streams[stream.index]))
        if isinstance(frame, VideoFrame):
            require_upright_frame(frame)


def require_upright_frame(frame: VideoFrame) -> None:
    """Raise `SourceError` if a decoded frame must be rotated or mirrored, which NVDEC does not support."""
    if (orientation := orientation_of(frame)) is not None and not orientation.is_upright:
        raise SourceError("its frames must be rotated or mirrored, which NVDEC does not support", code="orientation")
