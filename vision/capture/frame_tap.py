"""`FrameTaps`, from which other processes request single decoded frames as JPEGs, for example to show them.

A receiver learns from the messages which frames have results, and requests the frames that it needs. Frames that no
receiver requests are not encoded.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vision.messaging.packets import Image, ImageRequest, PacketSocket
from vision.types import FrameBuffer, FrameMeta, PixelFormat

log = logging.getLogger(__name__)

_MAX_COPIES: Final = 24  # copies per camera: 0.8 s at 30 frames/s
_MAX_BYTES: Final = 96_000_000  # bytes of copies per camera
_POLL_S: Final = 0.01  # time between two checks for requests


@dataclass(frozen=True, slots=True)
class _Copy:
    meta: FrameMeta
    pixels: NDArray[np.uint8]
    pixel_format: PixelFormat


class FrameTap:
    """Copies of the latest frames of one camera, which exist only while a receiver may request them."""

    def __init__(self, camera_id: str, taps: FrameTaps) -> None:
        self._camera_id = camera_id
        self._taps = taps
        self._copies: deque[_Copy] = deque()

    def offer(self, buffer: FrameBuffer, meta: FrameMeta) -> None:
        """Copy a frame if a receiver may request it. Otherwise, discard all copies. Call this in the camera thread."""
        if not self._taps.wants(self._camera_id):
            self._copies.clear()
            return
        pixels = buffer.read()
        self._copies.append(_Copy(meta, pixels.copy() if pixels is buffer.host else pixels, buffer.pixel_format))
        while len(self._copies) > max(2, min(_MAX_COPIES, _MAX_BYTES // pixels.nbytes)):
            self._copies.popleft()

    def find(self, captured_ns: int) -> _Copy | None:
        """Return the copy of the frame with this capture time, or None if there is none. Thread-safe."""
        return next((copy for copy in self._copies.copy() if copy.meta.captured_ns == captured_ns), None)


class FrameTaps:
    """The taps of the cameras that a process reads, and the thread that encodes the requested frames."""

    def __init__(self, socket: PacketSocket) -> None:
        from vision.drawing.jpeg import JpegEncoder  # imports PyAV

        self._socket = socket
        self._encoder = JpegEncoder()
        self._taps: dict[str, FrameTap] = {}
        self._wanted = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="images", daemon=True)
        self._thread.start()

    def tap(self, camera_id: str) -> FrameTap:
        """Create the tap of a camera, and return it. The tap replaces an existing tap of the camera."""
        tap = self._taps[camera_id] = FrameTap(camera_id, self)
        return tap

    def wants(self, camera_id: str) -> bool:
        """Return True if a receiver may request frames of a camera. If so, wake the encoding thread. Thread-safe."""
        wanted = self._socket.wants_images(camera_id)
        if wanted:
            self._wanted.set()
        return wanted

    def close(self) -> None:
        """End the thread that encodes the requested frames, and wait until it has ended. Idempotent.

        Call this method before closing the socket over which the JPEGs are sent.
        """
        self._closed = True
        self._wanted.set()
        self._thread.join()

    def _run(self) -> None:
        pause = threading.Event()
        while not self._closed:
            self._wanted.wait()
            if not any(self._socket.wants_images(camera) for camera in list(self._taps)):
                self._wanted.clear()
            for request in self._socket.requests():
                self._answer(request)
            pause.wait(_POLL_S)

    def _answer(self, request: ImageRequest) -> None:
        tap = self._taps.get(request.camera)
        if tap is None:  # a different process reads this camera, and answers
            return
        copy, jpeg = tap.find(request.captured_ns), b""
        if copy is not None:
            try:
                jpeg = self._encoder.encode(
                    copy.pixels, copy.pixel_format, copy.meta.yuv, max_width_px=request.max_width_px
                )
            except (OSError, ValueError) as error:  # also the errors of PyAV
                log.warning("camera %s: an image cannot be encoded: %s", request.camera, error)
        self._socket.send_image(Image(request.camera, request.captured_ns, jpeg))
