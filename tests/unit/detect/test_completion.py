"""Tests of the sleep times of the host while a simulated GPU works. Each sleep advances a simulated clock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest

from vision.detect.tensorrt.completion import Completion
from vision.gpu.cuda import Event, Stream

MS = 1_000_000
SIZE = 8
TIMEOUT_S = 0.1
WAKING_NS = 10_000  # time by which each sleep is too long


class OnTheClock(Event):
    """Event that is reached at a given time, and that counts its polls."""

    def __init__(self) -> None:
        self.now_ns = 1000 * MS
        self.takes_ns = 0
        self.done_ns = 0
        self.looks = 0

    def record(self, stream: Stream) -> None:
        self.done_ns = self.now_ns + self.takes_ns

    def reached(self) -> bool:
        self.looks += 1
        return self.now_ns >= self.done_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9) + WAKING_NS

    def close(self) -> None:
        pass


class NoStream(Stream):
    """Stream that uses no GPU, because `OnTheClock` needs no stream."""

    def __init__(self) -> None:
        pass


@contextmanager
def waited_for(gpu: OnTheClock) -> Iterator[Completion]:
    with Completion(lambda: gpu, clock=lambda: gpu.now_ns, sleep=gpu.sleep) as completion:
        yield completion


def run(gpu: OnTheClock, completion: Completion, takes_ms: float, size: int = SIZE) -> tuple[float, int]:
    """Simulate one batch. Return the delay, in ms, until its end was detected, and the number of polls."""
    gpu.takes_ns, gpu.looks = round(takes_ms * MS), 0
    completion.record(NoStream(), size)
    while not completion.wait(TIMEOUT_S):
        pass
    return (gpu.now_ns - gpu.done_ns) / MS, gpu.looks


def run_all(batches_ms: Iterable[float]) -> list[tuple[float, int]]:
    gpu = OnTheClock()
    with waited_for(gpu) as completion:
        return [run(gpu, completion, takes_ms) for takes_ms in batches_ms]


@pytest.mark.parametrize("stall_ms", [100, 300])
@pytest.mark.parametrize("before", [0, 1, 50])
def test_one_stall_delays_no_other_batch(before: int, stall_ms: float) -> None:
    others = run_all([0.5] * before + [stall_ms] + [0.5] * 20)
    del others[before]
    assert max(late_ms for late_ms, _ in others) < 0.05


def test_host_pause_delays_no_other_batch() -> None:
    gpu = OnTheClock()
    with waited_for(gpu) as completion:
        for at in range(20):
            if at in (5, 12):
                gpu.takes_ns = MS // 2
                completion.record(NoStream(), SIZE)
                gpu.now_ns += 100 * MS  # before the first poll
                assert completion.wait(TIMEOUT_S)
            assert run(gpu, completion, 0.5)[0] < 0.05


@pytest.mark.parametrize("takes_ms", [0.3, 2, 50, 400])
def test_polling_is_rare_from_the_third_batch_on(takes_ms: float) -> None:
    """The host must still detect the end of a batch as early as with continuous polling."""
    batches = run_all([takes_ms] * 30)
    assert max(looks for _, looks in batches[2:]) <= 20  # continuous polling would need up to 400
    assert max(late_ms for late_ms, _ in batches) < 0.05 + takes_ms / 64


def test_wait_is_short_again_after_slow_batches() -> None:
    late_ms = [late_ms for late_ms, _ in run_all([100] * 10 + [1] * 20)]
    assert sum(late_ms[10:]) < 200
    assert max(late_ms[20:]) < 0.05


def test_expected_time_is_kept_per_batch_size() -> None:
    gpu = OnTheClock()
    with waited_for(gpu) as completion:
        for _ in range(5):
            assert run(gpu, completion, 40, size=32)[0] < 1
            assert run(gpu, completion, 0.5, size=1)[0] < 0.05


def test_wait_ends_at_the_timeout() -> None:
    gpu = OnTheClock()
    with waited_for(gpu) as completion:
        for takes_ms in (50, 50, 50):
            run(gpu, completion, takes_ms)
        completion.record(NoStream(), SIZE)
        for timeout_s in (0.0, 0.001, 0.02):
            began_ns = gpu.now_ns
            assert not completion.wait(timeout_s)
            assert gpu.now_ns - began_ns <= round(timeout_s * 1e9) + WAKING_NS
