"""`Spool` stores the messages of one sink on disk until they are delivered, or deleted because of its limits.

It also stores the position: the number of the newest event of the publisher that was stored. After a restart, the sink
requests the events after this position. A message and its position are stored in one transaction. Therefore, a process
that is killed neither misses an event nor stores an event twice. SQLite forces its log to disk only at checkpoints, so
a power failure can lose the newest transactions. In this case, the sink continues with the newest position that was not
lost, and requests the events after this position.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from vision.outputs.sinks.delivery import MAX_BATCH_BYTES, Outgoing
from vision.state.free_space import FreeSpace
from vision.state.private_files import open_restricted

log = logging.getLogger(__name__)

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS messages (
  number INTEGER PRIMARY KEY AUTOINCREMENT, at_s REAL, key TEXT, topic TEXT, payload BLOB, is_state INTEGER,
  bytes INTEGER
);
CREATE INDEX IF NOT EXISTS by_topic ON messages (topic) WHERE is_state;
CREATE TABLE IF NOT EXISTS position (
  one INTEGER PRIMARY KEY CHECK (one = 1), journal TEXT, number INTEGER
);
CREATE TABLE IF NOT EXISTS sequences (topic TEXT PRIMARY KEY, instance TEXT, seq INTEGER);
"""
_OVERHEAD_BYTES: Final = 100  # of a row
_LEAST_BYTES: Final = 1_000_000  # that the spool can contain while the disk is nearly full, so that delivery continues
_FREE_AGAIN: Final = 1.2  # multiple of the reserve from which the disk counts as free again


class Position(NamedTuple):
    """The newest event that a sink has stored: the id of the publisher's journal, and the number in this journal."""

    journal: str
    number: int


class Spool:
    """Queue of messages in an SQLite file, limited in size and age. Thread-safe.

    While the disk is nearly full (`FreeSpace`), the maximum size is the size at the start of this state, but at least
    1 MB.

    Attributes:
        count: number of waiting messages.
        nbytes: size of the waiting messages in bytes.
        lost: number of messages that were deleted because of the limits since this object was created.
    """

    def __init__(
        self, path: Path, *, max_bytes: int, max_age_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Open or create the file. If the file is damaged, rename it to ``*.damaged``, and start with an empty file.

        Args:
            path: path of the file. Its folder is created if it is missing.
            max_bytes: maximum size of the waiting messages in bytes.
            max_age_s: maximum age of a message in seconds, excluding the time in which the program did not run.
            clock: function that returns the monotonic time in seconds.

        Raises:
            sqlite3.Error, OSError: the file cannot be opened or created.
        """
        self.lost = 0
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        self._lock = threading.Lock()
        self._path = path
        self._space = FreeSpace(path.parent)
        self._held_bytes: int | None = None  # limit while the disk is nearly full
        self._told = False  # True if the log contains that messages are lost because of this limit
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._database = _open(path)
        ((self.count, self.nbytes, last_s),) = self._database.execute(
            "SELECT count(*), coalesce(sum(bytes), 0), coalesce(max(at_s), 0) FROM messages"
        )
        self._start_s: float = last_s - clock()  # the age counts only the time while the program runs

    def position(self) -> Position | None:
        """Return the stored position. Return None if no position was stored yet."""
        with self._lock:
            row = self._database.execute("SELECT journal, number FROM position").fetchone()
        return None if row is None else Position(*row)

    def sequences(self) -> dict[str, tuple[str, int]]:
        """Return the newest stored message of each topic, as the instance of the publisher and the sequence number."""
        with self._lock:
            rows = self._database.execute("SELECT topic, instance, seq FROM sequences").fetchall()
        return {topic: (instance, seq) for topic, instance, seq in rows}

    def add(
        self,
        messages: Sequence[Outgoing],
        position: Position | None = None,
        sequences: Mapping[str, tuple[str, int]] | None = None,
    ) -> None:
        """Store messages, and the position and sequence numbers that apply after these messages. Apply the limits.

        A message about a state replaces the waiting message of the same topic. Beyond the limits, the oldest messages
        are deleted.

        Raises:
            sqlite3.Error: the messages cannot be stored, for example because the disk is full.
        """
        now_s = self._start_s + self._clock()
        with self._lock:
            max_bytes = self._limit()
            self._database.execute("BEGIN IMMEDIATE")
            try:
                size = _Size(self.count, self.nbytes)
                for message in messages:
                    self._insert(message, now_s, size)
                lost = self._delete_oldest(now_s - self._max_age_s, size, max_bytes)
                if position is not None:
                    self._database.execute("INSERT OR REPLACE INTO position VALUES (1, ?, ?)", position)
                rows = [(topic, *last) for topic, last in (sequences or {}).items()]
                self._database.executemany("INSERT OR REPLACE INTO sequences VALUES (?, ?, ?)", rows)
                self._database.execute("COMMIT")
            except BaseException:
                self._database.rollback()
                raise
            self.lost += lost
            self.count, self.nbytes = size.count, size.nbytes
            if lost and max_bytes < self._max_bytes and not self._told:
                self._told = True
                log.warning("%s: the disk is nearly full: the oldest messages are lost", self._path)

    def first(self, limit: int) -> list[Outgoing]:
        """Return the oldest messages, in order: at most `limit` messages, and at most `MAX_BATCH_BYTES` in total.

        The first message is returned even if it is larger than `MAX_BATCH_BYTES`.
        """
        columns = "number, key, topic, payload, is_state"
        query = f"SELECT {columns} FROM messages ORDER BY number LIMIT ?"
        messages: list[Outgoing] = []
        nbytes = 0
        with self._lock, closing(self._database.execute(query, (limit,))) as rows:
            for number, key, topic, payload, is_state in rows:
                nbytes += len(payload)
                if messages and nbytes > MAX_BATCH_BYTES:
                    break
                messages.append(Outgoing(key, topic, payload, number, bool(is_state)))
        return messages

    def remove(self, messages: Sequence[Outgoing]) -> None:
        """Delete messages that `first` returned."""
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            for message in messages:
                deleted = self._database.execute("DELETE FROM messages WHERE number = ?", (message.number,)).rowcount
                self.count -= deleted  # 0 if it was replaced, or deleted because of the limits
                self.nbytes -= deleted * _size(message)
            self._database.execute("COMMIT")

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            self._database.close()

    def _limit(self) -> int:
        """Return the maximum size of the messages in bytes, which depends on the free space of the disk."""
        times = 1.0 if self._held_bytes is None else _FREE_AGAIN
        if not self._space.is_low(now=True, times=times, promised_bytes=self._log_bytes()):
            if self._told:
                log.info("%s: the disk has free space again", self._path)
            self._held_bytes, self._told = None, False
            return self._max_bytes
        if self._held_bytes is None:
            self._held_bytes = min(self._max_bytes, max(_LEAST_BYTES, self.nbytes))
        return self._held_bytes

    def _log_bytes(self) -> int:
        """Return the size of SQLite's log, whose content the next checkpoint copies to the file."""
        try:
            return self._path.with_name(f"{self._path.name}-wal").stat().st_size
        except OSError:
            return 0

    def _insert(self, message: Outgoing, now_s: float, size: _Size) -> None:
        if message.is_state:
            replaced = "FROM messages WHERE topic = ? AND is_state"
            for (nbytes,) in self._database.execute(f"SELECT bytes {replaced}", (message.topic,)).fetchall():
                size.count, size.nbytes = size.count - 1, size.nbytes - nbytes
            self._database.execute(f"DELETE {replaced}", (message.topic,))
        row = (now_s, message.key, message.topic, message.payload, message.is_state, _size(message))
        columns = "at_s, key, topic, payload, is_state, bytes"
        self._database.execute(f"INSERT INTO messages ({columns}) VALUES (?, ?, ?, ?, ?, ?)", row)
        size.count, size.nbytes = size.count + 1, size.nbytes + _size(message)

    def _delete_oldest(self, since_s: float, size: _Size, max_bytes: int) -> int:
        """Delete messages from before `since_s`, and then the oldest messages while `size` exceeds `max_bytes`.

        Subtract the deleted messages from `size`, and return the number of deleted messages.
        """
        lost = last = 0
        with closing(self._database.execute("SELECT number, bytes, at_s FROM messages ORDER BY number")) as rows:
            for number, nbytes, at_s in rows:
                if at_s >= since_s and size.nbytes <= max_bytes:
                    break
                lost, last = lost + 1, number
                size.count, size.nbytes = size.count - 1, size.nbytes - nbytes
        if lost:
            self._database.execute("DELETE FROM messages WHERE number <= ?", (last,))
        return lost


def _open(path: Path) -> sqlite3.Connection:
    try:
        return _open_undamaged(path)
    except sqlite3.OperationalError:  # for example, the disk is full
        raise
    except sqlite3.DatabaseError as error:
        log.warning("%s is damaged (%s): its messages are not sent, and it is renamed", path, error)
        path.replace(path.with_name(f"{path.name}.damaged"))
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        return _open_undamaged(path)


def _open_undamaged(path: Path) -> sqlite3.Connection:
    with open(path, "ab", opener=open_restricted):
        pass
    database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        ((found,),) = database.execute("PRAGMA quick_check(1)")
        if found != "ok":
            raise sqlite3.DatabaseError(found)
        database.executescript(_TABLES)
    except BaseException:
        database.close()
        raise
    return database


@dataclass(slots=True)
class _Size:
    """Totals of the messages that wait in the spool: their number, and their size in bytes."""

    count: int
    nbytes: int


def _size(message: Outgoing) -> int:
    return len(message.payload) + len(message.topic.encode()) + len(message.key.encode()) + _OVERHEAD_BYTES
