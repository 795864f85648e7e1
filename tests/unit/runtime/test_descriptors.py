"""Tests that a program without free file descriptors continues, or ends with a clear error."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from tests.messages.processes import REPOSITORY, Program, wait_until
from tests.messages.raw_zmtp import GREETING, connect_only
from vision.client import EventMessage, NodeStatusMessage, Subscription
from vision.errors import EXIT_OK, EXIT_TEMPORARY
from vision.messaging.helper_process import HelperProcess

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

CONFIG = """
pipeline: count
detect: {{backend: fake, score_threshold: 0.2}}
track: {{low_score: 0.1, high_score: 0.15, new_score: 0.2}}
cameras:
- {{id: a, source: "synthetic:320x240@30?objects=6&seed=1&overlap=1"}}
- {{id: b, source: "http://127.0.0.1:1/x.mjpg"}}
analytics: {{a: {{lines: [{{name: v, points: [[160, 0], [160, 240]]}}]}}}}
state_dir: {folder}/state
snapshots: {{folder: {folder}/snapshots}}
publish: {{bind: "ipc://{folder}/out", replay: "ipc://{folder}/replay"}}
http: {{bind: "127.0.0.1:0"}}
"""
RESERVE = """
import json, os, resource
from vision.errors import Unavailable
from vision.runtime.descriptors import DescriptorReserve, raise_limit

raise_limit()
raised = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, raised[1]))

def take():
    taken = []
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        return taken

def give_back(taken):
    for descriptor in taken:
        os.close(descriptor)

now_s = 0
reserve = DescriptorReserve(clock=lambda: now_s * 10**9)
first = take()
reserve.check()
second = take()
reserve.check()
now_s = 4
reserve.check()
now_s = 5
try:
    reserve.check()
    ended = False
except Unavailable:
    ended = True
give_back(second)
reserve.check()
give_back(first)
reserve.check()
third = take()
give_back(third)
reserve.close()
print(json.dumps([raised, len(first), len(second), ended, len(third), len(take())]))
"""


def test_reserve_is_given_back_taken_again_and_ends_the_program_if_it_is_used_up() -> None:
    limited = ["prlimit", "--nofile=80:300", sys.executable, "-c", RESERVE]
    done = subprocess.run(limited, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    raised, first, second, ended, third, everything = json.loads(done.stdout)
    assert raised == [300, 300]
    assert second == 32
    assert ended
    assert third == first
    assert everything == first + 32 + 1  # and the descriptor from which the others are duplicated


def running(folder: Path) -> Program:
    (folder / "camera.yaml").write_text(CONFIG.format(folder=folder))
    return Program([sys.executable, "-m", "vision", "run", folder / "camera.yaml"])


def children(pid: int) -> set[int]:
    return {child.pid for child in psutil.Process(pid).children()}


def wait_until_idle(pid: int) -> None:
    """Wait until the child processes are idle. Before that, a lower descriptor limit would abort the program."""
    used_s = float("inf")
    while True:
        before_s = used_s
        used_s = sum(sum(psutil.Process(child).cpu_times()[:2]) for child in children(pid))
        if 0 <= used_s - before_s < 0.1:
            return
        time.sleep(1)


def starve(pid: int, *, below: bool = False) -> None:
    """Lower the file descriptor limit of a process so that no descriptor is free.

    If `below` is True, the process cannot even use descriptors that it releases.
    """
    used = {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
    lowest_free = min(set(range(len(used) + 1)) - used)
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3 if below else lowest_free, hard))


def test_program_without_free_descriptors_goes_on_and_replaces_its_processes(tmp_path: Path) -> None:
    with running(tmp_path) as program:
        address = program.wait_line(lambda line: "publishing on " in line).split("publishing on ")[1]
        with Subscription(address, kinds=("events", "status"), since=0) as subscription:
            numbers = [event_after(subscription, 0)]
            wait_until_idle(program.pid)
            before = children(program.pid)
            starve(program.pid)
            flood = [connect_only(f"ipc://{tmp_path}/{name}") for _ in range(60) for name in ("out", "replay")]
            for client in flood:
                client.sendall(GREETING)
            program.wait_line(lambda line: "no descriptor is free" in line)
            for child in before:
                os.kill(child, signal.SIGKILL)
            wait_until(lambda: len(children(program.pid) - before) == len(before), "new processes", 60)
            numbers.append(event_after(subscription, numbers[0] + 20))
            for client in flood:
                client.close()
            resource.prlimit(program.pid, resource.RLIMIT_NOFILE, (1024, resource.prlimit(program.pid, 7)[1]))
            program.wait_line(lambda line: "enough descriptors are free again" in line)
            status = next_status(subscription)
            assert status.counters["journal.lost"] == 0
            program.send(signal.SIGTERM)
            assert program.wait() == EXIT_OK
        assert len(program.pending()) < 100


def event_after(subscription: Subscription, number: int) -> int:
    """Return the number of the first event whose number is greater than `number`."""
    while True:
        item = subscription.receive(60)
        if isinstance(item, EventMessage) and (item.number or 0) > number:
            return item.number or 0


def next_status(subscription: Subscription) -> NodeStatusMessage:
    while True:
        item = subscription.receive(60)
        if isinstance(item, NodeStatusMessage):
            return item


def test_program_whose_reserve_is_used_up_ends_with_exit_code_75(tmp_path: Path) -> None:
    with running(tmp_path) as program:
        program.wait_line(lambda line: "camera a: connected" in line)
        wait_until_idle(program.pid)
        starve(program.pid, below=True)
        program.wait_line(lambda line: line.startswith("vision: "), 120)
        assert program.line().startswith("  hint: ")
        assert program.wait() == EXIT_TEMPORARY


@pytest.mark.parametrize("limit", [12, 28, 44, 60])
def test_start_with_too_few_descriptors_ends_with_exit_code_75(tmp_path: Path, limit: int) -> None:
    (tmp_path / "camera.yaml").write_text(CONFIG.format(folder=tmp_path))
    command = ["prlimit", f"--nofile={limit}", sys.executable, "-m", "vision", "run", str(tmp_path / "camera.yaml")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == EXIT_TEMPORARY, done.stderr
    assert "Traceback" not in done.stderr


def test_helper_process_is_started_again_when_descriptors_are_free(tmp_path: Path) -> None:
    lines: list[str] = []
    program = ["-I", "-c", "import sys\nprint('up', flush=True)\nfor _ in sys.stdin: pass"]
    process = HelperProcess("echo", program, {}, on_line=lambda line: lines.append(line.strip()), stop_s=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with closing(process):
        process.start()
        wait_until(lambda: lines == ["up"], "the first process", 60)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            process.kill()
            wait_until(lambda: process.failed_starts > 1, "two failed starts", 60)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        wait_until(lambda: lines == ["up", "up"], "the next process", 60)
