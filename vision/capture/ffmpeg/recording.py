"""What all recorded videos have in common, whichever library decodes them: their time, their end, and loops."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from vision.config.wording import did_you_mean_file
from vision.errors import EndOfStream, SourceError

log = logging.getLogger(__name__)

DEFAULT_FPS: Final = 25.0  # of files that say neither rate nor times
_LONGEST_STEP_NS: Final = 3_600_000_000_000  # from one frame to the next; more is a fault of the file


def require_file(path: Path) -> None:
    """
    Raises:
        SourceError: it is no file, cannot be read, or is empty.
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
    """Counts and times the frames of one file. It may be played over and over: its time goes on over all passes."""

    def __init__(self, path: Path, *, loop: bool) -> None:
        self._path = path
        self._loop = loop
        self._interval_ns = 0
        self._expected = 0
        self._first_ns: int | None = None  # where the file's time begins
        self._pass_ns = 0  # where this pass begins, in the time that goes on over all of them
        self._warned = False
        self.read = 0
        """Frames of this pass."""
        self.media_ns = -1
        """Time of the frame at hand."""

    def opened(self, fps: float | None, expected: int) -> None:
        """`expected`: frames, by the file's own word; 0: it does not say."""
        self._interval_ns = round(1e9 / (fps or DEFAULT_FPS))
        self._expected = max(0, expected)

    @property
    def incomplete(self) -> bool:
        """There should be more frames than were read."""
        return self.read < self._expected

    @property
    def beginning_ns(self) -> int:
        """The latest time, by the file, that can be its first frame's."""
        return (self._first_ns or 0) + self._interval_ns // 2

    def count(self, at_ns: int | None) -> None:
        """One more frame: at the file's own time where that moves on; else one interval after the last frame."""
        self.read += 1
        at_ns = at_ns or 0
        if self._first_ns is None:
            self._first_ns = at_ns
        media_ns = self._pass_ns + at_ns - self._first_ns
        if not 0 < media_ns - self.media_ns <= _LONGEST_STEP_NS:
            media_ns = 0 if self.media_ns < 0 else self.media_ns + self._interval_ns
        self.media_ns = media_ns

    def finish_pass(self) -> None:
        """The file has no more frames, and is to be read from its beginning.

        Raises:
            EndOfStream: or it is not looped.
            SourceError: it has none at all.
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
