"""Tests that the event log keeps every written event, never reuses a number, and stays within its limits."""

from __future__ import annotations

import errno
import json
import logging
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.log_records import log_args
from tests.messages.processes import python, wait_until
from tests.unit.state.faults import SlowDisk, full_disk
from vision.errors import Closed, Unavailable
from vision.state.database import StateDatabase
from vision.state.events import NUMBERS_SKIPPED, EventLog, Page
from vision.state.placement import Placement


def opened(folder: Path, **options: Any) -> closing[StateDatabase]:
    defaults: dict[str, Any] = {"boot": "boot-1", "max_events": 1000}
    return closing(StateDatabase(folder, **(defaults | options)))


def payload(number: int) -> bytes:
    return b'{"event":%d}' % number


def fill(events: EventLog, count: int) -> None:
    for _ in range(count):
        assert events.append([payload(events.newest + 1)])


def numbers_of(page: Page) -> list[int]:
    return [json.loads(event)["event"] for event in page.payloads]


def numbers(events: EventLog, since: int = 0) -> list[int]:
    """Return all numbers after `since`, read page by page. Check that each event's payload matches its number."""
    result: list[int] = []
    while True:
        page = events.read(since, limit=7)
        result += numbers_of(page)
        if not page.more:
            return result
        since = result[-1]


def test_events_are_read_in_order(tmp_path: Path) -> None:
    with opened(tmp_path / "new" / "folder") as state:
        events = state.events
        assert events.read(0).newest == 0
        assert events.append([payload(1), payload(2)])
        assert events.append([payload(3)])
        assert events.newest == 3
        assert numbers(events) == [1, 2, 3]
        assert numbers(events, since=2) == [3]
        assert numbers(events, since=3) == []
        assert events.counters() == {"journal.kept": 3, "journal.lost": 0, "journal.stopped": 0}


def test_pages_are_limited_by_number_and_size(tmp_path: Path) -> None:
    with opened(tmp_path, max_events=40) as state:
        fill(state.events, 40)
        page = state.events.read(10, limit=3)
        assert (numbers_of(page), page.oldest, page.newest, page.more) == ([11, 12, 13], 1, 40, True)
        assert len(state.events.read(0, max_bytes=30).payloads) == 2
        assert numbers_of(state.events.read(5, max_bytes=1)) == [6]
        assert not state.events.read(37, limit=3).more


@pytest.mark.parametrize("limits", [{}, {"max_bytes": 800}])
def test_old_events_are_deleted_within_the_limits(tmp_path: Path, limits: dict[str, int]) -> None:
    with opened(tmp_path, max_events=80, **limits) as state:
        fill(state.events, 1000)
        kept = numbers(state.events)
        assert kept == list(range(kept[0], 1001))
        assert state.events.read(0).oldest == kept[0]
        assert state.events.counters()["journal.kept"] == len(kept)
        if limits:
            assert 700 * 7 // 8 <= sum(len(payload(number)) for number in kept) <= 800
        else:
            assert 80 <= len(kept) <= 80 * 9 / 8 + 1


def test_batch_above_the_limit_is_kept(tmp_path: Path) -> None:
    with opened(tmp_path, max_events=5) as state:
        fill(state.events, 5)
        assert state.events.append([payload(number) for number in range(6, 26)])
        assert numbers(state.events) == list(range(6, 26))


def test_file_stays_small(tmp_path: Path) -> None:
    with opened(tmp_path, max_events=100, sync_s=0.01) as state:
        for _ in range(3000):
            assert state.events.append([b"x" * 500])
    assert (tmp_path / "state.db").stat().st_size < 250_000


def test_numbers_continue_after_a_restart(tmp_path: Path) -> None:
    journals = set()
    for run in range(3):
        with opened(tmp_path) as state:
            assert state.events.newest == 10 * run
            fill(state.events, 10)
            journals.add(state.events.journal)
            assert numbers(state.events) == list(range(1, 10 * run + 11))
            assert state.notice is None
    assert len(journals) == 1


def test_smaller_limit_is_applied_after_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path) as state:
        fill(state.events, 1000)
    with opened(tmp_path, max_events=100) as state:
        fill(state.events, 1)
        assert numbers(state.events) == list(range(902, 1002))


def test_append_after_close_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as state:
        fill(state.events, 1)
    state.close()
    with pytest.raises(Closed):
        state.events.append([payload(2)])


# --- crashes ----------------------------------------------------------------------------------------------------------

WRITER = """
import os, sys
from pathlib import Path
from vision.state.database import StateDatabase
events = StateDatabase(Path(sys.argv[1]), boot=sys.argv[2], max_events=100000, sync_s=float(sys.argv[3])).events
print(events.newest, flush=True)
while True:
    assert events.append([b'{"event":%d}' % (events.newest + 1)])
    os.write(1, b"%d\\n" % events.newest)
"""


@pytest.mark.integration
@pytest.mark.parametrize("sync_s", ["1", "0.001"])
def test_events_of_a_killed_process_are_kept(tmp_path: Path, sync_s: str) -> None:
    newest = 0
    for _ in range(3):
        with python("-c", WRITER, tmp_path / "state", "boot-1", sync_s) as writer:
            assert int(writer.line()) == newest  # the machine did not restart: no number is skipped
            writer.wait_line(lambda line, least=newest + 1500: int(line) >= least)  # type: ignore[misc]
            writer.send(signal.SIGKILL)
            writer.wait()
            appended = [int(line) for line in writer.pending() if line.isdigit()]
        with opened(tmp_path / "state", max_events=100000) as state:
            newest = state.events.newest
            assert newest >= max([0, *appended[:-1]])
            assert numbers(state.events) == list(range(1, newest + 1))


def torn_copy(folder: Path, copy: Path, wal_bytes: int, tail: bytes = b"") -> Path:
    """Copy the state to `copy` with only a part of the write-ahead log, as after a power failure."""
    copy.mkdir()
    (copy / "state.db").write_bytes((folder / "state.db").read_bytes())
    (copy / "state.db-wal").write_bytes((folder / "state.db-wal").read_bytes()[:wal_bytes] + tail)
    return copy


@pytest.mark.parametrize("boot", ["boot-2", ""])
def test_no_number_is_given_twice_after_a_power_cut(tmp_path: Path, boot: str) -> None:
    folder = tmp_path / "state"
    with opened(folder, boot="boot-1" if boot else "", sync_s=3600) as state:
        first = (folder / "state.db-wal").stat().st_size
        fill(state.events, 30)
        size = (folder / "state.db-wal").stat().st_size
        cuts = [*range(first, size, 3_001), size]
        copies = [torn_copy(folder, tmp_path / f"{cut}", cut, b"\0" * (cut % 100)) for cut in cuts]
    kept = set()
    for copy in copies:
        with opened(copy, boot=boot) as state:
            assert state.notice is None
            before = numbers(state.events)
            assert before == list(range(1, len(before) + 1))
            assert state.events.newest == len(before) + NUMBERS_SKIPPED
            fill(state.events, 1)
            assert numbers(state.events) == [*before, len(before) + 1 + NUMBERS_SKIPPED]
            kept.add(len(before))
    assert {0, 30} < kept


def test_two_power_cuts_in_a_row_skip_numbers_twice(tmp_path: Path) -> None:
    with opened(tmp_path / "state", boot="boot-1") as state:
        fill(state.events, 5)
        copy = torn_copy(tmp_path / "state", tmp_path / "a", 10**9)
    with opened(copy, boot="boot-2"):
        again = torn_copy(copy, tmp_path / "b", 10**9)
    with opened(again, boot="boot-3") as state:
        assert state.events.newest == 5 + 2 * NUMBERS_SKIPPED


# --- the disk ---------------------------------------------------------------------------------------------------------


def test_no_more_events_are_unsynced_than_numbers_are_skipped(tmp_path: Path) -> None:
    disk = SlowDisk()
    with opened(tmp_path, max_events=100_000, sync_s=3600, sync=disk.sync) as state:
        disk.stop()
        stored = sum(state.events.append([payload(0)] * 500) for _ in range(30))
        assert stored * 500 == NUMBERS_SKIPPED == state.events.newest
        assert state.events.lost == 30 * 500 - NUMBERS_SKIPPED
        disk.go.set()
        wait_until(lambda: state.events.append([payload(0)] * 500), "the disk works again")


def test_burst_of_events_is_synced_at_once(tmp_path: Path) -> None:
    with opened(tmp_path, max_events=100_000, sync_s=3600) as state:
        for _ in range(30):
            wait_until(lambda: state.events.append([payload(0)] * 500), "there is room")
        assert state.events.newest == 15_000


def test_log_is_emptied_and_never_started_again_by_the_writer(tmp_path: Path) -> None:
    """The log's start changes only while the log is empty. Otherwise, a power failure could mix old and new entries."""
    wal = tmp_path / "state.db-wal"
    with opened(tmp_path, max_events=100_000, sync_s=0.01) as state:
        fill(state.events, 1500)
        wait_until(lambda: wal.stat().st_size == 0, "the log is empty")
        fill(state.events, 10)
        assert wal.stat().st_size > 0
    with opened(tmp_path) as state:
        assert len(numbers(state.events)) > 0


def test_removed_database_is_written_again_with_all_events(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(tmp_path / "state", sync_s=0.01) as state:
        fill(state.events, 3)
        shutil.rmtree(tmp_path / "state")
        state.placement.require()
        fill(state.events, 2)
        assert state.events.lost == 0
        assert len(log_args(caplog, "vision.state.placement", logging.ERROR)) == 1
    with opened(tmp_path / "state") as state:
        assert numbers(state.events) == [1, 2, 3, 4, 5]


def test_database_that_is_not_put_back_ends_the_program(tmp_path: Path) -> None:
    now_s = 0.0
    path = tmp_path / "state.db"
    path.touch()
    placement = Placement(path, clock=lambda: now_s)
    path.rename(tmp_path / "away")
    placement.require()
    now_s = 9.0
    placement.require()
    (tmp_path / "away").rename(path)
    now_s = 11.0
    placement.require()
    path.unlink()
    placement.require()
    now_s = 21.0
    with pytest.raises(Unavailable):
        placement.require()


def test_database_of_somebody_else_is_not_overwritten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(tmp_path / "state", sync_s=0.01) as state:
        fill(state.events, 3)
        shutil.rmtree(tmp_path / "state")
        (tmp_path / "state").mkdir()
        (tmp_path / "state" / "state.db").write_bytes(b"mine")
        state.placement.require()
        assert not any(state.events.append([payload(0)]) for _ in range(20))
        assert state.events.lost == 20
        assert len(log_args(caplog, "vision.state.database", logging.ERROR)) == 1
    assert (tmp_path / "state" / "state.db").read_bytes() == b"mine"


def test_close_does_not_wait_longer_for_a_slow_disk(tmp_path: Path) -> None:
    disk = SlowDisk()
    state = StateDatabase(tmp_path, sync_s=0.01, sync=disk.sync)
    fill(state.events, 2)
    disk.stop()
    started_s = time.monotonic()
    state.close()
    assert time.monotonic() - started_s < 40
    disk.go.set()
    wait_until(lambda: not any(thread.name == "state" for thread in threading.enumerate()), "the thread has ended")


def test_events_are_synced_soon(tmp_path: Path) -> None:
    synced = threading.Event()
    with opened(tmp_path, sync_s=0.01, sync=lambda _: synced.set()) as state:
        synced.clear()
        fill(state.events, 1)
        assert synced.wait(60)
        wait_until(lambda: state.events.unsynced == 0, "the event is known to be on disk")


def test_appending_does_not_wait_for_a_slow_disk(tmp_path: Path) -> None:
    disk = SlowDisk()
    with opened(tmp_path, sync_s=0.01, sync=disk.sync) as state:
        disk.stop()
        fill(state.events, 1)
        assert disk.waiting.wait(60)
        fill(state.events, 500)
        assert numbers(state.events)[-1] == 501
        disk.go.set()


def test_disk_that_cannot_be_synced_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    failures: list[int] = []
    broken = threading.Event()

    def sync(descriptor: int) -> None:
        if broken.is_set():
            failures.append(descriptor)
            raise OSError(errno.EIO, "Input/output error")

    with opened(tmp_path, sync_s=0.01, sync=sync) as state:
        broken.set()
        fill(state.events, 1)
        wait_until(lambda: len(failures) > 3, "it was tried again")
        assert numbers(state.events) == [1]
        broken.clear()
    assert len(log_args(caplog, "vision.state.background_sync", logging.ERROR)) == 1


def test_full_disk_is_logged_once_and_writing_resumes_with_free_space(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path) as state:
        fill(state.events, 10)
        with full_disk(tmp_path):
            assert [state.events.append([payload(11)]) for _ in range(5)] == [False] * 5
            assert state.events.newest == 10
        assert len(log_args(caplog, "vision.state.database", logging.ERROR)) == 1
        assert state.events.counters() == {"journal.kept": 10, "journal.lost": 5, "journal.stopped": 1}
        caplog.set_level("INFO")
        fill(state.events, 2)
        assert len(log_args(caplog, "vision.state.database", logging.INFO)) == 1
        assert numbers(state.events) == list(range(1, 13))
    with opened(tmp_path) as state:
        assert numbers(state.events) == list(range(1, 13))


# --- threads ----------------------------------------------------------------------------------------------------------


def test_readers_see_whole_events_during_writes_and_deletions(tmp_path: Path) -> None:
    stop = threading.Event()
    faults: list[str] = []
    with opened(tmp_path, max_events=64, sync_s=0.01) as state:

        def read_all() -> None:
            since = 0
            while not stop.is_set():
                read = numbers_of(state.events.read(since, limit=10))
                if read != sorted({*read}) or (read and read[0] <= since):
                    faults.append(f"{read} after {since}")
                since = read[-1] if read else since

        readers = [threading.Thread(target=read_all) for _ in range(3)]
        for reader in readers:
            reader.start()
        fill(state.events, 3000)
        stop.set()
        for reader in readers:
            reader.join()
    assert faults == []


@pytest.mark.integration
def test_state_needs_no_other_library() -> None:
    code = (
        "import sys; import vision.state.database; "
        "sys.exit(bool({'zmq', 'msgspec', 'cv2', 'pydantic'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
