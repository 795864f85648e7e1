"""`StateDatabase`: what a deployment keeps over restarts, in one SQLite file.

The file is in WAL mode. A commit appends to the write-ahead log without waiting for the disk, so a process that is
killed loses nothing. A thread of the database forces the log to disk about once a second: forcing it for every event
would wear out a memory card and delay results. A power cut can therefore lose the last second, and numbers of lost
events are not given again: after a power cut numbers continue `NUMBERS_SKIPPED` higher.

===========================  =====================================================================
state.db, -wal, -shm         the database
lock                         locked by the process that uses the folder
damaged-<time>/              a database that could not be read; only the newest is kept
===========================  =====================================================================

docs/decisions/050-state-in-sqlite.md has the measurements and the reasons.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from vision.errors import Closed, ConfigError
from vision.state.counters import CameraCounters
from vision.state.events import NUMBERS_SKIPPED, EventLog
from vision.state.rows import SCHEMA, DamagedState, verify

log = logging.getLogger(__name__)

Statement: TypeAlias = tuple[str, Sequence[Sequence[Any]]]
"""SQL, and the parameters of each time that it runs."""

_FILE: Final = "state.db"
_VERSION: Final = 1  # of the schema
_CHECKPOINT_COMMITS: Final = 1000  # the first commit after a checkpoint waits for the disk once
_UNWRITABLE_HINT: Final = "make the folder writable for this user"


class StateDatabase:
    """The events and counters of one deployment. One thread writes, any thread reads.

    Attributes:
        notice: what an operator needs to know about the start, such as damage; None: nothing.
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
        now: Callable[[], float] = time.time,
    ) -> None:
        """Open the database, or create it. A damaged one is set aside.

        Args:
            folder: created if it does not exist.
            max_events: number of newest events that are kept, unless they exceed `max_bytes`.
            max_bytes: size limit of the kept events.
            boot: identifier of the machine's current boot. An empty one is unlike any other.
            sync_s: longest time until a commit is forced to disk.
            sync: forces the file with this descriptor to disk.
            now: seconds since 1970.

        Raises:
            ConfigError: the folder is not usable, or another process uses it.
        """
        self.folder = folder
        self.notice: str | None = None
        self._sync = sync
        self._write_lock = threading.Lock()
        self._failing = self._sync_failing = self._closed = False
        self._commits = 0  # since the last checkpoint
        self._counters: list[CameraCounters] = []
        with contextlib.ExitStack() as opened:
            opened.callback(os.close, _lock(folder))
            try:
                self._writer, power_cut = self._open(boot, now)
                opened.callback(self._writer.close)
                self.events = EventLog(self, max_events=max_events, max_bytes=max_bytes)
                self._start_session(boot, power_cut)
                self._wal = os.open(folder / f"{_FILE}-wal", os.O_RDONLY | os.O_CLOEXEC)
                opened.callback(os.close, self._wal)
                self._sync(self._wal)
                _sync_folder(folder)
            except (OSError, sqlite3.Error) as error:
                raise _unusable(folder, error) from error
            self._opened = opened.pop_all()
        self._dirty, self._ending = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._sync_regularly, args=(sync_s,), name="state", daemon=True)
        self._thread.start()

    def counters(self, camera_id: str) -> CameraCounters:
        """Return the counters of a camera."""
        counters = CameraCounters(self, camera_id)
        self._counters.append(counters)
        return counters

    def close(self) -> None:
        """Force everything to disk and mark the session as ended in order. Idempotent."""
        if self._closed:
            return
        for counters in self._counters:
            counters.flush()
        with self._write_lock:
            self._closed = True
        self._ending.set()
        self._dirty.set()
        self._thread.join()
        self.events.close()
        with contextlib.suppress(sqlite3.Error, OSError):
            self._commit([("UPDATE session SET clean = 1, newest = ?", [(self.events.newest,)])])
            self._sync(self._wal)
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._opened.close()

    # --- for events and counters --------------------------------------------------------------------------------------

    def connect(self) -> sqlite3.Connection:
        """Return a new connection."""
        return _connect(self.folder / _FILE)

    def query(self, sql: str, *parameters: Any) -> list[Any]:
        """Return the rows of a query, as the writing thread sees them."""
        return self._writer.execute(sql, parameters).fetchall()

    def write(self, statements: Iterable[Statement], *, sync_first: bool = False) -> bool:
        """Run statements as one transaction. Return False if the disk is full or not writable.

        The first failure is logged. Every later call tries again.

        Args:
            statements: SQL with its parameters.
            sync_first: force earlier commits to disk before this one.

        Raises:
            Closed: after `close`.
        """
        with self._write_lock:
            if self._closed:
                raise Closed("the state database is closed")
            try:
                if sync_first:
                    self._sync(self._wal)
                self._commit(statements)
            except (OSError, sqlite3.Error) as error:
                self._write_failed(error)
                return False
            if self._failing:
                log.info("state is written to %s again", self.folder)
            self._failing = False
        self._dirty.set()
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
        self._commits += 1

    def _write_failed(self, error: Exception) -> None:
        if not self._failing:
            log.error(
                "cannot write to %s: %s; events are published without a number, and counters go on in memory",
                self.folder,
                error,
            )
        self._failing = True

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _sync_regularly(self, interval_s: float) -> None:
        with contextlib.closing(self.connect()) as connection:
            while True:
                self._dirty.wait()
                if self._ending.wait(interval_s):
                    return
                self._dirty.clear()
                self._sync_once(connection)

    def _sync_once(self, connection: sqlite3.Connection) -> None:
        unsynced = self.events.unsynced
        try:
            self._sync(self._wal)
            self.events.synced(unsynced)
            if self._commits >= _CHECKPOINT_COMMITS:  # moves the log's pages into the database; no writer waits
                self._commits = 0
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            self._sync_failing = False
        except (OSError, sqlite3.Error) as error:
            if not self._sync_failing:
                log.error("cannot force state to disk in %s: %s", self.folder, error)
            self._sync_failing = True
            self._dirty.set()

    # --- opening ------------------------------------------------------------------------------------------------------

    def _open(self, boot: str, now: Callable[[], float]) -> tuple[sqlite3.Connection, bool]:
        """Return a connection to a valid database, and whether the machine lost its power since it was written."""
        try:
            connection = self._open_valid()
        except (DamagedState, sqlite3.DatabaseError) as damage:
            if isinstance(damage, sqlite3.OperationalError):
                raise
            self._set_aside(damage, now)
            connection = self._open_valid()
        (last_boot, clean), *_ = connection.execute("SELECT boot, clean FROM session").fetchall()
        return connection, not clean and (not boot or boot != last_boot)

    def _open_valid(self) -> sqlite3.Connection:
        connection = self.connect()
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > _VERSION:
                raise ConfigError(
                    f"{self.folder / _FILE} is of a newer version of this program",
                    hint="install that version again, or use another folder",
                    code="state-version",
                )
            if version == 0:
                connection.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
            verify(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _start_session(self, boot: str, power_cut: bool) -> None:
        if power_cut:
            self.events.skip(NUMBERS_SKIPPED)
        self._commit([("UPDATE session SET boot = ?, clean = 0, newest = ?", [(boot, self.events.newest)])])

    def _set_aside(self, damage: Exception, now: Callable[[], float]) -> None:
        for older in self.folder.glob("damaged-*"):
            shutil.rmtree(older, ignore_errors=True)
        aside = self.folder / f"damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now()))}"
        aside.mkdir(exist_ok=True)
        for path in self.folder.glob(f"{_FILE}*"):
            path.replace(aside / path.name)
        self.notice = (
            f"the state in {self.folder} was damaged ({damage}): moved to {aside.name}; events are kept in a new "
            "journal, and counters start at 0"
        )
        log.error(self.notice)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA page_size = 1024")  # small pages: less to write for each event
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")  # it would make the writer wait for the disk
    except BaseException:
        connection.close()
        raise
    return connection


def _lock(folder: Path) -> int:
    """Return the descriptor that holds the lock of a folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise _unusable(folder, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise ConfigError(
            f"the state in {folder} is in use by another process",
            hint="use one `state_dir` for each deployment, or stop the other process",
            code="state-in-use",
        ) from error
    return descriptor


def _unusable(folder: Path, error: Exception) -> ConfigError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return ConfigError(f"cannot keep state in {folder}: {reason}", hint=_UNWRITABLE_HINT, code="state-unwritable")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
