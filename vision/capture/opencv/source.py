"""USB and other V4L2 cameras, read through OpenCV, unless `reader: gstreamer` is configured.

Every library call that can block runs on a separate thread (`BlockingReader`), so that `open` and `grab` return
in time, and `close` does not wait for a device that does not respond.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.capture.blocking import BlockingReader
from vision.capture.opencv.bindings import Capture, describe, position_ns
from vision.capture.source import Grab, SkippedFrames, StreamInfo, not_open
from vision.config import CameraConfig
from vision.errors import SizeChanged, SourceError
from vision.types import FrameBuffer

log = logging.getLogger(__name__)

_OPEN_MARGIN_S: Final = 1.0  # for a library that exceeds its own timeouts
_MJPG: Final = int.from_bytes(b"MJPG", "little")


def open_device(camera: CameraConfig) -> Capture:
    """Open a V4L2 device, request the configured mode, and return the device. Log each value that it refuses.

    Raises:
        SourceError: the device is missing, is not a video device, or cannot be opened.
    """
    device = camera.source
    _check_device(device)
    capture = cast(Capture, cv2.VideoCapture(device, cv2.CAP_V4L2))
    if not capture.isOpened():
        hint = "check that it is a camera (v4l2-ctl --list-devices), and that no other program uses it"
        raise _device_error(device, "V4L2 cannot open the device", hint)
    for difference in request_mode(capture, camera):
        log.warning("%s: %s", device, difference)
    return capture


def _check_device(device: str) -> None:
    try:
        mode = Path(device).stat().st_mode
    except OSError as error:
        raise _device_error(device, f"{error.strerror}", "list devices with: v4l2-ctl --list-devices") from error
    if not stat.S_ISCHR(mode):
        raise _device_error(device, "not a video device", "USB cameras have names such as /dev/video0")
    if not os.access(device, os.R_OK | os.W_OK):
        hint = "run: sudo usermod -aG video $USER; then log in again"
        raise _device_error(device, "this user has no permission to open the device", hint)


def _device_error(device: str, text: str, hint: str) -> SourceError:
    return SourceError(f"{device}: {text}", hint=hint, code="usb-camera")


def request_mode(capture: Capture, camera: CameraConfig) -> list[str]:
    """Request a frame size and rate. Return one sentence for each value that the device does not accept.

    If a size is configured, Motion JPEG is requested, because raw frames of 1280x720 and more exceed the bandwidth of
    USB 2 at full rate. One buffer is requested, because each further buffer can hold an older frame. The driver can
    choose the nearest mode.
    """
    width_px, height_px, fps = camera.width, camera.height, camera.fps
    if width_px is not None and height_px is not None:
        capture.set(cv2.CAP_PROP_FOURCC, _MJPG)
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, width_px)
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, height_px)
    if fps is not None:
        capture.set(cv2.CAP_PROP_FPS, fps)
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    mode = describe(capture)
    differences = []
    if width_px is not None and (mode.width_px, mode.height_px) != (width_px, height_px):
        differences.append(f"requested {width_px}x{height_px}, got {mode.width_px}x{mode.height_px}")
    if fps is not None and mode.fps is not None and abs(mode.fps - fps) > 0.01 * fps:
        differences.append(f"requested {fps:g} frames/s, got {mode.fps:g}")
    return differences


def _grab(device: str, capture: Capture) -> Grab:
    began = time.monotonic()
    try:
        success = capture.grab()
    except cv2.error:
        success = False
    if not success:
        raise _device_error(device, f"no frame for {time.monotonic() - began:.1f} s", "check the camera's cable")
    return Grab(time.monotonic_ns(), time.time_ns(), "arrival", position_ns(capture))


class V4L2Source:
    """One V4L2 camera, read through OpenCV. It implements `vision.capture.source.Source`."""

    live = True

    def __init__(self, camera: CameraConfig, *, open_device: Callable[[CameraConfig], Capture] = open_device) -> None:
        device = camera.source
        self._camera = camera
        self.skipped = SkippedFrames()  # V4L2 does not report the frames that its driver skips
        self._reader = BlockingReader(
            device, partial(open_device, camera), partial(_grab, device), lambda capture: capture.release()
        )
        self._capture: Capture | None = None
        self._grabbed = False
        self._kept: NDArray[np.uint8] | None = None  # the grabbed frame, until the caller has a buffer of its size

    def open(self) -> StreamInfo:
        self.close()
        timeout_s = self._camera.open_timeout_s + _OPEN_MARGIN_S
        self._capture = self._reader.open(timeout_s, hint="unplug the camera, and plug it in again")
        return describe(self._capture)

    def grab(self, timeout_s: float) -> Grab | None:
        if self._capture is None:
            raise not_open(self._camera.source, "grab")
        self._grabbed = False
        grab = self._reader.read(timeout_s)
        if grab is not None:
            self._grabbed, self._kept = True, None
        return grab

    def retrieve(self, out: FrameBuffer) -> None:
        if self._capture is None or not self._grabbed:
            raise not_open(self._camera.source, "retrieve")
        pixels = out.require_host()
        if self._kept is None:
            try:
                success, decoded = self._capture.retrieve(pixels)
            except cv2.error as error:
                raise SourceError(f"a frame could not be decoded: {error}", code="decoding") from error
            if not success:
                raise SourceError("a frame could not be decoded", code="decoding")
            if decoded is pixels:
                return
            self._kept = decoded  # OpenCV allocates a new array if the given one has the wrong size
        if self._kept.ndim != 3 or self._kept.shape[2] != 3:
            raise SourceError(
                f"expected a frame of 3 channels, got an array of shape {self._kept.shape}", code="decoding"
            )
        if self._kept.shape != pixels.shape:
            raise SizeChanged(*self._kept.shape[:2])
        np.copyto(pixels, self._kept)

    def interrupt(self) -> None:
        """Make current and future calls to `open` raise `SourceError`, and make calls to `grab` return None."""
        self._reader.interrupt()

    def close(self) -> None:
        self._reader.close()
        self._capture = self._kept = None
        self._grabbed = False
