"""Functions that read the rows of the live database as tables, and `LivePart`, which reads the rows hour by hour.

Rows of SQLite are Python objects, which need several times the memory of a table. Therefore, these functions convert
rows in batches.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vision.errors import ConfigError
from vision.outputs.archive.live import LIVE_NAME, connect
from vision.outputs.archive.parts import Part
from vision.outputs.archive.tables import COLUMNS, HOUR_US, SCHEMAS, ArchiveFile, Table, archive_files, day_of

TIME_COLUMN: Final[Mapping[Table, str]] = {
    "frames": "captured_at",
    "events": "at_utc",
    "counts": "at_utc",
    "gaps": "at_utc",
}
"""The column with the time of each row. The rows of `tracks` have no time."""

ATTEMPTS: Final = 6
"""Number of attempts to read the archive while rows are moved from the database to files."""

_BATCH_ROWS: Final = 10_000
_FIRST_PAUSE_S: Final = 0.02


def attempts() -> Iterator[int]:
    """Yield the number of each attempt, from 0 to `ATTEMPTS` - 1. Pause before each retry, each time longer."""
    for number in range(ATTEMPTS):
        if number:
            time.sleep(_FIRST_PAUSE_S * 2**number)
        yield number


def read_live(connection: sqlite3.Connection, table: Table, camera: str, start_us: int, end_us: int) -> pa.Table:
    """Return the rows of one camera at or after `start_us` and before `end_us` (microseconds since 1970, UTC).

    The rows have the same columns and the same order as in the files of the archive.
    """
    limits = camera, start_us, end_us
    if table == "tracks":
        rows = "FROM frames f JOIN tracks USING (camera, frame_id) "
        rows += "WHERE f.camera = ? AND f.captured_at >= ? AND f.captured_at < ?"
        return _in_track_order(_read(connection, table, [*COLUMNS[table]], rows, limits))
    order, at = "frame_id" if table == "frames" else "rowid", TIME_COLUMN[table]
    rows = f"FROM {table} WHERE camera = ? AND {at} >= ? AND {at} < ? ORDER BY {order}"
    return _read(connection, table, [*COLUMNS[table]], rows, limits)


@contextmanager
def live_database(folder: Path) -> Iterator[sqlite3.Connection]:
    """Open the live database of an archive. Errors of SQLite become a `ConfigError`."""
    try:
        with closing(connect(folder)) as connection:
            yield connection
    except sqlite3.Error as error:
        raise ConfigError(f"{folder / LIVE_NAME}: {error}", code="archive-unreadable") from error


def has_table(connection: sqlite3.Connection, table: str) -> bool:
    """Return True if a table exists. The table is missing if the writer has just created the database."""
    return connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [table]).fetchone() is not None


def is_moving(folder: Path) -> bool:
    """Return True if rows are being moved to files. Some rows may then be in neither the database nor a file."""
    if not (folder / LIVE_NAME).exists():
        return False
    with live_database(folder) as connection:
        return has_table(connection, "moves") and bool(connection.execute("SELECT 1 FROM moves").fetchone())


class LiveHour(NamedTuple):
    """One hour of frames and tracks that were in the live database: start, range of frame ids, and numbers of rows."""

    start_us: int  # microseconds since 1970 (UTC)
    first: int  # lowest `frame_id`
    last: int  # highest `frame_id`
    frames: int  # number of frames
    objects: int  # number of rows of `tracks`


class LivePart:
    """The frames and the tracks of one camera that were in the live database when `find` was called.

    Each method opens the database for a short time. If rows have been moved to files since `find`, the methods read
    these files. Therefore, a long evaluation neither blocks the database nor misses rows.
    """

    def __init__(self, folder: Path, camera: str, since_us: int, until_us: int) -> None:
        """Select the frames at or after `since_us` and before `until_us` (microseconds since 1970, UTC)."""
        self._folder = folder
        self._camera = camera
        self._since_us, self._until_us = since_us, until_us
        self._known: frozenset[Path] = frozenset()
        self.hours: list[LiveHour] = []

    def find(self) -> bool:
        """Find the hours that have frames in the time range.

        Return False if rows are being moved to files (`is_moving`).
        """
        self.hours = []
        self._known = frozenset(file.path for file in self._files())
        if not (self._folder / LIVE_NAME).exists():
            return True
        with live_database(self._folder) as connection:
            if has_table(connection, "frames"):
                query = f"SELECT captured_at / {HOUR_US}, min(frame_id), max(frame_id), count(*), sum(objects) "
                query += "FROM frames WHERE camera = ? AND captured_at >= ? AND captured_at < ? GROUP BY 1 ORDER BY 1"
                rows = connection.execute(query, [self._camera, self._since_us, self._until_us])
                self.hours = [LiveHour(hour * HOUR_US, *values) for hour, *values in rows]
        return not is_moving(self._folder)

    def class_names(self) -> dict[int, str]:
        """Return the name of each class of the tracks, by class id."""
        names: dict[int, str] = {}
        for hour in self.hours:
            with live_database(self._folder) as connection:
                query = "SELECT DISTINCT class_id, class FROM tracks WHERE camera = ? AND frame_id BETWEEN ? AND ?"
                names |= dict(connection.execute(query, [self._camera, hour.first, hour.last]).fetchall())
            for part in self._new_parts("tracks", [hour]):
                pairs = part.between(hour.first, hour.last, ["frame_id", "class", "class_id"])
                names |= class_names(pairs)
        return names

    def read(self, number: int) -> pa.Table:
        """Return the frames of the hour with the index `number`, sorted by `frame_id`.

        Raises:
            ConfigError: the database or a file cannot be read.
        """
        hour = self.hours[number]
        since_us, until_us = max(self._since_us, hour.start_us), min(self._until_us, hour.start_us + HOUR_US)
        rows = "FROM frames WHERE camera = ? AND frame_id BETWEEN ? AND ? AND captured_at >= ? AND captured_at < ? "
        limits = self._camera, hour.first, hour.last, since_us, until_us

        def found() -> pa.Table:
            with live_database(self._folder) as connection:
                live = _read(connection, "frames", [*COLUMNS["frames"]], rows + "ORDER BY frame_id", limits)
            if live.num_rows == hour.frames:
                return live
            at = pc.field("captured_at").cast(pa.int64())
            moved = [part.between(hour.first, hour.last, None) for part in self._new_parts("frames", [hour])]
            wanted = [each.filter((at >= since_us) & (at < until_us)) for each in moved]
            return pa.concat_tables([live, *wanted]).sort_by("frame_id")

        return _complete(found, hour.frames)

    def between(self, first: int, last: int, columns: Sequence[str] | None) -> pa.Table:
        """Return the tracks whose `frame_id` is from `first` to `last`, inclusive, in the order of the files.

        `first` is the first frame id of an hour in `hours`, and `last` is the last frame id of the same or a later
        hour. If `columns` is None, return all columns.

        Raises:
            ConfigError: the database or a file cannot be read.
        """
        hours = [number for number, hour in enumerate(self.hours) if first <= hour.first and hour.last <= last]
        expected, limits = sum(self.hours[number].objects for number in hours), (self._camera, first, last)
        wanted = [*COLUMNS["tracks"]] if columns is None else [*columns]
        needed = [*dict.fromkeys([*wanted, "frame_id", "track_id", "order_shift"])]

        def found() -> pa.Table:
            with live_database(self._folder) as connection:
                rows = "FROM tracks WHERE camera = ? AND frame_id BETWEEN ? AND ?"
                live = _in_track_order(_read(connection, "tracks", needed, rows, limits))
            if live.num_rows == expected:
                return live
            frames = pa.concat_tables([self.read(number) for number in hours])["frame_id"]
            moved = [part.between(first, last, needed) for part in self._new_parts("tracks", self.hours)]
            tracks = pa.concat_tables([live, *moved])
            return tracks.filter(pc.is_in(tracks["frame_id"], frames.combine_chunks())).sort_by(
                [("track_id", "ascending"), ("frame_id", "ascending")]
            )

        return _complete(found, expected).select(wanted)

    def _files(self, table: Table | None = None) -> list[ArchiveFile]:
        return archive_files(self._folder, table, self._camera)

    def _new_parts(self, table: Table, hours: Sequence[LiveHour]) -> list[Part]:
        """Return the files of `table` that were created since `find`, and that can contain rows of `hours`."""
        days = {day_of(hour.start_us) for hour in hours}
        new = [file for file in self._files(table) if file.path not in self._known and file.day in days]
        return [Part(file.path.name, table, file.path, None) for file in new]


def class_names(tracks: pa.Table) -> dict[int, str]:
    """Return the name of each class of the rows of `tracks`, by class id."""
    pairs = tracks.select(["class", "class_id"]).group_by(["class", "class_id"]).aggregate([]).to_pylist()
    return {pair["class_id"]: pair["class"] for pair in pairs}


def _complete(found: Callable[[], pa.Table], expected: int) -> pa.Table:
    """Call `found`, which reads a table, until the table has `expected` rows. Return this table.

    Rows can be missing while they are moved to files. After `ATTEMPTS` calls, return the last table.
    """
    for _ in attempts():
        table = found()
        if table.num_rows == expected:
            break
    return table


def _read(
    connection: sqlite3.Connection, table: Table, columns: Sequence[str], rows: str, values: Sequence[Any]
) -> pa.Table:
    """Return `columns` of the rows that the SQL clause `rows` selects with the parameters `values`."""
    schema = pa.schema([SCHEMAS[table].field(name) for name in columns])
    names = [f'"{"position" if name == "order_shift" else name}"' for name in columns]
    cursor, batches = connection.execute(f"SELECT {', '.join(names)} {rows}", values), list[pa.RecordBatch]()
    while found := cursor.fetchmany(_BATCH_ROWS):
        arrays = [pa.array(column, kind) for column, kind in zip(zip(*found, strict=True), schema.types, strict=True)]
        batches.append(pa.record_batch(arrays, schema=schema))
    return pa.Table.from_batches(batches, schema).unify_dictionaries().combine_chunks()


def _in_track_order(rows: pa.Table) -> pa.Table:
    """Sort rows of `tracks` by track and frame, and compute `order_shift` (docs/archive.md).

    In `rows`, the column `order_shift` contains the position of the track in its frame.
    """
    frame_ids, track_ids, positions = (
        rows[name].to_numpy().astype(np.int64) for name in ("frame_id", "track_id", "order_shift")
    )
    by_frame = np.lexsort((track_ids, frame_ids))
    starts = np.flatnonzero(np.diff(frame_ids[by_frame], prepend=-1))
    rank = np.arange(len(by_frame)) - np.repeat(starts, np.diff(starts, append=len(by_frame)))
    shift = np.empty(len(by_frame), np.int16)
    shift[by_frame] = positions[by_frame] - rank
    at = rows.schema.get_field_index("order_shift")
    return rows.set_column(at, rows.schema.field(at), pa.array(shift)).take(np.lexsort((frame_ids, track_ids)))
