"""Tests that only one process can use the state database, and that a damaged database is moved away."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.unit.state.test_events import fill, numbers, opened, payload
from vision.errors import ConfigError, Unavailable
from vision.state.counters import counter_checksum
from vision.state.events import event_checksum


def test_second_process_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(Unavailable) as refused:
        opened(tmp_path)
    assert refused.value.code == "state-in-use"
    with opened(tmp_path):
        pass


@pytest.mark.parametrize("name", ["file", "file/below", "folder"])
def test_unusable_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "state.db").mkdir(parents=True)
    with pytest.raises(ConfigError) as refused:
        opened(tmp_path / name)
    assert refused.value.code == "state-unwritable"


def test_state_of_a_newer_version_is_refused_and_kept(tmp_path: Path) -> None:
    with opened(tmp_path) as state:
        fill(state.events, 1)
    with closing(sqlite3.connect(tmp_path / "state.db")) as connection:
        connection.execute("PRAGMA user_version = 2")
    with pytest.raises(ConfigError) as refused:
        opened(tmp_path)
    assert refused.value.code == "state-version"
    assert list(tmp_path.glob("damaged-*")) == []


FIRST_TABLES = (
    "CREATE TABLE session (journal TEXT NOT NULL, boot TEXT NOT NULL, clean INTEGER NOT NULL, newest INTEGER NOT NULL)",
    "CREATE TABLE events (number INTEGER PRIMARY KEY, payload BLOB NOT NULL, checksum INTEGER NOT NULL)",
    """CREATE TABLE counters (camera TEXT NOT NULL, name TEXT NOT NULL, key TEXT NOT NULL, value INTEGER NOT NULL,
    checksum INTEGER NOT NULL, PRIMARY KEY (camera, name, key)) WITHOUT ROWID""",
)
"""The tables that the first versions of the program created, and that they check when they open a database."""


def test_state_of_an_earlier_version_is_upgraded(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "state.db")) as connection, connection:
        for table in FIRST_TABLES:
            connection.execute(table)
        connection.execute("PRAGMA user_version = 1")
        connection.execute("INSERT INTO session VALUES ('cafe', 'boot-1', 1, 7)")
        connection.execute("INSERT INTO events VALUES (7, ?, ?)", (payload(7), event_checksum(7, payload(7))))
        row = ("gate", "door", "in", 3)
        connection.execute("INSERT INTO counters VALUES (?, ?, ?, ?, ?)", (*row, counter_checksum(*row)))
    with opened(tmp_path) as state:
        assert state.notice is None
        assert (state.events.journal, numbers(state.events)) == ("cafe", [7])
        assert state.load_counters("gate") == [row]
        assert state.run.begin() is None
        fill(state.events, 1)
    with opened(tmp_path) as state:
        assert numbers(state.events) == [7, 8]
        assert state.run.begin() is not None


def test_earlier_version_can_use_the_state(tmp_path: Path) -> None:
    """Earlier versions of the program check the database version, and use these tables, but ignore other tables."""
    with opened(tmp_path) as state:
        fill(state.events, 1)
        state.run.begin()
    with closing(sqlite3.connect(tmp_path / "state.db")) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        tables = [sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE type = 'table'")]
    assert set(FIRST_TABLES) <= set(tables)


def test_close_ends_the_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    with opened(tmp_path, sync_s=3600) as state:
        fill(state.events, 1)
        assert threading.active_count() == before + 1
    state.close()
    assert threading.active_count() == before


# --- damage -----------------------------------------------------------------------------------------------------------


def flip_payload(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b'{"event":150}') + 3] ^= 0x20
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwrite_page(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:1024] + os.urandom(2048) + data[3072:])


def random_bytes(path: Path) -> None:
    path.write_bytes(os.urandom(20_000))


def text(path: Path) -> None:
    path.write_text("name,count\n" * 500)


def drop_table(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE counters")


def change_counter(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE counters SET value = 7")
        connection.commit()


DAMAGE = [flip_payload, cut, overwrite_page, random_bytes, text, drop_table, change_counter]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_database_is_set_aside(
    tmp_path: Path, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path) as state:
        fill(state.events, 300)
        counters = state.counters("gate")
        counters.add("door", ["in"])
        before = state.events.journal
    damage(tmp_path / "state.db")
    content = (tmp_path / "state.db").read_bytes()
    with opened(tmp_path) as state:
        assert state.events.journal != before
        assert state.events.newest == 0
        assert numbers(state.events) == []
        assert state.counters("gate").counts() == {}
        assert state.notice is not None
        (aside,) = tmp_path.glob("damaged-*")
        assert aside.name in state.notice
        assert state.notice in caplog.text
        fill(state.events, 3)
    assert (aside / "state.db").read_bytes() == content
    with opened(tmp_path) as state:
        assert (numbers(state.events), state.notice) == ([1, 2, 3], None)


def test_only_the_newest_damaged_database_is_kept(tmp_path: Path) -> None:
    (tmp_path / "damaged-20260101T000000Z").mkdir()
    for _ in range(2):
        with opened(tmp_path) as state:
            fill(state.events, 30)
        random_bytes(tmp_path / "state.db")
        with opened(tmp_path) as state:
            notice = str(state.notice)
    (aside,) = tmp_path.glob("damaged-*")
    assert aside.name in notice


@pytest.mark.parametrize("tail", [b"\0" * 5000, os.urandom(5000)])
def test_torn_end_of_the_log_is_ignored(tmp_path: Path, tail: bytes) -> None:
    copy = tmp_path / "copy"
    with opened(tmp_path / "state") as state:
        fill(state.events, 3)
        copy.mkdir()
        for name in ("state.db", "state.db-wal"):
            (copy / name).write_bytes((tmp_path / "state" / name).read_bytes() + (tail if "wal" in name else b""))
    with opened(copy) as state:
        assert state.notice is None
        assert numbers(state.events) == [1, 2, 3]


def test_empty_file_is_a_new_database(tmp_path: Path) -> None:
    (tmp_path / "state.db").touch()
    with opened(tmp_path) as state:
        assert state.notice is None
        fill(state.events, 1)
