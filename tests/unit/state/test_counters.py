"""Counters on a disk that is slow, full or gone: nobody waits for it, and nothing that was counted is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vision.stages.analytics import AnalyticsStage
from vision.state.background_flusher import BackgroundFlusher
from vision.state.counters import CounterJournal

DEADLINE_S = 10.0


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


class SlowDisk:
    """Forces nothing before it is let go."""

    def __init__(self) -> None:
        self.waiting, self.go = threading.Event(), threading.Event()
        self.threads: list[str] = []

    def force(self, descriptor: int) -> None:
        self.threads.append(threading.current_thread().name)
        self.waiting.set()
        assert self.go.wait(DEADLINE_S)
        os.fsync(descriptor)


def count(journal: CounterJournal, times: int = 1) -> None:
    for _ in range(times):
        journal.add("door", ["in", "in:person"])
        journal.flush()


def kept(path: Path) -> int:
    journal = CounterJournal(path)
    journal.close()
    assert journal.notice is None
    assert journal["door", "in"] == journal["door", "in:person"]
    return journal["door", "in"]


def test_counting_does_not_wait_for_a_slow_disk(tmp_path: Path) -> None:
    disk = SlowDisk()
    disk.go.set()
    journal = CounterJournal(tmp_path / "gate.counters", sync_s=0.01, force=disk.force)
    disk.go.clear()
    disk.waiting.clear()
    count(journal)
    assert disk.waiting.wait(DEADLINE_S)
    count(journal, 100)  # would never come back if it waited
    assert journal["door", "in"] == 101
    disk.go.set()
    journal.close()
    assert set(disk.threads[2:]) == {"counters", threading.current_thread().name}  # at the end it is waited for
    assert kept(tmp_path / "gate.counters") == 101


def test_the_disk_is_forced_now_and_then_only(tmp_path: Path) -> None:
    forced: list[int] = []
    journal = CounterJournal(tmp_path / "gate.counters", sync_s=0.2, force=forced.append)
    at_start = len(forced)
    count(journal, 200)
    until(lambda: len(forced) > at_start)
    first = len(forced)
    assert first - at_start < 20
    count(journal)
    until(lambda: len(forced) > first)
    journal.close()
    assert len(forced) > first + 1


def test_a_journal_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "gate.counters"
    journal = CounterJournal(path, sync_s=0.01)
    count(journal, 6000)
    until(lambda: path.stat().st_size <= 128 * 1024)
    journal.close()
    assert kept(path) == 6000


def test_what_nobody_counted_is_not_forced(tmp_path: Path) -> None:
    forced: list[int] = []
    forcer = BackgroundFlusher(0.01)
    quiet = CounterJournal(tmp_path / "quiet.counters", forcer=forcer, force=lambda _: None)
    busy = CounterJournal(tmp_path / "busy.counters", forcer=forcer, force=forced.append)
    at_start = len(forced)
    count(busy)
    until(lambda: len(forced) == at_start + 1)
    quiet.flush()
    assert len(forced) == at_start + 1
    quiet.close()
    busy.close()
    forcer.close()


def test_what_is_counted_while_the_file_is_written_anew_is_in_it(tmp_path: Path) -> None:
    disk = SlowDisk()
    disk.go.set()
    path = tmp_path / "gate.counters"
    journal = CounterJournal(path, sync_s=0.01, force=disk.force)
    journal._compact_bytes = 1000
    disk.go.clear()
    disk.waiting.clear()
    old = path.stat().st_ino
    count(journal, 20)
    assert disk.waiting.wait(DEADLINE_S)
    assert (tmp_path / "gate.counters.new").exists() and path.stat().st_ino == old
    count(journal, 7)
    journal.add("gate", ["out"])
    journal.flush()
    disk.go.set()
    until(lambda: path.stat().st_ino != old)
    count(journal)
    journal.close()
    assert not (tmp_path / "gate.counters.new").exists()
    assert path.stat().st_size < 1000 and kept(path) == 28


@pytest.mark.parametrize("compact_bytes", [10**6, 1])
def test_a_kill_while_the_disk_is_forced_loses_nothing(tmp_path: Path, compact_bytes: int) -> None:
    """Also where the file is just being written anew."""
    path = tmp_path / "gate.counters"
    program = f"""
import os, signal, threading, time
from pathlib import Path
from vision.state.counters import CounterJournal

stuck = threading.Event()

def force(descriptor):
    if threading.current_thread().name == "counters":
        stuck.set()
        time.sleep(60)

journal = CounterJournal(Path({str(path)!r}), sync_s=0.01, force=force)
journal._compact_bytes = {compact_bytes}
for at in range(500):
    journal.add("door", ["in", "in:person"])
    journal.flush()
    if at == 20:
        assert stuck.wait(10)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program], check=False, timeout=30)
    assert killed.returncode == -signal.SIGKILL
    assert kept(path) == 500


def test_a_disk_that_cannot_be_forced_is_said_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[int] = []
    broken = threading.Event()

    def force(descriptor: int) -> None:
        if broken.is_set():
            tried.append(descriptor)
            raise OSError(5, "Input/output error")

    journal = CounterJournal(tmp_path / "gate.counters", sync_s=0.01, force=force)
    broken.set()
    for times in (1, 2):
        count(journal)
        until(lambda: len(tried) == times)  # noqa: B023 - called at once
    journal.close()
    assert caplog.text.count("cannot force counters") == 1
    assert kept(tmp_path / "gate.counters") == 2


def test_a_file_that_cannot_be_written_anew_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "gate.counters"
    journal = CounterJournal(path, sync_s=0.01)
    (tmp_path / "gate.counters.new").mkdir()
    journal._compact_bytes = 1
    count(journal, 5)
    until(lambda: journal._force_failing)
    (tmp_path / "gate.counters.new").rmdir()
    count(journal, 5)
    until(lambda: not journal._force_failing)
    journal.close()
    assert kept(path) == 10


def test_all_cameras_share_a_thread_that_ends_with_them(tmp_path: Path) -> None:
    from vision.config.analytics import CameraAnalytics

    def threads() -> int:
        return sum(thread.name == "counters" for thread in threading.enumerate())

    before = threads()
    stage = AnalyticsStage({f"camera{k}": CameraAnalytics() for k in range(5)}, ["person"], folder=tmp_path)
    assert threads() == before + 1
    stage.close()
    stage.close()
    assert threads() == before


def test_a_forcer_ends_in_the_middle_of_its_pause() -> None:
    done: list[int] = []
    forcer = BackgroundFlusher(3600.0)
    forcer.soon(lambda: done.append(1))
    forcer.close()
    forcer.close()
    assert not done
