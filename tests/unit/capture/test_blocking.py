"""Tests of calls that can block, and that therefore run in a thread that the program can abandon."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing

import pytest

from vision.capture.blocking import THREAD_PREFIX, BlockingReader
from vision.errors import SourceError


def blocked_threads() -> int:
    return sum(thread.name.startswith(THREAD_PREFIX) for thread in threading.enumerate())


def reader_of(
    *calls: Callable[[], int], close: Callable[[list[Callable[[], int]]], object] = lambda _: None
) -> BlockingReader[list[Callable[[], int]], int]:
    """Return a reader whose resource is the list `calls`. Each `read` executes one of the calls."""
    return BlockingReader("gate", lambda: list(calls), lambda remaining: remaining.pop(0)(), close)


def opened(
    *calls: Callable[[], int], close: Callable[[list[Callable[[], int]]], object] = lambda _: None
) -> BlockingReader[list[Callable[[], int]], int]:
    reader = reader_of(*calls, close=close)
    reader.open(10, hint="")
    return reader


def test_read_returns_values_and_raises_errors() -> None:
    with closing(opened(lambda: 3, lambda: int("x"), lambda: 4)) as reader:
        assert reader.read(10) == 3
        with pytest.raises(ValueError):
            reader.read(10)
        assert reader.read(10) == 4
    assert blocked_threads() == 0
    assert reader.read(10) is None


def test_read_after_a_timeout_returns_the_result_of_the_same_call() -> None:
    release = threading.Event()
    with closing(opened(lambda: release.wait(30) * 7)) as reader:
        assert [reader.read(0.01) for _ in range(3)] == [None, None, None]
        release.set()
        assert reader.read(10) == 7


def test_interrupt_ends_a_waiting_read() -> None:
    release = threading.Event()
    with closing(opened(lambda: release.wait(30) * 7)) as reader:
        threading.Timer(0.05, reader.interrupt).start()
        began = time.monotonic()
        assert reader.read(60) is None
        assert time.monotonic() - began < 25
        assert reader.read(60) is None
        release.set()


def test_interrupt_ends_open() -> None:
    release = threading.Event()
    reader = BlockingReader("gate", lambda: release.wait(30), int, bool)
    threading.Timer(0.05, reader.interrupt).start()
    for _ in range(2):
        with pytest.raises(SourceError) as raised:
            reader.open(20, hint="")
        assert raised.value.code == "interrupted"
    release.set()
    reader.close()


def test_open_times_out_and_raises_the_error_of_the_library() -> None:
    release = threading.Event()
    reader = BlockingReader("gate", lambda: release.wait(30), int, bool)
    with pytest.raises(SourceError) as raised:
        reader.open(0.01, hint="unplug it")
    assert (raised.value.code, raised.value.hint) == ("open-timeout", "unplug it")
    release.set()
    reader.close()
    with pytest.raises(ValueError), closing(BlockingReader("gate", lambda: int("x"), abs, bool)) as failing:
        failing.open(10, hint="")


@pytest.mark.integration
def test_abandoned_resource_is_closed_when_its_call_returns() -> None:
    release, closed = threading.Event(), threading.Event()
    reader = opened(lambda: release.wait(30) * 7, close=lambda _: closed.set())
    assert reader.read(0.01) is None
    reader.close()
    assert blocked_threads() == 1
    assert not closed.is_set()
    release.set()
    assert closed.wait(60)
    deadline = time.monotonic() + 60
    while blocked_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert blocked_threads() == 0


def test_thread_ends_if_close_fails() -> None:
    opened(close=lambda _: int("x")).close()
    assert blocked_threads() == 0
