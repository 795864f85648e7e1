"""Source that reads a folder of images, or one image, for test sets, time lapses, and archives of web cameras."""

from __future__ import annotations

import logging
import re
from collections import deque
from pathlib import Path
from typing import Final, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.capture.jpeg_scanner import is_truncated_jpeg
from vision.capture.opencv import bindings  # noqa: F401 - silences OpenCV's log
from vision.capture.pacing import FramePacer, PacedSource
from vision.capture.regular_file import require_file
from vision.capture.source import IMAGE_SUFFIXES, StreamInfo
from vision.config.paths import is_dir
from vision.config.user_files import read_input
from vision.config.wording import did_you_mean_file
from vision.errors import EndOfStream, SizeChanged, SourceError
from vision.types import DropReason, FrameBuffer

log = logging.getLogger(__name__)

_FPS: Final = 1.0


class ImageFolder(PacedSource[NDArray[np.uint8]]):
    """Source of bgr frames from one image, or from the images of a folder in natural order (``img2`` before ``img10``).

    Images are rotated as their EXIF data requires. An image that cannot be read, or is truncated, is skipped, counted
    as corrupt, and logged. A folder without a readable image is an error. Files that are added after `open` are read
    when the folder is reopened.
    """

    def __init__(
        self, path: Path, pacer: FramePacer | None = None, *, fps: float | None = None, loop: bool = False
    ) -> None:
        super().__init__(path, pacer)
        self._path = path
        self._interval_ns = round(1e9 / (fps or _FPS))
        self._loop = loop
        self._close()

    def _close(self) -> None:
        self._files: deque[Path] = deque()  # files still to read; a loop adds each readable file again
        self._read_count = 0  # number of images that were read, over all passes
        self._skipped_count = 0

    def _open(self) -> StreamInfo:
        self._files.extend(list_images(self._path))
        self._next = _, frame = self._read()
        return StreamInfo(frame.shape[1], frame.shape[0], "bgr", 1e9 / self._interval_ns, "imread")

    def _read(self) -> tuple[int, NDArray[np.uint8]]:
        while self._files:
            file = self._files.popleft()
            frame = read_image(file)
            if frame is not None:
                if self._loop:
                    self._files.append(file)
                self._read_count += 1
                return (self._read_count - 1) * self._interval_ns, frame
            log.warning("%s: skipped, because it is truncated, or OpenCV cannot read it as an image", file)
            self.skipped.add(DropReason.CORRUPT)
            self._skipped_count += 1
        if not self._read_count:
            raise SourceError(f"{self._path}: none of the {self._skipped_count} images can be read", code="no-images")
        if self._loop:
            raise SourceError(f"{self._path}: the images can no longer be read", code="no-images")
        raise EndOfStream(f"{self._path}: ended after {self._read_count} images, {self._skipped_count} skipped")

    def _write(self, frame: NDArray[np.uint8], out: FrameBuffer) -> None:
        pixels = out.require_host()
        if frame.shape != pixels.shape:
            raise SizeChanged(frame.shape[0], frame.shape[1])
        np.copyto(pixels, frame)


def list_images(path: Path) -> list[Path]:
    """Return the paths of the images in a folder, in natural order; if `path` is a file, return only `path`.

    Raises:
        SourceError: the path cannot be read, or is an empty file or a folder without images.
    """
    try:
        if not is_dir(path):
            require_file(path)
            return [path]
        files = [file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
    except OSError as error:
        hint = did_you_mean_file(path) or "check the path and its permissions"
        raise SourceError(f"{path}: {error.strerror}", hint=hint, code="file") from error
    if not files:
        hint = f"expected {', '.join(sorted(IMAGE_SUFFIXES))}"
        raise SourceError(f"{path}: no images in this folder", hint=hint, code="no-images")
    return sorted(files, key=lambda file: natural_key(file.name))


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key that orders the numbers within names by value, so that ``img2`` is before ``img10``."""
    parts = re.findall(r"\d+|\D+", name)
    return tuple((0, int(part), part) if part.isdecimal() else (1, 0, part.casefold()) for part in parts)


def read_image(file: Path) -> NDArray[np.uint8] | None:
    """Read an image, and return it as (H, W, 3) uint8 bgr, or None if it is truncated or cannot be read."""
    try:
        data = read_input(file)
        if is_truncated_jpeg(data):  # OpenCV would fill it up with gray
            return None
        frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except (OSError, cv2.error):  # not readable, empty, or larger than OpenCV's limit of 2**30 pixels
        return None
    return cast("NDArray[np.uint8] | None", frame)
