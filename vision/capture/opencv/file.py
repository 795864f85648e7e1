"""A recorded video: for a demonstration at its own pace, or offline, every frame as fast as it is read.

Its frames are numbered in time and never by hand: presentation times make tracks and speeds the same on any machine.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import cv2

from vision.capture.ffmpeg.recording import Recording, require_file
from vision.capture.opencv.ffmpeg_options import n_threads, open_url
from vision.capture.opencv.reader import Capture, FrameReader, describe, position_ns
from vision.capture.pacing import FramePacer
from vision.capture.source import Grab, StreamInfo
from vision.errors import SourceError
from vision.types import FrameBuffer

_OFFLINE_THREADS: Final = 4
"""They decode ahead, which costs a live camera latency and a recording nothing: 361 instead of 310 frames/s for the
shipped clip on two cores. More than four take cores from the detector."""

_DAMAGED: Final = 64
"""Reads that may fail in a row: OpenCV gives up at each damaged packet, and goes on behind it when asked again."""


class VideoFile:
    """A file that FFmpeg can decode, through OpenCV and so in bgr: for detectors that prefer it.

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
        self._playback = FramePacer(offline=offline, clock=clock, utc=utc, wait=wait or self._interrupted.wait)
        self._capture: Capture | None = None
        self._reset()

    def _reset(self) -> None:
        self._retriever: FrameReader | None = None
        self._recording = Recording(self._path, loop=self._loop)
        self._pending = False  # the frame at hand is decoded and not yet due
        self._grabbed = False

    @property
    def live(self) -> bool:
        return False

    def open(self) -> StreamInfo:
        self.close()
        require_file(self._path)
        self._capture = self._open()
        self._retriever = FrameReader(self._capture)
        info = describe(self._capture, "ffmpeg")
        self._recording.opened(info.fps, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
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
        if self._interrupted.is_set() or not self._playback.due(self._recording.media_ns, timeout_s):
            return None
        self._pending = False
        self._grabbed = True
        return self._playback.stamp(self._recording.media_ns)

    def retrieve(self, out: FrameBuffer) -> None:
        if self._retriever is None or not self._grabbed:
            raise SourceError(f"{self._path}: retrieve without a frame grabbed")
        self._retriever.retrieve(out.require_host())

    def interrupt(self) -> None:
        """Final: from now on `grab` finds nothing."""
        self._interrupted.set()

    def close(self) -> None:
        capture, self._capture = self._capture, None
        self._reset()
        if capture is not None:
            capture.release()

    # Opening

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
        """Decode the next frame and give it its time."""
        if not self._decode(capture):
            self._recording.finish_pass()
            capture = self._start_again(capture)
        self._recording.count(position_ns(capture))

    def _decode(self, capture: Capture) -> bool:
        for _ in range(_DAMAGED):
            try:
                if capture.grab():
                    return True
            except cv2.error as error:
                raise SourceError(f"{self._path}: a frame could not be decoded: {error}") from error
            if not self._recording.incomplete:
                break
        return False

    def _start_again(self, capture: Capture) -> Capture:
        """Back to the first frame, decoded: by seeking, or by opening the file again where seeking does not work."""
        capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
        if self._decode(capture) and (position_ns(capture) or 0) <= self._recording.beginning_ns:
            return capture
        capture.release()
        self._capture = capture = self._open()
        self._retriever = FrameReader(capture)
        if not self._decode(capture):
            raise SourceError(f"{self._path}: no frame could be decoded")
        return capture
