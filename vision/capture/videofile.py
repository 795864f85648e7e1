"""A recorded video: for a demonstration at its own pace, or offline, every picture as fast as it is read.

Its pictures are numbered in time and never by hand: presentation times make tracks and speeds the same on any machine.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.capture.ffmpeg import n_threads, open_url
from vision.capture.playback import Playback
from vision.capture.retriever import Capture, Retriever, describe, position_ns
from vision.capture.source import Grab, StreamInfo
from vision.errors import EndOfStream, SourceError

log = logging.getLogger(__name__)

_FPS: Final = 25.0  # of files that say neither rate nor times
_LONGEST_STEP_NS: Final = 3_600_000_000_000  # from one picture to the next; more is a fault of the file
_OFFLINE_THREADS: Final = 4
"""They decode ahead, which costs a live camera latency and a recording nothing: 361 instead of 310 pictures/s for the
shipped clip on two cores. More than four take cores from the detector."""

_DAMAGED: Final = 64
"""Reads that may fail in a row: OpenCV gives up at each damaged packet, and goes on behind it when asked again."""


class VideoFile:
    """A file that FFmpeg can decode, in bgr.

    A file that is cut short ends with what was readable and a warning that says how much of it that is. A looped one
    starts again without a new epoch: its time and its numbers go on.
    """

    def __init__(
        self,
        path: Path,
        *,
        loop: bool = False,
        offline: bool = False,
        clock: Callable[[], int] = time.monotonic_ns,
        utc: Callable[[], int] = time.time_ns,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self._path = path
        self._loop = loop
        self._threads = min(_OFFLINE_THREADS, os.cpu_count() or 1) if offline else 1
        self._interrupted = threading.Event()
        self._playback = Playback(offline=offline, clock=clock, utc=utc, wait=wait or self._interrupted.wait)
        self._capture: Capture | None = None
        self._reset()

    def _reset(self) -> None:
        self._retriever: Retriever | None = None
        self._interval_ns = 0
        self._expected = 0  # pictures, by the file's own word; 0: it does not say
        self._read = 0  # pictures of this pass
        self._first_ns: int | None = None  # where the file's time begins
        self._pass_ns = 0  # where this pass begins, in the time that goes on over all of them
        self._media_ns = -1  # of the picture at hand
        self._pending = False  # it is decoded and not yet due
        self._grabbed = False
        self._warned = False

    @property
    def live(self) -> bool:
        return False

    def open(self) -> StreamInfo:
        self.close()
        self._check()
        self._capture = self._open()
        self._retriever = Retriever(self._capture)
        info = describe(self._capture, "ffmpeg")
        self._interval_ns = round(1e9 / (info.fps or _FPS))
        self._expected = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self._playback.start()
        return info

    def grab(self, timeout_s: float) -> Grab | None:
        if self._capture is None or self._retriever is None:
            raise SourceError(f"{self._path}: grab before open, or after close")
        if not self._pending:
            self._grabbed = False
            self._retriever.forget()
            self._advance(self._capture)
            self._pending = True
        if self._interrupted.is_set() or not self._playback.due(self._media_ns, timeout_s):
            return None
        self._pending = False
        self._grabbed = True
        return self._playback.stamp(self._media_ns)

    def retrieve(self, out: NDArray[np.uint8]) -> None:
        if self._retriever is None or not self._grabbed:
            raise SourceError(f"{self._path}: retrieve without a picture grabbed")
        self._retriever.retrieve(out)

    def interrupt(self) -> None:
        """Final: from now on `grab` finds nothing."""
        self._interrupted.set()

    def close(self) -> None:
        capture, self._capture = self._capture, None
        self._reset()
        if capture is not None:
            capture.release()

    # Opening

    def _check(self) -> None:
        try:
            if self._path.is_dir():
                raise SourceError(f"{self._path}: expected a video, this is a folder")
            with self._path.open("rb") as file:
                empty = not file.read(1)
        except OSError as error:
            raise SourceError(f"{self._path}: {error.strerror}", hint="check the path and its permissions") from error
        if empty:
            raise SourceError(f"{self._path}: the file is empty")

    def _open(self) -> Capture:
        # An absolute path, because FFmpeg takes a word before a colon for a protocol.
        capture = open_url(str(self._path.absolute()), n_threads(self._threads))
        if not capture.isOpened():
            capture.release()
            raise SourceError(
                f"{self._path}: not a video that FFmpeg can decode",
                hint="a recording that was cut off may lack its index: `ffmpeg -i FILE` says more",
            )
        return capture

    # Reading

    def _advance(self, capture: Capture) -> None:
        """Decode the next picture and give it its time."""
        if not self._decode(capture):
            self._finish_pass()
            capture = self._start_again(capture)
        self._read += 1
        self._time(capture)

    def _decode(self, capture: Capture) -> bool:
        for _ in range(_DAMAGED):
            try:
                if capture.grab():
                    return True
            except cv2.error as error:
                raise SourceError(f"{self._path}: a picture could not be decoded: {error}") from error
            if self._read >= self._expected:
                break
        return False

    def _time(self, capture: Capture) -> None:
        """The file's own time where that moves on; else one interval after the last picture."""
        at_ns = position_ns(capture) or 0
        if self._first_ns is None:
            self._first_ns = at_ns
        media_ns = self._pass_ns + at_ns - self._first_ns
        if not 0 < media_ns - self._media_ns <= _LONGEST_STEP_NS:
            media_ns = 0 if self._media_ns < 0 else self._media_ns + self._interval_ns
        self._media_ns = media_ns

    def _finish_pass(self) -> None:
        """The file has no more pictures.

        Raises:
            EndOfStream: and it is not looped.
        """
        text = f"{self._path}: ended after {self._read} pictures"
        if self._cut_short():
            text = f"{self._path}: ended after {self._read} of {self._expected} pictures: it is cut short or damaged"
            if not self._warned:
                log.warning("%s", text)
            self._warned = True
        if not self._loop:
            raise EndOfStream(text)
        if self._read == 0:
            raise SourceError(f"{self._path}: no picture could be decoded")
        self._pass_ns = self._media_ns + self._interval_ns
        self._read = 0

    def _cut_short(self) -> bool:
        """Containers that only estimate their length may be wrong by a picture, or by 1 %."""
        return self._expected - self._read > max(1, self._expected // 100)

    def _start_again(self, capture: Capture) -> Capture:
        """Back to the first picture, decoded: by seeking, or by opening the file again where seeking does not work."""
        capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
        latest_ns = (self._first_ns or 0) + self._interval_ns // 2
        if self._decode(capture) and (position_ns(capture) or 0) <= latest_ns:
            return capture
        capture.release()
        self._capture = capture = self._open()
        self._retriever = Retriever(capture)
        if not self._decode(capture):
            raise SourceError(f"{self._path}: no picture could be decoded")
        return capture
