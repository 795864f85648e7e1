"""`StateDatabase` stores the events and counters of a deployment in one SQLite file.

The file is in WAL mode. A commit appends to the write-ahead log without waiting for the disk, so a process that is
killed loses nothing. `BackgroundSync` forces the log to disk about once per second, because forcing it for every event
would wear out a memory card and delay results. A power failure can therefore lose the last second. The numbers of lost
events are not used again: after a power failure, `NUMBERS_SKIPPED` numbers are left out.

===========================  =====================================================================
state.db, -wal, -shm         the database
lock                         lock file of the process that uses the folder
damaged-<time>/              a damaged database; only the newest is kept
===========================  =====================================================================

SQLite verifies the pages of its write-ahead log, but not the pages of the database. Therefore, a checksum in each row
detects changed values. docs/decisions/050-state-in-sqlite.md contains measurements and explains the design.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

from vision.errors import Closed, ConfigError, Unavailable, from_os_error
from vision.state.counters import CameraCounters, CounterRow, counter_checksum
from vision.state.events import NUMBERS_SKIPPED, EventLog, event_checksum
from vision.state.private_files import Held, Unwritable, locked, sync_folder

log = logging.getLogger(__name__)

Statement: TypeAlias = tuple[str, Sequence[Sequence[Any]]]
"""An SQL statement, and the parameters of each of its executions."""

_FILE: Final = "state.db"
_VERSION: Final = 1  # version of the schema
_CHECKPOINT_COMMITS: Final = 1000  # checkpoints are rare, because the commit after each one waits for the disk
_SCHEMA: Final = f"""
BEGIN;
CREATE TABLE session (journal TEXT NOT NULL, boot TEXT NOT NULL, clean INTEGER NOT NULL, newest INTEGER NOT NULL);
CREATE TABLE events (number INTEGER PRIMARY KEY, payload BLOB NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE counters (camera TEXT NOT NULL, name TEXT NOT NULL, key TEXT NOT NULL, value INTEGER NOT NULL,
    checksum INTEGER NOT NULL, PRIMARY KEY (camera, name, key)) WITHOUT ROWID;
INSERT INTO session VALUES (lower(hex(randomblob(4))), '', 1, 0);
PRAGMA user_version = {_VERSION};
COMMIT;
"""


class DamagedState(Exception):
    """The state database is damaged."""


class StateDatabase:
    """The events and counters of one deployment. Only one thread writes; any thread can read.

    Attributes:
        notice: message for the operator about a damaged database; None if there is nothing to report.
        events: the numbered events.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_events: int = 10_000,
        max_bytes: int = 64 * 2**20,
        boot: str = "",
        sync_s: float = 1.0,
        sync: Callable[[int], None] = os.fsync,
    ) -> None:
        """Open the database in `folder`. Create both if necessary. Move a damaged database away, and create a new one.

        Args:
            max_events: number of newest events that are always kept, unless they exceed `max_bytes`.
            max_bytes: maximum total size of the stored events.
            boot: identifier of the machine's current boot. An empty text means that it is unknown.
            sync_s: maximum time in seconds until a commit is forced to disk.
            sync: function that forces the file of a descriptor to disk.

        Raises:
            ConfigError: the folder is not writable, or has a newer database.
            Unavailable: a different process uses the folder, or the disk is full or fails.
        """
        self.folder = folder
        self.notice: str | None = None
        self._write_lock = threading.Lock()
        self._failing = self._closed = False
        self._counters: list[CameraCounters] = []
        with contextlib.ExitStack() as opened:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                opened.enter_context(locked(folder / "lock", timeout_s=0))
                self._writer = self._open()
                opened.callback(self._writer.close)
                self.events = EventLog(self, max_events=max_events, max_bytes=max_bytes)
                self._start_session(boot)
                wal = os.open(folder / f"{_FILE}-wal", os.O_RDONLY | os.O_CLOEXEC)
                opened.callback(os.close, wal)
                connection = opened.enter_context(contextlib.closing(self.connect()))
                self._sync = BackgroundSync(self.events, connection, partial(sync, wal), sync_s)
                opened.callback(self._sync.stop)
                sync_folder(folder)
            except Held as error:
                text = f"the state in {folder} is in use by another process"
                hint = "use one `state_dir` for each deployment, or stop the other process"
                raise Unavailable(text, hint=hint, code="state-in-use") from error
            except (OSError, sqlite3.Error, Unwritable) as error:
                text, hint = f"cannot store state in {folder}", "make the folder writable for this user"
                raise from_os_error(text, _os_error(error, folder), hint=hint, code="state-unwritable") from error
            self._opened = opened.pop_all()

    def counters(self, camera_id: str) -> CameraCounters:
        """Return the counters of a camera, with their stored values."""
        counters = CameraCounters(self, camera_id)
        self._counters.append(counters)
        return counters

    def close(self) -> None:
        """Force all data to disk, and mark the session as ended normally, unless the disk fails. Idempotent."""
        if self._closed:
            return
        for counters in self._counters:
            counters.flush()
        with self._write_lock:
            self._closed = True
        self._sync.stop()
        self.events.close()
        with contextlib.suppress(sqlite3.Error, OSError):
            self._commit([("UPDATE session SET clean = 1, newest = ?", [(self.events.newest,)])])
            self._sync.force()
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._opened.close()

    # --- for events and counters --------------------------------------------------------------------------------------

    def load_counters(self, camera_id: str) -> list[CounterRow]:
        """Return the stored counters of a camera."""
        rows = self.query("SELECT camera, name, key, value FROM counters WHERE camera = ?", camera_id)
        return [(camera, name, key, value) for camera, name, key, value in rows]

    def store_counters(self, rows: Sequence[CounterRow]) -> bool:
        """Store counters. Return False if the disk is full or not writable."""
        return self.write([counter_statement(rows)])

    def connect(self) -> sqlite3.Connection:
        """Return a new connection to the database. The caller closes it."""
        connection = sqlite3.connect(self.folder / _FILE, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA page_size = 1024")  # small pages, so that an event writes less data
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA wal_autocheckpoint = 0")  # it would make the writer wait for the disk
        except BaseException:
            connection.close()
            raise
        return connection

    def query(self, sql: str, *parameters: Any) -> list[Any]:
        """Run a query on the connection of the writing thread. Return all rows."""
        return self._writer.execute(sql, parameters).fetchall()

    def write(self, statements: Iterable[Statement], *, sync_first: bool = False) -> bool:
        """Run statements as one transaction. Return False if the disk is full or not writable.

        Only the first of several failures in a row is logged. If `sync_first` is True, first force earlier commits to
        disk. Raise `Closed` after `close`.
        """
        with self._write_lock:
            if self._closed:
                raise Closed("the state database is closed")
            try:
                if sync_first:
                    self._sync.force()
                self._commit(statements)
            except (OSError, sqlite3.Error) as error:
                if not self._failing:
                    text = "cannot write to %s: %s; until this works, events have no number, and counts stay in memory"
                    log.error(text, self.folder, error)
                self._failing = True
                return False
            if self._failing:
                log.info("state is written to %s again", self.folder)
            self._failing = False
        self._sync.request()
        return True

    def _commit(self, statements: Iterable[Statement]) -> None:
        execute, executemany = self._writer.execute, self._writer.executemany
        try:
            execute("BEGIN IMMEDIATE")
            for sql, rows in statements:
                executemany(sql, rows)
            execute("COMMIT")
        except BaseException:
            if self._writer.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    execute("ROLLBACK")
            raise

    # --- opening ------------------------------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        """Return a connection to a valid database. Replace a damaged database with an empty one."""
        try:
            return self._open_valid()
        except sqlite3.OperationalError:
            raise
        except (DamagedState, sqlite3.DatabaseError) as damage:
            self._set_aside(damage)
            return self._open_valid()

    def _open_valid(self) -> sqlite3.Connection:
        connection = self.connect()
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > _VERSION:
                text = f"{self.folder / _FILE} was written by a newer version of this program"
                hint = "install that version again, or use a different folder"
                raise ConfigError(text, hint=hint, code="state-version")
            if version == 0:
                connection.executescript(_SCHEMA)
            _verify(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _start_session(self, boot: str) -> None:
        """Record that a session is running. Skip event numbers if a power failure may have ended the last session."""
        ((last_boot, clean),) = self.query("SELECT boot, clean FROM session")
        if not clean and (not boot or boot != last_boot):
            self.events.newest += NUMBERS_SKIPPED
        self._commit([("UPDATE session SET boot = ?, clean = 0, newest = ?", [(boot, self.events.newest)])])

    def _set_aside(self, damage: Exception) -> None:
        for older in self.folder.glob("damaged-*"):
            shutil.rmtree(older, ignore_errors=True)
        aside = self.folder / f"damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        aside.mkdir(exist_ok=True)
        for path in self.folder.glob(f"{_FILE}*"):
            path.replace(aside / path.name)
        self.notice = f"the state in {self.folder} was damaged ({damage}): moved to {aside.name}; "
        self.notice += "events are stored in a new journal, and counters start at 0"
        log.error(self.notice)


def counter_statement(rows: Sequence[CounterRow]) -> Statement:
    """Return the statement that stores counters."""
    return "INSERT OR REPLACE INTO counters VALUES (?, ?, ?, ?, ?)", [(*row, counter_checksum(*row)) for row in rows]


class BackgroundSync:
    """Thread that forces the write-ahead log to disk, and regularly moves the log's content into the database."""

    def __init__(
        self, events: EventLog, connection: sqlite3.Connection, force: Callable[[], None], interval_s: float
    ) -> None:
        """Force the log to disk, then start the thread. Only this thread uses `connection`."""
        self.force = force
        self._events = events
        self._connection = connection
        self._interval_s = interval_s
        self._commits = 0  # since the last checkpoint
        self._failing = False
        self._requested, self._ending = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="state", daemon=True)
        self.force()
        self._thread.start()

    def request(self) -> None:
        """Make the thread force the latest commit to disk within the interval. Do not wait for it."""
        self._commits += 1
        self._requested.set()

    def stop(self) -> None:
        """End the thread, without forcing the latest commits to disk. Idempotent."""
        self._ending.set()
        self._requested.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._requested.wait()
            if self._ending.wait(self._interval_s):
                return
            self._requested.clear()
            unsynced = self._events.unsynced
            try:
                self.force()
                self._events.synced(unsynced)
                if self._commits >= _CHECKPOINT_COMMITS:  # move the log's pages into the database without blocking
                    self._commits = 0
                    self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                self._failing = False
            except (OSError, sqlite3.Error) as error:
                if not self._failing:
                    log.error("cannot force state to disk: %s", error)
                self._failing = True
                self._requested.set()


_SQLITE_REASONS: Final = {
    "database or disk is full": errno.ENOSPC,
    "disk I/O error": errno.EIO,
    "attempt to write a readonly database": errno.EACCES,
    "database is locked": errno.EBUSY,
}


def _os_error(error: Exception, folder: Path) -> OSError:
    """Return the system's error for an error of this module. SQLite hides the error of the system."""
    if isinstance(error, Unwritable) and isinstance(error.__cause__, OSError):
        return error.__cause__
    if isinstance(error, OSError):
        return error
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x" * 4096)
            probe.flush()
        os.close(os.open(folder / _FILE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as cause:
        return cause
    return OSError(_SQLITE_REASONS.get(str(error), 0), str(error))


def _verify(connection: sqlite3.Connection) -> None:
    """Check the structure and all rows of the database.

    Raises:
        DamagedState: a table or row is missing or wrong.
        sqlite3.DatabaseError: the file is not a readable database.
    """
    (result,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if result != "ok":
        raise DamagedState(result)
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not {"session", "events", "counters"} <= tables:
        raise DamagedState("a table is missing")
    if len(connection.execute("SELECT * FROM session").fetchall()) != 1:
        raise DamagedState("the session is missing")
    for number, payload, checksum in connection.execute("SELECT number, payload, checksum FROM events"):
        if number < 1 or checksum != event_checksum(number, payload):
            raise DamagedState(f"event {number} has a wrong checksum")
    for *row, checksum in connection.execute("SELECT camera, name, key, value, checksum FROM counters"):
        if checksum != counter_checksum(*row):
            raise DamagedState(f"the counter {row[2]} of {row[1]} has a wrong checksum")
