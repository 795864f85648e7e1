"""Cameras through OpenCV: RTSP and HTTP with the FFmpeg that its wheel brings, USB with V4L2.

It works wherever OpenCV does. What it cannot tell: which frames were damaged by lost packets, when the camera took
them, and, since OpenCV 4.7, that a stream goes on in another size: OpenCV 4.13 and later scale such frames to the
size that the stream began with, those before deliver rubbish. `vision.capture.gstreamer.source` tells all of it.

Every call into the library that may block is made on a thread of its own (`BlockingCalls`), so `open` and `grab` return
in time, and `close` does not wait for a camera that hangs: that thread ends by the library's own time-outs.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, cast

import cv2

from vision.capture.blocking import BlockingCalls, Interrupted
from vision.capture.diagnosis import explain_open
from vision.capture.opencv.ffmpeg_options import n_threads, open_rtsp, open_url
from vision.capture.opencv.reader import Capture, FrameReader, describe, position_ns
from vision.capture.source import Grab, StreamInfo
from vision.errors import SourceError, redact
from vision.types import FrameBuffer

log = logging.getLogger(__name__)

_GRACE_S: Final = 1.0  # for a library that is late by its own time-outs
_DIAGNOSIS_S: Final = 1.0  # `explain_open` after a time-out: connecting and asking
_MJPG: Final = int.from_bytes(b"MJPG", "little")


class Link(Protocol):
    """One way to a live camera. Called on the library's thread."""

    @property
    def decoder(self) -> str:
        """For `StreamInfo`."""

    @property
    def patience_s(self) -> float:
        """Longest `open`."""

    def open(self) -> Capture:
        """An open capture.

        Raises:
            SourceError: why there is none.
        """

    def ended(self, waited_s: float) -> SourceError:
        """Why no frame came, after a `grab` of so many seconds."""


@dataclass(frozen=True, slots=True)
class NetworkLink:
    """RTSP and HTTP by FFmpeg. Motion JPEG, or anything else that FFmpeg can decode."""

    url: str
    transport: str = "tcp"  # of RTSP: "tcp" or "udp"
    open_timeout_s: float = 5.0
    read_timeout_s: float = 5.0

    decoder: str = field(default="ffmpeg", init=False)

    @property
    def patience_s(self) -> float:
        return self.open_timeout_s + _DIAGNOSIS_S

    def open(self) -> Capture:
        began = time.monotonic()
        capture = self._open()
        if capture.isOpened():
            return capture
        took_s = time.monotonic() - began
        raise explain_open(self.url, open_timeout_s=self.open_timeout_s, took_s=took_s)

    def _open(self) -> Capture:
        if self.url.lower().startswith("rtsp"):
            # Without sound, which nobody listens to, and metadata, which FFmpeg may wait for in vain.
            options = {"rtsp_transport": self.transport, "allowed_media_types": "video"}
            return open_rtsp(self.url, options, self._parameters(), self.open_timeout_s)
        return open_url(self.url, self._parameters())

    def _parameters(self) -> Mapping[int, int]:
        """One decoding thread, because each further one holds back one more frame."""
        return {
            cv2.CAP_PROP_OPEN_TIMEOUT_MSEC: int(self.open_timeout_s * 1e3),
            cv2.CAP_PROP_READ_TIMEOUT_MSEC: int(self.read_timeout_s * 1e3),
            **n_threads(1),
        }

    def ended(self, waited_s: float) -> SourceError:
        if waited_s >= self.read_timeout_s:
            text, hint = f"no frame for {waited_s:.1f} s", "check the network, or raise `read_timeout_s`"
        else:
            text, hint = "the camera ended the stream", ""
        return SourceError(f"{redact(self.url)}: {text}", hint=hint)


@dataclass(frozen=True, slots=True)
class UsbLink:
    """USB and other V4L2 cameras. What is asked for and not given is said in the log: drivers take the nearest."""

    device: str
    width_px: int | None = None
    height_px: int | None = None
    fps: float | None = None
    open_timeout_s: float = 5.0

    decoder: str = field(default="v4l2", init=False)

    @property
    def patience_s(self) -> float:
        return self.open_timeout_s

    def open(self) -> Capture:
        self._check_device()
        capture = cast(Capture, cv2.VideoCapture(self.device, cv2.CAP_V4L2))
        if not capture.isOpened():
            raise self._error(
                "V4L2 cannot open it", "is it a camera (v4l2-ctl --list-devices), and not in use elsewhere?"
            )
        for text in negotiate(capture, self.width_px, self.height_px, self.fps):
            log.warning("%s: %s", self.device, text)
        return capture

    def _check_device(self) -> None:
        try:
            mode = Path(self.device).stat().st_mode
        except OSError as error:
            raise self._error(f"{error.strerror}", "is it plugged in? v4l2-ctl --list-devices") from error
        if not stat.S_ISCHR(mode):
            raise self._error("expected a video device, this is none", "USB cameras are /dev/video0 and on")
        if not os.access(self.device, os.R_OK | os.W_OK):
            raise self._error("this user may not open it", "sudo usermod -aG video $USER, and log in again")

    def ended(self, waited_s: float) -> SourceError:
        return self._error(f"no frame came for {waited_s:.1f} s", "was it unplugged?")

    def _error(self, text: str, hint: str) -> SourceError:
        return SourceError(f"{self.device}: {text}", hint=hint)


def negotiate(capture: Capture, width_px: int | None, height_px: int | None, fps: float | None) -> list[str]:
    """Ask a V4L2 camera for a frame size and a rate. Returns what it gives instead, a sentence each.

    Motion JPEG first: raw frames of 1280x720 and more do not fit through USB 2 at a camera's full rate. One buffer,
    because each further one may hold a frame that is older.
    """
    if width_px is not None and height_px is not None:
        capture.set(cv2.CAP_PROP_FOURCC, _MJPG)
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, width_px)
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, height_px)
    if fps is not None:
        capture.set(cv2.CAP_PROP_FPS, fps)
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    given = describe(capture, "v4l2")
    found = []
    if width_px is not None and (given.width_px, given.height_px) != (width_px, height_px):
        found.append(f"asked for {width_px}x{height_px}, it gives {given.width_px}x{given.height_px}")
    if fps is not None and given.fps is not None and abs(given.fps - fps) > 0.01 * fps:
        found.append(f"asked for {fps:g} frames/s, it gives {given.fps:g}")
    return found


@dataclass(frozen=True, slots=True)
class _Arrival:
    found: bool
    captured_ns: int
    captured_utc_ns: int
    pts_ns: int | None
    waited_s: float


@dataclass(slots=True)
class _Connection:
    """One connection. Its methods run on the library's thread, which may outlive the source's interest in it."""

    link: Link
    clock: Callable[[], int]
    utc: Callable[[], int]
    capture: Capture | None = None

    def open(self) -> None:
        self.capture = self.link.open()

    def grab(self) -> _Arrival | None:
        capture = self.capture
        if capture is None:
            return None
        began = time.monotonic()
        try:
            found = capture.grab()
        except cv2.error:
            found = False
        now_ns, now_utc_ns = self.clock(), self.utc()
        return _Arrival(found, now_ns, now_utc_ns, position_ns(capture), time.monotonic() - began)

    def release(self) -> None:
        capture, self.capture = self.capture, None
        if capture is not None:
            capture.release()


class LiveCapture:
    """A live camera through OpenCV."""

    def __init__(
        self,
        link: Link,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        utc: Callable[[], int] = time.time_ns,
    ) -> None:
        self.link = link
        self._clock = clock
        self._utc = utc
        self._interrupted = False
        self._calls: BlockingCalls[_Arrival | None] | None = None
        self._connection = _Connection(link, clock, utc)
        self._retriever: FrameReader | None = None
        self._grabbed = False

    @property
    def live(self) -> bool:
        return True

    def open(self) -> StreamInfo:
        self.close()
        connection = self._connection = _Connection(self.link, self._clock, self._utc)
        calls = self._calls = BlockingCalls("opencv")
        if self._interrupted:  # it came before there was anything to wake
            raise SourceError("interrupted while it opened")
        calls.begin(connection.open)
        patience_s = self.link.patience_s + _GRACE_S
        try:
            calls.result(patience_s)
        except Interrupted:
            raise SourceError("interrupted while it opened") from None
        except TimeoutError:
            raise SourceError(
                f"the library has not answered for {patience_s:g} s", hint="a name that cannot be looked up takes long"
            ) from None
        if connection.capture is None:
            raise SourceError("it opened without a capture")
        self._retriever = FrameReader(connection.capture)
        return describe(connection.capture, self.link.decoder)

    def grab(self, timeout_s: float) -> Grab | None:
        if self._calls is None or self._retriever is None:
            raise SourceError("grab before open, or after close")
        if self._interrupted:
            return None
        if not self._calls.busy:
            self._grabbed = False
            self._calls.begin(self._connection.grab)
        try:
            arrival = self._calls.result(timeout_s)
        except (TimeoutError, Interrupted):
            return None
        if arrival is None or not arrival.found:
            raise self.link.ended(arrival.waited_s if arrival is not None else 0.0)
        self._retriever.forget()
        self._grabbed = True
        return Grab(arrival.captured_ns, arrival.captured_utc_ns, "arrival", arrival.pts_ns)

    def retrieve(self, out: FrameBuffer) -> None:
        if self._retriever is None or not self._grabbed:
            raise SourceError("retrieve without a frame grabbed")
        self._retriever.retrieve(out.require_host())

    def interrupt(self) -> None:
        """Final: from now on `open` fails and `grab` finds nothing."""
        self._interrupted = True
        calls = self._calls
        if calls is not None:
            calls.wake()

    def close(self) -> None:
        calls, self._calls = self._calls, None
        self._retriever = None
        self._grabbed = False
        if calls is not None:
            calls.end(self._connection.release)
