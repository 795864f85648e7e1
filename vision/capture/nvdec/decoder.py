"""Packet decoder that uses NVDEC. FFmpeg reads the stream and determines its format.

An NVDEC session supports only one frame size, and reports little about its frames. Therefore, to get the format, FFmpeg
also decodes the first key frame, and each key frame whose parameters have changed, on the CPU. If the format has
changed, another session decodes the stream, after the previous session has output its remaining frames.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

import av
from av.codec import CodecContext
from av.packet import Packet
from av.video.frame import VideoFrame

from vision.capture.ffmpeg.bindings import choose_format, encoding_of, require_upright_frame, time_ns
from vision.capture.ffmpeg.decoder import CodedStream, DecodedFrame, JpegStream, PacketDamaged
from vision.capture.nvdec.annexb import AnnexB
from vision.capture.nvdec.bindings import CODECS, Session, Surface, require_nvdec
from vision.capture.nvdec.idle_sessions import idle_sessions
from vision.capture.source import StreamInfo
from vision.errors import SourceError
from vision.types import FrameBuffer, PixelFormat, YuvEncoding

log = logging.getLogger(__name__)

_EIGHT_BITS: Final = ("yuv420p", "yuvj420p", "nv12")


class NvdecDecoder:
    """Decoder that uses NVDEC to deliver nv12 frames. It implements `vision.capture.ffmpeg.decoder.PacketDecoder`."""

    def __init__(self, stream: CodedStream, pixel_formats: tuple[PixelFormat, ...], *, live: bool) -> None:
        """Create the decoder.

        If `live` is True, output each frame immediately, as long as frames arrive in display order.

        Raises:
            SourceError: NVDEC is not usable or does not support this codec, or `pixel_formats` lacks nv12.
        """
        self._codec = stream.codec_context.name
        require_nvdec(self._codec)
        assert not isinstance(stream, JpegStream)  # NVDEC decodes no JPEGs
        if "nv12" not in pixel_formats:
            raise SourceError(
                f"NVDEC delivers nv12 frames, but the detector accepts only {', '.join(pixel_formats)}",
                hint="remove `reader: nvdec`",
                code="pixel-format",
            )
        self._coded = stream.codec_context
        self._annexb = AnnexB(stream)
        self._at_once = live
        self._parameters: bytes | None = None
        self._format: tuple[int, int, YuvEncoding] | None = None  # height, width, and encoding of the session
        self._latest_ns: int | None = None
        self._session: Session | None = None
        self._retired: Session | None = None  # the previous session, whose last frames can still be read

    def decode(self, packet: Packet[Any]) -> Sequence[DecodedFrame]:
        if self._retired is not None:
            idle_sessions.give(self._retired)
            self._retired = None
        try:
            packets = list(self._annexb.convert(packet))
        except av.FFmpegError:
            raise PacketDamaged from None
        frames: list[DecodedFrame] = []
        for converted in packets:
            frames += self._decode(converted) if converted.size else self._drain()
        return frames

    def describe(self, image: Surface, fps: float | None) -> StreamInfo:
        name = f"nvdec-{CODECS[self._codec].lower()}"
        return StreamInfo(image.width_px, image.height_px, "nv12", fps, name, image.yuv)

    def write(self, image: Surface, out: FrameBuffer) -> None:
        image.copy_to(out)

    def close(self) -> None:
        for session in (self._retired, self._session):
            if session is not None:
                idle_sessions.give(session)
        self._retired = self._session = None

    def _decode(self, packet: Packet[Any]) -> Sequence[DecodedFrame]:
        data, pts_ns = bytes(packet), time_ns(packet)
        frames: Sequence[DecodedFrame] = ()
        if packet.is_keyframe:
            data, parameters = self._annexb.with_parameters(data)
            if parameters != self._parameters or not parameters:
                frames = self._follow_format(self._probe(data), parameters)
                self._parameters = parameters
        self._check_order(pts_ns)
        if self._session is None:  # nothing can be decoded before the first key frame
            return frames
        return [*frames, *_frames(self._session.decode(data, pts_ns or 0), timed=pts_ns is not None)]

    def _drain(self) -> Sequence[DecodedFrame]:
        return [] if self._session is None else _frames(self._session.decode(b"", 0), timed=True)

    def _follow_format(self, frame: VideoFrame, parameters: bytes) -> Sequence[DecodedFrame]:
        """Start another session if the format of `frame` has changed.

        Return the remaining frames of the previous session.

        Raises:
            SourceError: NVDEC does not support the format, or has no memory for the session.
        """
        if frame.format.name not in _EIGHT_BITS:
            raise SourceError(
                f"expected frames of 8 bits in 4:2:0 for NVDEC, got {frame.format.name}",
                hint="change the camera's settings, or remove `reader` so that the CPU decodes the stream",
                code="nvdec-codec",
            )
        choose_format("nv12", frame.height, frame.width, ("nv12",))  # raises an error if a side is odd
        encoding = encoding_of(frame)
        stream_format = (frame.height, frame.width, encoding)
        if not self._annexb.has_parameters:
            parameters = b""
        if stream_format == self._format:
            assert self._session is not None
            self._session.parameters = parameters
            return ()
        remaining = self._drain()
        self._retired, self._session = self._session, None
        self._session = idle_sessions.take(self._codec, encoding, parameters, at_once=self._at_once)
        self._format = stream_format
        return remaining

    def _probe(self, data: bytes) -> VideoFrame:
        """Decode a key frame with FFmpeg, and return it.

        Raises:
            PacketDamaged: the key frame cannot be decoded.
            SourceError: the frame must be rotated or mirrored.
        """
        context: Any = CodecContext.create(self._coded.codec, "r")
        context.thread_count = 1
        try:
            frames = [*context.decode(Packet(data)), *context.decode(None)]
        except av.FFmpegError:
            raise PacketDamaged from None
        frame = next((frame for frame in frames if isinstance(frame, VideoFrame)), None)
        if frame is None:
            raise PacketDamaged
        require_upright_frame(frame)
        return frame

    def _check_order(self, pts_ns: int | None) -> None:
        """Disable immediate output if frames are not sent in display order, which immediate output requires."""
        if pts_ns is None:
            return
        if self._at_once and self._latest_ns is not None and pts_ns < self._latest_ns:
            log.info("frames are not sent in display order, so NVDEC outputs them later from the next key frame on")
            self._at_once = False
            self._format = self._parameters = None
        self._latest_ns = pts_ns


def _frames(surfaces: Sequence[Surface], *, timed: bool) -> list[DecodedFrame]:
    return [DecodedFrame(surface, surface.time if timed else None, surface.yuv) for surface in surfaces]
