"""Network cameras through PyAV: FFmpeg, with options of its own for each connection.

FFmpeg reads the stream. It also decodes it, unless another decoder is given (`vision.capture.ffmpeg.decoder`).
GStreamer is better for RTSP, because it reports every lost packet and uses a Jetson's hardware. But PyAV is a wheel,
where GStreamer is Debian packages.

FFmpeg reports as damaged: a frame with a slice that could not be decoded (``Frame.is_corrupt``), data that is not a
frame (an error of the decoder), and packets that a demuxer marks (``Packet.is_corrupt``; never for RTP). It does not
report a missing frame. The frames after it, up to the next key frame, look intact and are not. For H.264,
`vision.capture.ffmpeg.h264` finds the gap.

Calls that may block run on a thread of their own (`BlockingCalls`), one packet each. So none outlasts the library's own
timeouts, and a stream with packets but no frames cannot occupy that thread.
"""

from __future__ import annotations

import logging
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import av
from av.container import InputContainer
from av.packet import Packet

from vision.capture.blocking import BlockingCalls, Interrupted
from vision.capture.clock import CaptureClock
from vision.capture.ffmpeg.bindings import open_container, plausible_fps, time_ns
from vision.capture.ffmpeg.decoder import DecodedFrame, FFmpegDecoder, OpenDecoder, PacketDamaged, PacketDecoder
from vision.capture.ffmpeg.errors import explain_open
from vision.capture.ffmpeg.frames import encoding_of
from vision.capture.ffmpeg.h264 import FrameGapFinder
from vision.capture.packet_info import KeyFrameGate, PacketInfo, Timeline
from vision.capture.source import Grab, StreamInfo, not_open
from vision.config.app import CameraConfig
from vision.config.source_address import NETWORK, Rtsp
from vision.errors import SourceError, redact
from vision.types import FrameBuffer, PixelFormat

log = logging.getLogger(__name__)

_OPEN_MARGIN_S: Final = 1.0  # for a library that exceeds its own timeouts
_DIAGNOSIS_S: Final = 1.0  # `explain_open` after a timeout: connection and request

_OPTIONS: Final = {"fpsprobesize": "0"}
"""By default FFmpeg reads 20 frames to measure their rate, which takes seconds, and then delivers them all at once."""

_RTSP_OPTIONS: Final = {"allowed_media_types": "video", "analyzeduration": "10000"}
"""Without sound, which is not used, and metadata, which FFmpeg may wait for in vain."""


class FFmpegSource:
    """One RTSP or HTTP camera through PyAV. Satisfies `vision.capture.source.Source`.

    `pixel_formats` are the formats that the detector accepts. `open_decoder` makes the decoder of each connection.
    """

    def __init__(
        self,
        camera: CameraConfig,
        pixel_formats: tuple[PixelFormat, ...],
        *,
        open_decoder: OpenDecoder = FFmpegDecoder,
        clock: Callable[[], int] = time.monotonic_ns,
        utc: Callable[[], int] = time.time_ns,
    ) -> None:
        self._camera = camera
        self._pixel_formats = pixel_formats
        self._open_decoder = open_decoder
        self._clock = clock
        self._interrupted = threading.Event()
        self._capture_clock = CaptureClock(round(camera.max_frame_age_s * 1e9), self._warn, clock=clock, utc=utc)
        self._connection = self._new_connection()
        self._calls: BlockingCalls[tuple[_Frame, ...]] | None = None
        self._reset()

    def _new_connection(self) -> _Connection:
        return _Connection(self._camera, self._open_decoder, self._pixel_formats, self._clock)

    def _reset(self) -> None:
        self._waiting: deque[_Frame] = deque()
        self._frame: _Frame | None = None  # the one grabbed last

    @property
    def live(self) -> bool:
        return True

    def open(self) -> StreamInfo:
        """Connect, and wait for the first key frame: only a decoded frame shows its format."""
        self.close()
        connection = self._connection = self._new_connection()
        self._calls = BlockingCalls("pyav")
        if self._interrupted.is_set():  # it came before there was anything to wake
            raise self._error("interrupted while opening")
        began = time.monotonic()
        self._connect(self._calls, connection)
        first = self._next(max(_OPEN_MARGIN_S, began + self._camera.open_timeout_s - time.monotonic()))
        if first is None and self._interrupted.is_set():
            raise self._error("interrupted while opening")
        if first is None or connection.decoder is None:
            raise self._error(
                "it answers, but no frame arrived in time",
                hint="raise `open_timeout_s`, or make its key frames more frequent",
            )
        self._waiting.appendleft(first)
        return connection.decoder.describe(first.decoded.image, connection.fps)

    def _connect(self, calls: BlockingCalls[tuple[_Frame, ...]], connection: _Connection) -> None:
        timeout_s = self._camera.open_timeout_s + _DIAGNOSIS_S + _OPEN_MARGIN_S
        calls.begin(connection.open)
        try:
            calls.result(timeout_s)
        except Interrupted:
            raise self._error("interrupted while opening") from None
        except TimeoutError:
            raise self._error(
                f"no answer within {timeout_s:g} s", hint="looking up a host name may take this long"
            ) from None

    def grab(self, timeout_s: float) -> Grab | None:
        if self._calls is None:
            raise not_open(redact(self._camera.source), "grab")
        self._frame = None  # its memory is the decoder's
        frame = self._next(timeout_s)
        if frame is None:
            return None
        self._frame = frame
        stamp = self._capture_clock.stamp(frame.packet.arrived_ns, frame.packet.ntp_utc_ns)
        return Grab(
            stamp.captured_ns,
            stamp.captured_utc_ns,
            stamp.clock,
            frame.decoded.pts_ns,
            corrupt=frame.packet.corrupt,
            yuv=encoding_of(frame.decoded.image),
        )

    def retrieve(self, out: FrameBuffer) -> None:
        frame, decoder = self._frame, self._connection.decoder
        if frame is None or decoder is None:
            raise not_open(redact(self._camera.source), "retrieve")
        decoder.write(frame.decoded.image, out)

    def interrupt(self) -> None:
        """Make `open` fail and `grab` return None from now on."""
        self._interrupted.set()
        calls = self._calls
        if calls is not None:
            calls.wake()

    def close(self) -> None:
        calls, self._calls = self._calls, None
        self._reset()
        if calls is not None:
            calls.end(self._connection.release)

    def _next(self, timeout_s: float) -> _Frame | None:
        """Return the next decoded frame, or None after the timeout or `interrupt`.

        Raises:
            SourceError: the connection or the decoder failed.
        """
        deadline = time.monotonic() + timeout_s
        while not self._waiting:
            if self._calls is None or self._interrupted.is_set():
                return None
            if not self._calls.busy:
                self._calls.begin(self._connection.step)
            try:
                self._waiting.extend(self._calls.result(deadline - time.monotonic()))
            except (TimeoutError, Interrupted):
                return None
        return None if self._interrupted.is_set() else self._waiting.popleft()

    def _error(self, text: str, hint: str = "") -> SourceError:
        return SourceError(f"{redact(self._camera.source)}: {text}", hint=hint)

    def _warn(self, text: str) -> None:
        log.warning("camera %s: %s", self._camera.id, text)


@dataclass(frozen=True, slots=True)
class _Frame:
    """One decoded frame, and the facts about its packet."""

    decoded: DecodedFrame
    packet: PacketInfo


@dataclass(slots=True)
class _Connection:
    """One connection. Its methods run on the library's thread, which may outlive the source."""

    camera: CameraConfig
    open_decoder: OpenDecoder
    pixel_formats: tuple[PixelFormat, ...]
    clock: Callable[[], int]
    fps: float | None = None
    decoder: PacketDecoder | None = None
    _container: InputContainer | None = None
    _packets: Iterator[Packet[Any]] | None = None
    _gate: KeyFrameGate = field(default_factory=KeyFrameGate)
    _timeline: Timeline = field(default_factory=Timeline)
    _gap_finder: FrameGapFinder | None = None
    _min_delay_ns: int | None = None

    def open(self) -> tuple[_Frame, ...]:
        began = time.monotonic()
        try:
            container = self._container = self._open()
        except (av.FFmpegError, ValueError):  # their text contains the URL
            took_s = time.monotonic() - began
            raise explain_open(self.camera.source, open_timeout_s=self.camera.open_timeout_s, took_s=took_s) from None
        if not container.streams.video:
            raise self._error("it sends no video", "set the camera to H.264, H.265 or MJPEG")
        stream = container.streams.video[0]
        try:
            self.decoder = self.open_decoder(stream, self.pixel_formats)
        except SourceError as error:
            raise self._located(error) from error
        self.fps = plausible_fps(stream.average_rate)
        if stream.codec_context.name == "h264":
            self._gap_finder = FrameGapFinder(stream.codec_context.extradata)
        self._packets = container.demux(stream)
        return ()

    def _open(self) -> InputContainer:
        camera, options = self.camera, dict(_OPTIONS)
        address = camera.address
        assert isinstance(address, NETWORK)
        if isinstance(address, Rtsp):
            options.update(_RTSP_OPTIONS, rtsp_transport=camera.transport)
        return open_container(address.url, options=options, timeout=(camera.open_timeout_s, camera.read_timeout_s))

    def step(self) -> tuple[_Frame, ...]:
        """Read one packet and decode it.

        Raises:
            SourceError: the stream ended, or no packet came within the read timeout.
        """
        if self._packets is None or self.decoder is None:
            return ()
        began = time.monotonic()
        try:
            packet = next(self._packets)
        except StopIteration:
            raise self._error("the camera ended the stream") from None
        except av.FFmpegError as error:
            raise self._reading_failed(error, time.monotonic() - began) from None
        return tuple(self._decode(self.decoder, packet))

    def release(self) -> tuple[_Frame, ...]:
        decoder, self.decoder = self.decoder, None
        if decoder is not None:
            decoder.close()
        container, self._container, self._packets = self._container, None, None
        if container is not None:
            container.close()
        return ()

    def _decode(self, decoder: PacketDecoder, packet: Packet[Any]) -> Iterator[_Frame]:
        now_ns, pts_ns = self.clock(), time_ns(packet)
        gap = self._gap_finder is not None and self._gap_finder.before(memoryview(packet))
        if packet.is_corrupt or gap:
            self._gate.lost()
        if packet.size:  # the last packet, which flushes the decoder, is empty
            lag_ns = self._lag_ns(now_ns, pts_ns)
            if not self._gate.passes(key=packet.is_keyframe, now_ns=now_ns, lag_ns=lag_ns):
                return
            if pts_ns is not None:
                self._timeline.put(pts_ns, PacketInfo(now_ns, _sent_utc_ns(packet), self._gate.damaged))
        try:
            images = decoder.decode(packet)
        except PacketDamaged:
            self._gate.decoding_failed()
            return
        except SourceError as error:
            raise self._located(error) from error
        for decoded in images:
            yield self._frame(decoded, now_ns)

    def _frame(self, decoded: DecodedFrame, now_ns: int) -> _Frame:
        if decoded.corrupt:
            self._gate.decoding_failed()
        info = self._timeline.take(decoded.pts_ns) if decoded.pts_ns is not None else None
        if info is None:  # a stream without times
            info = PacketInfo(now_ns, None, self._gate.damaged)
        if decoded.corrupt:
            info = PacketInfo(info.arrived_ns, info.ntp_utc_ns, corrupt=True)
        return _Frame(decoded, info)

    def _lag_ns(self, now_ns: int, pts_ns: int | None) -> int:
        """Return how much later this packet is read than if reading had always kept up."""
        if pts_ns is None:
            return 0
        delay_ns = now_ns - pts_ns
        if self._min_delay_ns is None or delay_ns < self._min_delay_ns:
            self._min_delay_ns = delay_ns
        return delay_ns - self._min_delay_ns

    def _reading_failed(self, error: av.FFmpegError, waited_s: float) -> SourceError:
        if isinstance(error, av.error.ExitError):  # PyAV's own timeout
            return self._error(f"no frame for {waited_s:.1f} s", "check the network, or raise `read_timeout_s`")
        return self._error(f"the connection failed: {error.strerror}", "check cable, network and the camera's power")

    def _located(self, error: SourceError) -> SourceError:
        """Add the camera's address to an error of its decoder."""
        return self._error(str(error.args[0]), error.hint)

    def _error(self, text: str, hint: str = "") -> SourceError:
        return SourceError(f"{redact(self.camera.source)}: {text}", hint=hint)


def _sent_utc_ns(packet: Packet[Any]) -> int | None:
    """Return the capture time from RTCP sender reports: FFmpeg's AVProducerReferenceTime, which newer PyAV exposes."""
    if not hasattr(packet, "has_sidedata") or not packet.has_sidedata("prft"):
        return None
    (utc_us,) = struct.unpack_from("=q", bytes(packet.get_sidedata("prft")))
    return int(utc_us) * 1000
