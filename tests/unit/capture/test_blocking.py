"""Calls that block, on a thread that can be left behind."""

from __future__ import annotations

import threading
import time

import pytest

from vision.capture.blocking import BlockingCalls, Interrupted, blocked_threads


@pytest.fixture
def calls() -> BlockingCalls[int]:
    return BlockingCalls("test")


def test_values_and_errors_come_back(calls: BlockingCalls[int]) -> None:
    calls.begin(lambda: 3)
    assert calls.result(10) == 3
    calls.begin(lambda: int("x"))
    with pytest.raises(ValueError, match="invalid literal"):
        calls.result(10)
    calls.begin(lambda: 4)
    assert calls.result(10) == 4
    calls.end(lambda: 0)
    assert blocked_threads() == []


def test_a_call_that_takes_longer_is_asked_for_again(calls: BlockingCalls[int]) -> None:
    release = threading.Event()
    calls.begin(lambda: release.wait(30) * 7)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            calls.result(0.01)
        assert calls.busy
    release.set()
    assert calls.result(10) == 7
    assert not calls.busy
    calls.end(lambda: 0)


def test_waking_a_result_that_waits(calls: BlockingCalls[int]) -> None:
    release = threading.Event()
    calls.begin(lambda: release.wait(30) * 7)
    threading.Timer(0.05, calls.wake).start()
    began = time.monotonic()
    with pytest.raises(Interrupted):
        calls.result(20)
    assert time.monotonic() - began < 10
    release.set()
    calls.end(lambda: 0)


@pytest.mark.integration
def test_what_is_left_behind_is_released_when_it_comes_back(calls: BlockingCalls[int]) -> None:
    release, released = threading.Event(), threading.Event()
    calls.begin(lambda: release.wait(30) * 7)

    def give_back() -> int:
        released.set()
        return 0

    calls.end(give_back)
    assert blocked_threads() == ["blocking-test"]
    assert not released.is_set()
    release.set()
    assert released.wait(10)
    deadline = time.monotonic() + 10
    while blocked_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert blocked_threads() == []


def test_a_release_that_fails_ends_the_thread_all_the_same(calls: BlockingCalls[int]) -> None:
    calls.end(lambda: int("x"))
    assert blocked_threads() == []
