"""Tests of the conditions under which the circuit breaker opens, probes the server, and closes."""

from __future__ import annotations

import pytest

from vision.language.breaker import CircuitBreaker

pytestmark = pytest.mark.unit

TIMEOUT_S = 10.0


class Time:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_it_opens_after_three_failures_and_closes_with_a_success() -> None:
    time = Time()
    breaker = CircuitBreaker(TIMEOUT_S, clock=time, random_part=lambda: 0.5)
    for _ in range(2):
        breaker.failed(time())
    breaker.succeeded()
    assert [breaker.failed(time()) for _ in range(4)] == [False, False, True, False]
    assert breaker.is_open
    assert not breaker.admits()
    assert [breaker.succeeded() for _ in range(2)] == [True, False]
    assert breaker.admits()


def test_one_question_per_pause_probes_the_server() -> None:
    time = Time()
    breaker = CircuitBreaker(TIMEOUT_S, clock=time, random_part=lambda: 0.5)
    for _ in range(3):
        breaker.failed(time())
    probes = []
    while time.now_s < 400:
        if breaker.admits():
            probes.append(round(time.now_s - 100, 1))
            breaker.failed(time())
        time.now_s += 0.1
    assert probes == pytest.approx([1, 3, 7, 15, 31, 63, 123, 183, 243], abs=1.5)


def test_the_pauses_are_random() -> None:
    lengths = []
    for part in (0.0, 0.25, 0.999):
        time = Time()
        breaker = CircuitBreaker(TIMEOUT_S, clock=time, random_part=lambda part=part: part)  # type: ignore[misc]
        for _ in range(3):
            breaker.failed(time())
        while not breaker.admits():
            time.now_s += 0.01
        lengths.append(round(time.now_s - 100, 1))
    assert lengths == pytest.approx([0.5, 0.75, 1.5], abs=0.1)


def test_failures_of_questions_from_before_the_opening_do_not_count() -> None:
    time = Time()
    breaker = CircuitBreaker(TIMEOUT_S, clock=time, random_part=lambda: 0.5)
    for _ in range(3):
        breaker.failed(90.0)
    assert breaker.opened_after(99.0)
    assert not breaker.opened_after(100.0)
    for _ in range(5):
        breaker.failed(99.0)
    time.now_s = 101.1
    assert breaker.admits()


def test_a_short_wait_is_neither_a_failure_nor_a_success() -> None:
    time = Time()
    breaker = CircuitBreaker(TIMEOUT_S, clock=time)
    for _ in range(2):
        breaker.failed(time())
    for _ in range(9):
        time.now_s += 1
        assert not breaker.timed_out(time() - 1)
    assert breaker.failed(time())
    time.now_s += 0.5
    breaker.timed_out(time() - 0.5)
    assert breaker.is_open


def test_a_server_that_answers_nothing_for_the_timeout_fails_also_with_short_waits() -> None:
    time = Time()
    breaker = CircuitBreaker(TIMEOUT_S, clock=time)
    opened_s = []
    while not breaker.is_open:
        time.now_s += 1
        if breaker.timed_out(time() - 1):
            opened_s.append(time())
    assert opened_s == [112.0]  # after the timeout, three failures in a row


def test_the_time_without_an_answer_starts_with_a_question_after_the_last_answer() -> None:
    time = Time()
    breaker = CircuitBreaker(TIMEOUT_S, clock=time)
    for _ in range(30):
        for _ in range(4):
            time.now_s += 2
            breaker.timed_out(time() - 9)  # asked before the last answer
        breaker.succeeded()
        time.now_s += 3600  # no question
    assert not breaker.is_open


def test_a_question_that_waits_for_the_whole_timeout_fails_at_once() -> None:
    time = Time()
    breaker = CircuitBreaker(TIMEOUT_S, clock=time)
    assert [breaker.timed_out(time() - TIMEOUT_S) for _ in range(3)] == [False, False, True]
