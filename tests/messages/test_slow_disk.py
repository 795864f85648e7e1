"""Tests with kill -9 and a slow disk: counters agree with events, and a blocked fsync delays no result and no stop."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.messages.processes import REPOSITORY, python
from vision.client import DetectionsMessage, EventMessage, Item, Subscription
from vision.messaging.schema import Kind

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
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int gate[2] = {-1, -1};

__attribute__((constructor)) static void open_gate(void) {
    const char *pipes = getenv("FSYNC_PIPES");
    if (pipes) sscanf(pipes, "%d,%d", &gate[0], &gate[1]);
}
static int held(const char *name, int fd) {
    int (*call)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    char byte = 0;
    if (gate[1] >= 0 && write(gate[1], &byte, 1) == 1 && read(gate[0], &byte, 1) != 1) _exit(99);
    return call(fd);
}
int fsync(int fd) { return held("fsync", fd); }
int fdatasync(int fd) { return held("fdatasync", fd); }
"""
"""A library in which every fsync writes a byte to a pipe, and then waits for a byte from another."""
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
import ctypes, os, select, sys, time
from pathlib import Path
from vision.state.database import StateDatabase

folder = Path(sys.argv[1])
log = folder / "state.db-wal"
state = StateDatabase(folder, boot="boot", max_events=1_000_000)
go, start = os.pipe(), os.pipe()
gate = (ctypes.c_int * 2).in_dll(ctypes.CDLL(os.environ["LD_PRELOAD"]), "gate")
gate[:] = go[0], start[1]

def append(count):
    for _ in range(count):
        assert state.events.append([b"x" * 400])

def starts(timeout_s):
    return bool(select.select([start[0]], [], [], timeout_s)[0] and os.read(start[0], 1))

for _ in range(8):  # the log is moved into the database after 1000 events
    append(100)
    assert starts(60)
    append(100)
    os.write(go[1], b"x")
deadline_s = time.monotonic() + 60
while True:
    waits = starts(0.1)
    if not log.stat().st_size:
        break
    assert time.monotonic() < deadline_s
    os.write(go[1], b"x" * waits)
append(200)
assert waits or starts(60)
append(200)
gate[1] = -1
os.write(go[1], b"x" * 100)
state.close()
print("done")
"""


class Disk:
    """Disk of a program. Each fsync ends immediately or, while the disk is held, waits."""

    def __init__(self, shim: Path) -> None:
        read, self._start = os.pipe()
        self._go, write = os.pipe()
        self.pass_fds = (self._go, self._start)
        self.environment = {"LD_PRELOAD": str(shim), "FSYNC_PIPES": f"{self._go},{self._start}"}
        self.waiting = threading.Event()
        self._released = threading.Event()
        self._released.set()
        self._thread = threading.Thread(target=self._serve, args=(read, write))

    def __enter__(self) -> Disk:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Close the pipes. The program must have ended before."""
        self._released.set()
        for descriptor in self.pass_fds:
            os.close(descriptor)
        self._thread.join()

    def hold(self) -> None:
        self._released.clear()

    def _serve(self, read: int, write: int) -> None:
        with open(read, "rb", buffering=0) as starts, open(write, "wb", buffering=0) as go:
            while starts.read(1):
                if not self._released.is_set():
                    self.waiting.set()
                    self._released.wait()
                with suppress(BrokenPipeError):
                    go.write(b"x")


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile `SHIM`. Return the path of the library."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    command = ["gcc", "-shared", "-fPIC", "-o", str(folder / "shim.so"), str(folder / "shim.c"), "-ldl"]
    subprocess.run(command, check=True)
    return folder / "shim.so"


def test_appending_never_waits_for_the_disk(tmp_path: Path, shim: Path) -> None:
    """The test appends events while an fsync waits, while the log is being emptied, and after the log is empty."""
    command = [sys.executable, "-c", APPENDING, str(tmp_path / "state")]
    environment = os.environ | {"LD_PRELOAD": str(shim)}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, check=False, timeout=100, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_slow_disk_delays_neither_results_nor_the_stop(tmp_path: Path, shim: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "camera.yaml").write_text(CONFIG.replace("FOLDER", str(folder)))
    command = [sys.executable, "-m", "vision", "--log-level", "warning", "run", str(folder / "camera.yaml")]
    kinds: tuple[Kind, ...] = ("detections", "events")
    with Disk(shim) as disk, Subscription(f"ipc://{folder}/out", kinds=kinds, silence_s=60) as subscription:
        program = subprocess.Popen(command, cwd=REPOSITORY, env=os.environ | disk.environment, pass_fds=disk.pass_fds)
        try:
            receive(subscription, DetectionsMessage, 1)
            disk.hold()
            assert disk.waiting.wait(60)
            receive(subscription, DetectionsMessage, 100)
            receive(subscription, EventMessage, 20)
            program.send_signal(signal.SIGTERM)
            assert program.wait(60) == 0
        finally:
            program.kill()
            program.wait()
    with closing(sqlite3.connect(folder / "state" / "state.db")) as database:
        assert database.execute("PRAGMA quick_check").fetchone() == ("ok",)


def receive(subscription: Subscription, kind: type[Item], count: int) -> None:
    """Receive messages until `count` of this kind have arrived. Return these messages."""
    while count:
        message = subscription.receive(60)
        assert message is not None
        count -= isinstance(message, kind)
