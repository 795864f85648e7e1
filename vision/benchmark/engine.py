"""The network alone, with nothing before or after it: the limit of everything that is built around it.

A lane is a stream with a batch of its own. Two figures are measured, since neither tells the other: how long a batch
takes whose result is waited for, and how many come out where nobody waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Protocol

from vision.benchmark.conditions import CpuMeter, CpuUse
from vision.benchmark.samples import Durations, relative_error

_MOST_QUEUED: Final = 1024  # batches on one lane: the queue of a device has an end
_LEAST_BURSTS: Final = 5  # or nobody knows how sure their rate is


class Lane(Protocol):
    """One stream with its own memory and random input."""

    def start(self) -> None:
        """Queue a batch behind those that are queued."""

    def finish(self) -> None:
        """Wait for everything that is queued."""

    def close(self) -> None:
        """Free everything."""


class ThreadLane:
    """A lane over something that computes when it is called: a thread of its own calls it."""

    def __init__(self, run: Callable[[], object]) -> None:
        self._run = run
        self._thread = ThreadPoolExecutor(1, "lane")
        self._last: Future[object] | None = None

    def start(self) -> None:
        self._last = self._thread.submit(self._run)

    def finish(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        self._thread.shutdown()


@dataclass(frozen=True, slots=True)
class Alone:
    """What the network does alone."""

    durations: Durations  # of a batch from its start until it was waited for, one batch in flight on each lane
    batches_per_s: float  # of all lanes, never waiting
    cpu: CpuUse
    rate_error: float | None  # relative standard error of `batches_per_s`


def measure_engine(
    lanes: Sequence[Lane],
    seconds: float,
    *,
    warm: Callable[[], bool] | None = None,
    clock: Callable[[], int] = time.monotonic_ns,
) -> Alone:
    """Half of `seconds` for each of the two figures; `warm` as of `measure_stage`."""
    _warm_up(lanes, warm)
    meter = CpuMeter()
    durations = Durations.of(_waited(lanes, seconds / 2, clock))
    count, bursts_ns = _free_running(lanes, seconds / 2, clock)
    rate_per_s = len(bursts_ns) * count * len(lanes) / (sum(bursts_ns) / 1e9)
    return Alone(durations, rate_per_s, meter.read(), relative_error(bursts_ns))


def _warm_up(lanes: Sequence[Lane], warm: Callable[[], bool] | None) -> None:
    ready = False
    while not ready:
        for _ in range(2):
            for lane in lanes:
                lane.start()
            for lane in lanes:
                lane.finish()
        ready = warm is None or warm()


def _waited(lanes: Sequence[Lane], seconds: float, clock: Callable[[], int]) -> list[int]:
    started_ns = []
    for lane in lanes:
        started_ns.append(clock())
        lane.start()
    durations_ns: list[int] = []
    end_ns, turn = clock() + int(seconds * 1e9), 0
    while clock() < end_ns or len(durations_ns) < 2 * len(lanes):
        lanes[turn].finish()
        durations_ns.append(clock() - started_ns[turn])
        started_ns[turn] = clock()
        lanes[turn].start()
        turn = (turn + 1) % len(lanes)
    for lane in lanes:
        lane.finish()
    return durations_ns


def _free_running(lanes: Sequence[Lane], seconds: float, clock: Callable[[], int]) -> tuple[int, list[int]]:
    """Bursts, where every lane has work queued all the time: batches on each lane, and nanoseconds of each burst."""
    count = 1
    while (took_ns := _burst(lanes, count, clock)) < seconds * 1e9 / 8 and count < _MOST_QUEUED:
        count *= 2  # the end of a burst, where lanes run dry, must not weigh
    bursts_ns = [took_ns]
    while sum(bursts_ns) < seconds * 1e9 or len(bursts_ns) < _LEAST_BURSTS:
        bursts_ns.append(_burst(lanes, count, clock))
    return count, bursts_ns


def _burst(lanes: Sequence[Lane], count: int, clock: Callable[[], int]) -> int:
    """Nanoseconds of `count` batches on each lane."""
    began_ns = clock()
    for _ in range(count):
        for lane in lanes:
            lane.start()
    for lane in lanes:
        lane.finish()
    return clock() - began_ns
