"""`RecordingIndex` is the SQLite database that lists all recorded files and the events that they show.

The database is in WAL mode, so a process that is killed does not damage it. The program lists a file before it creates
the file, and deletes a file before it removes the entry. A crash therefore leaves at most entries without a file, and
entries in the state `writing`. `vision.outputs.recording.repair` corrects both.

A *recording* is a clip, or a period of continuous recording. It consists of one or several files. For example, a new
file starts after the camera has reconnected.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from vision.errors import ConfigError, from_os_error
from vision.state.private_files import open_restricted

FILE: Final = "recordings.db"
"""Name of the database in `state_dir`."""

Kind: TypeAlias = Literal["clip", "continuous"]

_VERSION: Final = 1
_BUSY_S: Final = 10.0
_SCHEMA: Final = f"""
BEGIN;
CREATE TABLE recordings (id INTEGER PRIMARY KEY AUTOINCREMENT, camera TEXT NOT NULL, kind TEXT NOT NULL);
CREATE TABLE files (id INTEGER PRIMARY KEY, recording INTEGER NOT NULL REFERENCES recordings (id),
    name TEXT NOT NULL UNIQUE, start_utc_ns INTEGER NOT NULL, end_utc_ns INTEGER NOT NULL, bytes INTEGER NOT NULL,
    frames INTEGER NOT NULL, lost INTEGER NOT NULL, state TEXT NOT NULL);
CREATE TABLE events (recording INTEGER NOT NULL REFERENCES recordings (id), journal TEXT, number INTEGER,
    at TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL);
CREATE INDEX files_by_start ON files (start_utc_ns);
CREATE INDEX files_by_recording ON files (recording);
CREATE INDEX events_by_recording ON events (recording);
PRAGMA user_version = {_VERSION};
COMMIT;
"""
_TABLES: Final = {"recordings", "files", "events"}


@dataclass(frozen=True, slots=True)
class RecordedFile:
    """Entry of the index about one file: the recording to which the file belongs, its times, size, and state."""

    recording: int
    name: str  # path relative to the folder of the recordings
    start_utc_ns: int  # arrival time of its first frame
    end_utc_ns: int  # arrival time of its last frame
    nbytes: int
    frames: int
    lost: int  # packets that are missing from the file
    state: Literal["writing", "complete"] = "complete"


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """An event that a clip shows. `journal` and `number` are None if the event is not in the journal."""

    journal: str | None
    number: int | None
    at: str  # RFC 3339
    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording with all its files, oldest first, and its events."""

    id: int
    camera: str
    kind: Kind
    files: tuple[RecordedFile, ...]
    events: tuple[RecordedEvent, ...]


class DamagedIndex(Exception):
    """Error that is raised if the SQLite database of the index is damaged."""


class RecordingIndex:
    """The index of one deployment. Not thread-safe. Only one process may write, but any process can read."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        """Open the index in `folder`, the `state_dir`. Create a missing index, unless `read_only` is True.

        Raises:
            DamagedIndex: the database is damaged.
            ConfigError: the database was written by a newer version of the program.
            FileNotFoundError: `read_only` is True, and the index does not exist or is just being created.
            OSError, sqlite3.OperationalError: the index cannot be opened.
        """
        self.path = folder / FILE
        if not read_only:
            folder.mkdir(parents=True, exist_ok=True)
            os.close(open_restricted(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC))
        elif not self.path.exists():
            raise FileNotFoundError(self.path)
        self._connection = sqlite3.connect(self.path, isolation_level=None, timeout=_BUSY_S)
        try:
            self._prepare(read_only=read_only)
        except sqlite3.OperationalError:
            self._connection.close()
            raise
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise DamagedIndex(str(error)) from error
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self, *, read_only: bool) -> None:
        if read_only:
            self._connection.execute("PRAGMA query_only = ON")
        else:
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            text = f"{self.path} was written by a newer version of this program"
            raise ConfigError(text, hint="install that version again", code="state-version")
        if version == 0 and read_only:
            raise FileNotFoundError(self.path)  # a program is just creating it
        if version == 0:
            self._connection.executescript(_SCHEMA)
        (result,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        if result != "ok":
            raise DamagedIndex(result)
        rows = self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        if not {name for (name,) in rows} >= _TABLES:
            raise DamagedIndex("a table is missing")

    def close(self) -> None:
        """Close the database. Idempotent."""
        self._connection.close()

    # --- writing ------------------------------------------------------------------------------------------------------

    def add_recording(self, camera: str, kind: Kind) -> int:
        """Add a recording without files. Return its number."""
        cursor = self._connection.execute("INSERT INTO recordings (camera, kind) VALUES (?, ?)", (camera, kind))
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def put_file(self, file: RecordedFile) -> None:
        """Add a file to the index, or replace the entry with the same name."""
        self._connection.execute(
            "INSERT INTO files (recording, name, start_utc_ns, end_utc_ns, bytes, frames, lost, state)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET start_utc_ns = excluded.start_utc_ns,"
            " end_utc_ns = excluded.end_utc_ns, bytes = excluded.bytes, frames = excluded.frames,"
            " lost = excluded.lost, state = excluded.state",
            (
                file.recording,
                file.name,
                file.start_utc_ns,
                file.end_utc_ns,
                file.nbytes,
                file.frames,
                file.lost,
                file.state,
            ),
        )

    def add_event(self, recording: int, event: RecordedEvent) -> None:
        """Add an event to a recording."""
        row = (recording, event.journal, event.number, event.at, event.kind, event.name)
        self._connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", row)

    def remove_file(self, name: str) -> None:
        """Remove the entry of a file. If its recording has no other files, also remove the recording."""
        with self._transaction():
            found = self._connection.execute("SELECT recording FROM files WHERE name = ?", (name,)).fetchone()
            self._connection.execute("DELETE FROM files WHERE name = ?", (name,))
            if found is not None:
                self._remove_if_empty(found[0])

    def remove_empty_recordings(self) -> None:
        """Remove all recordings without files."""
        sql = "SELECT id FROM recordings WHERE id NOT IN (SELECT recording FROM files)"
        for (number,) in self._connection.execute(sql).fetchall():
            self.remove_if_empty(number)

    def remove_if_empty(self, recording: int) -> None:
        """Remove a recording if it has no files."""
        with self._transaction():
            self._remove_if_empty(recording)

    def _remove_if_empty(self, recording: int) -> None:
        if self._connection.execute("SELECT 1 FROM files WHERE recording = ?", (recording,)).fetchone() is None:
            self._connection.execute("DELETE FROM events WHERE recording = ?", (recording,))
            self._connection.execute("DELETE FROM recordings WHERE id = ?", (recording,))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    # --- reading ------------------------------------------------------------------------------------------------------

    def files(self) -> list[RecordedFile]:
        """Return all files, oldest first."""
        rows = self._connection.execute(f"SELECT {_FILE_COLUMNS} FROM files ORDER BY start_utc_ns, id")
        return [RecordedFile(*row) for row in rows]

    def oldest_complete(self) -> RecordedFile | None:
        """Return the oldest file that is not being written. Return None if there is no such file."""
        sql = f"SELECT {_FILE_COLUMNS} FROM files WHERE state = 'complete' ORDER BY start_utc_ns, id LIMIT 1"
        row = self._connection.execute(sql).fetchone()
        return None if row is None else RecordedFile(*row)

    def complete_bytes(self) -> int:
        """Return the total size of the files that are not being written."""
        sql = "SELECT coalesce(sum(bytes), 0) FROM files WHERE state = 'complete'"
        return int(self._connection.execute(sql).fetchone()[0])

    def recordings(self, camera: str | None = None, since_utc_ns: int = 0) -> list[Recording]:
        """Return the recordings that end at or after a time, oldest first. If `camera` is None, include all cameras."""
        found = self._connection.execute(
            "SELECT recordings.id, camera, kind FROM recordings JOIN files ON files.recording = recordings.id"
            " WHERE (? IS NULL OR camera = ?) GROUP BY recordings.id HAVING max(end_utc_ns) >= ?"
            " ORDER BY min(start_utc_ns), recordings.id",
            (camera, camera, since_utc_ns),
        ).fetchall()
        return [self._recording(*row) for row in found]

    def file_named(self, name: str) -> RecordedFile | None:
        """Return the file with this name. Return None if the index contains no such file."""
        row = self._connection.execute(f"SELECT {_FILE_COLUMNS} FROM files WHERE name = ?", (name,)).fetchone()
        return None if row is None else RecordedFile(*row)

    def file_at(self, camera: str, at_utc_ns: int) -> RecordedFile | None:
        """Return a file that shows a camera at a time. Prefer a clip. Return None if no file shows this time."""
        columns = ", ".join(f"files.{name}" for name in _FILE_COLUMNS.split(", "))
        sql = f"SELECT {columns} FROM files JOIN recordings ON files.recording = recordings.id"
        sql += " WHERE camera = ? AND start_utc_ns <= ? AND end_utc_ns >= ? ORDER BY kind = 'clip' DESC, start_utc_ns"
        row = self._connection.execute(f"{sql} LIMIT 1", (camera, at_utc_ns, at_utc_ns)).fetchone()
        return None if row is None else RecordedFile(*row)

    def _recording(self, number: int, camera: str, kind: Kind) -> Recording:
        def rows(columns: str, table: str, order: str) -> list[Any]:
            sql = f"SELECT {columns} FROM {table} WHERE recording = ? ORDER BY {order}"
            return self._connection.execute(sql, (number,)).fetchall()

        files = tuple(RecordedFile(*row) for row in rows(_FILE_COLUMNS, "files", "start_utc_ns, id"))
        events = tuple(RecordedEvent(*row) for row in rows("journal, number, at, kind, name", "events", "at, rowid"))
        return Recording(number, camera, kind, files, events)


_FILE_COLUMNS: Final = "recording, name, start_utc_ns, end_utc_ns, bytes, frames, lost, state"


def set_aside(folder: Path) -> Path:
    """Rename a damaged index, so that a new index can be created. Return the new path of the damaged index."""
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    for suffix in ("-wal", "-shm"):
        (folder / f"{FILE}{suffix}").unlink(missing_ok=True)
    target = folder / f"{FILE}.damaged-{moment}"
    (folder / FILE).replace(target)
    return target


def open_for_reading(folder: Path) -> RecordingIndex:
    """Open the index in `folder` for a command that only reads. The caller closes the index.

    Raises:
        ConfigError: there is no index, it is damaged, or this user cannot read it.
        Unavailable: the index cannot be read at present.
    """
    try:
        return RecordingIndex(folder, read_only=True)
    except FileNotFoundError:
        text = f"nothing has been recorded in {folder}"
        raise ConfigError(text, hint="`vision run` creates the index when it starts", code="no-recordings") from None
    except DamagedIndex as error:
        text, hint = f"the index of the recordings in {folder} is damaged: {error}", "run `vision verify --repair`"
        raise ConfigError(text, hint=hint, code="index-damaged") from None
    except (OSError, sqlite3.OperationalError) as error:
        cause = error if isinstance(error, OSError) else OSError(0, str(error))
        hint = "run the command as the user of `vision run`"
        raise from_os_error(f"cannot read {folder / FILE}", cause, hint=hint, code="index-unreadable") from error
