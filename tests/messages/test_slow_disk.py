"""Counters agree with events after kill -9, and a disk whose fsync takes 2 s delays neither results nor the stop."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

from tests.messages.processes import REPOSITORY, python
from vision.client import DetectionsMessage, EventMessage, Subscription

pytestmark = pytest.mark.integration

COUNTING = """
import sys
from pathlib import Path
from tests.messages.samples import CLASSES, result
from vision.messaging.publisher import Publisher
from vision.state.database import StateDatabase
from vision.types import Event

state = StateDatabase(Path(sys.argv[1]), boot="boot", max_events=1_000_000)
with Publisher("ipc://" + sys.argv[1] + "/out", node="n", class_names=CLASSES, event_log=state.events) as publisher:
    counters = state.counters("gate")
    print("ready", flush=True)
    while True:
        counters.add("door", ["in"])
        counters.flush()
        publisher.publish(result(events=(Event("line_crossed", "door", "gate", 1, 0, {}),)))
"""


def test_counters_equal_the_events_of_a_killed_program(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    for _ in range(6):
        with python("-c", COUNTING, folder) as program:
            program.wait_line("ready".__eq__)
            time.sleep(random.uniform(0.05, 0.3))
            program.send(signal.SIGKILL)
            program.wait()
        with closing(sqlite3.connect(folder / "state.db")) as database:
            (events,) = database.execute("SELECT count(*) FROM events").fetchone()
            (counted,) = database.execute("SELECT value FROM counters WHERE key = 'in'").fetchone()
        assert counted == events > 0


SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>

static int slow(const char *name, int fd) {
    int (*call)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    usleep(2000000);
    return call(fd);
}
int fsync(int fd) { return slow("fsync", fd); }
int fdatasync(int fd) { return slow("fdatasync", fd); }
"""
CONFIG = """
pipeline: count
cameras: [{id: a, source: "synthetic:320x240@60?objects=6&seed=1&overlap=1"}]
detect: {backend: fake, score_threshold: 0.2}
track: {low_score: 0.1, high_score: 0.15, new_score: 0.2}
analytics: {a: {lines: [{name: v, points: [[160, 0], [160, 240]]}]}}
state_dir: FOLDER/state
publish: {bind: "ipc://FOLDER/out", max_events: 100}
"""


APPENDING = """
import sys, time
from pathlib import Path
from vision.state.database import StateDatabase

folder = Path(sys.argv[1])
state = StateDatabase(folder, boot="boot", max_events=1_000_000)

def append(count):
    longest_s = 0.0
    for _ in range(count):
        began_s = time.monotonic()
        assert state.events.append([b"x" * 400])
        longest_s = max(longest_s, time.monotonic() - began_s)
        time.sleep(0.001)
    print(longest_s, flush=True)

append(1500)
deadline_s = time.monotonic() + 40
while (folder / "state.db-wal").stat().st_size and time.monotonic() < deadline_s:
    time.sleep(0.1)
assert not (folder / "state.db-wal").stat().st_size
append(200)
state.close()
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a library that makes every fsync take 2 s."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    command = ["gcc", "-shared", "-fPIC", "-o", str(folder / "shim.so"), str(folder / "shim.c"), "-ldl"]
    subprocess.run(command, check=True)
    return folder / "shim.so"


def test_appending_never_waits_for_the_disk(tmp_path: Path, shim: Path) -> None:
    """Also not while the log is emptied, and with the first event after that."""
    command = [sys.executable, "-c", APPENDING, str(tmp_path / "state")]
    environment = os.environ | {"LD_PRELOAD": str(shim)}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, check=False, timeout=100, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert all(float(longest_s) < 1.0 for longest_s in done.stdout.split()), done.stdout


def test_slow_disk_delays_neither_results_nor_the_stop(tmp_path: Path, shim: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "camera.yaml").write_text(CONFIG.replace("FOLDER", str(folder)))
    command = [sys.executable, "-m", "vision", "--log-level", "warning", "run", str(folder / "camera.yaml")]
    with Subscription(f"ipc://{folder}/out", kinds=("detections", "events"), silence_s=60) as subscription:
        program = subprocess.Popen(command, cwd=REPOSITORY, env=os.environ | {"LD_PRELOAD": str(shim)})
        try:
            times, events = receive(subscription, 5)
            program.send_signal(signal.SIGTERM)
            stopping_s = time.monotonic()
            assert program.wait(30) == 0
            stop_s = time.monotonic() - stopping_s
        finally:
            program.kill()
            program.wait()
    assert events > 20
    assert max(after - before for before, after in pairwise(times)) < 1.0  # one fsync takes 2 s
    assert stop_s < 10
    with closing(sqlite3.connect(folder / "state" / "state.db")) as database:
        assert database.execute("PRAGMA quick_check").fetchone() == ("ok",)


def receive(subscription: Subscription, seconds: float) -> tuple[list[float], int]:
    """Receive from the first detections message on. Return the times of these messages, and the number of events."""
    times: list[float] = []
    events = 0
    while not times or time.monotonic() < times[0] + seconds:
        message = subscription.receive(1)
        if isinstance(message, DetectionsMessage):
            times.append(time.monotonic())
        events += isinstance(message, EventMessage)
    return times, events
