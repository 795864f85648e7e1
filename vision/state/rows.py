"""The tables of the state database, and the checksums of their rows.

SQLite verifies the pages of its write-ahead log, not those of the database. A checksum in each row detects a changed
number or payload there.
"""

from __future__ import annotations

import sqlite3
import zlib
from typing import Final

SCHEMA: Final = """
CREATE TABLE session (journal TEXT NOT NULL, boot TEXT NOT NULL, clean INTEGER NOT NULL, newest INTEGER NOT NULL);
CREATE TABLE events (number INTEGER PRIMARY KEY, payload BLOB NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE counters (camera TEXT NOT NULL, name TEXT NOT NULL, key TEXT NOT NULL, value INTEGER NOT NULL,
    checksum INTEGER NOT NULL, PRIMARY KEY (camera, name, key)) WITHOUT ROWID;
INSERT INTO session VALUES (lower(hex(randomblob(4))), '', 1, 0);
"""


class DamagedState(Exception):
    """The database is not what was written."""


def event_checksum(number: int, payload: bytes) -> int:
    """Return the checksum of an event."""
    return zlib.crc32(payload, number & 0xFFFFFFFF)


def counter_checksum(camera: str, name: str, key: str, value: int) -> int:
    """Return the checksum of a counter."""
    return zlib.crc32("\0".join((camera, name, key, str(value))).encode())


def verify(connection: sqlite3.Connection) -> None:
    """Check the structure of the database and every row.

    Raises:
        DamagedState: a check failed.
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
