"""Tests of the memory of the main process, its child processes, and the descendants of these processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vision.messaging.own_processes import MAIN, OwnProcesses

MIB = 1 << 20
_HOLD = """
import subprocess, sys
code, own, *others = sys.argv[1:]
held = b"\\1" * (int(own) << 20)
if others:
    subprocess.Popen([sys.executable, "-c", code, code, *others])
else:
    print(flush=True)
sys.stdin.read()
"""


class Clock:
    """Clock whose time the test sets."""

    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns


@contextmanager
def process(*mib: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that uses `mib[0]` MiB. If `mib[1]` exists, this process starts a child that uses `mib[1]` MiB."""
    command = [sys.executable, "-c", _HOLD, _HOLD, *map(str, mib)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdout.readline()  # the last process holds its memory
        yield running
        running.stdin.close()


@pytest.mark.integration
def test_each_process_is_counted_with_the_processes_that_it_started() -> None:
    own = OwnProcesses()
    with process(40) as small, process(60, 80) as large:
        own.add("small", small.pid)
        own.add("large", large.pid)
        found = own.memory_bytes()
    assert set(found) == {MAIN, "small", "large"}
    assert 40 * MIB < found["small"] < 60 * MIB
    assert 140 * MIB < found["large"] < 180 * MIB
    assert found[MAIN] > MIB


@pytest.mark.integration
def test_processes_of_one_name_are_added_and_a_removed_process_does_not_count() -> None:
    clock = Clock()
    own = OwnProcesses(clock)
    with process(40) as first, process(40) as second:
        own.add("worker", first.pid)
        own.add("worker", second.pid)
        assert own.memory_bytes()["worker"] > 80 * MIB
        own.remove(first.pid)
        assert own.memory_bytes()["worker"] > 80 * MIB  # the next measurement is not due
        clock.ns += 1_000_000_000
        assert 40 * MIB < own.memory_bytes()["worker"] < 60 * MIB
        own.remove(second.pid)
        clock.ns += 1_000_000_000
        assert set(own.memory_bytes()) == {MAIN}


@pytest.mark.parametrize(("duration_ns", "next_ns"), [(5_000_000, 5_005_000_000), (100_000_000, 10_100_000_000)])
def test_slow_measurement_is_repeated_later(duration_ns: int, next_ns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, measured = Clock(), []
    own = OwnProcesses(clock)

    def measure() -> None:
        measured.append(clock.ns)
        clock.ns += duration_ns

    monkeypatch.setattr(own, "_measure", measure)
    while len(measured) < 2:
        own.memory_bytes()
        clock.ns += 5_000_000
    assert measured == [0, next_ns]
