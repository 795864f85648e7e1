"""Network cameras (RTSP and HTTP), which FFmpeg reads through PyAV.

FFmpeg also decodes the stream, unless a different decoder is passed (`vision.capture.ffmpeg.decoder`). GStreamer is
better for RTSP, because it reports every lost packet and uses a Jetson's hardware. But PyAV can be installed with pip,
whereas GStreamer needs Debian packages.

FFmpeg reports three kinds of damage: a frame with a slice that could not be decoded (``Frame.is_corrupt``), data that
is not a frame (an error of the decoder), and packets that a demuxer marks (``Packet.is_corrupt``; never for RTP). It
does not report a missing frame. The frames after it, up to the next key frame, look intact but are damaged. For H.264,
`vision.capture.ffmpeg.h264` detects the gap.

Calls that can block run on a separate thread (`BlockingReader`). Each call reads one packet, so that no call lasts
longer than the library's own timeouts, even if packets arrive without frames.
"""

from __future__ import annotations

import struct
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from vision.capture.blocking import BlockingReader
from vision.capture.clock import CaptureClock
from vision.capture.ffmpeg.bindings import open_container, time_ns
from vision.capture.ffmpeg.decoder import DecodedFrame, FFmpegDecoder, OpenDecoder, PacketDamaged, PacketDecoder
from vision.capture.ffmpeg.errors import explain_open, named
from vision.capture.ffmpeg.h264 import FrameGapFinder
from vision.capture.packet_info import KeyFrameGate, PacketInfo, Timeline
from vision.capture.source import Grab, StreamInfo, not_open, plausible_fps
from vision.config import CameraConfig
from vision.config.source_address import NETWORK, Rtsp
from vision.errors import SourceError
from vision.types import FrameBuffer, PixelFormat

_OPEN_MARGIN_S: Final = 1.0  # for a library that exceeds its own timeouts
_DIAGNOSIS_S: Final = 1.0  # time for the connection and the request of `explain_open` after a timeout

_OPTIONS: Final = {"fpsprobesize": "0"}
"""By default, FFmpeg reads 20 frames to measure their rate, which takes seconds, and then outputs all at once."""

_RTSP_OPTIONS: Final = {"allowed_media_types": "video", "analyzeduration": "10000"}
"""These options exclude audio, which is not used, and metadata, for which FFmpeg waits although it may never arrive."""


class FFmpegSource:
    """One RTSP or HTTP camera, read through PyAV. Implements `vision.capture.source.Source`.

    `pixel_formats` are the formats that the detector accepts. `open_decoder` creates the decoder of each connection.
    """

    live = True

    def __init__(
        self, camera: CameraConfig, pixel_formats: tuple[PixelFormat, ...], open_decoder: OpenDecoder = FFmpegDecoder
    ) -> None:
        self._camera = camera
        self._name = camera.source
        self._capture_clock = CaptureClock(camera.id, round(camera.max_frame_age_s * 1e9))
        self._reader = BlockingReader(
            self._name, partial(_connect, camera, open_decoder, pixel_formats), _Connection.step, _Connection.close
        )
        self._reset()

    def _reset(self) -> None:
        self._waiting: deque[_Frame] = deque()
        self._frame: _Frame | None = None  # the last grabbed frame

    def open(self) -> StreamInfo:
        """Connect, and wait for the first key frame, because only a decoded frame shows its format."""
        self.close()
        began, open_timeout_s = time.monotonic(), self._camera.open_timeout_s
        timeout_s = open_timeout_s + _DIAGNOSIS_S + _OPEN_MARGIN_S
        connection = self._reader.open(timeout_s, hint="looking up the host name can take this long")
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
        return first.decoder.describe(first.decoded.image, connection.fps)

    def grab(self, timeout_s: float) -> Grab | None:
        if not self._reader.is_open:
            raise not_open(self._name, "grab")
        self._frame = None  # its memory belongs to the decoder
        frame = self._next(timeout_s)
        if frame is None:
            return None
        self._frame = frame
        return self._capture_clock.stamp(
            frame.packet.arrived_ns,
            frame.packet.ntp_utc_ns,
            pts_ns=frame.decoded.pts_ns,
            corrupt=frame.packet.corrupt,
            yuv=frame.decoded.yuv,
        )

    def retrieve(self, out: FrameBuffer) -> None:
        if self._frame is None:
            raise not_open(self._name, "retrieve")
        self._frame.decoder.write(self._frame.decoded.image, out)

    def interrupt(self) -> None:
        """Make `open` raise an error and `grab` return None from now on."""
        self._reader.interrupt()

    def close(self) -> None:
        self._reset()
        self._reader.close()

    def _next(self, timeout_s: float) -> _Frame | None:
        """Return the next decoded frame; None if `timeout_s` passed or `interrupt` was called."""
        deadline = time.monotonic() + timeout_s
        while not self._waiting:
            frames = self._reader.read(deadline - time.monotonic())
            if frames is None:
                return None
            self._waiting.extend(frames)
        return None if self._reader.interrupted.is_set() else self._waiting.popleft()


@dataclass(frozen=True, slots=True)
class _Frame:
    """One decoded frame, the properties of its packet, and its decoder."""

    decoded: DecodedFrame
    packet: PacketInfo
    decoder: PacketDecoder


def _connect(camera: CameraConfig, open_decoder: OpenDecoder, pixel_formats: tuple[PixelFormat, ...]) -> _Connection:
    address, options = camera.address, dict(_OPTIONS)
    assert isinstance(address, NETWORK)
    if isinstance(address, Rtsp):
        options.update(_RTSP_OPTIONS, rtsp_transport=camera.transport)
    began = time.monotonic()
    try:
        container = open_container(address.url, options=options, timeout=(camera.open_timeout_s, camera.read_timeout_s))
    except (av.FFmpegError, ValueError):  # the text of these errors contains the URL
        took_s = time.monotonic() - began
        raise explain_open(camera.source, open_timeout_s=camera.open_timeout_s, took_s=took_s) from None
    try:
        if not container.streams.video:
            hint = "set the camera to H.264, H.265, or MJPEG"
            raise SourceError("the camera sends no video", hint=hint, code="no-video")
        stream = container.streams.video[0]
        return _Connection(camera.source, container, stream, open_decoder(stream, pixel_formats))
    except SourceError as error:
        container.close()
        raise named(camera.source, error) from error


class _Connection:
    """One connection to a camera. Its methods run on the thread of `BlockingReader`, which can outlive the source."""

    def __init__(self, name: str, container: InputContainer, stream: VideoStream, decoder: PacketDecoder) -> None:
        self.fps = plausible_fps(stream.average_rate)
        self._name = name
        self._container = container
        self._decoder = decoder
        self._packets = container.demux(stream)
        self._gate = KeyFrameGate()
        self._timeline = Timeline()
        context = stream.codec_context
        self._gap_finder = FrameGapFinder(context.extradata) if context.name == "h264" else None
        self._min_delay_ns = 1 << 63

    def step(self) -> list[_Frame]:
        """Read and decode one packet. Return the frames that it completes."""
        began = time.monotonic()
        try:
            packet = next(self._packets)
        except StopIteration:
            raise SourceError(f"{self._name}: the camera ended the stream", code="stream-ended") from None
        except av.FFmpegError as error:
            raise self._reading_failed(error, time.monotonic() - began) from None
        return self._decode(packet)

    def close(self) -> None:
        self._decoder.close()
        self._container.close()

    def _decode(self, packet: Packet[Any]) -> list[_Frame]:
        now_ns, pts_ns = time.monotonic_ns(), time_ns(packet)
        gap = self._gap_finder is not None and self._gap_finder.before(memoryview(packet))
        if packet.is_corrupt or gap:
            self._gate.lost()
        if packet.size:  # the last packet, which flushes the decoder, is empty
            lag_ns = self._lag_ns(now_ns, pts_ns)
            if not self._gate.passes(key=packet.is_keyframe, now_ns=now_ns, lag_ns=lag_ns):
                return []
            if pts_ns is not None:
                self._timeline.put(pts_ns, PacketInfo(now_ns, _sent_utc_ns(packet), self._gate.damaged))
        try:
            return [self._frame(decoded, now_ns) for decoded in self._decoder.decode(packet)]
        except PacketDamaged:
            self._gate.decoding_failed()
            return []
        except SourceError as error:
            raise named(self._name, error) from error

    def _frame(self, decoded: DecodedFrame, now_ns: int) -> _Frame:
        if decoded.corrupt:
            self._gate.decoding_failed()
        info = self._timeline.take(decoded.pts_ns)
        if info is None:  # the stream has no times
            info = PacketInfo(now_ns, None, self._gate.damaged)
        if decoded.corrupt:
            info = PacketInfo(info.arrived_ns, info.ntp_utc_ns, corrupt=True)
        return _Frame(decoded, info, self._decoder)

    def _lag_ns(self, now_ns: int, pts_ns: int | None) -> int:
        """Return by how many ns the packet's delay exceeds the smallest delay so far; 0 if `pts_ns` is None."""
        if pts_ns is None:
            return 0
        delay_ns = now_ns - pts_ns
        self._min_delay_ns = min(self._min_delay_ns, delay_ns)
        return delay_ns - self._min_delay_ns

    def _reading_failed(self, error: av.FFmpegError, waited_s: float) -> SourceError:
        if isinstance(error, av.error.ExitError):  # PyAV's own timeout
            text, hint = f"no frame for {waited_s:.1f} s", "check the network, or raise `read_timeout_s`"
        else:
            text, hint = f"the connection failed: {error.strerror}", "check the cable, network, and power of the camera"
        return SourceError(f"{self._name}: {text}", hint=hint, code="read")


def _sent_utc_ns(packet: Packet[Any]) -> int | None:
    """Return the capture time in UTC, in ns, from RTCP sender reports; None if unknown, or if PyAV is too old."""
    if not hasattr(packet, "has_sidedata") or not packet.has_sidedata("prft"):  # AVProducerReferenceTime
        return None
    (utc_us,) = struct.unpack_from("=q", bytes(packet.get_sidedata("prft")))
    return int(utc_us) * 1000
