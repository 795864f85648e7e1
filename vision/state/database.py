"""`StateDatabase` stores the events and counters of a deployment in one SQLite file.

The file is in WAL mode. A commit appends to the write-ahead log without waiting for the disk. The system keeps this
data even if the process is killed. `BackgroundSync` forces the log to disk only about once per second, because doing so
for every event would wear out a memory card and delay results. Therefore, a power failure can cause the loss of the
events of the second before the failure. The numbers of lost events are not reused: after a power failure or a failure
of the disk, the program skips `NUMBERS_SKIPPED` numbers. The same transaction stores events and the counters that these
events changed.

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
from vision.state.background_sync import PAGE_BYTES, BackgroundSync
from vision.state.counters import CameraCounters, CounterRow, counter_checksum
from vision.state.events import NUMBERS_SKIPPED, EventLog, event_checksum
from vision.state.loss_mark import LossMark
from vision.state.placement import Placement
from vision.state.private_files import Held, Unwritable, locked, open_restricted, sync_folder
from vision.state.run_record import RUNS, RunRecord

log = logging.getLogger(__name__)

Statement: TypeAlias = tuple[str, Sequence[Sequence[Any]]]
"""An SQL statement, and the parameters of each of its executions."""

_FILE: Final = "state.db"
_VERSION: Final = 1  # version of the schema
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
_STATES: Final = """
CREATE TABLE IF NOT EXISTS states (state TEXT PRIMARY KEY, payload BLOB NOT NULL, checksum INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS held (state TEXT PRIMARY KEY, payload BLOB NOT NULL, checksum INTEGER NOT NULL)
    WITHOUT ROWID;
"""  # earlier databases of this version lack it


class DamagedState(Exception):
    """Error that is raised if the SQLite database with the events and counters is damaged."""


class StateDatabase:
    """The events and counters of one deployment. Only one thread may write. Any thread can read events.

    Attributes:
        folder: folder of the database.
        notice: message for the operator about a damaged database, or None if there is nothing to report.
        events: log of the numbered events.
        run: record of this run, and of the end of the previous run.
        placement: check that the database file is still at its path.
        is_failing: True if the most recent transaction failed, for example because the disk is full or read-only.
        defers_counters: if True, counters wait in memory for the transaction that stores the next events.
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
        marks: Path | None = None,
    ) -> None:
        """Open the database in `folder`. Create the folder and the database if necessary.

        Move a damaged database away, and create a new database.

        Args:
            max_events: number of newest events that are always kept, unless they exceed `max_bytes`.
            max_bytes: maximum total size of the stored events.
            boot: identifier of the machine's current boot. An empty string means that the boot is unknown.
            sync_s: maximum time in seconds until a commit is forced to disk.
            sync: function that forces the file of a descriptor to disk.
            marks: folder for the `LossMark` of the database, usually in memory.

        Raises:
            ConfigError: the folder is not writable, or contains a database from a newer version of the program.
            Unavailable: a different process uses the folder, or the disk is full or fails.
        """
        self.folder = folder
        self.notice: str | None = None
        self._write_lock = threading.Lock()
        self.defers_counters = False
        self.is_failing = self._closed = False
        self._counters: dict[str, CameraCounters] = {}
        self._pending: dict[tuple[str, str, str], int] = {}  # counters that wait for the events that changed them
        with contextlib.ExitStack() as opened:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                opened.enter_context(locked(folder / "lock", timeout_s=0))
                if not (folder / _FILE).exists():  # closing a database that is open would release SQLite's locks
                    os.close(open_restricted(folder / _FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC))
                self._writer = self._open()
                opened.callback(self._writer.close)
                self.events = EventLog(self, max_events=max_events, max_bytes=max_bytes)
                mark = LossMark(folder, marks)
                self._start_session(boot, is_lossy=mark.is_set())
                self.run = RunRecord(self, boot)
                self._sync = self._start_sync(opened, sync, sync_s, mark)
                sync_folder(folder)
                self.placement = Placement(folder / _FILE)
            except Held as error:
                text = f"the state in {folder} is in use by another process"
                hint = "use one `state_dir` for each deployment, or stop the other process"
                raise Unavailable(text, hint=hint, code="state-in-use") from error
            except (OSError, sqlite3.Error, Unwritable) as error:
                text, hint = f"cannot store state in {folder}", "make the folder writable for this user"
                raise from_os_error(text, _os_error(error, folder), hint=hint, code="state-unwritable") from error
            self._opened = opened.pop_all()

    def counters(self, camera_id: str) -> CameraCounters:
        """Return the counters of a camera, with their stored values. Subsequent calls return the same object."""
        if camera_id not in self._counters:
            self._counters[camera_id] = CameraCounters(self, camera_id)
        return self._counters[camera_id]

    def close(self) -> None:
        """Force all data to disk, and mark the session as ended normally, unless the disk fails. Idempotent.

        If the disk takes longer than 4 s, leave the database open, so that the background thread can finish, and the
        next start finds all data. If the database file was removed, restore it.
        """
        if self._closed:
            return
        for counters in self._counters.values():
            counters.flush()
        with contextlib.suppress(sqlite3.Error, OSError):
            last: list[Statement] = [("UPDATE session SET clean = 1, newest = ?", [(self.events.newest,)])]
            self._commit(last + self._pending_statements())
        with self._write_lock:
            self._closed = True
        self.events.close()
        if not self._sync.stop():
            log.warning("the disk of %s is slow: the state was written, but is not yet forced to disk", self.folder)
            _left_open.append(self._opened.pop_all())
            return
        with contextlib.suppress(sqlite3.Error):  # closing the last connection can write to the database
            self._writer.execute("PRAGMA synchronous = NORMAL")
        self.placement.restore(self._writer)
        self._opened.close()

    # --- for events and counters --------------------------------------------------------------------------------------

    def load_counters(self, camera_id: str) -> list[CounterRow]:
        """Return the stored counters of a camera. Only the writing thread may call this."""
        rows = self.query("SELECT camera, name, key, value FROM counters WHERE camera = ?", camera_id)
        return [(camera, name, key, value) for camera, name, key, value in rows]

    def store_counters(self, rows: Sequence[CounterRow]) -> bool:
        """Store counters. Return False if the disk is full or not writable. Raise `Closed` after `close`.

        If `defers_counters` is True, keep the counters in memory, and return True. The transaction of the next events
        stores the counters, because these events caused the changes. If no events follow, the next call to this method
        stores the counters.
        """
        if not self.defers_counters:
            return self.write([counter_statement(rows)])
        if self._pending:
            self.write(())
        self._pending.update({(camera, name, key): value for camera, name, key, value in rows})
        return True

    def _pending_statements(self) -> list[Statement]:
        rows = [(*place, value) for place, value in self._pending.items()]
        return [counter_statement(rows)] if rows else []

    def connect(self) -> sqlite3.Connection:
        """Return a new connection to the database. The caller must close the connection.

        Raise `sqlite3.Error` if the database cannot be opened.
        """
        connection = sqlite3.connect(self.folder / _FILE, isolation_level=None, check_same_thread=False)
        try:
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # small pages, so that an event writes less data
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = OFF")  # `BackgroundSync` forces the log to disk
            connection.execute("PRAGMA wal_autocheckpoint = 0")  # a checkpoint would make the writer wait for the disk
        except BaseException:
            connection.close()
            raise
        return connection

    def query(self, sql: str, *parameters: Any) -> list[Any]:
        """Run a query on the connection that writes, and return all rows. Only the writing thread may call this.

        Raises:
            sqlite3.Error: the database cannot be read, or is damaged.
        """
        return self._writer.execute(sql, parameters).fetchall()

    def write(self, statements: Iterable[Statement], *, urgent: bool = False, counters: bool = True) -> bool:
        """Run `statements` as one transaction. Return False if the disk is not writable.

        The transaction also stores the counters that wait, unless `counters` is False. If `urgent` is True, the
        background thread forces the commit to disk without delay. If several calls in a row fail, log only the first
        failure.

        Raises:
            Closed: the database was closed.
        """
        with self._write_lock:
            if self._closed:
                raise Closed("the state database is closed")
            try:
                self.placement.check()
                self._commit([*statements, *(self._pending_statements() if counters else ())])
                if counters:
                    self._pending.clear()
            except (OSError, sqlite3.Error) as error:
                if not self.is_failing:
                    text = "cannot write to %s: %s; until this works, events have no number, and counts stay in memory"
                    log.error(text, self.folder, error)
                self.is_failing = True
                return False
            if self.is_failing:
                log.info("state is written to %s again", self.folder)
            self.is_failing = False
            self._sync.request(urgent=urgent)
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
            connection.executescript(_STATES)
            connection.execute(RUNS)
        except BaseException:
            connection.close()
            raise
        return connection

    def _start_session(self, boot: str, *, is_lossy: bool) -> None:
        """Record that the program now uses the database. Skip event numbers if the newest events may be lost.

        Events may be lost if a power failure may have ended the previous use, or if `is_lossy` is True.
        """
        ((last_boot, clean),) = self.query("SELECT boot, clean FROM session")
        if is_lossy or (not clean and (not boot or boot != last_boot)):
            self.events.newest += NUMBERS_SKIPPED
        self._commit([("UPDATE session SET boot = ?, clean = 0, newest = ?", [(boot, self.events.newest)])])

    def _start_sync(
        self, opened: contextlib.ExitStack, sync: Callable[[int], None], sync_s: float, mark: LossMark
    ) -> BackgroundSync:
        """Start the thread that forces commits to disk. `opened` ends the thread, and then closes its resources."""
        wal = os.open(self.folder / f"{_FILE}-wal", os.O_RDONLY | os.O_CLOEXEC)
        opened.callback(os.close, wal)
        connections = [opened.enter_context(contextlib.closing(self.connect())) for _ in range(2)]
        connections[0].execute("PRAGMA synchronous = NORMAL")
        background = BackgroundSync(
            self.events,
            *connections,
            force=partial(sync, wal),
            interval_s=sync_s,
            write_lock=self._write_lock,
            mark=mark,
        )
        opened.callback(background.stop)
        return background

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


def open_for_reading(folder: Path) -> sqlite3.Connection:
    """Return a read-only connection to the database of a running program. The caller must close the connection soon.

    Raises:
        sqlite3.Error: there is no database, or it cannot be read.
    """
    return sqlite3.connect(f"{(folder / _FILE).absolute().as_uri()}?mode=ro", uri=True)


def counter_statement(rows: Sequence[CounterRow]) -> Statement:
    """Return the statement that stores `rows`, each with its checksum."""
    return "INSERT OR REPLACE INTO counters VALUES (?, ?, ?, ?, ?)", [(*row, counter_checksum(*row)) for row in rows]


_left_open: list[contextlib.ExitStack] = []  # databases that `close` left to their threads


_SQLITE_REASONS: Final = {
    "database or disk is full": errno.ENOSPC,
    "disk I/O error": errno.EIO,
    "attempt to write a readonly database": errno.EACCES,
    "database is locked": errno.EBUSY,
}


def _os_error(error: Exception, folder: Path) -> OSError:
    """Return the system's error that caused `error`.

    SQLite does not report this error. Therefore, reproduce it: write to the folder, and open the database.
    """
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
    """Check the structure of the database, and the checksums of all events and counters.

    Raises:
        DamagedState: a table or a row is missing or invalid.
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
