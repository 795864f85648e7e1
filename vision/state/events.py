"""`EventLog`: the newest events of a deployment, numbered over all cameras and restarts."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vision.state.database import StateDatabase, Statement

NUMBERS_SKIPPED: Final = 1000
"""Numbers that are skipped after a power failure. At most this number of events is written before a sync."""


def event_checksum(number: int, payload: bytes) -> int:
    """Return the checksum of an event."""
    return zlib.crc32(payload, number & 0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class Page:
    """Events after a number, in order. A missing number between two of them could not be stored."""

    payloads: tuple[bytes, ...]
    oldest: int  # of all stored events; above `newest` if there are none
    newest: int  # the last assigned number
    more: bool  # events follow the last of this page


class EventLog:
    """Bounded log of numbered events. One thread appends, any thread reads.

    Attributes:
        journal: identifier of this sequence of numbers. A database that replaces a damaged one has a different one.
        newest: the last assigned number. The next event gets the next number.
        lost: number of events that were not stored, because the disk was full or not writable.
        unsynced: number of events that can still be missing on disk.
    """

    def __init__(self, database: StateDatabase, *, max_events: int, max_bytes: int) -> None:
        self._database = database
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._read_lock = threading.Lock()
        self._reader = database.connect()
        ((self.journal, newest),) = database.query("SELECT journal, newest FROM session")
        ((self._count, self._bytes, last),) = database.query(
            "SELECT count(*), coalesce(sum(length(payload)), 0), coalesce(max(number), 0) FROM events"
        )
        self.newest: int = max(newest, last)
        self.lost = self.unsynced = 0

    def append(self, payloads: Sequence[bytes]) -> bool:
        """Store events under the numbers that follow `newest`.

        Returns:
            False if the disk is full or not writable. Then no event was stored and no number was given.

        Raises:
            Closed: the database was closed.
        """
        first = self.newest + 1
        rows = [(n, payload, event_checksum(n, payload)) for n, payload in enumerate(payloads, first)]
        size = sum(map(len, payloads))
        statements: list[Statement] = [("INSERT INTO events VALUES (?, ?, ?)", rows)]
        oldest = self._oldest_to_keep(len(rows), size)
        if oldest is not None:
            statements.append(("DELETE FROM events WHERE number < ?", [(oldest,)]))
        sync_first = self.unsynced + len(rows) > NUMBERS_SKIPPED
        if not self._database.write(statements, sync_first=sync_first):
            self.lost += len(rows)
            return False
        self.unsynced = len(rows) if sync_first else self.unsynced + len(rows)
        self.newest += len(rows)
        self._count, self._bytes = self._count + len(rows), self._bytes + size
        if oldest is not None:
            ((self._count, self._bytes),) = self._database.query(
                "SELECT count(*), coalesce(sum(length(payload)), 0) FROM events"
            )
        return True

    def read(self, since: int, *, limit: int = 500, max_bytes: int = 2**20) -> Page:
        """Return the oldest events after number `since`: at most `limit`, and after the first at most `max_bytes`.

        Raises:
            OSError: the database is not readable.
        """
        newest = self.newest
        payloads: list[bytes] = []
        size, more = 0, False
        try:
            with self._read_lock:
                (oldest,) = self._reader.execute(
                    "SELECT coalesce(min(number), ?) FROM events WHERE number <= ?", (newest + 1, newest)
                ).fetchone()
                rows = self._reader.execute(
                    "SELECT number, payload, checksum FROM events WHERE number > ? AND number <= ? ORDER BY number",
                    (since, newest),
                )
                with contextlib.closing(rows):
                    for number, payload, checksum in rows:
                        size += len(payload)
                        more = len(payloads) == limit or (len(payloads) > 0 and size > max_bytes)
                        if more:
                            break
                        if checksum == event_checksum(number, payload):
                            payloads.append(payload)
        except sqlite3.Error as error:
            raise OSError(None, str(error)) from error
        return Page(tuple(payloads), oldest, newest, more)

    def counters(self) -> dict[str, int]:
        """Return the counters for the status of the program."""
        return {"journal.kept": self._count, "journal.lost": self.lost}

    # --- for the database ---------------------------------------------------------------------------------------------

    def synced(self, count: int) -> None:
        """Record that `count` events have been synced."""
        self.unsynced = max(0, self.unsynced - count)

    def close(self) -> None:
        """Close the connection for readers. Idempotent."""
        with self._read_lock:
            self._reader.close()

    def _oldest_to_keep(self, count: int, size: int) -> int | None:
        """Return the first number to keep when `count` events of `size` bytes are added; None means all.

        Deletes an eighth of the log at a time, so that most appends delete nothing.
        """
        if self._bytes + size > self._max_bytes:
            excess = self._bytes + size - self._max_bytes * 7 // 8
            for number, length in self._database.query("SELECT number, length(payload) FROM events ORDER BY number"):
                excess -= length
                if excess <= 0:
                    return int(number) + 1
            return self.newest + 1
        if self._count + count > self._max_events + max(1, self._max_events // 8):
            rows = self._database.query(
                "SELECT number FROM events ORDER BY number DESC LIMIT 1 OFFSET ?", max(0, self._max_events - count)
            )
            return int(rows[0][0]) + 1 if rows else None
        return None
