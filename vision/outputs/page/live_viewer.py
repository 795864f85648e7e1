"""`Viewer` is the queue of records for one browser."""

from __future__ import annotations

import asyncio
import threading
from typing import Final

MAX_WAITING_BYTES: Final = 4_000_000
"""Maximum size in bytes of the waiting records. A slower browser loses all records up to the next key frames."""


class Viewer:
    """Records that wait for one browser. Call `push` and `flush` from any thread, other methods from the event loop.

    A viewer stalls if too many bytes wait. A stalled viewer discards the waiting records, and accepts no records until
    the current message has been sent.
    """

    def __init__(self, max_bytes: int = MAX_WAITING_BYTES) -> None:
        self._max_bytes = max_bytes
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._waiting: list[bytes] = []
        self._nbytes = 0
        self._notified = False
        self._arrived = asyncio.Event()
        self.stalls = 0
        self._stalled = False
        self._closed = False

    def push(self, record: bytes) -> bool:
        """Queue a record until `flush`. Return False if the viewer stalled or was closed, and the record is lost."""
        with self._lock:
            if self._stalled or self._closed:
                return False
            if self._nbytes + len(record) > self._max_bytes:
                self._waiting.clear()
                self._nbytes = 0
                self._stalled = True
                self.stalls += 1
                return False
            self._waiting.append(record)
            self._nbytes += len(record)
        return True

    def flush(self) -> None:
        """Let `take` return the queued records."""
        with self._lock:
            if self._waiting and not self._notified:
                self._notified = True
                self._loop.call_soon_threadsafe(self._arrived.set)

    async def take(self) -> bytes:
        """Wait for records, and return them as one message. Call this after the previous message has been sent."""
        with self._lock:
            self._stalled = False
        await self._arrived.wait()
        with self._lock:
            self._arrived.clear()
            self._notified = False
            message = b"".join(self._waiting)
            self._waiting.clear()
            self._nbytes = 0
        return message

    def close(self) -> None:
        """Accept no more records. Idempotent."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
