"""Tests that counters continue after a restart, a kill, or a power failure, and with a slow or full disk."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.log_records import log_args
from tests.unit.state.faults import SlowDisk, full_disk
from tests.unit.state.test_events import torn_copy
from vision.state.counters import CameraCounters
from vision.state.database import StateDatabase


def opened(folder: Path, **options: Any) -> closing[StateDatabase]:
    return closing(StateDatabase(folder, **options))


def count(counters: CameraCounters, times: int = 1) -> None:
    for _ in range(times):
        counters.add("door", ["in", "in:person"])
        counters.flush()


def stored(folder: Path) -> int:
    with opened(folder) as state:
        counters = state.counters("gate")
        assert state.notice is None
        assert counters["door", "in"] == counters["door", "in:person"]
        return counters["door", "in"]


def test_counters_are_kept_per_camera(tmp_path: Path) -> None:
    with opened(tmp_path) as state:
        count(state.counters("gate"), 3)
        count(state.counters("yard"), 2)
    with opened(tmp_path) as state:
        assert state.counters("gate").counts() == {("door", "in"): 3, ("door", "in:person"): 3}
        assert state.counters("yard")["door", "in"] == 2
        assert state.counters("alley").counts() == {}


def test_counters_do_not_wait_for_slow_disk(tmp_path: Path) -> None:
    disk = SlowDisk()
    with opened(tmp_path, sync_s=0.01, sync=disk.sync) as state:
        counters = state.counters("gate")
        disk.stop()
        count(counters)
        assert disk.waiting.wait(60)
        count(counters, 100)
        assert counters["door", "in"] == 101
        disk.go.set()
    assert stored(tmp_path) == 101


def test_disk_is_synced_once_per_interval(tmp_path: Path) -> None:
    synced: list[int] = []
    with opened(tmp_path, sync_s=0.2, sync=synced.append) as state:
        at_start = len(synced)
        count(state.counters("gate"), 200)
        assert len(synced) - at_start < 20


@pytest.mark.integration
@pytest.mark.parametrize("sync_s", [0.01, 3600])
def test_counters_of_a_killed_process_are_kept(tmp_path: Path, sync_s: float) -> None:
    program = f"""
import os, signal, threading, time
from pathlib import Path
from vision.state.database import StateDatabase

def sync(descriptor):
    if threading.current_thread().name == "state":
        time.sleep(60)

counters = StateDatabase(Path({str(tmp_path)!r}), sync_s={sync_s}, sync=sync).counters("gate")
for _ in range(500):
    counters.add("door", ["in", "in:person"])
    counters.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program], check=False, timeout=30)
    assert killed.returncode == -signal.SIGKILL
    assert stored(tmp_path) == 500


def test_power_cut_loses_the_newest_counts_only(tmp_path: Path) -> None:
    with opened(tmp_path / "state", sync_s=3600) as state:
        wal = tmp_path / "state" / "state.db-wal"
        first = wal.stat().st_size
        count(state.counters("gate"), 20)
        size = wal.stat().st_size
        copies = [torn_copy(wal.parent, tmp_path / f"{cut}", cut) for cut in (*range(first, size, 2_003), size)]
    counts = [stored(copy) for copy in copies]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 20)


def test_full_disk_is_logged_once_and_counting_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(tmp_path) as state:
        counters = state.counters("gate")
        with full_disk(tmp_path):
            count(counters, 3)
        assert len(log_args(caplog, "vision.state.database", logging.ERROR)) == 1
        assert counters["door", "in"] == 3
    assert stored(tmp_path) == 3
