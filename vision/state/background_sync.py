"""`BackgroundSync` forces the commits of the state database to disk, and empties its write-ahead log."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Callable
from typing import Final

from vision.state.events import EventLog
from vision.state.loss_mark import LossMark

log = logging.getLogger(__name__)

PAGE_BYTES: Final = 1024
"""Size of the pages of the database."""

_CHECKPOINT_COMMITS: Final = 1000  # checkpoints are rare, because the commit after each one waits for the disk
_LARGEST_LOG_BYTES: Final = 64 * 2**20
_STOP_S: Final = 4.0  # longest time to force the last commits to disk


class BackgroundSync:
    """Thread that forces the write-ahead log to disk, and regularly moves the log's content into the database.

    The writer never forces anything to disk, because its connection has `synchronous = OFF`. This is safe only if the
    writer never overwrites the log from its start. Otherwise, a power failure could mix old and new content. Therefore,
    this thread empties the log when the database contains everything in the log. While the thread moves content, the
    connection `pin` reads from the log, which prevents the writer from overwriting the log.
    """

    def __init__(
        self,
        events: EventLog,
        connection: sqlite3.Connection,
        pin: sqlite3.Connection,
        *,
        force: Callable[[], None],
        interval_s: float,
        write_lock: threading.Lock,
        mark: LossMark,
    ) -> None:
        """Force the log to disk with `force`, and then start the thread. Only this thread uses `connection` and `pin`.

        The thread forces commits to disk within `interval_s` seconds, and reports forced events to `events`. While the
        thread holds `write_lock`, `StateDatabase.write` makes no commit. `mark` is set while the disk fails.
        """
        self._force = force
        self._events = events
        self._connection = connection
        self._pin = pin
        self._interval_s = interval_s
        self._write_lock = write_lock
        self._commits = 0  # commits since the log was last emptied
        self._failing = self._is_suspect = False
        self._mark = mark
        self._requested, self._hurry, self._ending = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="state", daemon=True)
        connection.execute("PRAGMA busy_timeout = 0")  # while it holds the lock, the thread must not wait for a reader
        self._force()
        mark.clear()  # the numbers that the session skips are on disk
        self._thread.start()

    def request(self, *, urgent: bool = False) -> None:
        """Make the thread force the latest commit to disk within the interval, or immediately if `urgent` is True.

        This method does not wait for the thread.
        """
        self._commits += 1
        if urgent:
            self._hurry.set()
        self._requested.set()

    def stop(self, timeout_s: float = _STOP_S) -> bool:
        """Force everything to disk, and end the thread. Idempotent.

        Return False if the thread has not ended after `timeout_s` seconds. In this case, the thread continues in the
        background.
        """
        self._ending.set()
        self._hurry.set()
        self._requested.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._ending.is_set():
            self._requested.wait()
            self._hurry.wait(self._interval_s)
            self._requested.clear()
            if self._ending.is_set():
                break
            self._hurry.clear()
            self._sync()
        try:
            self._force()
        except OSError:
            self._mark.set()
            return
        with contextlib.suppress(sqlite3.Error):
            busy, *_ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if not busy:
                self._mark.clear()

    def _sync(self) -> None:
        unsynced = self._events.unsynced
        try:
            self._force()
            self._events.synced(unsynced)
            if self._commits >= _CHECKPOINT_COMMITS and self._checkpoint() and self._is_suspect:
                self._is_suspect = False
                self._mark.clear()
            self._failing = False
        except (OSError, sqlite3.Error) as error:
            if not self._failing:
                log.error("cannot force state to disk: %s", error)
            if not self._is_suspect:
                self._mark.set()
            self._failing = self._is_suspect = True
            # After an error, Linux does not write the same data again. A checkpoint writes it to another place.
            self._commits = max(self._commits, _CHECKPOINT_COMMITS)
            self._requested.set()

    def _checkpoint(self) -> bool:
        """Move the pages of the log into the database. Empty the log if there was no commit during the move.

        If frequent commits prevent this until the log reaches 64 MiB, make commits wait while the log is emptied.
        Return True if the log was emptied.
        """
        commits = self._commits
        self._pin.execute("BEGIN")
        try:
            self._pin.execute("SELECT clean FROM session").fetchall()
            _, pages, moved = self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except BaseException:
            self._pin.execute("ROLLBACK")
            raise
        with self._write_lock:
            self._pin.execute("ROLLBACK")
            is_empty = pages == moved and commits == self._commits
            if not is_empty and pages * PAGE_BYTES < _LARGEST_LOG_BYTES:
                return False
            busy, *_ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if not busy:
                self._commits = 0
        self._force()
        return not busy
