"""From coded packets to frames: what whoever reads packets needs of a decoder, and the decoder that is everywhere.

Reading a stream and decoding it are apart because connections, key frames, damage and times are the same whatever
decodes: FFmpeg on the CPU here, NVDEC in `vision.capture.nvdec.source`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vision.capture.ffmpeg.frames import FrameWriter, choose_format, encoding_of
from vision.capture.source import StreamInfo
from vision.errors import SourceError
from vision.types import FrameBuffer, PixelFormat


class Damaged(Exception):
    """The data is no frame, or a broken one that was not decoded."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """One frame, in its decoder's memory: valid until the decoder is called again."""

    image: Any  # only its decoder knows what it is
    pts_ns: int | None
    corrupt: bool = False


class PacketDecoder(Protocol):
    """The decoder of one stream. One call at a time; `write` may come from another thread than the others."""

    def decode(self, packet: Packet[Any]) -> Sequence[Decoded]:
        """Frames that this packet completes. An empty packet is the last one: all that are left.

        Raises:
            Damaged: the data is no frame.
            SourceError: the decoder failed, or cannot decode this.
        """

    def describe(self, image: Any, fps: float | None) -> StreamInfo:
        """What is delivered of a stream of such frames.

        Raises:
            SourceError: the detector takes nothing that can be made of it.
        """

    def write(self, image: Any, out: FrameBuffer) -> None:
        """As `vision.capture.source.Source.retrieve`."""

    def close(self) -> None:
        """Release everything. May be called twice."""


class OpenDecoder(Protocol):
    """Makes the decoder of a stream."""

    def __call__(self, stream: VideoStream, pixel_formats: tuple[PixelFormat, ...], /) -> PacketDecoder:
        """
        Raises:
            SourceError: it cannot decode this stream.
        """


class FFmpegDecoder:
    """Decodes on the CPU. The decoder's own format is delivered where the detector takes it, else bgr."""

    def __init__(self, stream: VideoStream, pixel_formats: tuple[PixelFormat, ...]) -> None:
        stream.codec_context.thread_count = 1  # each further thread holds back one more frame
        self._name = f"pyav-{stream.codec_context.name}"
        self._pixel_formats = pixel_formats
        self._writer: FrameWriter | None = None

    def decode(self, packet: Packet[Any]) -> Sequence[Decoded]:
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            raise Damaged from None
        except av.FFmpegError as error:
            raise SourceError(f"a frame could not be decoded: {error.strerror}") from None
        return list(self._frames(frames))

    @staticmethod
    def _frames(frames: Sequence[object]) -> Iterator[Decoded]:
        for frame in frames:
            if isinstance(frame, VideoFrame):
                yield Decoded(frame, time_ns(frame), frame.is_corrupt)

    def describe(self, image: VideoFrame, fps: float | None) -> StreamInfo:
        pixel_format = choose_format(image.format.name, image.height, image.width, self._pixel_formats)
        self._writer = FrameWriter(pixel_format)
        return StreamInfo(
            width_px=image.width,
            height_px=image.height,
            pixel_format=pixel_format,
            fps=fps,
            decoder=self._name,
            yuv=encoding_of(image),
        )

    def write(self, image: VideoFrame, out: FrameBuffer) -> None:
        if self._writer is None:
            raise SourceError("a frame is to be written that was never described")
        self._writer.write(image, out.require_host())

    def close(self) -> None:
        self._writer = None


def open_container(address: str, **options: Any) -> InputContainer:
    """`av.open`, for reading. Metadata that is no UTF-8 is no reason to fail, which PyAV before 19 has to be told.

    Raises:
        av.FFmpegError, ValueError: it cannot be opened; their text has the address in it, secrets included.
    """
    if int(av.__version__.partition(".")[0]) < 19:
        options["metadata_errors"] = "replace"
    container: InputContainer = av.open(address, mode="r", **options)
    return container


def time_ns(timed: Packet[Any] | VideoFrame) -> int | None:
    """Presentation time."""
    if timed.pts is None or timed.time_base is None:
        return None
    return timed.pts * timed.time_base.numerator * 1_000_000_000 // timed.time_base.denominator
