"""The state database is used by one process, and a damaged one is set aside."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.unit.state.test_events import fill, numbers, opened
from vision.errors import ConfigError, Unavailable


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
