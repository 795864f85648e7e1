"""Connections to network cameras, from which the reading thread takes coded frames.

The frames of a camera arrive one by one. The frames of playlists (HLS, DASH), files, and fragmented MP4 arrive in
bursts, or as fast as the network permits. In these cases, each packet is delayed until it is due.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import urlsplit

import av
from av.codec.context import CodecContext
from av.container import InputContainer
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from vision.capture.diagnosis import explain_failure, explain_open, named
from vision.capture.ffmpeg.bindings import (
    best_video,
    decoding_time_ns,
    frame_rate,
    has_no_times,
    open_container,
    time_ns,
)
from vision.capture.ffmpeg.decoder import JpegStream
from vision.capture.packet_tap import PacketTap
from vision.capture.source import SkippedFrames
from vision.capture.tls import ffmpeg_options
from vision.config import CameraConfig
from vision.config.source_address import NETWORK, Http, Rtsp
from vision.errors import EndOfStream, SourceError

if TYPE_CHECKING:
    from vision.capture.ffmpeg.http import JpegConnection

Coded: TypeAlias = "Packet[Any] | bytes"
"""A packet of a container, or a JPEG."""

_OPTIONS: Final = {"fpsprobesize": "0", "analyzeduration": "500000"}
"""Options for a fast start. By default, FFmpeg reads 20 frames to measure their rate, and waits 5 s for each announced
stream, such as audio, which may never arrive. It then delivers all frames that it has read at once."""

_RTSP_OPTIONS: Final = {"allowed_media_types": "video", "analyzeduration": "10000"}
"""Options that exclude audio, which is not used, and metadata, which may never arrive although FFmpeg waits for it."""

_ONE_BY_ONE: Final = frozenset({"mpegts", "flv", "live_flv", "mpeg", "asf", "rtsp", "mjpeg", "mpjpeg"})
"""Containers, by FFmpeg's names, whose frames arrive one by one from a camera."""

_PLAYLISTS: Final = frozenset({"hls", "dash"})
_END_NS: Final = 1_000_000_000  # a file that is at most this much shorter than announced is complete
_LATE_NS: Final = 500_000_000  # a stream that is this late restarts its schedule, as in `pacing`
_LONGEST_STEP_NS: Final = 10_000_000_000  # a larger step of the times is a discontinuity
_DEFAULT_FPS: Final = 25.0  # frame rate of a file without times


class Connecting:
    """Opener of connections to one camera. It records the current step for `hint`, which any thread can call."""

    def __init__(self, camera: CameraConfig, skipped: SkippedFrames, tap: PacketTap | None = None) -> None:
        self._camera = camera
        self._skipped = skipped
        self._tap = tap
        self._resolved = False

    def hint(self) -> str:
        """Return advice for the operator if connecting takes too long. The advice depends on the current step."""
        if not self._resolved:
            return "looking up the host name takes this long: check the name server, or use the IP address"
        return "check the address, cable, and power of the camera, or raise `open_timeout_s`"

    def connect(self) -> ContainerConnection | ImageConnection:
        """Connect to the camera, and return the open connection.

        Raises:
            SourceError: the camera does not respond, refuses the request, or sends no video; or the PEM file in
                the camera's setting `tls` cannot be used.
        """
        camera, address = self._camera, self._camera.address
        assert isinstance(address, NETWORK)
        self._resolve(address)
        if isinstance(address, Http):
            from vision.capture.ffmpeg.http import JpegConnection, request

            answer = request(camera)
            if answer.has_jpegs:
                if self._tap is not None:
                    self._tap.refused("mjpeg")
                return ImageConnection(JpegConnection(camera, answer, self._skipped))
            answer.response.close()
            return _open_container(camera, address, self._tap, is_file=answer.has_end)
        return _open_container(camera, address, self._tap, is_file=False)

    def _resolve(self, address: Rtsp | Http) -> None:
        """Look up the host name without FFmpeg, which can neither interrupt a lookup nor report that it failed.

        Raises:
            SourceError: the name cannot be resolved.
        """
        self._resolved = False
        try:
            socket.getaddrinfo(urlsplit(address.url).hostname, None, type=socket.SOCK_STREAM)
        except OSError as error:
            raise explain_failure(self._camera, error) from None
        self._resolved = True


def _open_container(
    camera: CameraConfig, address: Rtsp | Http, tap: PacketTap | None, *, is_file: bool
) -> ContainerConnection:
    options = {**_OPTIONS, **ffmpeg_options(camera.tls)}
    if isinstance(address, Rtsp):
        options.update(_RTSP_OPTIONS, rtsp_transport=camera.transport)
    began = time.monotonic()
    try:
        container = open_container(address.url, options=options, timeout=(camera.open_timeout_s, camera.read_timeout_s))
    except (av.FFmpegError, ValueError):  # their text contains the URL
        raise explain_open(camera, late=time.monotonic() - began >= camera.open_timeout_s) from None
    stream = best_video(container)
    if stream is None:
        container.close()
        error = SourceError("the camera sends no video", hint="set it to H.264, H.265, or MJPEG", code="no-video")
        raise named(camera.source, error)
    return ContainerConnection(camera.source, container, stream, tap, is_file=is_file)


class ContainerConnection:
    """Connection from which FFmpeg receives the packets of a container or an RTSP stream, for example H.264 frames."""

    def __init__(
        self, name: str, container: InputContainer, stream: VideoStream, tap: PacketTap | None, *, is_file: bool
    ) -> None:
        self._name = name
        self._container = container
        self.stream = stream
        self.tap = None if tap is None else tap.connected(stream)
        names = container.format.name.split(",")
        self._duration_ns = _duration_ns(container, stream)
        # A playlist also ends when its encoder restarts, so its end is a lost connection.
        self._is_file = (self._duration_ns is not None or is_file) and _PLAYLISTS.isdisjoint(names)
        one_by_one = has_no_times(container) or not _ONE_BY_ONE.isdisjoint(names)
        self._is_paced = self._is_file or not one_by_one
        self.fps = frame_rate(container, self.stream)

    def packets(self, closing: threading.Event) -> Iterator[tuple[Packet[Any], bool]]:
        """Yield each packet and a flag that is True for key frames. Delay packets of a burst until they are due.

        Raises:
            EndOfStream: a file was received to its end.
            SourceError: the connection failed, or the camera ended the stream.
        """
        pace = _Pace(closing, self.fps) if self._is_paced else None
        packets, frames = self._container.demux(self.stream), 0
        first_ns = last_ns = None
        while True:
            began = time.monotonic()
            try:
                packet = next(packets)
            except StopIteration:
                break
            except av.FFmpegError as error:
                raise self._reading_failed(error, time.monotonic() - began) from None
            if not packet.size:
                continue
            if pace is not None:
                pace.wait(packet)
            frames += 1
            pts_ns = time_ns(packet)
            last_ns = last_ns if pts_ns is None else pts_ns
            first_ns = last_ns if first_ns is None else first_ns
            if self.tap is not None:
                self.tap.offer(packet, pts_ns)
            yield packet, packet.is_keyframe
        if self._is_file and self._is_complete((last_ns or 0) - (first_ns or 0)):
            raise EndOfStream(f"{self._name}: ended after {frames} frames")
        raise SourceError(f"{self._name}: the camera ended the stream", code="stream-ended")

    def close(self) -> None:
        self._container.close()

    def _is_complete(self, played_ns: int) -> bool:
        """Return True if almost the whole file was received, or if the duration of the file is unknown.

        `played_ns` is the duration of the received part. Without this check, a lost connection could look like the end
        of the file, because FFmpeg does not always report the loss.
        """
        if self._duration_ns is None:
            return True
        return played_ns >= self._duration_ns - max(_END_NS, self._duration_ns // 20)

    def _reading_failed(self, error: av.FFmpegError, waited_s: float) -> SourceError:
        if isinstance(error, av.error.ExitError):  # PyAV's own timeout
            text, hint = f"no frame for {waited_s:.1f} s", "check the network, or raise `read_timeout_s`"
        elif isinstance(error, av.error.InvalidDataError):
            text, hint = "its data is not a stream that FFmpeg can read", "choose a different stream of this camera"
        else:
            text, hint = f"the connection failed: {error.strerror}", "check the cable, network, and power of the camera"
        return SourceError(f"{self._name}: {text}", hint=hint, code="read")


def _duration_ns(container: InputContainer, stream: VideoStream) -> int | None:
    """Return the duration of a video in ns, or None if it is unknown."""
    if stream.duration is not None and stream.time_base is not None:
        return int(stream.duration * stream.time_base * 1_000_000_000)
    return None if container.duration is None else container.duration * 1000


class ImageConnection:
    """Connection that delivers the JPEGs of a `JpegConnection`. It can be used in place of a `ContainerConnection`."""

    def __init__(self, jpegs: JpegConnection) -> None:
        context = CodecContext.create("mjpeg", "r")
        assert isinstance(context, VideoCodecContext)
        self.stream = JpegStream(context)
        self.tap = None
        self.fps = jpegs.fps
        self.packets = jpegs.packets
        self.close = jpegs.close


class _Pace:
    """Pacer that delays each packet until its decoding time, counted from the first packet.

    If a packet has no decoding time, it is due one frame interval after the previous packet.
    """

    def __init__(self, closing: threading.Event, fps: float | None) -> None:
        self._closing = closing
        self._interval_ns = round(1e9 / (fps or _DEFAULT_FPS))
        self._base_ns: int | None = None  # monotonic time at which a packet with the decoding time 0 is due
        self._last_ns = 0

    def wait(self, packet: Packet[Any]) -> None:
        """Wait until the packet is due, or until the connection is closed."""
        decoding_ns = decoding_time_ns(packet)
        at_ns = self._last_ns + self._interval_ns if decoding_ns is None else decoding_ns
        now_ns = time.monotonic_ns()
        if self._base_ns is None or abs(at_ns - self._last_ns) > _LONGEST_STEP_NS:
            self._base_ns = now_ns - at_ns
        self._last_ns = at_ns
        due_ns = self._base_ns + at_ns
        if now_ns - due_ns > _LATE_NS:
            self._base_ns = now_ns - at_ns
        elif due_ns > now_ns:
            self._closing.wait((due_ns - now_ns) / 1e9)
