"""`EventLog` stores the newest events of a deployment, numbered across all cameras and restarts."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from vision.state.database import StateDatabase, Statement

StateKey: TypeAlias = tuple[str, str, str, int | None]
"""Camera, kind, name, and track id of a state. The start event and the end event of the state have the same key."""

NUMBERS_SKIPPED: Final = 10_000
"""Number of event numbers that are skipped after a power failure, and maximum number of events that wait for a sync."""

_URGENT: Final = NUMBERS_SKIPPED // 2  # number of unsynced events from which the disk is forced without delay


def event_checksum(number: int, payload: bytes) -> int:
    """Return the checksum (CRC-32) of an event's number and payload."""
    return zlib.crc32(payload, number & 0xFFFFFFFF)


def state_statements(starts: Mapping[StateKey, bytes | None]) -> list[Statement]:
    """Return the SQL statements that store the start of each state that has not ended, such as a crowded zone.

    `starts` contains the encoded start event of each state. None means that the state has ended and is deleted.
    """
    return _statements("states", {_state_text(state): payload for state, payload in starts.items()})


def held_statements(held: Mapping[str, bytes | None]) -> list[Statement]:
    """Return the SQL statements that store the events that wait for the answer of a language model.

    `held` contains each encoded event by id. None means that the event no longer waits and is deleted.
    """
    return _statements("held", held)


def _statements(table: Literal["states", "held"], rows: Mapping[str, bytes | None]) -> list[Statement]:
    stored = [
        (text, payload, zlib.crc32(payload, zlib.crc32(text.encode())))
        for text, payload in rows.items()
        if payload is not None
    ]
    ended = [(text,) for text, payload in rows.items() if payload is None]
    statements: list[Statement] = [(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?)", stored)] if stored else []
    return [*statements, (f"DELETE FROM {table} WHERE state = ?", ended)] if ended else statements


def _state_text(state: StateKey) -> str:
    return "\0".join(map(str, state))


@dataclass(frozen=True, slots=True)
class Page:
    """The events after a requested number, in order.

    A missing number is a lost event, or was skipped after a power failure.
    """

    payloads: tuple[bytes, ...]
    oldest: int  # number of the oldest stored event; above `newest` if there is none
    newest: int  # last assigned number
    more: bool  # True if further events follow this page


class EventLog:
    """Log of numbered events with a limited size. Append from only one thread. Any thread can read.

    Attributes:
        journal: identifier of this sequence of numbers. A database that replaces a damaged database has a new
            identifier.
        newest: highest assigned number. The next event gets the number `newest` + 1.
        lost: number of events that were not stored, because the disk was full or not writable.
        unsynced: number of events that are possibly not on disk yet.
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

    def append(self, payloads: Sequence[bytes], also: Sequence[Statement] = (), *, counters: bool = True) -> bool:
        """Store events under the numbers that follow `newest`. Return False if the disk is full, hangs, or fails.

        If the result is False, no event was stored, and no number was assigned. The same transaction runs the
        statements in `also` and, if `counters` is True, stores the counters that wait.

        Raises:
            Closed: the database was closed.
        """
        if self.unsynced + len(payloads) > NUMBERS_SKIPPED:  # the disk hangs, and results must not wait for it
            self.lost += len(payloads)
            return False
        first = self.newest + 1
        rows = [(n, payload, event_checksum(n, payload)) for n, payload in enumerate(payloads, first)]
        size = sum(map(len, payloads))
        statements: list[Statement] = [("INSERT INTO events VALUES (?, ?, ?)", rows), *also]
        oldest = self._oldest_to_keep(len(rows), size)
        if oldest is not None:
            statements.append(("DELETE FROM events WHERE number < ?", [(oldest,)]))
        if not self._database.write(statements, urgent=self.unsynced > _URGENT, counters=counters):
            self.lost += len(rows)
            return False
        self.unsynced += len(rows)
        self.newest += len(rows)
        self._count, self._bytes = self._count + len(rows), self._bytes + size
        if oldest is not None:
            ((self._count, self._bytes),) = self._database.query(
                "SELECT count(*), coalesce(sum(length(payload)), 0) FROM events"
            )
        return True

    def read(self, since: int, *, limit: int = 500, max_bytes: int = 2**20) -> Page:
        """Return the events after number `since`: at most `limit` events, and at most `max_bytes` in total.

        The first event is returned even if it is larger than `max_bytes`. Events with a wrong checksum are skipped.

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

    def open_states(self) -> list[bytes]:
        """Return the stored start events of states that have not ended, such as a crowded zone. Skip damaged rows.

        The order is undefined. Only the thread that appends may call this.
        """
        return self._payloads("states")

    def held(self) -> list[bytes]:
        """Return the stored events that wait for the answer of a language model. Skip damaged rows.

        The order is undefined. Only the thread that appends may call this.
        """
        return self._payloads("held")

    def _payloads(self, table: Literal["states", "held"]) -> list[bytes]:
        rows = self._database.query(f"SELECT state, payload, checksum FROM {table}")
        return [
            payload for text, payload, checksum in rows if checksum == zlib.crc32(payload, zlib.crc32(text.encode()))
        ]

    def carry_counters(self) -> None:
        """Make the database store changed counters together with the next events.

        Counters do not wait long, because each change of a counter causes an event.
        """
        self._database.defers_counters = True

    def counters(self) -> dict[str, int]:
        """Return the numbers of stored and lost events, and ``journal.stopped``, which is 1 while storing fails."""
        stopped = int(self._database.is_failing)
        return {"journal.kept": self._count, "journal.lost": self.lost, "journal.stopped": stopped}

    # --- for the database ---------------------------------------------------------------------------------------------

    def synced(self, count: int) -> None:
        """Subtract `count` events, which were forced to disk, from the events that are possibly not on disk yet."""
        self.unsynced = max(0, self.unsynced - count)

    def close(self) -> None:
        """Close the connection that `read` uses. Idempotent."""
        with self._read_lock:
            self._reader.close()

    def _oldest_to_keep(self, count: int, size: int) -> int | None:
        """Return the oldest event number to keep if `count` events of `size` bytes in total are added.

        Return None if all events can be kept. At the limit, about an eighth of the log is deleted together, so that
        most appends delete nothing.
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
