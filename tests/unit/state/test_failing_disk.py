"""Tests with a disk that fails and loses published events, whose numbers must not be used again."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.messages.processes import wait_until
from tests.small_disk import failing_disk
from tests.unit.state.test_events import fill, numbers, opened
from vision.state.events import NUMBERS_SKIPPED

STORE = """
import os, subprocess, sys
from pathlib import Path
from vision.state.database import StateDatabase
folder, marks, disk = map(Path, sys.argv[1:])
state = StateDatabase(folder, boot="boot-1", marks=marks, sync_s=3600)
state.events.append([b'{"event":1}'])
subprocess.run(["sync", "-f", folder / "state.db-wal"], check=True)
for number in (2, 3):
    assert state.events.append([b'{"event":%d}' % number])
subprocess.run(["mount", "-o", "remount,abort", disk], check=True)
assert not state.events.append([b'{"event":4}'])
assert state.events.counters()["journal.stopped"] == 1
{end}
"""
SYNC = "state._sync.request(urgent=True)\nwhile not any(marks.iterdir()): pass\nos._exit(0)"


class Disk:
    """Disk whose fsync fails while `is_read_only` is True."""

    def __init__(self) -> None:
        self.is_read_only = False

    def sync(self, descriptor: int) -> None:
        if self.is_read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        os.fsync(descriptor)


@pytest.mark.integration
@pytest.mark.parametrize("end", [SYNC, "state.close()"], ids=["killed", "stopped"])
def test_numbers_that_a_failed_file_system_lost_are_not_used_again(tmp_path: Path, end: str) -> None:
    marks = tmp_path / "marks"
    marks.mkdir(mode=0o700)
    with failing_disk(tmp_path / "disk") as disk:
        folder = disk.folder / "state"
        command: list[str | Path] = [sys.executable, "-c", STORE.replace("{end}", end), folder, marks, disk.folder]
        subprocess.run(command, check=True, timeout=120)
        disk.repair()
        with opened(folder, marks=marks) as state:
            assert numbers(state.events) == [1]  # the file system has lost the others
            fill(state.events, 1)
            assert state.events.newest > NUMBERS_SKIPPED
        assert list(marks.iterdir()) == []
        with opened(folder, marks=marks) as state:
            assert state.events.newest < 2 * NUMBERS_SKIPPED


def test_mark_disappears_when_the_log_was_written_to_another_place(tmp_path: Path) -> None:
    disk, marks = Disk(), tmp_path / "marks"
    marks.mkdir(mode=0o700)
    with opened(tmp_path / "state", marks=marks, sync=disk.sync, sync_s=0.01) as state:
        fill(state.events, 3)
        wait_until(lambda: state.events.unsynced == 0, "the events are on disk")
        assert list(marks.iterdir()) == []
        disk.is_read_only = True
        fill(state.events, 3)
        wait_until(lambda: list(marks.iterdir()) != [], "the mark is set")
        disk.is_read_only = False
        wait_until(lambda: list(marks.iterdir()) == [], "the mark is removed")
        assert (tmp_path / "state" / "state.db-wal").stat().st_size == 0
        assert numbers(state.events) == [1, 2, 3, 4, 5, 6]
    with opened(tmp_path / "state", marks=marks) as state:
        assert state.events.newest == 6


def test_mark_is_not_set_in_a_folder_of_others(tmp_path: Path) -> None:
    disk, marks = Disk(), tmp_path / "marks"
    marks.mkdir()
    marks.chmod(0o777)
    with opened(tmp_path / "state", marks=marks, sync=disk.sync, sync_s=0.01) as state:
        disk.is_read_only = True
        fill(state.events, 1)
        wait_until(lambda: state._sync._failing, "the disk fails")
        assert list(marks.iterdir()) == []
