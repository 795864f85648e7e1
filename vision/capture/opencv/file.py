"""A folder of images, or one image, as a camera: test sets, time lapses, the archive of a web camera."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.capture.images import IMAGE_SUFFIXES
from vision.capture.opencv import bindings  # noqa: F401 - silences OpenCV's log
from vision.capture.pacing import FramePacer
from vision.capture.source import Grab, StreamInfo, not_open
from vision.config.wording import did_you_mean_file
from vision.errors import EndOfStream, SizeChanged, SourceError
from vision.types import FrameBuffer

log = logging.getLogger(__name__)

_FPS: Final = 1.0


class ImageFolder:
    """The images of a folder in natural order (``img2`` before ``img10``), in bgr, rotated as their EXIF data says.

    An image that cannot be read is skipped, counted in `skipped` and logged. A folder without a readable image is an
    error. Files that are added later are seen when the folder is opened again.
    """

    def __init__(
        self,
        path: Path,
        *,
        fps: float | None = None,
        loop: bool = False,
        offline: bool = False,
        clock: Callable[[], int] = time.monotonic_ns,
        utc: Callable[[], int] = time.time_ns,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        """Create the source.

        Args:
            path: a folder or one image.
            fps: frames per second, by default 1. Offline, it only determines the times.
            loop: restart after the last image.
            offline: read as fast as possible.
            clock: the monotonic clock, in ns.
            utc: UTC, in ns.
            wait: sleeps for a number of seconds, or until an interrupt.
        """
        self._path = path
        self._interval_ns = round(1e9 / (fps or _FPS))
        self._loop = loop
        self._interrupted = threading.Event()
        self._pacer = FramePacer(offline=offline, clock=clock, utc=utc, wait=wait or self._interrupted.wait)
        self._reset()

    def _reset(self) -> None:
        self._files: list[Path] = []
        self._next_file = 0  # index of the next file
        self._index = 0  # of the current frame, over all passes
        self._frame: NDArray[np.uint8] | None = None  # the current frame, due or not
        self._due = False
        self.skipped = 0  # since it was opened

    @property
    def live(self) -> bool:
        return False

    def open(self) -> StreamInfo:
        self.close()
        self._files = list_images(self._path)
        frame = self._next()
        if frame is None:
            raise SourceError(f"{self._path}: none of its {self.skipped} images can be read")
        self._frame = frame
        self._index = 0
        self._pacer.start()
        return StreamInfo(frame.shape[1], frame.shape[0], "bgr", 1e9 / self._interval_ns, "imread")

    def grab(self, timeout_s: float) -> Grab | None:
        if self._frame is None:
            raise not_open(self._path, "grab")
        if self._due:
            self._advance()
        media_ns = self._index * self._interval_ns
        self._due = not self._interrupted.is_set() and self._pacer.due(media_ns, timeout_s)
        return self._pacer.stamp(media_ns) if self._due else None

    def retrieve(self, out: FrameBuffer) -> None:
        if self._frame is None or not self._due:
            raise not_open(self._path, "retrieve")
        pixels = out.require_host()
        if self._frame.shape != pixels.shape:
            raise SizeChanged(self._frame.shape[0], self._frame.shape[1])
        np.copyto(pixels, self._frame)

    def interrupt(self) -> None:
        """Make `grab` return None from now on."""
        self._interrupted.set()

    def close(self) -> None:
        self._reset()

    def _advance(self) -> None:
        frame = self._next()
        if frame is None and self._loop:
            self._next_file = 0
            frame = self._next()
            if frame is None:
                raise SourceError(f"{self._path}: none of its images can be read any more")
        if frame is None:
            raise EndOfStream(f"{self._path}: ended after {self._index + 1} images, {self.skipped} skipped")
        self._frame = frame
        self._index += 1

    def _next(self) -> NDArray[np.uint8] | None:
        """Return the next readable image of this pass. Forget the others."""
        while self._next_file < len(self._files):
            frame = read_image(self._files[self._next_file])
            if frame is not None:
                self._next_file += 1
                return frame
            log.warning("%s: skipped, not an image that OpenCV can read", self._files.pop(self._next_file))
            self.skipped += 1
        return None


def list_images(path: Path) -> list[Path]:
    """Return the images of a folder in natural order, or the one file at `path`.

    Raises:
        SourceError: there are none, or the folder cannot be read.
    """
    try:
        if not path.is_dir():
            with path.open("rb"):
                return [path]
        files = [file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
    except OSError as error:
        raise SourceError(
            f"{path}: {error.strerror}", hint=did_you_mean_file(path) or "check the path and its permissions"
        ) from error
    if not files:
        raise SourceError(f"{path}: no images in this folder", hint=f"expected {', '.join(sorted(IMAGE_SUFFIXES))}")
    return sorted(files, key=lambda file: natural_key(file.name))


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key that orders numbers within names by their value."""
    parts = re.findall(r"\d+|\D+", name)
    return tuple((0, int(part), part) if part.isdecimal() else (1, 0, part.casefold()) for part in parts)


def read_image(file: Path) -> NDArray[np.uint8] | None:
    """Return an image as (H, W, 3) uint8 bgr, or None if it cannot be read."""
    try:
        frame = cv2.imread(str(file), cv2.IMREAD_COLOR)
    except cv2.error:  # larger than OpenCV's limit of 2**30 pixels
        return None
    return cast("NDArray[np.uint8] | None", frame)
