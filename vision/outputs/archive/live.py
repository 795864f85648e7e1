"""`LiveDatabase` stores messages in SQLite. Soon after the end of each hour, `compact` moves them to Parquet files."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from vision.messaging.schema import (
    CountsMessage,
    DetectedObject,
    DetectionsMessage,
    EventMessage,
    LineCounts,
    ZoneCounts,
)
from vision.messaging.times import utc_ns
from vision.outputs.archive.tables import COLUMNS, Table
from vision.types import STEPS_PER_PX

LIVE_NAME: Final = "live.sqlite"
SCORE_EVERY_US: Final = 5_000_000
"""Time in µs between two stored scores of a track. The scores of all rows would take up a tenth of the archive."""

_MAX_SCORED: Final = 20_000
_BUSY_MS: Final = 60_000

Row = tuple[Any, ...]


class LiveDatabase:
    """Database of the newest rows of the archive, of all cameras. It is not thread-safe.

    Added rows wait in memory. After `commit`, they are visible to other connections, and survive a power failure.
    """

    def __init__(self, folder: Path) -> None:
        """Open or create the database. Raise `sqlite3.Error` if the database cannot be opened, or is damaged."""
        self._connection = connect(folder)
        self._connection.executescript(";".join(["BEGIN IMMEDIATE", *_create_statements(), "COMMIT"]))
        self._frame_ids = dict(self._connection.execute("SELECT camera, last FROM frame_ids").fetchall())
        self._rows: dict[Table, list[Row]] = {table: [] for table in COLUMNS}
        self._last_counts: dict[tuple[str, str], object] = {}  # by camera and name of the line or zone
        self._scored_us: dict[tuple[str, int | None], int] = {}  # when a score was stored, by camera and track
        found: tuple[str, int] | None = self._connection.execute("SELECT journal, number FROM last_event").fetchone()
        self._last_event = found
        rows = self._connection.execute("SELECT topic, instance, seq FROM last_messages")
        self._last_seq: dict[str, tuple[str, int]] = {topic: (instance, seq) for topic, instance, seq in rows}
        self._received = False  # True if `_last_seq` has changed since the last commit

    @property
    def last_event(self) -> tuple[str, int] | None:
        """The newest event that was added: the id of its journal, and its number in this journal.

        None if no event had a number.
        """
        return self._last_event

    def expected_seq(self, topic: str, instance: str) -> int:
        """Return the sequence number of the next message of a topic, if no message is missing.

        `instance` identifies the program that publishes the messages, from its start to its end. The number is 1 if no
        message of this topic and `instance` was stored.
        """
        stored_instance, seq = self._last_seq.get(topic, ("", 0))
        return seq + 1 if stored_instance == instance else 1

    def received(self, topic: str, instance: str, seq: int) -> None:
        """Record the sequence number `seq` of the newest message of a topic. The next commit stores this number."""
        self._last_seq[topic] = instance, seq
        self._received = True

    def add_detections(self, message: DetectionsMessage) -> None:
        """Add a frame and its tracks. Objects without a track are left out."""
        captured_us, monotonic_ns = utc_ns(message.captured_at) // 1000, message.captured_monotonic_ns
        frame_id = self._frame_ids[message.camera] = self._frame_ids.get(message.camera, 0) + 1
        tracks = [each for each in message.objects if each.track_id is not None]
        for position, each in enumerate(tracks):
            x1, y1, x2, y2 = (round(STEPS_PER_PX * value) for value in each.box)
            previous: Sequence[int | None] = (None,) * 4
            is_due = self._is_score_due(message.camera, each, captured_us)
            if each.previous_box is not None:
                left, top, right, bottom = (round(STEPS_PER_PX * value) for value in each.previous_box)
                previous = left, top, right - left, bottom - top
            self._rows["tracks"].append(
                (
                    message.camera,
                    frame_id,
                    each.track_id,
                    each.class_name,
                    each.class_id,
                    round(100 * each.score) if is_due else None,
                    x1,
                    y1,
                    x2 - x1,
                    y2 - y1,
                    each.age_ms if is_due else None,
                    None if each.hidden_px is None else round(STEPS_PER_PX * each.hidden_px),
                    *previous,
                    position,
                )
            )
        shift_us = monotonic_ns // 1000 - captured_us
        size = message.width, message.height
        row = (message.camera, frame_id, captured_us, shift_us, monotonic_ns % 1000, message.instance, message.epoch)
        self._rows["frames"].append((*row, message.frame, *size, message.clock, len(tracks)))

    def _is_score_due(self, camera: str, detected: DetectedObject, captured_us: int) -> bool:
        """Return True if the table `tracks` must contain the score of an object in this frame.

        To save space, it contains the score in the first row of a track, and then about every 5 s.
        """
        key = camera, detected.track_id
        if detected.previous_box is None and captured_us - self._scored_us.get(key, 0) < SCORE_EVERY_US:
            return False
        self._scored_us[key] = captured_us
        if len(self._scored_us) > _MAX_SCORED:
            newest = sorted(self._scored_us.items(), key=lambda item: item[1])[_MAX_SCORED // 2 :]
            self._scored_us = dict(newest)
        return True

    def add_event(self, message: EventMessage) -> None:
        """Add an event. Ignore amendments, which add answers of a language model to a published event.

        Also ignore an event if it or a newer event of the same journal was already added.
        """
        if message.journal is not None and message.number is not None:
            journal, newest = self._last_event or ("", 0)
            if message.journal == journal and message.number <= newest:
                return
            self._last_event = message.journal, message.number
        if message.amends is not None:  # not a new event
            return
        data, stored = json.dumps(message.data, separators=(",", ":")), (message.journal, message.number)
        about = message.kind, message.name, message.track_id, data, message.snapshot
        place = message.camera, utc_ns(message.at) // 1000, message.at_monotonic_ns
        self._rows["events"].append((*place, message.instance, message.epoch, message.frame, *about, *stored))

    def add_counts(self, message: CountsMessage) -> None:
        """Add the counts of each line and zone.

        Leave out counts that are equal to the previous counts, if the publishing program was not restarted in between.
        """
        place = message.camera, utc_ns(message.at) // 1000, message.at_monotonic_ns, message.instance
        totals: tuple[int | None, ...]
        shapes: dict[str, LineCounts | ZoneCounts] = {**message.lines, **message.zones}
        for name, counted in shapes.items():
            if self._last_counts.get((message.camera, name)) == (message.instance, counted):
                continue
            self._last_counts[message.camera, name] = message.instance, counted
            if isinstance(counted, LineCounts):
                totals = counted.in_, counted.out, None, None, None
            else:
                totals = None, None, counted.entered, counted.left, counted.occupancy
            self._rows["counts"].append((*place, name, *totals, _by_class(counted)))

    def add_gap(self, camera: str, at_us: int, instance: str, kind: str, *, missing: tuple[int, int]) -> None:
        """Add a gap, which states that messages of a camera are missing.

        Args:
            camera: id of the camera.
            at_us: time of the gap in microseconds since 1970 (UTC).
            instance: identifier of the start of the program that published the messages.
            kind: kind of the missing messages, such as ``events``.
            missing: sequence numbers of the first and the last missing message.
        """
        self._rows["gaps"].append((camera, at_us, instance, kind, *missing))

    def discard(self) -> None:
        """Discard the rows that were added since the last commit."""
        self._rows = {table: [] for table in COLUMNS}

    def commit(self) -> int:
        """Write the rows that were added since the last commit. Return the number of these rows.

        Raises:
            sqlite3.Error: the rows could not be written. They are discarded.
        """
        waiting, self._rows = self._rows, {table: [] for table in COLUMNS}
        number = sum(map(len, waiting.values()))
        if not (number or self._received):
            return 0
        with self._connection as connection:
            for table, rows in waiting.items():
                if rows:
                    marks = ",".join("?" * len(rows[0]))
                    connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
            statement = "INSERT INTO frame_ids VALUES (?, ?) ON CONFLICT (camera) DO UPDATE SET last = excluded.last"
            connection.executemany(statement, self._frame_ids.items())
            statement = "INSERT OR REPLACE INTO last_messages VALUES (?, ?, ?)"
            connection.executemany(statement, [(topic, *stored) for topic, stored in self._last_seq.items()])
            connection.execute("DELETE FROM last_event")
            if self._last_event is not None:
                connection.execute("INSERT INTO last_event VALUES (?, ?)", self._last_event)
        self._received = False
        return number

    def close(self) -> None:
        """Close the database. Idempotent."""
        self._connection.close()


def connect(folder: Path) -> sqlite3.Connection:
    """Open or create the database in the folder of an archive. The caller must close the connection.

    Raises:
        sqlite3.Error: the database cannot be opened or created.
    """
    connection = sqlite3.connect(folder / LIVE_NAME, timeout=_BUSY_MS / 1000)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def live_columns(table: Table) -> list[str]:
    """Return the columns of a table in SQLite: `camera`, and then the columns in `COLUMNS`.

    Instead of `order_shift` (docs/archive.md), a table contains `position`, the position of a track in its frame.
    """
    columns = ["position" if name == "order_shift" else name for name in COLUMNS[table]]
    return ["camera", *columns]


def _create_statements() -> Iterator[str]:
    keys = {"frames": "camera, frame_id", "tracks": "camera, frame_id, position"}
    for table, columns in COLUMNS.items():
        kinds = ["TEXT", *("TEXT" if _is_text(kind) else "INTEGER" for kind in columns.values())]
        parts = [f'"{name}" {kind}' for name, kind in zip(live_columns(table), kinds, strict=True)]
        if table in keys:
            yield f"CREATE TABLE IF NOT EXISTS {table} ({', '.join(parts)}, PRIMARY KEY ({keys[table]})) WITHOUT ROWID"
        else:
            yield f"CREATE TABLE IF NOT EXISTS {table} ({', '.join(parts)})"
    yield "CREATE TABLE IF NOT EXISTS last_event (journal TEXT, number INTEGER)"
    yield "CREATE TABLE IF NOT EXISTS last_messages (topic TEXT PRIMARY KEY, instance TEXT, seq INTEGER)"
    yield "CREATE TABLE IF NOT EXISTS frame_ids (camera TEXT PRIMARY KEY, last INTEGER)"


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_dictionary(kind) or pa.types.is_string(kind))


def _by_class(counts: LineCounts | ZoneCounts) -> str:
    pairs: Iterable[tuple[str, dict[str, int]]]
    if isinstance(counts, LineCounts):
        pairs = (("in", counts.in_by_class), ("out", counts.out_by_class))
    else:
        pairs = (("entered", counts.entered_by_class), ("left", counts.left_by_class))
    return json.dumps({f"{key}:{name}": number for key, by_class in pairs for name, number in by_class.items()})
