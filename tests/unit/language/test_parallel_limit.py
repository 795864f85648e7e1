"""Tests that the limit of parallel requests follows the latencies of simulated servers, in simulated time."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable

import pytest

from vision.language.parallel_limit import MOST, ParallelLimit

pytestmark = pytest.mark.unit

Server = Callable[[float, list[float]], float]
"""Function that returns the end of a request, from its begin and the ends of the requests that the server has."""


def parallel(seconds: float) -> Server:
    """Return a server that answers any number of requests in parallel."""
    return lambda now_s, _: now_s + seconds


def slots(count: int, seconds: float) -> Server:
    """Return a server that answers `count` requests in parallel. Other requests wait in order of arrival."""

    def end_s(now_s: float, ends_s: list[float]) -> float:
        waiting = sorted(each for each in ends_s if each > now_s)
        return max(now_s, waiting[-count] if len(waiting) >= count else now_s) + seconds

    return end_s


class Load:
    """Load that exceeds the capacity of the server, so that each slot of the limit is always in use."""

    def __init__(self, *, timeout_s: float = 10.0) -> None:
        self.now_s = 1000.0
        self.limit = ParallelLimit(clock=lambda: self.now_s)
        self.timeout_s = timeout_s
        self.answered = self.timed_out = self.most = 0
        self.longest_s = 0.0

    def run(self, seconds: float, server: Server) -> None:
        """Keep the server busy for `seconds`. Then wait for the last answers."""
        end_s, ends_s, number = self.now_s + seconds, list[float](), 0
        running: list[tuple[float, int, float, object]] = []
        self.answered = self.timed_out = self.most = 0
        self.longest_s = 0.0
        while True:
            while self.now_s < end_s and len(running) < self._allowed():
                done_s = server(self.now_s, ends_s)
                ends_s = [*[each for each in ends_s if each > self.now_s], done_s]
                if done_s > self.now_s + self.timeout_s:
                    ends_s.remove(done_s)  # the server notices that the client has closed the connection
                leaves_s, number = min(done_s, self.now_s + self.timeout_s), number + 1
                heapq.heappush(running, (leaves_s, number, done_s, self.limit.begin("check")))
                self.most = max(self.most, len(running))
            if not running:
                return
            self.now_s, _, done_s, request = heapq.heappop(running)
            is_late = done_s > self.now_s
            self.answered += not is_late
            self.timed_out += is_late
            self.longest_s = max(self.longest_s, self.now_s - request.began_s)  # type: ignore[attr-defined]
            self.limit.ended(request, "too-slow" if is_late else "", self.timeout_s)  # type: ignore[arg-type]

    def _allowed(self) -> int:
        return 1 if self.limit._is_measuring else self.limit.limit


def test_a_parallel_server_gets_the_most_requests_within_seconds() -> None:
    load = Load()
    load.run(6.0, parallel(0.6))
    assert load.limit.limit == MOST
    load.run(60.0, parallel(0.6))
    assert load.answered > 0.9 * 60 / 0.6 * MOST


def test_a_serial_server_gets_one_request_most_of_the_time() -> None:
    load = Load()
    load.run(30.0, slots(1, 0.6))
    load.run(600.0, slots(1, 0.6))
    assert load.answered >= 0.99 * 600 / 0.6
    assert (load.most, load.timed_out) == (2, 0)
    assert load.limit.limit == 1


def test_a_serial_server_whose_requests_would_all_time_out_if_they_waited_there() -> None:
    load = Load(timeout_s=3.0)
    load.run(60.0, slots(1, 2.0))
    load.run(600.0, slots(1, 2.0))
    assert load.answered > 0.9 * 600 / 2.0
    assert load.timed_out < 40  # in rounds that test whether two requests are better


def test_a_server_with_two_slots_gets_its_full_load() -> None:
    load = Load(timeout_s=3.0)
    load.run(600.0, slots(2, 2.0))
    assert load.answered > 0.85 * 600 / 2.0 * 2


@pytest.mark.parametrize("seconds", [0.1, 0.6, 3.0])
def test_the_start_of_the_model_does_not_mislead_the_limit(seconds: float) -> None:
    load = Load(timeout_s=60.0)
    load.run(0.1, parallel(20.0))  # the first request
    load.run(60.0 * max(seconds, 1.0), slots(1, seconds))
    load.run(60.0, slots(1, seconds))
    assert load.limit.limit <= 2
    assert load.most <= 2


def test_the_limit_follows_a_server_that_changes() -> None:
    load = Load(timeout_s=60.0)
    load.run(30.0, parallel(0.6))
    load.run(120.0, slots(1, 0.6))
    assert load.limit.limit == 1
    load.run(120.0, parallel(0.6))
    assert load.limit.limit == MOST
    load.run(120.0, parallel(1.8))
    assert load.limit.limit == MOST


def test_a_wrong_measurement_is_corrected() -> None:
    load = Load(timeout_s=60.0)
    load.run(5.0, parallel(5.0))  # slow, but parallel
    load.run(15.0, parallel(5.0))
    load.run(600.0, slots(1, 0.6))
    assert load.limit.limit == 1


def test_a_server_that_refuses_requests_gets_fewer() -> None:
    load = Load()
    load.run(6.0, parallel(0.6))
    requests = [load.limit.begin("a check without an answer") for _ in range(3)]
    load.limit.ended(requests[2], "busy")
    load.limit.ended(requests[1], "busy")
    assert load.limit.limit == MOST // 2  # both began before the change
    load.limit.ended(requests[0], "unreachable")
    assert load.limit.limit == MOST // 2


def test_a_number_in_the_configuration_never_changes() -> None:
    limit = ParallelLimit(3)
    for error in ("", "too-slow", "busy"):
        for request in [limit.begin("check") for _ in range(3)]:
            limit.ended(request, error, 10.0)
    assert (limit.limit, limit.most) == (3, 3)


def test_no_more_slots_are_in_use_than_the_limit() -> None:
    limit, release, entered = ParallelLimit(2), threading.Event(), threading.Semaphore(0)
    most, used, lock = 0, 0, threading.Lock()

    def use() -> None:
        nonlocal most, used
        with limit.slot():
            with lock:
                used += 1
                most = max(most, used)
            entered.release()
            release.wait(10)
            with lock:
                used -= 1

    threads = [threading.Thread(target=use) for _ in range(5)]
    for thread in threads:
        thread.start()
    assert entered.acquire(timeout=10)
    assert entered.acquire(timeout=10)
    release.set()
    for thread in threads:
        thread.join(10)
    assert (most, used) == (2, 0)
