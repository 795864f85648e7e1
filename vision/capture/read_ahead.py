"""Classes that read a connection on a separate thread, ahead of the decoder.

A library blocks until a frame arrives. Therefore, a separate thread reads the coded frames as they arrive, stamps them
with this machine's clock, and stores them for the decoder. If old frames are stored, the decoder is too slow.
Presentation times cannot show this, because their rate can be wrong. For example, FFmpeg assumes 25 frames/s for
streams without times.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, Protocol, TypeVar

from vision.capture.blocking import THREAD_PREFIX
from vision.capture.packet_info import BACKLOG_NS
from vision.capture.source import SkippedFrames
from vision.errors import SourceError
from vision.types import DropReason

_JOIN_S: Final = 0.5


FrameT = TypeVar("FrameT")
FrameT_co = TypeVar("FrameT_co", covariant=True)


class Connection(Protocol[FrameT_co]):
    """An open connection. Call its methods from the reading thread."""

    def packets(self, closing: threading.Event) -> Iterable[tuple[FrameT_co, bool]]:
        """Yield each coded frame as it arrives, and a flag that is True for key frames.

        When `closing` is set, stop waiting.

        Raises:
            SourceError: the connection failed or ended.
        """

    def close(self) -> None:
        """Release all resources. Idempotent."""


ConnectionT = TypeVar("ConnectionT", bound=Connection[Any])


@dataclass(frozen=True, slots=True)
class Arrived(Generic[FrameT]):
    """A coded frame, and the time at which it arrived (monotonic ns)."""

    frame: FrameT
    key: bool
    at_ns: int
    after_skip: bool = False  # True if frames directly before this frame were skipped


class Backlog(Generic[FrameT]):
    """The coded frames that have arrived and that the decoder has not yet taken. Thread-safe.

    If the decoder is too slow, frames are skipped and counted:

    * If the oldest frame is older than `max_age_ns`, `take` skips to the newest stored key frame, if there is one.
    * If the oldest frame is older than 2 s, `put` does the same. If there is no key frame to skip to, `put` discards
      all frames until a key frame arrives, so that the backlog is bounded.
    """

    def __init__(self, max_age_ns: int, skipped: SkippedFrames, clock: Callable[[], int] = time.monotonic_ns) -> None:
        """Create the backlog. Frames older than `max_age_ns` are not useful. `skipped` counts the skipped frames."""
        self._max_age_ns = max_age_ns
        self._skipped = skipped
        self._clock = clock
        self._changed = threading.Condition()
        self._frames: deque[Arrived[FrameT]] = deque()
        self._waits_for_key = False
        self._after_skip = False
        self._end: BaseException | None = None
        self._interrupted = False

    def put(self, frame: FrameT, *, key: bool) -> None:
        """Add a frame that has just arrived. `key` is True for a key frame."""
        now_ns = self._clock()
        with self._changed:
            if self._waits_for_key and not key:
                self._skipped.add(DropReason.STALE)
                return
            self._waits_for_key = False
            self._frames.append(Arrived(frame, key, now_ns))
            if now_ns - self._frames[0].at_ns > BACKLOG_NS and not self._skip_to_key_frame():
                self._skip(len(self._frames))
                self._waits_for_key = True
            self._changed.notify()

    def end(self, reason: BaseException) -> None:
        """Make `take` raise `reason` after it has returned the stored frames."""
        with self._changed:
            self._end = reason
            self._changed.notify()

    def interrupt(self) -> None:
        """Make current and future calls to `take` return None. Any thread may call this method."""
        with self._changed:
            self._interrupted = True
            self._changed.notify()

    def take(self, timeout_s: float) -> Arrived[FrameT] | None:
        """Return the next frame, or None after `timeout_s` or `interrupt`.

        If the next frame is too old, skip to a later key frame, if there is one. If no frame is left after `end`, raise
        the exception that was passed to `end`.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._frames or self._end or self._interrupted, max(0.0, timeout_s))
            if self._interrupted:
                return None
            if not self._frames:
                if self._end is not None:
                    raise self._end
                return None
            if self._clock() - self._frames[0].at_ns > self._max_age_ns:
                self._skip_to_key_frame()
            after_skip, self._after_skip = self._after_skip, False
            frame = self._frames.popleft()
            return replace(frame, after_skip=True) if after_skip else frame

    def _skip_to_key_frame(self) -> bool:
        """Skip all frames before the newest key frame. Return False if no frame after the first is a key frame."""
        newest = next((index for index in range(len(self._frames) - 1, 0, -1) if self._frames[index].key), 0)
        self._skip(newest)
        return newest > 0

    def _skip(self, count: int) -> None:
        for _ in range(count):
            self._frames.popleft()
        if count:
            self._skipped.add(DropReason.STALE, count)
            self._after_skip = True


class ReadAhead(Generic[ConnectionT, FrameT]):
    """Reader that opens, reads, and closes each connection on a separate thread.

    Call all methods from one thread, except `interrupt`, which any thread can call.
    """

    def __init__(
        self, name: str, connect: Callable[[], ConnectionT], *, max_age_ns: int, skipped: SkippedFrames
    ) -> None:
        """Create the reader. `name` appears in errors. `connect` opens a connection, and runs on a separate thread.

        `Backlog` describes the other arguments.
        """
        self._name = name
        self._connect = connect
        self._max_age_ns = max_age_ns
        self._skipped = skipped
        self.interrupted = threading.Event()
        self._reading: _Reading[ConnectionT, FrameT] | None = None

    @property
    def is_open(self) -> bool:
        return self._reading is not None

    def open(self, timeout_s: float, hint: Callable[[], str]) -> ConnectionT:
        """Open a connection, start to read it, and return it.

        Raises:
            SourceError: opening took longer than `timeout_s` (the error contains the result of `hint`), or `interrupt`
                was called.
            Exception: `connect` raised it.
        """
        self.close()
        backlog: Backlog[FrameT] = Backlog(self._max_age_ns, self._skipped)
        self._reading = reading = _Reading(self._connect, backlog)
        if self.interrupted.is_set():
            reading.interrupt()
        reading.start()
        if not reading.opened.wait(timeout_s):
            raise SourceError(f"{self._name}: no answer within {timeout_s:g} s", hint=hint(), code="open-timeout")
        if self.interrupted.is_set():
            raise SourceError(f"{self._name}: interrupted while opening", code="interrupted")
        return reading.result()

    def take(self, timeout_s: float) -> Arrived[FrameT] | None:
        """Return the next coded frame. Return None after `timeout_s` or `interrupt`, or if no connection is open.

        Raises:
            SourceError: the connection failed or ended, and no received frame is left.
        """
        return None if self._reading is None else self._reading.backlog.take(timeout_s)

    def interrupt(self) -> None:
        """Make current and future calls to `open` raise `SourceError`, and make calls to `take` return None."""
        self.interrupted.set()
        reading = self._reading
        if reading is not None:
            reading.interrupt()

    def close(self) -> None:
        """Close the connection after the frame that is being read. Wait at most 0.5 s for that frame. Idempotent.

        A thread that hangs in its library is abandoned.
        """
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.stop(_JOIN_S)


class _Reading(Generic[ConnectionT, FrameT]):
    """The thread that opens, reads, and closes one connection. The thread outlives `ReadAhead` if the library hangs."""

    def __init__(self, connect: Callable[[], ConnectionT], backlog: Backlog[FrameT]) -> None:
        self.backlog = backlog
        self.opened = threading.Event()  # set when the connection is open, failed to open, or was interrupted
        self._connect = connect
        self._connection: ConnectionT | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{THREAD_PREFIX}library", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def result(self) -> ConnectionT:
        """Return the connection, or raise the exception of `connect`. Call this method only after `opened` is set."""
        connection = self._connection
        if connection is None:
            self.backlog.take(0.0)  # raises the exception of `connect`
            raise AssertionError("neither a connection nor an error")
        return connection

    def interrupt(self) -> None:
        self.backlog.interrupt()
        self.opened.set()

    def stop(self, timeout_s: float) -> None:
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            connection = self._connect()
        except BaseException as error:  # noqa: BLE001 - `result` raises it
            self.backlog.end(error)
            self.opened.set()
            return
        self._connection = connection
        self.opened.set()
        try:
            for frame, key in connection.packets(self._closing):
                if self._closing.is_set():
                    break
                self.backlog.put(frame, key=key)
        except BaseException as error:  # noqa: BLE001 - `take` raises it
            self.backlog.end(error)
        self._closing.wait()  # the decoder may still be using the connection
        with suppress(Exception):
            connection.close()
