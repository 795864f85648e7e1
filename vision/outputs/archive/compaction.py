"""Functions that move rows from the live database to Parquet files, and delete old days.

A file that contains one hour of a camera is called a *part*. After the end of a day, its parts are joined into one day
file. A crash at any time neither loses nor duplicates rows:

* One transaction deletes the rows of an hour from the database, and lists the parts that contain these rows. Only after
  this transaction do the parts get their final names.
* The metadata of a day file lists the parts that the file contains. If a crash has left such a part behind, the next
  compaction deletes it.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from vision.errors import VisionError
from vision.outputs.archive.live import connect
from vision.outputs.archive.live_rows import TIME_COLUMN, read_live
from vision.outputs.archive.tables import (
    DAY_US,
    FORMAT,
    HOUR_US,
    SCHEMAS,
    ArchiveFile,
    Table,
    archive_files,
    camera_folder,
    day_of,
    parquet_options,
)
from vision.state.free_space import FreeSpace
from vision.state.private_files import Held, locked, sync_folder

LATE_US: Final = 120_000_000
"""Delay in microseconds between the end of an hour or a day and the move of its rows, because messages can be late."""

_PARTS: Final = b"vision.parts"


def compact(folder: Path, now_us: int, *, keep_days: int, max_mb: int) -> None:
    """Move the rows of completed hours to files, join the files of completed days, and delete old days.

    Do nothing if a different process is compacting this archive.

    Args:
        folder: folder of the archive.
        now_us: current time, microseconds since 1970 (UTC).
        keep_days: number of days to keep.
        max_mb: maximum total size of the files, in MB.
    """
    with suppress(Held), locked(folder / "compaction.lock", timeout_s=0):
        with closing(connect(folder)) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS moves (path TEXT)")
            _finish_moves(connection, folder)
            for path in folder.glob("*/*/*.tmp"):
                path.unlink()
            for file in archive_files(folder):
                if file.is_final:
                    _delete_parts(file)
            _move_hours(connection, folder, now_us - LATE_US)
        _join_days(folder, now_us - LATE_US)
        delete_old(folder, now_us, keep_days=keep_days, max_mb=max_mb)


# --- hours ------------------------------------------------------------------------------------------------------------


def _move_hours(connection: sqlite3.Connection, folder: Path, now_us: int) -> None:
    """Move the rows of each hour that ended before `now_us` from the database to Parquet files."""
    hours = set()
    for table, column in TIME_COLUMN.items():
        query = f"SELECT DISTINCT camera, {column} / {HOUR_US} FROM {table} WHERE {column} < ?"
        hours |= {*connection.execute(query, [now_us // HOUR_US * HOUR_US])}
    for camera, hour in sorted(hours):
        _move_hour(connection, folder, camera, hour * HOUR_US)


def _move_hour(connection: sqlite3.Connection, folder: Path, camera: str, start_us: int) -> None:
    """Write the rows of one camera and one hour to files. Then delete these rows from the database."""
    written: list[Path] = []
    limits = (camera, start_us, start_us + HOUR_US)
    for table in SCHEMAS:
        rows = read_live(connection, table, *limits)
        if rows.num_rows:
            target = _part_path(folder, table, camera, start_us)
            write_parquet(target, table, [rows], is_final=False)
            written.append(target)
    with connection:
        connection.executemany("INSERT INTO moves VALUES (?)", [(str(path.relative_to(folder)),) for path in written])
        where = "camera = ? AND captured_at >= ? AND captured_at < ?"
        frames = f"SELECT frame_id FROM frames WHERE {where}"
        connection.execute(f"DELETE FROM tracks WHERE camera = ? AND frame_id IN ({frames})", (camera, *limits))
        for table, column in TIME_COLUMN.items():
            connection.execute(f"DELETE FROM {table} WHERE {where.replace('captured_at', column)}", limits)
    _finish_moves(connection, folder)


def _finish_moves(connection: sqlite3.Connection, folder: Path) -> None:
    """Give the listed Parquet files their final names.

    The files are in the table `moves`, because their rows were deleted from the database.
    """
    for (name,) in connection.execute("SELECT path FROM moves").fetchall():
        _give_name(folder / name)
    with connection:
        connection.execute("DELETE FROM moves")


def _part_path(folder: Path, table: Table, camera: str, start_us: int) -> Path:
    """Return a new path for the Parquet file of one camera and one hour.

    If this hour already has a file, because rows arrived late, the new name contains a number.
    """
    hour = datetime.fromtimestamp(start_us // 1_000_000, timezone.utc).strftime("%Y-%m-%dT%H")
    base = camera_folder(folder, table, camera)
    path, number = base / f"{hour}.parquet", 1
    while path.exists():
        number += 1
        path = base / f"{hour}-{number}.parquet"
    return path


# --- days -------------------------------------------------------------------------------------------------------------


def _join_days(folder: Path, now_us: int) -> None:
    """Join the hourly files of each camera and day into one file, for days that ended before `now_us`."""
    days: dict[tuple[Table, str, str], list[ArchiveFile]] = {}
    for file in archive_files(folder):
        if file.start_us + DAY_US <= now_us:
            days.setdefault((file.table, file.camera, file.day), []).append(file)
    for (table, camera, day), files in days.items():
        if not all(file.is_final for file in files):
            parts = [pq.read_table(file.path, partitioning=None) for file in files]
            if table not in ("frames", "tracks"):  # `Archive` reads these two by the hour
                parts = [pa.concat_tables([part.replace_schema_metadata(None) for part in parts])]
            names = [file.path.name for file in files if not file.is_final]
            target = camera_folder(folder, table, camera) / f"{day}.parquet"
            write_parquet(target, table, parts, is_final=True, parts=names)
            _give_name(target)
            for file in files:
                if not file.is_final:
                    file.path.unlink()


def _delete_parts(file: ArchiveFile) -> None:
    """Delete the hourly files whose rows the day file `file` contains, if a crash has left such files behind."""
    metadata = pq.read_metadata(file.path).metadata or {}
    for name in json.loads(metadata.get(_PARTS, b"[]")):
        (file.path.parent / name).unlink(missing_ok=True)


def write_parquet(
    path: Path, table: Table, groups: Sequence[pa.Table], *, is_final: bool, parts: Sequence[str] = ()
) -> None:
    """Write a file with one row group per table in `groups`, and force it to disk. The file name ends in ``.tmp``.

    Args:
        path: path of the file after `_give_name` has renamed it. The folder is created if it is missing.
        table: name of the table.
        groups: rows of each row group.
        is_final: see `parquet_options`.
        parts: names of the files that the new file replaces.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {b"vision.archive": FORMAT.encode(), _PARTS: json.dumps(list(parts)).encode()}
    schema = SCHEMAS[table].with_metadata(metadata)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        with pq.ParquetWriter(file, schema, **parquet_options(table, is_final=is_final)) as writer:
            for group in groups:
                writer.write_table(group.cast(SCHEMAS[table]).replace_schema_metadata(metadata), group.num_rows or 1)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def _give_name(path: Path) -> None:
    """Rename a complete file from ``*.tmp`` to `path`. Do nothing if the file already has this name."""
    with suppress(FileNotFoundError):
        path.with_suffix(".tmp").rename(path)
    sync_folder(path.parent)


# --- retention --------------------------------------------------------------------------------------------------------


def delete_old(folder: Path, now_us: int, *, keep_days: int, max_mb: int) -> None:
    """Delete days that are older than `keep_days`. Then delete the oldest days while the files need too much space.

    The files need too much space if they are larger than `max_mb` in total, or if the free space of the disk is below
    its reserve (`FreeSpace`). Files of the current day are not deleted.
    """
    files, disk = archive_files(folder), FreeSpace(folder)
    sizes = {file.path: file.path.stat().st_size for file in files}
    total, oldest = sum(sizes.values()), day_of(now_us - keep_days * DAY_US)
    for day in sorted({file.day for file in files if file.day < day_of(now_us)}):
        if day >= oldest and total <= max_mb * 1_000_000 and not disk.is_low(now=True):
            break
        for file in files:
            if file.day == day:
                file.path.unlink()
                total -= sizes[file.path]


def main() -> None:
    """Compact an archive. The last command-line argument is a JSON object with the folder and limits of the archive."""
    os.nice(10)
    options = json.loads(sys.argv[-1])
    limits = {"keep_days": options["keep_days"], "max_mb": options["max_mb"]}
    try:
        compact(Path(options["folder"]), time.time_ns() // 1000, **limits)
    except (OSError, VisionError, sqlite3.Error) as error:  # for example, the disk is full or read-only
        sys.exit(f"the archive cannot be compacted: {error}")
