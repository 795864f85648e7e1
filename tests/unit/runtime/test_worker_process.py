"""Tests of worker processes: messages, logs, crashes, hangs, leaks, stops, and the end of the main process."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.messages.processes import Program, wait_until
from tests.unit.runtime.worker_entries import Recorded
from vision.errors import ConfigError
from vision.runtime.worker_channel import SPARE, Connection
from vision.runtime.worker_process import SpareProcess, Worker, Workers, WorkerSpec, own_memory_bytes, worker_name

pytestmark = pytest.mark.integration

ENTRIES = "tests.unit.runtime.worker_entries"


@pytest.fixture
def workers() -> Iterator[Workers]:
    group, before = Workers(), set(psutil.Process().children())
    yield group
    group.stop(2.0)
    assert not set(psutil.Process().children()) - before  # neither running nor a zombie


def poll_until(workers: Workers, condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        workers.poll(0.05)


@dataclass
class StoppedClock:
    """Clock, in ns, that does not advance until the test sets `now_ns`."""

    now_ns: int = 0

    def __call__(self) -> int:
        return self.now_ns


def test_worker_that_disconnects_but_does_not_end_delays_no_other_worker() -> None:
    clock = StoppedClock(time.monotonic_ns())
    workers, other, faulty = Workers(clock), Recorded(), Recorded()
    echo, act = start(workers, "echo", other), start(workers, "act", faulty)
    try:
        assert act.send(b"disconnect")
        assert echo.send(b"first")
        poll_until(workers, lambda: len(other.messages) == 2)
        for _ in range(100):  # the clock does not advance, so the worker still has time to end
            workers.poll(0.005)
        assert faulty.ends == []
        assert echo.send(b"second")
        poll_until(workers, lambda: len(other.messages) == 3)
        clock.now_ns += 200_000_000
        poll_until(workers, lambda: bool(faulty.ends))
        assert faulty.ends == ["closed its connection"]
    finally:
        workers.stop(2.0)


def start(workers: Workers, entry: str, recorded: Recorded, **options: object) -> Worker:
    worker = workers.add(WorkerSpec("worker 0", f"{ENTRIES}:{entry}", **options), recorded)  # type: ignore[arg-type]
    poll_until(workers, lambda: worker.ready)
    return worker


def test_messages_of_any_size_and_descriptors_arrive_in_order(workers: Workers, tmp_path: Path) -> None:
    recorded = Recorded()
    worker = start(workers, "echo", recorded, setup=b"setup" * 100_000)
    (tmp_path / "file").write_bytes(b"content")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    sent = [b"", b"short", os.urandom(5_000_000), os.urandom(32_768), os.urandom(32_769)]
    for data in sent:
        assert worker.send(data, [fd])
    os.close(fd)
    poll_until(workers, lambda: len(recorded.messages) == 6)
    setup, *echoed = recorded.messages
    assert setup.data == b"setup" * 100_000
    assert [message.data for message in echoed] == sent
    for message in echoed:
        (received,) = message.fds
        assert os.pread(received, 100, 0) == b"content"
        assert not os.get_inheritable(received)
        os.close(received)


@pytest.mark.parametrize("number", [None, "1", str(min(2, len(os.sched_getaffinity(0))))])
def test_process_starts_no_threads_for_matrices_unless_the_user_asks_for_them(
    workers: Workers, monkeypatch: pytest.MonkeyPatch, number: str | None
) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    if number is not None:
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", number)
    recorded = Recorded()
    start(workers, "count_threads", recorded)
    assert recorded.messages[0].data.decode() == (number or "1")


def test_send_to_a_worker_that_does_not_read_returns_false() -> None:
    connection, other = Connection.pair()
    with other:
        assert any(not connection.send(b"A", b"x" * 1000) for _ in range(10_000))
        assert not connection.send_waiting(b"A", b"x" * 1000, (), 0.01)
    assert not connection.send(b"A")
    connection.close()
    assert not connection.send(b"A")
    assert not connection.send_waiting(b"A", b"", (), 1.0)


def test_crashed_process_is_replaced_and_its_last_log_lines_arrive(
    workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    recorded = Recorded()
    worker = start(workers, "act", recorded)
    first = worker.pid
    assert worker.send(b"crash")
    poll_until(workers, lambda: recorded.starts == 2 and worker.ready)
    assert worker.pid != first
    assert str(int(signal.SIGSEGV)) in recorded.ends[0]
    assert worker.restarts == 1
    assert ("vision.tests.worker", logging.ERROR, "last words") in caplog.record_tuples


def test_killed_process_is_replaced_at_once_if_it_ran_well(workers: Workers) -> None:
    recorded = Recorded()
    worker = start(workers, "echo", recorded, setup=b"again")
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    poll_until(workers, lambda: len(recorded.messages) == 2)
    assert [message.data for message in recorded.messages] == [b"again", b"again"]


@pytest.fixture
def with_spare() -> Iterator[tuple[Workers, StoppedClock]]:
    """Yield workers that keep a spare process, and the clock of the workers."""
    clock, before = StoppedClock(time.monotonic_ns()), set(psutil.Process().children())
    group = Workers(clock, SpareProcess([ENTRIES], clock), keeps_spare=True)
    yield group, clock
    group.stop(2.0)
    assert not set(psutil.Process().children()) - before


def spares() -> list[psutil.Process]:
    return [each for each in psutil.Process().children() if worker_name(each.cmdline()) == SPARE.strip()]


def spare_of(workers: Workers, clock: StoppedClock) -> psutil.Process:
    """Wait until the spare process runs its program. Return the spare process."""

    def found() -> list[psutil.Process]:
        clock.now_ns += 500_000_000
        return spares()

    poll_until(workers, lambda: bool(found()))
    return found()[0]


def has_received(recorded: Recorded, number: int, clock: StoppedClock) -> bool:
    """Return True if `number` messages have arrived. Let 10 ms pass first, because a replacement can be delayed."""
    clock.now_ns += 10_000_000
    return len(recorded.messages) == number


def test_spare_process_replaces_one_that_ends_and_gets_its_name(with_spare: tuple[Workers, StoppedClock]) -> None:
    workers, clock = with_spare
    recorded = Recorded()
    worker = start(workers, "echo", recorded, setup=b"again")
    for number in range(2, 4):
        spare = spare_of(workers, clock)
        assert worker.pid not in (None, spare.pid)
        os.kill(worker.pid or 0, signal.SIGKILL)
        poll_until(workers, partial(has_received, recorded, number, clock))
        assert worker.pid == spare.pid
        assert worker_name(spare.cmdline()) == "worker 0"
        assert recorded.messages[-1].data == b"again"


def test_worker_is_replaced_without_a_spare_process_if_that_was_killed(
    with_spare: tuple[Workers, StoppedClock],
) -> None:
    workers, clock = with_spare
    recorded = Recorded()
    worker = start(workers, "echo", recorded, setup=b"again")
    spare = spare_of(workers, clock)
    spare.kill()
    psutil.wait_procs([spare])
    os.kill(worker.pid or 0, signal.SIGKILL)
    poll_until(workers, partial(has_received, recorded, 2, clock))
    assert worker.pid != spare.pid


def test_one_spare_process_serves_all_workers_that_share_it(with_spare: tuple[Workers, StoppedClock]) -> None:
    workers, clock = with_spare
    others = Workers(clock, workers.spare)
    kept, sharing = Recorded(), Recorded()
    worker = start(workers, "echo", kept, setup=b"kept")
    other = start(others, "act", sharing)
    spare = spare_of(workers, clock)
    assert other.send(b"crash")
    poll_until(others, lambda: sharing.starts == 2 and other.ready)
    assert other.pid == spare.pid
    others.stop(2.0)
    spare = spare_of(workers, clock)  # the stop of the others has not ended the spare process
    os.kill(worker.pid or 0, signal.SIGKILL)
    poll_until(workers, partial(has_received, kept, 2, clock))
    assert worker.pid == spare.pid


def test_no_spare_process_starts_while_a_worker_of_any_kind_starts(with_spare: tuple[Workers, StoppedClock]) -> None:
    workers, clock = with_spare
    others = Workers(clock, workers.spare)
    start(workers, "echo", Recorded())
    others.add(WorkerSpec("worker 1", f"{ENTRIES}:wait_for_message"), Recorded())
    others.poll(0.0)
    for _ in range(10):
        clock.now_ns += 1_000_000_000
        others.poll(0.0)
        workers.poll(0.0)
    assert not spares()
    others.stop(0.0)
    assert spare_of(workers, clock).is_running()


def test_spare_process_that_is_killed_is_replaced(with_spare: tuple[Workers, StoppedClock]) -> None:
    workers, clock = with_spare
    start(workers, "echo", Recorded())
    for pause_s in (2, 4, 8):  # longer and longer, because each new process could end too
        killed = spare_of(workers, clock)
        killed.kill()
        psutil.wait_procs([killed])
        for _ in range(pause_s):
            clock.now_ns += 1_000_000_000
            workers.poll(0.0)
        assert not spares()


def test_failure_while_running_replaces_the_process(workers: Workers, caplog: pytest.LogCaptureFixture) -> None:
    recorded = Recorded()
    worker = start(workers, "act", recorded)
    assert worker.send(b"raise")
    poll_until(workers, lambda: recorded.starts == 2 and worker.ready)
    assert "RuntimeError: a bug" in caplog.text


def test_failure_at_the_first_start_raises_the_error_of_the_worker(workers: Workers) -> None:
    workers.add(WorkerSpec("worker 0", f"{ENTRIES}:refuse"), Recorded())
    with pytest.raises(ConfigError) as caught:
        poll_until(workers, lambda: False)
    assert (caught.value.code, caught.value.hint) == ("no-model", "choose another model")


def test_process_that_holds_the_gil_forever_is_replaced(workers: Workers, capfd: pytest.CaptureFixture[str]) -> None:
    recorded = Recorded()
    worker = start(workers, "act", recorded, hang_s=2.0)
    assert worker.send(b"hang")
    poll_until(workers, lambda: recorded.starts == 2 and worker.ready)
    assert len(recorded.ends) == 1
    assert "most recent call first" in capfd.readouterr().err  # the stacks of its threads


def test_process_that_only_waits_is_not_replaced(workers: Workers) -> None:
    recorded = Recorded()
    start(workers, "act", recorded, hang_s=2.0)
    deadline = time.monotonic() + 3.5
    poll_until(workers, lambda: time.monotonic() > deadline)
    assert recorded.starts == 1


def test_process_above_its_memory_limit_is_replaced(workers: Workers) -> None:
    recorded = Recorded()
    worker = start(workers, "act", recorded, memory_limit_bytes=200 << 20)
    assert worker.pid is not None
    assert 0 < own_memory_bytes(worker.pid) < 150 << 20
    assert worker.send(b"allocate 10")
    assert worker.send(b"allocate 250")
    poll_until(workers, lambda: recorded.starts == 2 and worker.ready)
    assert worker.restarts == 1


def test_log_records_reach_the_loggers_of_the_main_process(workers: Workers, caplog: pytest.LogCaptureFixture) -> None:
    worker = start(workers, "act", Recorded())
    assert worker.send(b"log rtsp://user:secret@camera/1")
    poll_until(workers, lambda: bool(caplog.records))
    (record,) = caplog.records
    assert (record.name, record.levelno, record.processName) == ("vision.tests.worker", logging.WARNING, "worker 0")
    assert "secret" not in record.getMessage()


def test_lost_log_lines_are_counted(workers: Workers, caplog: pytest.LogCaptureFixture) -> None:
    recorded = Recorded()
    with caplog.at_level(logging.INFO):
        workers.add(WorkerSpec("worker 0", f"{ENTRIES}:flood"), recorded)
        workers.poll(0.0)
        time.sleep(1.0)  # the main process does not read
        poll_until(workers, lambda: bool(recorded.messages))
    lines = [record.getMessage() for record in caplog.records if record.name == "vision.tests.worker"]
    assert 0 < len(lines) <= 5000


def test_process_that_ignores_the_stop_is_killed_at_the_deadline() -> None:
    before = set(psutil.Process().children())
    workers, recorded = Workers(), [Recorded(), Recorded()]
    stubborn = start(workers, "act", recorded[0])
    start(workers, "echo", recorded[1])
    assert stubborn.send(b"linger")
    workers.poll(0.1)
    began = time.monotonic()
    workers.stop(0.5)
    assert 0.4 < time.monotonic() - began < 40  # without the kill, the worker would end after 60 s
    assert recorded[0].ends[0]
    assert recorded[1].ends == [""]
    assert not set(psutil.Process().children()) - before


MAIN = f"""
import sys, time
from tests.unit.runtime.worker_entries import Recorded
from vision.runtime.worker_process import Workers, WorkerSpec
workers = Workers()
added = [workers.add(WorkerSpec("w", "{ENTRIES}:act"), Recorded()) for _ in range(2)]
while not workers.ready:
    workers.poll(0.1)
added[1].send(b"hang")
print(*(worker.pid for worker in added), flush=True)
while True:
    workers.poll(1.0)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_survives_the_main_process(number: signal.Signals) -> None:
    with Program([sys.executable, "-c", MAIN]) as program:
        pids = [int(pid) for pid in program.line().split()]
        program.send(number)
        wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids), "the workers end")
