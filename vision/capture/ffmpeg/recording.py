"""Times, end and loops of a recorded video."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from vision.config.wording import did_you_mean_file
from vision.errors import EndOfStream, SourceError

log = logging.getLogger(__name__)

DEFAULT_FPS: Final = 25.0  # of files that say neither rate nor times
_LONGEST_STEP_NS: Final = 3_600_000_000_000  # between two frames; a longer one is a fault of the file


def require_file(path: Path) -> None:
    """Check that `path` is a readable file.

    Raises:
        SourceError: it is not a file, cannot be read, or is empty.
    """
    try:
        if path.is_dir():
            raise SourceError(f"{path}: expected a video, this is a folder")
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise SourceError(
            f"{path}: {error.strerror}", hint=did_you_mean_file(path) or "check the path and its permissions"
        ) from error
    if empty:
        raise SourceError(f"{path}: the file is empty")


class Recording:
    """Counts and times the frames of one file. Its time continues over all passes of a loop."""

    def __init__(self, path: Path, *, loop: bool) -> None:
        self._path = path
        self._loop = loop
        self._interval_ns = 0
        self._expected = 0
        self._first_ns: int | None = None  # first time in the file
        self._pass_ns = 0  # start of this pass, in the time of all passes
        self._warned = False
        self.read = 0
        """Frames of this pass."""
        self.media_ns = -1
        """Time of the current frame."""

    def opened(self, fps: float | None, expected: int) -> None:
        """Record the file's rate and its `expected` number of frames, 0 if unknown."""
        self._interval_ns = round(1e9 / (fps or DEFAULT_FPS))
        self._expected = max(0, expected)

    def count(self, at_ns: int | None) -> None:
        """Count a frame: at the file's own time if that increases, else one interval after the last frame."""
        self.read += 1
        at_ns = at_ns or 0
        if self._first_ns is None:
            self._first_ns = at_ns
        media_ns = self._pass_ns + at_ns - self._first_ns
        if not 0 < media_ns - self.media_ns <= _LONGEST_STEP_NS:
            media_ns = 0 if self.media_ns < 0 else self.media_ns + self._interval_ns
        self.media_ns = media_ns

    def finish_pass(self) -> None:
        """Finish a pass, and prepare the next one.

        Raises:
            EndOfStream: the file is not looped.
            SourceError: the file has no frame at all.
        """
        text = f"{self._path}: ended after {self.read} frames"
        # Containers that only estimate their length may be wrong by a frame, or by 1 %.
        if self._expected - self.read > max(1, self._expected // 100):
            text = f"{self._path}: ended after {self.read} of {self._expected} frames: it is cut short or damaged"
            if not self._warned:
                log.warning("%s", text)
            self._warned = True
        if not self._loop:
            raise EndOfStream(text)
        if self.read == 0:
            raise SourceError(f"{self._path}: no frame could be decoded")
        self._pass_ns = self.media_ns + self._interval_ns
        self.read = 0
