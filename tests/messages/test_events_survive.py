"""No event is lost when a publisher or a subscriber is killed at a random moment."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from tests.messages.processes import Program, python, wait_until
from vision.client import EventMessage, Restart, Subscription


def publisher(folder: Path) -> Program:
    addresses = [f"ipc://{folder}/out", f"ipc://{folder}/again"]
    return python("-m", "tests.messages.eventful", "publish", folder / "journal", *addresses)


def wait_for_events(program: Program, count: int = 60) -> None:
    """Wait until the program has printed `count` more events, and return at a random moment after that."""
    first = int(program.line())
    program.wait_line(lambda line: int(line) >= first + count)
    time.sleep(random.uniform(0, 0.01))


def test_killed_publisher_loses_no_event(tmp_path: Path) -> None:
    events: list[EventMessage] = []
    reports: list[object] = []
    with Subscription(f"ipc://{tmp_path}/out", kinds=("events",), since=0, silence_s=60) as subscription:

        def drain(until: int) -> None:
            deadline = time.monotonic() + 40
            while not events or (events[-1].number or 0) < until:
                assert time.monotonic() < deadline, f"event {until} did not arrive; the last one is {events[-1:]}"
                item = subscription.receive(1)
                if isinstance(item, EventMessage):
                    events.append(item)
                elif item is not None:
                    reports.append(item)

        newest = 0
        for run in range(4):
            with publisher(tmp_path) as program:
                wait_for_events(program)
                if run % 2:  # with or without the events of the last publisher received
                    drain(newest + 1)
                program.send(signal.SIGKILL)
                program.wait()
                newest = max(int(line) for line in ["0", *program.pending()])
        with publisher(tmp_path) as program:
            first = int(program.line())
            drain(first + 20)
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert [event.data["count"] for event in events] == [event.number for event in events]
    assert len({event.instance for event in events}) == 5
    assert {type(item) for item in reports} <= {Restart}


@pytest.mark.parametrize("publisher_too", [False, True])
def test_killed_subscriber_loses_no_event(tmp_path: Path, publisher_too: bool) -> None:
    file = tmp_path / "received"
    program = publisher(tmp_path)
    try:
        for _ in range(3):
            before = file.stat().st_size if file.exists() else 0
            with python("-m", "tests.messages.eventful", "subscribe", f"ipc://{tmp_path}/out", file) as subscriber:
                wait_until(lambda size=before: file.exists() and file.stat().st_size > size + 500, "it receives events")  # type: ignore[misc]
                subscriber.send(signal.SIGKILL)
                subscriber.wait()
            if publisher_too:
                wait_for_events(program, 10)
                program.__exit__()
                program = publisher(tmp_path)
            wait_for_events(program, 30)  # without a subscriber
    finally:
        program.__exit__()
    lines = [line.split() for line in file.read_text().splitlines()]
    numbers = [int(number) for _, number, _ in lines]
    assert sorted(set(numbers)) == list(range(1, max(numbers) + 1))
    assert all(number == count for _, number, count in lines)
    assert len({journal for journal, _, _ in lines}) == 1
