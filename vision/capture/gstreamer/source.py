"""Cameras through GStreamer: RTSP, CSI and USB, with a Jetson's decoders where available.

GStreamer reports every lost packet and the capture times of a camera, and uses a Jetson's hardware. It needs Debian's
``python3-gi``, which no package index has as a wheel.
"""

from __future__ import annotations

import threading
import warnings
from typing import Any, TypeAlias

from vision.capture.clock import CaptureClock
from vision.capture.gstreamer import errors, pipeline
from vision.capture.gstreamer.bindings import Installed, library
from vision.capture.gstreamer.frames import copy_sample, describe
from vision.capture.gstreamer.packets import NO_TIME
from vision.capture.gstreamer.player import Player
from vision.capture.planes import has_shape
from vision.capture.source import Grab, StreamInfo, not_open
from vision.config import CameraConfig
from vision.errors import SizeChanged, SourceError, redact
from vision.types import FrameBuffer, PixelFormat

_Sample: TypeAlias = tuple[Any, StreamInfo]
"""A decoded frame in GStreamer's memory, and its properties."""


def available(camera: CameraConfig) -> str | None:
    """Return None if GStreamer can open this camera here, else what is missing and the package that has it."""
    try:
        return pipeline.unavailable(camera.address, Installed())
    except SourceError as error:
        return str(error)


class GStreamerSource:
    """One camera through GStreamer. Satisfies `vision.capture.source.Source`.

    It delivers the decoder's own format if that is among `pixel_formats`, the formats that the detector accepts.
    """

    def __init__(
        self,
        camera: CameraConfig,
        pixel_formats: tuple[PixelFormat, ...],
    ) -> None:
        self._camera = camera
        self._pixel_formats = pixel_formats
        self._interrupted = threading.Event()
        self._capture_clock = CaptureClock(camera.id, round(camera.max_frame_age_s * 1e9))
        self._player: Player | None = None
        self._waiting: list[_Sample] = []  # the frame that `open` waited for
        self._sample: _Sample | None = None  # the last grabbed frame

    def _new_player(self) -> Player:
        return Player(self._camera, self._pixel_formats, self._interrupted)

    @property
    def live(self) -> bool:
        return True

    def open(self) -> StreamInfo:
        """Connect, and wait for the first key frame: only a decoded frame shows its format."""
        self.close()
        reason = available(self._camera)
        if reason is not None:
            raise errors.source_error(self._camera, reason, "`vision doctor` lists the missing packages")
        player = self._player = self._new_player()
        try:
            player.start()
            sample = player.pull(self._camera.open_timeout_s)
            if sample is None:
                raise player.no_frame_error()
        except BaseException:
            self.close()
            raise
        info = describe(sample, player.decoder)
        self._waiting.append((sample, info))
        return info

    def grab(self, timeout_s: float) -> Grab | None:
        player = self._player
        if player is None:
            raise not_open(redact(self._camera.source), "grab")
        if self._waiting:
            sample, info = self._waiting.pop()
        else:
            sample = player.pull(timeout_s)
            if sample is None:
                return None
            info = describe(sample, player.decoder)
        self._sample = sample, info
        return self._stamp(player, sample.get_buffer(), info)

    def retrieve(self, out: FrameBuffer) -> None:
        if self._sample is None:
            raise not_open(redact(self._camera.source), "retrieve")
        sample, info = self._sample
        if info.pixel_format != out.pixel_format:
            raise errors.source_error(
                self._camera, f"the pixel format changed from {out.pixel_format} to {info.pixel_format}"
            )
        pixels = out.require_host()
        if not has_shape(pixels, info.height_px, info.width_px, info.pixel_format):
            raise SizeChanged(info.height_px, info.width_px)
        try:
            copy_sample(sample, info, pixels)
        except ValueError as error:
            raise errors.source_error(self._camera, str(error)) from None

    def interrupt(self) -> None:
        """Make `open` fail and `grab` return None from now on."""
        self._interrupted.set()

    def close(self) -> None:
        self._waiting.clear()
        self._sample = None
        player, self._player = self._player, None
        if player is not None:
            player.stop()

    def __del__(self) -> None:
        if getattr(self, "_player", None) is not None:
            warnings.warn(f"{type(self).__name__} was not closed", ResourceWarning, stacklevel=2)

    def _stamp(self, player: Player, buffer: Any, info: StreamInfo) -> Grab:
        pts_ns = None if buffer.pts == NO_TIME else int(buffer.pts)
        packet = player.packets.info(pts_ns)
        corrupt = packet.corrupt or buffer.has_flags(library().Gst.BufferFlags.CORRUPTED)
        return self._capture_clock.stamp(
            packet.arrived_ns, packet.ntp_utc_ns, pts_ns=pts_ns, corrupt=corrupt, yuv=info.yuv
        )
