"""`FrameWorker` processes copies of frames in a separate thread, for stages that draw, encode, or write frames."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vision.errors import VisionError
from vision.types import Frame, Result

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Copy:
    """A copy of one frame, with the frame's result. The memory is reused and grows to the size of the largest frame."""

    memory: NDArray[np.uint8]
    content: tuple[Frame, Result] | None = None

    def fill(self, frame: Frame, result: Result) -> None:
        source = frame.pixels
        if source.size > len(self.memory):
            self.memory = np.empty(source.size, np.uint8)
        pixels = self.memory[: source.size].reshape(source.shape)
        np.copyto(pixels, source)
        self.content = Frame.wrap(frame.meta, pixels, frame.pixel_format), result


class FrameWorker:
    """Separate thread that processes copies of frames.

    The thread that runs the stages (the results thread) holds a frame, whose memory is then not reused, only while it
    copies the frame. If no buffer is free, a lossless worker makes the results thread wait. Otherwise, the worker skips
    the frame, and counts it in `skipped`.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Iterator[tuple[Frame, Result]]], None],
        *,
        buffers: int,
        lossless: bool,
        most_bytes: int | None = None,
    ) -> None:
        """Start the thread, which calls `work` once.

        Args:
            name: name of the thread.
            work: function that receives an iterator over the copies in order. Each copy is valid until the next
                iteration.
            buffers: maximum number of copies, including the copy that the thread is processing.
            lossless: if True, `add` waits for a free buffer instead of skipping a frame.
            most_bytes: maximum size in bytes of all copies. `add` skips frames that would exceed this size, unless
                there is no other copy. None means no limit. This argument has no effect if `lossless` is True.
        """
        self.skipped = 0
        self._name = name
        self._work = work
        self._lossless = lossless
        self._error: Exception | None = None
        self._buffers = buffers
        self._most_bytes = most_bytes
        self._used_bytes = 0  # of the copies that wait or are processed
        self._lock = threading.Lock()
        self._done = 0  # number of processed copies
        self._free: queue.SimpleQueue[_Copy] = queue.SimpleQueue()
        for _ in range(buffers):
            self._free.put(_Copy(np.empty(0, np.uint8)))
        self._waiting: queue.SimpleQueue[_Copy | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def add(self, frame: Frame, result: Result) -> bool:
        """Copy a frame for the thread. Return False if the frame was skipped."""
        if not self._reserve(frame.pixels.nbytes):
            self.skipped += 1
            return False
        try:
            copy = self._free.get(block=self._lossless)
        except queue.Empty:
            self._release(frame.pixels.nbytes)
            self.skipped += 1
            return False
        copy.fill(frame, result)
        self._waiting.put(copy)
        return True

    def progress(self) -> int | None:
        """Return the number of processed copies, or None if no copy waits or is being processed."""
        return None if self._free.qsize() == self._buffers else self._done

    def check(self) -> None:
        """Raise `VisionError` if the thread has failed."""
        if isinstance(self._error, VisionError):
            raise self._error
        if self._error is not None:
            raise VisionError(f"{self._name} failed: {self._error}") from self._error

    def finish(self) -> None:
        """Make the thread end after it has processed the waiting copies. Idempotent."""
        self._waiting.put(None)

    def join(self, timeout_s: float | None = None) -> None:
        """Wait until the thread ends, or `timeout_s` seconds have passed. None means no limit.

        Call `finish` before this method.
        """
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            with closing(self._copies()) as copies:
                self._work(copies)
        except Exception as error:  # noqa: BLE001 - `check` raises it
            self._error = error
            log.error("%s failed: %s", self._name, error)
            for _ in self._copies():  # free every copy, because a lossless caller waits for one
                self.skipped += 1

    def _copies(self) -> Generator[tuple[Frame, Result]]:
        while (copy := self._waiting.get()) is not None:
            assert copy.content is not None
            try:
                yield copy.content
            finally:
                self._release(copy.content[0].pixels.nbytes)
                copy.content = None
                if self._most_bytes is not None and self._buffers * len(copy.memory) > self._most_bytes:
                    copy.memory = np.empty(0, np.uint8)  # such large copies in all buffers would exceed the limit
                self._done += 1
                self._free.put(copy)

    def _reserve(self, nbytes: int) -> bool:
        """Count the memory of one more copy of a frame, `nbytes` bytes.

        If the copies would exceed their maximum size, return False instead.
        """
        with self._lock:
            most = None if self._lossless else self._most_bytes
            if most is not None and self._used_bytes and self._used_bytes + nbytes > most:
                return False
            self._used_bytes += nbytes
            return True

    def _release(self, nbytes: int) -> None:
        with self._lock:
            self._used_bytes -= nbytes
