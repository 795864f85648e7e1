"""Store of NVDEC sessions whose streams have ended, so that new streams with the same parameters can use them.

Creating a session takes up to 0.25 s (measured on an H100), and delays the other cameras of the process.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Final

from vision.capture.nvdec.bindings import Session
from vision.errors import SourceError
from vision.gpu.cuda import open_device, use_device
from vision.gpu.memory import is_abandoned
from vision.types import YuvEncoding

_MAX_SESSIONS: Final = 4  # each holds the memory of about ten frames
_MAX_IDLE_S: Final = 60.0


class IdleSessions:
    """Store of up to four idle sessions. Thread-safe.

    Each call to `give` closes the sessions that have been idle for more than a minute.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._idle: list[tuple[float, Session]] = []  # each with the time (s) of its `give`, oldest first

    def take(self, codec: str, yuv: YuvEncoding, parameters: bytes, *, at_once: bool) -> Session:
        """Return a session for a stream with these parameter sets: a suitable idle session, or else a new session.

        `Session` describes the other arguments. A stream without parameter sets (b"") always gets a new session. If no
        session can be created, close the idle sessions, and try again. The caller must pass the session to `give`.

        Raises:
            SourceError: NVDEC cannot decode this stream, or has no memory for it.
            DeviceError: the GPU is missing or failed.
        """
        key = (codec, yuv, at_once, parameters)
        with self._lock:
            place = next((n for n, (_, session) in enumerate(self._idle) if parameters and session.key == key), None)
            found = None if place is None else self._idle.pop(place)[1]
        if found is not None:
            use_device(open_device())  # the calling thread may be a new one
            return found
        try:
            session = Session(codec, yuv, at_once=at_once)
        except SourceError:
            if not self.close():
                raise
            session = Session(codec, yuv, at_once=at_once)
        session.parameters = parameters
        return session

    def give(self, session: Session) -> None:
        """Keep a session whose stream has ended, or close it if it cannot be used again.

        Also close the oldest sessions if more than four are kept, and all sessions that were kept for over a minute.
        """
        if session.parameters:
            with contextlib.suppress(SourceError):
                session.decode(b"", 0)  # discards the frames that it still holds
        now = self._clock()
        with self._lock:
            if session.parameters:
                self._idle.append((now, session))
            surplus = len(self._idle) - _MAX_SESSIONS
            old = [each for n, (since, each) in enumerate(self._idle) if n < surplus or now - since > _MAX_IDLE_S]
            self._idle = [(since, each) for since, each in self._idle if each not in old]
        if not session.parameters:
            old.append(session)
        for each in old:
            each.close()

    def close(self) -> int:
        """Close all sessions that are kept. Return their number."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, session in idle:
            session.close()
        return len(idle)


def _close_at_exit() -> None:
    if not is_abandoned():
        idle_sessions.close()


idle_sessions: Final = IdleSessions()
atexit.register(_close_at_exit)
