"""The protocol of packet decoders, and FFmpeg's decoder.

Reading a stream is separate from decoding it, because connections, key frames, damage, and times are handled in the
same way for all decoders: FFmpeg on the CPU in this module, and NVDEC in `vision.capture.nvdec.decoder`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeAlias

import av
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vision.capture.ffmpeg.bindings import FrameWriter, choose_format, encoding_of, orientation_of, time_ns
from vision.capture.planes import UPRIGHT
from vision.capture.source import StreamInfo
from vision.errors import SourceError
from vision.types import FrameBuffer, PixelFormat, YuvEncoding

log = logging.getLogger(__name__)

_OFFLINE_THREADS: Final = 4
"""Number of threads that decode a file offline. On two cores, four threads decode the shipped clip at 361 instead of
310 frames/s. More threads would slow the detector."""


class PacketDamaged(Exception):
    """The packet contains no frame, or a damaged frame that was not decoded."""


@dataclass(frozen=True, slots=True)
class DecodedFrame:
    """One frame in the memory of its decoder, valid until the decoder is called again."""

    image: Any  # its type depends on the decoder
    pts_ns: int | None  # presentation time; None if the stream has no times
    yuv: YuvEncoding
    corrupt: bool = False


class PacketDecoder(Protocol):
    """The decoder of one stream. Calls must not overlap; `write` can be called from another thread."""

    def decode(self, packet: Packet[Any]) -> Sequence[DecodedFrame]:
        """Decode a packet. Return the frames that it completes; after an empty packet, return all remaining frames.

        Raises:
            PacketDamaged: the packet contains no frame that can be decoded.
            SourceError: the decoder failed, or does not support this stream.
        """

    def describe(self, image: Any, fps: float | None) -> StreamInfo:
        """Return the properties of the frames that `write` delivers for this stream. Call this method before `write`.

        `image` is the first decoded frame. `fps` is the frame rate to return, or None if unknown.

        Raises:
            SourceError: the detector accepts none of the possible formats.
        """

    def write(self, image: Any, out: FrameBuffer) -> None:
        """Write a decoded frame into `out`, as `vision.capture.source.Source.retrieve` does."""

    def close(self) -> None:
        """Release all resources. Idempotent."""


@dataclass(frozen=True, slots=True)
class JpegStream:
    """FFmpeg's codec context for JPEGs that arrive without a container, in place of a container's `VideoStream`."""

    codec_context: VideoCodecContext


CodedStream: TypeAlias = VideoStream | JpegStream

OpenDecoder: TypeAlias = Callable[[CodedStream, tuple[PixelFormat, ...]], PacketDecoder]
"""A function that opens the decoder of a stream, or raises `SourceError` if the decoder does not support the stream."""


class FFmpegDecoder:
    """Decoder that uses FFmpeg on the CPU. It converts frames if the detector does not accept the stream's format."""

    def __init__(
        self,
        stream: CodedStream,
        pixel_formats: tuple[PixelFormat, ...],
        *,
        reading: Literal["live", "recorded", "offline"] = "live",
    ) -> None:
        """Create the decoder. `pixel_formats` are the formats that the detector accepts, cheapest first.

        If `reading` is "recorded" or "offline", a decoding error skips only one packet, because recordings are read to
        their end. If `reading` is "offline", several threads decode ahead.
        """
        self._context = context = stream.codec_context
        context.thread_count = 1  # each further thread delays the output by one frame
        if reading == "offline":
            context.thread_count = _OFFLINE_THREADS
            context.thread_type = "AUTO"
        self._name = f"pyav-{context.name}"
        self._pixel_formats = pixel_formats
        self._recorded = reading != "live"
        self._writer = FrameWriter("bgr")

    def decode(self, packet: Packet[Any]) -> Sequence[DecodedFrame]:
        try:
            frames = self._context.decode(packet)
        except av.InvalidDataError:
            raise PacketDamaged from None
        except av.FFmpegError as error:
            if self._recorded:
                raise PacketDamaged from None
            raise SourceError(f"a frame could not be decoded: {error.strerror}", code="decoding") from None
        return [
            DecodedFrame(frame, time_ns(frame), encoding_of(frame), frame.is_corrupt)
            for frame in frames
            if isinstance(frame, VideoFrame)
        ]

    def describe(self, image: VideoFrame, fps: float | None) -> StreamInfo:
        pixel_format = choose_format(image.format.name, image.height, image.width, self._pixel_formats)
        orientation = orientation_of(image)
        if orientation is None:
            log.warning("its frames are not rotated, because their angle is not a multiple of 90 degrees")
        self._writer = FrameWriter(pixel_format, orientation or UPRIGHT)
        height_px, width_px = self._writer.size(image)
        return StreamInfo(width_px, height_px, pixel_format, fps, self._name, encoding_of(image))

    def write(self, image: VideoFrame, out: FrameBuffer) -> None:
        self._writer.write(image, out.require_host())

    def close(self) -> None:
        """Do nothing, because the codec context belongs to the stream."""
