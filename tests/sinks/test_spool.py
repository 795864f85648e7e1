"""Tests of the spool: its order, its limits, replaced states, its position, and the kill of its process."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from tests.log_records import log_args
from tests.messages.processes import python
from tests.small_disk import small_disk
from tests.unit.state.faults import file_size_limit
from vision.outputs.sinks.delivery import MAX_BATCH_BYTES, Outgoing
from vision.outputs.sinks.spool import Position, Spool


class Clock:
    s = 0.0

    def __call__(self) -> float:
        return self.s


def message(number: int, *, topic: str = "events/gate", size: int = 100, is_state: bool = False) -> Outgoing:
    return Outgoing(str(number), topic, b"x" * size, is_state=is_state)


def spool(folder: Path, *, max_bytes: int = 10**6, max_age_s: float = 1e6, clock: Clock | None = None) -> Spool:
    return Spool(folder / "spool.sqlite", max_bytes=max_bytes, max_age_s=max_age_s, clock=clock or Clock())


def keys(messages: Sequence[Outgoing]) -> list[int]:
    return [int(each.key) for each in messages]


def test_messages_stay_in_order_over_a_restart(tmp_path: Path) -> None:
    with closing(spool(tmp_path)) as first:
        assert first.position() is None
        first.add([message(1), message(2)], Position("j1", 2), {"objects/gate": ("i1", 7)})
        first.add([message(3)], Position("j1", 3))
    with closing(spool(tmp_path)) as again:
        assert again.count == 3
        assert keys(again.first(2)) == [1, 2]
        again.remove(again.first(2))
        assert keys(again.first(9)) == [3]
        assert again.position() == Position("j1", 3)
        assert again.sequences() == {"objects/gate": ("i1", 7)}
        again.remove(again.first(9))
        assert (again.count, again.nbytes) == (0, 0)


def test_oldest_messages_beyond_the_size_are_lost_and_counted(tmp_path: Path) -> None:
    with closing(spool(tmp_path, max_bytes=10_000)) as queue:
        for number in range(100):
            queue.add([message(number, size=900)])
            assert queue.nbytes <= 10_000
        left = keys(queue.first(100))
        assert left == list(range(100 - len(left), 100))
        assert queue.lost == 100 - len(left)
        assert queue.count == len(left) > 5


def free_bytes(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


@pytest.mark.integration
def test_reserve_of_the_disk_stays_free(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with small_disk(tmp_path / "disk", kib=40 * 1024) as disk, closing(spool(disk, max_bytes=10**9)) as queue:
        reserve = 40 * 2**20 // 20
        for number in range(8000):
            queue.add([message(number, size=9000)])
            assert free_bytes(disk) > 0.9 * reserve
        assert len(log_args(caplog, "vision.outputs.sinks.spool")) == 1  # the losses are logged once
        assert queue.lost + queue.count == 8000
        assert queue.lost > 4000
        while waiting := queue.first(100):  # the newest messages are delivered, in order
            assert keys(waiting) == list(range(8000 - queue.count, 8000 - queue.count + len(waiting)))
            queue.remove(waiting)


@pytest.mark.integration
def test_messages_pass_while_the_disk_is_nearly_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kib=120 * 1024) as disk, closing(spool(disk, max_bytes=10**8)) as queue:
        (disk / "other").write_bytes(bytes(115 * 2**20))
        for number in range(1000):
            queue.add([message(number, size=9000)], Position("j1", number))
            assert keys(queue.first(9)) == [number]
            queue.remove(queue.first(9))
        assert queue.lost == 0
        for number in range(1000):
            queue.add([message(number, size=9000)])
        assert 800_000 < queue.nbytes < 1_000_000
        (disk / "other").unlink()
        for number in range(1000):
            queue.add([message(number, size=9000)])
        assert queue.nbytes > 9_000_000  # the configured limit applies again


def test_few_large_messages_are_read_at_once(tmp_path: Path) -> None:
    with closing(spool(tmp_path, max_bytes=10**8)) as queue:
        queue.add([message(number, size=MAX_BATCH_BYTES // 3) for number in range(5)])
        assert keys(queue.first(9)) == [0, 1, 2]
        queue.add([message(9, size=MAX_BATCH_BYTES + 1)])
        queue.remove(queue.first(9))
        queue.remove(queue.first(2))
        assert keys(queue.first(9)) == [9]


def test_messages_beyond_the_age_are_lost_and_counted(tmp_path: Path) -> None:
    clock = Clock()
    with closing(spool(tmp_path, max_age_s=60, clock=clock)) as queue:
        for number in range(10):
            queue.add([message(number)])
            clock.s += 10
        assert keys(queue.first(100)) == [3, 4, 5, 6, 7, 8, 9]
        assert queue.lost == 3


def test_time_without_the_program_does_not_count_as_age(tmp_path: Path) -> None:
    clock = Clock()
    clock.s = 1e9
    with closing(spool(tmp_path, max_age_s=60, clock=clock)) as queue:
        queue.add([message(1)])
    later = Clock()  # like the monotonic clock after a boot
    with closing(spool(tmp_path, max_age_s=60, clock=later)) as queue:
        later.s = 30
        queue.add([message(2)])
        assert keys(queue.first(9)) == [1, 2]
        later.s = 70
        queue.add([message(3)])
        assert keys(queue.first(9)) == [2, 3]


def test_newer_state_replaces_the_waiting_one(tmp_path: Path) -> None:
    with closing(spool(tmp_path)) as queue:
        queue.add([message(1, topic="counts/gate", is_state=True), message(2), message(3, topic="counts/gate")])
        queue.add([message(4, topic="counts/gate", is_state=True), message(5, topic="counts/yard", is_state=True)])
        sent = queue.first(9)
        assert keys(sent) == [2, 3, 4, 5]
        queue.add([message(6, topic="counts/gate", is_state=True)])
        queue.remove(sent)
        assert keys(queue.first(9)) == [6]
        assert (queue.count, queue.lost) == (1, 0)
        queue.remove(queue.first(9))
        assert queue.nbytes == 0


def test_message_that_cannot_be_stored_leaves_the_position(tmp_path: Path) -> None:
    with closing(spool(tmp_path)) as queue:
        queue.add([message(1)], Position("j1", 1))
        with file_size_limit(100_000), pytest.raises(sqlite3.Error):
            queue.add([message(2, size=500_000)], Position("j1", 2))
        assert queue.position() == Position("j1", 1)
        assert keys(queue.first(9)) == [1]
        queue.add([message(3)], Position("j1", 3))
        assert keys(queue.first(9)) == [1, 3]


@pytest.mark.parametrize("offset", [0, 5000])
def test_damaged_file_is_renamed_and_replaced(tmp_path: Path, offset: int) -> None:
    with closing(spool(tmp_path)) as queue:
        queue.add([message(number, size=1000) for number in range(50)], Position("j1", 50))
    path = tmp_path / "spool.sqlite"
    content = bytearray(path.read_bytes())
    content[offset : offset + 4000] = b"\xaa" * 4000
    path.write_bytes(content)
    with closing(spool(tmp_path)) as queue:
        assert (queue.count, queue.position()) == (0, None)
        queue.add([message(1)], Position("j1", 51))
        assert keys(queue.first(9)) == [1]
    assert (tmp_path / "spool.sqlite.damaged").read_bytes() == content


def test_other_users_cannot_read_the_spool(tmp_path: Path) -> None:
    folder = tmp_path / "sinks"
    with closing(spool(folder)):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert not (folder / "spool.sqlite").stat().st_mode & 0o007


_WRITER = """
import sys
from pathlib import Path
from vision.outputs.sinks.delivery import Outgoing
from vision.outputs.sinks.spool import Position, Spool

spool = Spool(Path(sys.argv[1]) / "spool.sqlite", max_bytes=10**7, max_age_s=1e6)
for number in range(1, 10**6):
    spool.add([Outgoing(str(number), "events/gate", b"x" * 100)], Position("j1", number))
    print(number, flush=True)
"""


def test_killed_process_leaves_messages_and_position_that_agree(tmp_path: Path) -> None:
    with python("-c", _WRITER, tmp_path) as program:
        program.wait_line(lambda line: line == "300", timeout_s=60)
        os.kill(program.pid, 9)
        program.wait()
    with closing(spool(tmp_path, max_bytes=10**7)) as queue:
        position = queue.position()
        assert position is not None
        assert position.number >= 300
        assert keys(queue.first(10**6)) == list(range(1, position.number + 1))
