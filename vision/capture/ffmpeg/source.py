"""Network cameras (RTSP and HTTP), which FFmpeg reads through PyAV.

FFmpeg also decodes the stream, unless a different decoder is passed (`vision.capture.ffmpeg.decoder`). GStreamer is
better for RTSP, because it reports every lost packet and uses a Jetson's hardware. But PyAV can be installed with pip,
whereas GStreamer needs Debian packages.

FFmpeg reports three kinds of damage:

* a frame with a slice that could not be decoded (``Frame.is_corrupt``)
* data that is not a frame (an error of the decoder)
* a packet that the demuxer marks (``Packet.is_corrupt``; never for RTP)

FFmpeg does not report a missing frame. The frames between the gap and the next key frame look intact, but are damaged.
For H.264, `vision.capture.ffmpeg.h264` detects the gap.

A separate thread reads the stream (`ReadAhead`), because FFmpeg's calls block until their own timeouts. The camera's
thread decodes.
"""

from __future__ import annotations

import struct
import time
from collections import deque
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Final

from av.packet import Packet

from vision.capture.clock import CaptureClock
from vision.capture.diagnosis import named
from vision.capture.ffmpeg.bindings import time_ns
from vision.capture.ffmpeg.connection import Coded, Connecting, ContainerConnection, ImageConnection
from vision.capture.ffmpeg.decoder import DecodedFrame, FFmpegDecoder, OpenDecoder, PacketDamaged, PacketDecoder
from vision.capture.ffmpeg.h264 import FrameGapFinder
from vision.capture.packet_info import KeyFrameGate, PacketInfo, Timeline
from vision.capture.packet_tap import PacketTap
from vision.capture.read_ahead import Arrived, ReadAhead
from vision.capture.source import Grab, SkippedFrames, StreamInfo, not_open
from vision.config import CameraConfig
from vision.errors import SourceError
from vision.types import DropReason, FrameBuffer, PixelFormat

_OPEN_MARGIN_S: Final = 1.0  # for a library that exceeds its own timeouts
_DIAGNOSIS_S: Final = 1.0  # time for the connection and the request of `explain_open` after a timeout


class FFmpegSource:
    """One RTSP or HTTP camera, read through PyAV. It implements `vision.capture.source.Source`.

    `pixel_formats` are the formats that the detector accepts. `open_decoder` creates the decoder of each connection.
    `tap`, if given, receives the packets of each connection.
    """

    live = True

    def __init__(
        self,
        camera: CameraConfig,
        pixel_formats: tuple[PixelFormat, ...],
        open_decoder: OpenDecoder = FFmpegDecoder,
        tap: PacketTap | None = None,
    ) -> None:
        self._camera = camera
        self._name = camera.source
        self._pixel_formats = pixel_formats
        self._open_decoder = open_decoder
        self.skipped = SkippedFrames()
        max_age_ns = round(camera.max_frame_age_s * 1e9)
        self._capture_clock = CaptureClock(camera.id, max_age_ns)
        self._connecting = Connecting(camera, self.skipped, tap)
        self._reader: ReadAhead[ContainerConnection | ImageConnection, Coded] = ReadAhead(
            self._name, self._connecting.connect, max_age_ns=max_age_ns, skipped=self.skipped
        )
        self._stream: _Stream | None = None
        self._reset()

    def _reset(self) -> None:
        self._waiting: deque[_Frame] = deque()
        self._frame: _Frame | None = None  # the last grabbed frame
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def open(self) -> StreamInfo:
        """Connect, decode the first key frame, and return the properties of the stream.

        Raises:
            SourceError: the camera cannot be reached, refuses the connection, or sends no frame that can be decoded
                within the open timeout, or `interrupt` was called.
        """
        self.close()
        began, open_timeout_s = time.monotonic(), self._camera.open_timeout_s
        connection = self._reader.open(open_timeout_s + _DIAGNOSIS_S + _OPEN_MARGIN_S, self._connecting.hint)
        try:
            decoder = self._open_decoder(connection.stream, self._pixel_formats)
        except SourceError as error:
            raise named(self._name, error) from error
        self._stream = _Stream(self._name, connection, decoder, self.skipped)
        first = self._next(max(_OPEN_MARGIN_S, began + open_timeout_s - time.monotonic()))
        if first is None and self._reader.interrupted.is_set():
            raise SourceError(f"{self._name}: interrupted while opening", code="interrupted")
        if first is None:
            raise SourceError(
                f"{self._name}: the camera answers, but no frame arrived in time",
                hint="raise `open_timeout_s`, or make the camera's key frames more frequent",
                code="no-frame",
            )
        self._waiting.appendleft(first)
        return decoder.describe(first.decoded.image, connection.fps)

    def grab(self, timeout_s: float) -> Grab | None:
        if not self._reader.is_open:
            raise not_open(self._name, "grab")
        self._frame = None  # its memory belongs to the decoder
        frame = self._next(timeout_s)
        if frame is None:
            return None
        self._frame = frame
        grab = self._capture_clock.stamp(
            frame.packet.arrived_ns,
            frame.packet.ntp_utc_ns,
            pts_ns=frame.decoded.pts_ns,
            corrupt=frame.packet.corrupt,
            yuv=frame.decoded.yuv,
        )
        if self._stream is not None and self._stream.tap is not None:
            self._stream.tap.captured(grab.pts_ns, grab.captured_ns)
        return grab

    def retrieve(self, out: FrameBuffer) -> None:
        if self._frame is None or self._stream is None:
            raise not_open(self._name, "retrieve")
        self._stream.decoder.write(self._frame.decoded.image, out)

    def interrupt(self) -> None:
        """Make current and future calls to `open` raise `SourceError`, and make calls to `grab` return None."""
        self._reader.interrupt()

    def close(self) -> None:
        self._reset()
        self._reader.close()

    def _next(self, timeout_s: float) -> _Frame | None:
        """Return the next decoded frame, or None if `timeout_s` passed or `interrupt` was called.

        Raises:
            SourceError: the connection failed or ended, and all frames from before the failure were returned.
        """
        deadline = time.monotonic() + timeout_s
        stream = self._stream
        assert stream is not None
        while not self._waiting:
            try:
                coded = self._reader.take(deadline - time.monotonic())
            except SourceError:
                self._waiting.extend(stream.flush())
                if not self._waiting:
                    raise
                continue
            if coded is None:
                return None
            self._waiting.extend(stream.decode(coded))
        return None if self._reader.interrupted.is_set() else self._waiting.popleft()


@dataclass(frozen=True, slots=True)
class _Frame:
    """One decoded frame, and the properties of its packet."""

    decoded: DecodedFrame
    packet: PacketInfo


class _Stream:
    """The stream of one connection, and its decoder. Closing the stream closes the decoder, but not the connection."""

    def __init__(
        self,
        name: str,
        connection: ContainerConnection | ImageConnection,
        decoder: PacketDecoder,
        skipped: SkippedFrames,
    ) -> None:
        self.decoder = decoder
        self.tap = connection.tap
        self._name = name
        self._skipped = skipped
        self._gate = KeyFrameGate()
        self._timeline = Timeline()
        context = connection.stream.codec_context
        self._gap_finder = FrameGapFinder(context.extradata) if context.name == "h264" else None
        self._flushed = False
        self._time_base: Fraction | None = None  # time base of the last packet

    def close(self) -> None:
        self.decoder.close()

    def decode(self, coded: Arrived[Coded]) -> list[_Frame]:
        """Decode one coded frame. Return the frames that the coded frame completes.

        Frames before the first key frame are not decoded, but are counted as skipped.
        """
        packet = Packet(coded.frame) if isinstance(coded.frame, bytes) else coded.frame
        if self._has_gap(packet, after_skip=coded.after_skip) or packet.is_corrupt:
            self._gate.lost()
        if not self._gate.passes(key=coded.key):
            self._skipped.add(DropReason.CORRUPT)
            return []
        self._time_base = packet.time_base
        pts_ns = time_ns(packet)
        if pts_ns is not None:
            self._timeline.put(pts_ns, PacketInfo(coded.at_ns, _sent_utc_ns(packet), self._gate.damaged))
        return self._decode(packet, coded.at_ns)

    def _has_gap(self, packet: Packet[Any], *, after_skip: bool) -> bool:
        if self._gap_finder is None:
            return False
        if after_skip:
            self._gap_finder.restart()
        return self._gap_finder.before(memoryview(packet))

    def flush(self) -> list[_Frame]:
        """Return the frames that the decoder still holds at the end of the stream. Later calls return an empty list."""
        if self._flushed:
            return []
        self._flushed = True
        empty: Packet[Any] = Packet(0)
        if self._time_base is not None:
            empty.time_base = self._time_base
        return self._decode(empty, time.monotonic_ns())

    def _decode(self, packet: Packet[Any], arrived_ns: int) -> list[_Frame]:
        try:
            return [self._frame(decoded, arrived_ns) for decoded in self.decoder.decode(packet)]
        except PacketDamaged:
            self._gate.decoding_failed()
            self._skipped.add(DropReason.CORRUPT)
            return []
        except SourceError as error:
            raise named(self._name, error) from error

    def _frame(self, decoded: DecodedFrame, arrived_ns: int) -> _Frame:
        if decoded.corrupt:
            self._gate.decoding_failed()
        info = self._timeline.take(decoded.pts_ns)
        if info is None:  # the stream has no times
            info = PacketInfo(arrived_ns, None, self._gate.damaged)
        return _Frame(decoded, replace(info, corrupt=True) if decoded.corrupt else info)


def _sent_utc_ns(packet: Packet[Any]) -> int | None:
    """Return the capture time (UTC, in ns) of a packet, which FFmpeg derives from RTCP sender reports.

    Return None if the time is unknown, or if PyAV is too old.
    """
    if not hasattr(packet, "has_sidedata") or not packet.has_sidedata("prft"):  # AVProducerReferenceTime
        return None
    (utc_us,) = struct.unpack_from("=q", bytes(packet.get_sidedata("prft")))
    return int(utc_us) * 1000
