"""Reader of the state database of a program that has ended."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from vision.benchmark.chaos.record import Stored
from vision.messaging import codec
from vision.messaging.schema import EventMessage

_DIRECTIONS = ("in", "out")


def read_stored(folder: Path) -> Stored:
    """Return the events and counters in the database of `folder`.

    Raises:
        sqlite3.Error: the database cannot be read.
        MessageError: a stored event is not a valid message.
    """
    with closing(sqlite3.connect(f"file:{folder / 'state.db'}?mode=ro", uri=True)) as database:
        ((journal,),) = database.execute("SELECT journal FROM session")
        events = database.execute("SELECT number, payload FROM events ORDER BY number").fetchall()
        counters = database.execute("SELECT camera, name, key, value FROM counters").fetchall()
    stored = Stored(journal, [number for number, _ in events])
    for number, payload in events:
        message = codec.decode_as(EventMessage, payload, f"event {number}")
        direction = message.data.get("direction")
        if message.kind == "line_crossed" and direction in _DIRECTIONS:
            stored.crossings[message.camera, message.name, direction] += 1
    stored.counters = {(camera, name, key): value for camera, name, key, value in counters if key in _DIRECTIONS}
    return stored
