"""USB and other V4L2 cameras through OpenCV, for machines without GStreamer.

Every call into the library that may block runs on a thread of its own (`BlockingCalls`). So `open` and `grab` return
in time, and `close` does not wait for a device that hangs.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import cv2

from vision.capture.blocking import BlockingCalls, Interrupted
from vision.capture.opencv.bindings import Capture, describe, position_ns
from vision.capture.opencv.frames import FrameRetriever
from vision.capture.source import Grab, StreamInfo, not_open
from vision.errors import SourceError
from vision.types import FrameBuffer

log = logging.getLogger(__name__)

_OPEN_MARGIN_S: Final = 1.0  # for a library that exceeds its own timeouts
_MJPG: Final = int.from_bytes(b"MJPG", "little")


@dataclass(frozen=True, slots=True)
class DeviceRequest:
    """A V4L2 device and the mode to request. Drivers may choose the nearest mode they support."""

    device: str
    width_px: int | None = None
    height_px: int | None = None
    fps: float | None = None
    open_timeout_s: float = 5.0


OpenDevice = Callable[[DeviceRequest], Capture]


def open_device(request: DeviceRequest) -> Capture:
    """Open a V4L2 device and negotiate its mode. Log every difference between the request and the device's mode.

    Raises:
        SourceError: the device is missing, is not a video device, or cannot be opened.
    """
    _check_device(request.device)
    capture = cast(Capture, cv2.VideoCapture(request.device, cv2.CAP_V4L2))
    if not capture.isOpened():
        raise _device_error(
            request.device,
            "V4L2 cannot open it",
            "is it a camera (v4l2-ctl --list-devices), and not in use elsewhere?",
        )
    for difference in request_mode(capture, request):
        log.warning("%s: %s", request.device, difference)
    return capture


def _check_device(device: str) -> None:
    try:
        mode = Path(device).stat().st_mode
    except OSError as error:
        raise _device_error(device, f"{error.strerror}", "is it plugged in? v4l2-ctl --list-devices") from error
    if not stat.S_ISCHR(mode):
        raise _device_error(device, "not a video device", "USB cameras are /dev/video0, /dev/video1, ...")
    if not os.access(device, os.R_OK | os.W_OK):
        raise _device_error(
            device, "this user has no permission to open it", "sudo usermod -aG video $USER, and log in again"
        )


def _device_error(device: str, text: str, hint: str) -> SourceError:
    return SourceError(f"{device}: {text}", hint=hint, code="usb-camera")


def request_mode(capture: Capture, request: DeviceRequest) -> list[str]:
    """Request a frame size and rate. Return one sentence for each value that the device does not accept.

    The request is for motion JPEG: raw frames of 1280x720 and more exceed the bandwidth of USB 2 at full rate. One
    buffer is requested, because each further buffer can hold an older frame.
    """
    width_px, height_px, fps = request.width_px, request.height_px, request.fps
    if width_px is not None and height_px is not None:
        capture.set(cv2.CAP_PROP_FOURCC, _MJPG)
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, width_px)
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, height_px)
    if fps is not None:
        capture.set(cv2.CAP_PROP_FPS, fps)
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    mode = describe(capture, "v4l2")
    differences = []
    if width_px is not None and (mode.width_px, mode.height_px) != (width_px, height_px):
        differences.append(f"requested {width_px}x{height_px}, the device gives {mode.width_px}x{mode.height_px}")
    if fps is not None and mode.fps is not None and abs(mode.fps - fps) > 0.01 * fps:
        differences.append(f"requested {fps:g} frames/s, the device gives {mode.fps:g}")
    return differences


@dataclass(frozen=True, slots=True)
class _GrabResult:
    success: bool
    captured_ns: int
    captured_utc_ns: int
    pts_ns: int | None
    waited_s: float


@dataclass(slots=True)
class _Connection:
    """One connection. Its methods run on the library's thread, which may outlive the source."""

    request: DeviceRequest
    open_device: OpenDevice
    clock: Callable[[], int]
    utc: Callable[[], int]
    capture: Capture | None = None

    def open(self) -> None:
        self.capture = self.open_device(self.request)

    def grab(self) -> _GrabResult | None:
        capture = self.capture
        if capture is None:
            return None
        began = time.monotonic()
        try:
            success = capture.grab()
        except cv2.error:
            success = False
        now_ns, now_utc_ns = self.clock(), self.utc()
        return _GrabResult(success, now_ns, now_utc_ns, position_ns(capture), time.monotonic() - began)

    def release(self) -> None:
        capture, self.capture = self.capture, None
        if capture is not None:
            capture.release()


class V4L2Source:
    """One V4L2 camera through OpenCV. Satisfies `vision.capture.source.Source`."""

    def __init__(
        self,
        request: DeviceRequest,
        *,
        open_device: OpenDevice = open_device,
        clock: Callable[[], int] = time.monotonic_ns,
        utc: Callable[[], int] = time.time_ns,
    ) -> None:
        self.request = request
        self._open_device = open_device
        self._clock = clock
        self._utc = utc
        self._interrupted = False
        self._calls: BlockingCalls[_GrabResult | None] | None = None
        self._connection = self._new_connection()
        self._retriever: FrameRetriever | None = None
        self._grabbed = False

    def _new_connection(self) -> _Connection:
        return _Connection(self.request, self._open_device, self._clock, self._utc)

    @property
    def live(self) -> bool:
        return True

    def open(self) -> StreamInfo:
        self.close()
        connection = self._connection = self._new_connection()
        calls = self._calls = BlockingCalls("opencv")
        if self._interrupted:  # before there was a call to wake
            raise self._error("interrupted while opening")
        calls.begin(connection.open)
        timeout_s = self.request.open_timeout_s + _OPEN_MARGIN_S
        try:
            calls.result(timeout_s)
        except Interrupted:
            raise self._error("interrupted while opening") from None
        except TimeoutError:
            raise self._error(
                f"the driver did not respond within {timeout_s:g} s", "unplug it and plug it in again"
            ) from None
        if connection.capture is None:
            raise self._error("it opened without a capture")
        self._retriever = FrameRetriever(connection.capture)
        return describe(connection.capture, "v4l2")

    def grab(self, timeout_s: float) -> Grab | None:
        if self._calls is None or self._retriever is None:
            raise not_open(self.request.device, "grab")
        if self._interrupted:
            return None
        if not self._calls.busy:
            self._grabbed = False
            self._calls.begin(self._connection.grab)
        try:
            result = self._calls.result(timeout_s)
        except (TimeoutError, Interrupted):
            return None
        if result is None or not result.success:
            raise self._error(
                f"no frame for {result.waited_s if result is not None else 0.0:.1f} s", "was it unplugged?"
            )
        self._retriever.discard()
        self._grabbed = True
        return Grab(result.captured_ns, result.captured_utc_ns, "arrival", result.pts_ns)

    def retrieve(self, out: FrameBuffer) -> None:
        if self._retriever is None or not self._grabbed:
            raise not_open(self.request.device, "retrieve")
        self._retriever.retrieve(out.require_host())

    def interrupt(self) -> None:
        """Make `open` fail and `grab` return None from now on."""
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

    def _error(self, text: str, hint: str = "") -> SourceError:
        return _device_error(self.request.device, text, hint)
