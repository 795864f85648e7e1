"""When the circuit breaker opens, probes, and closes."""

from __future__ import annotations

import pytest

from vision.language.breaker import CircuitBreaker

pytestmark = pytest.mark.unit


class Time:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_it_opens_after_three_failures_and_closes_with_a_success() -> None:
    time = Time()
    breaker = CircuitBreaker(clock=time, random_part=lambda: 0.5)
    for _ in range(2):
        breaker.failed(time())
    breaker.succeeded()
    for number in range(3):
        assert breaker.admits()
        assert breaker.is_open == (number == 3)
        breaker.failed(time())
    assert breaker.is_open
    assert not breaker.admits()
    breaker.succeeded()
    assert breaker.admits()


def test_one_question_per_pause_probes_the_server() -> None:
    time = Time()
    breaker = CircuitBreaker(clock=time, random_part=lambda: 0.5)
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
        breaker = CircuitBreaker(clock=time, random_part=lambda part=part: part)  # type: ignore[misc]
        for _ in range(3):
            breaker.failed(time())
        while not breaker.admits():
            time.now_s += 0.01
        lengths.append(round(time.now_s - 100, 1))
    assert lengths == pytest.approx([0.5, 0.75, 1.5], abs=0.1)


def test_failures_of_questions_from_before_the_opening_do_not_count() -> None:
    time = Time()
    breaker = CircuitBreaker(clock=time, random_part=lambda: 0.5)
    for _ in range(3):
        breaker.failed(90.0)
    assert breaker.opened_after(99.0)
    assert not breaker.opened_after(100.0)
    for _ in range(5):
        breaker.failed(99.0)
    time.now_s = 101.1
    assert breaker.admits()
