"""Loops that measure the network alone, and the whole detection stage.

The stage is measured through the `Detector` protocol, from frames in host memory to boxes in host memory. The loop
works like the program: it waits for the oldest batch, and then submits the next batch. Therefore, the results apply to
the program.

The network alone limits the speed of the stage. The network runs in lanes: each lane is a stream with its own batch.
Latency and throughput are measured separately, because neither can be computed from the other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from typing import Final, NamedTuple, Protocol

import numpy as np

from vision.benchmark.conditions import CpuMeter, CpuUse
from vision.detect.detector import Detector
from vision.types import Frame

WAIT_S: Final = 60.0  # timeout of a batch; only a lost batch takes longer
PAUSE_S: Final = 0.02  # pause between batches of `measure_alone`

_MIN_BATCHES: Final = 5  # minimum number of batches, even if they take longer than the requested time
_MAX_QUEUED: Final = 1024  # maximum number of queued batches per lane, because the queue of a device is limited
_MIN_BURSTS: Final = 5  # minimum number of bursts, from which the error of the rate is estimated

Ready = Callable[[], bool]
"""Function that returns True when a warm-up may end."""

FEWEST_FOR_P99: Final = 200
"""Minimum number of samples for a p99. With fewer samples, p99 is almost the slowest sample, and not repeatable."""

_P99_SPREAD: Final = 2.5 * math.sqrt(0.99 * 0.01)  # 2.5 standard errors of the rank of p99, for one sample
_PARTS: Final = 10  # number of groups from which a standard error is computed


# ------------------------------------------------------------------------------------------------ statistics


@dataclass(frozen=True, slots=True)
class Durations:
    """Statistics of `count` durations in milliseconds. All values are 0 if there are no samples."""

    count: int
    mean_ms: float
    std_ms: float
    min_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    p99_low_ms: float  # lower confidence limit of p99
    p99_high_ms: float  # upper confidence limit of p99

    @staticmethod
    def of(durations_ns: Sequence[int], independent: int | None = None) -> Durations:
        """Return the statistics of durations. Each percentile is one of the samples.

        `independent` is the number of independent samples, which determines the confidence limits, or None if all
        samples are independent.
        """
        if not durations_ns:
            return Durations(0, *(0.0,) * 9)
        ms = np.sort(np.asarray(durations_ns, np.float64)) / 1e6
        spread = _P99_SPREAD / math.sqrt(independent or len(ms))
        parts = (0.5, 0.95, 0.99, max(0.0, 0.99 - spread), min(1.0, 0.99 + spread))
        p50, p95, p99, low, high = (float(np.quantile(ms, part, method="inverted_cdf")) for part in parts)
        return Durations(
            len(ms), float(ms.mean()), float(ms.std()), float(ms[0]), p50, p95, p99, float(ms[-1]), low, high
        )

    @property
    def has_p99(self) -> bool:
        """True if there are enough samples for `p99_ms`."""
        return self.count >= FEWEST_FOR_P99


def relative_error(parts: Sequence[float]) -> float | None:
    """Return the relative standard error of the mean of `parts`, or None if it is unknown.

    The inverse of the mean has the same relative error. The error is unknown if there are fewer than two parts, or if
    all parts are 0.

    Args:
        parts: durations of equal amounts of work, or amounts of work in equal durations, in order. With 20 or more
            parts, the function first adds neighboring parts, because a disturbance often affects several successive
            parts.
    """
    together = max(1, len(parts) // _PARTS)
    whole = len(parts) // together
    sums = np.asarray(parts[: whole * together], np.float64).reshape(whole, together).sum(axis=1)
    if whole < 2 or not sums.any():
        return None
    return float(sums.std(ddof=1) / sums.mean() / math.sqrt(whole))


@dataclass(frozen=True, slots=True)
class Measured:
    """Durations, throughput, and CPU use of a series of batches."""

    durations: Durations  # from the start of a batch to its result
    frames_per_s: float
    cpu: CpuUse
    rate_error: float | None  # relative standard error of `frames_per_s`; None if unknown
    objects_per_frame: float = 0.0


# ------------------------------------------------------------------------------------------------ stage


class _Batch(NamedTuple):
    duration_ns: int
    interval_ns: int  # elapsed time that counts for the throughput
    objects: int


def measure_stage(
    detector: Detector, batches: Sequence[Sequence[Frame]], seconds: float, *, warm: Ready = lambda: True
) -> Measured:
    """Measure a detector with one batch in flight per slot, for at least `seconds` seconds and five batches.

    Args:
        detector: the detector, with all slots free.
        batches: one batch per slot, all of the same size. Slot k always receives batch k.
        seconds: minimum duration of the measurement.
        warm: function that is called after each warm-up batch, once every slot has finished two batches. The
            measurement starts when the function returns True.
    """
    measured = _measure(_keep_in_flight(detector, batches), len(batches[0]), seconds, warm)
    for slot in range(len(batches)):
        detector.wait(slot, WAIT_S)
    return measured


def measure_alone(
    detector: Detector, batch: Sequence[Frame], seconds: float, *, warm: Ready = lambda: True
) -> Measured:
    """Measure single batches with pauses, as in a lightly loaded deployment. `frames_per_s` excludes the pauses.

    `warm` is called after each warm-up batch. The measurement starts when it returns True.

    Without pauses, batches run faster than with a real camera: on one core, nanodet-g-416 takes 37 ms back to back and
    45 ms with pauses of 60 ms, because the weights leave the CPU caches during a pause.
    """

    def run() -> Iterator[_Batch]:
        while True:
            begin_ns = time.monotonic_ns()
            detector.submit(0, batch)
            objects = sum(map(len, detector.wait(0, WAIT_S)))
            took_ns = time.monotonic_ns() - begin_ns
            time.sleep(PAUSE_S)
            yield _Batch(took_ns, took_ns, objects)

    return _measure(run(), len(batch), seconds, warm)


def _keep_in_flight(detector: Detector, batches: Sequence[Sequence[Frame]]) -> Iterator[_Batch]:
    """Keep a batch in flight in each of N slots. Yield every finished batch, except the first 2 N - 1 batches."""
    submitted_ns = [0] * len(batches)
    for slot, batch in enumerate(batches):
        submitted_ns[slot] = time.monotonic_ns()
        detector.submit(slot, batch)
    last_ns = time.monotonic_ns()
    for turn, slot in enumerate(cycle(range(len(batches)))):
        objects = sum(map(len, detector.wait(slot, WAIT_S)))
        done_ns = time.monotonic_ns()
        duration_ns, submitted_ns[slot] = done_ns - submitted_ns[slot], done_ns
        detector.submit(slot, batches[slot])
        if turn >= 2 * len(batches) - 1:
            yield _Batch(duration_ns, done_ns - last_ns, objects)
        last_ns = done_ns


def _measure(batches: Iterator[_Batch], batch_size: int, seconds: float, warm: Ready) -> Measured:
    next(batches)
    while not warm():
        next(batches)
    meter, end_ns = CpuMeter(), time.monotonic_ns() + int(seconds * 1e9)
    done: list[_Batch] = []
    while time.monotonic_ns() < end_ns or len(done) < _MIN_BATCHES:
        done.append(next(batches))
    durations_ns, intervals_ns, objects = zip(*done, strict=True)
    frames = len(done) * batch_size
    rate_per_s, error = frames / (sum(intervals_ns) / 1e9), relative_error(intervals_ns)
    return Measured(Durations.of(durations_ns), rate_per_s, meter.read(), error, sum(objects) / frames)


# ------------------------------------------------------------------------------------------------ network alone


class Lane(Protocol):
    """Queue of batches for the network. Each lane has its own memory."""

    def start(self) -> None:
        """Queue one more batch in this lane."""

    def finish(self) -> None:
        """Wait until all queued batches have finished."""

    def close(self) -> None:
        """Free all resources."""


class ThreadLane:
    """Lane that calls a blocking function in its own thread."""

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


def measure_engine(
    lanes: Sequence[Lane], seconds: float, *, batch_size: int = 1, warm: Ready = lambda: True
) -> Measured:
    """Measure the latency and then the throughput of the network, each for half of `seconds` seconds.

    For the latency, each lane has one batch in flight. For the throughput, each lane always has queued batches. A
    warm-up comes first, and lasts until `warm` returns True. `batch_size` is the number of frames per batch.
    """
    _burst(lanes, 2)
    while not warm():
        _burst(lanes, 2)
    meter = CpuMeter()
    durations = Durations.of(_waited(lanes, seconds / 2))
    count, bursts_ns = _free_running(lanes, seconds / 2)
    rate_per_s = len(bursts_ns) * count * len(lanes) * batch_size / (sum(bursts_ns) / 1e9)
    return Measured(durations, rate_per_s, meter.read(), relative_error(bursts_ns))


def _waited(lanes: Sequence[Lane], seconds: float) -> list[int]:
    started_ns = []
    for lane in lanes:
        started_ns.append(time.monotonic_ns())
        lane.start()
    durations_ns: list[int] = []
    end_ns = time.monotonic_ns() + int(seconds * 1e9)
    for turn, lane in cycle(enumerate(lanes)):
        if time.monotonic_ns() >= end_ns and len(durations_ns) >= 2 * len(lanes):
            break
        lane.finish()
        durations_ns.append(time.monotonic_ns() - started_ns[turn])
        started_ns[turn] = time.monotonic_ns()
        lane.start()
    for lane in lanes:
        lane.finish()
    return durations_ns


def _free_running(lanes: Sequence[Lane], seconds: float) -> tuple[int, list[int]]:
    """Run bursts of batches. Return the number of batches per lane and burst, and the duration of each burst in ns."""
    count = 1
    while (took_ns := _burst(lanes, count)) < seconds * 1e9 / 8 and count < _MAX_QUEUED:
        count *= 2  # long bursts, because lanes run out of work at the end of a burst
    bursts_ns = [took_ns]
    while sum(bursts_ns) < seconds * 1e9 or len(bursts_ns) < _MIN_BURSTS:
        bursts_ns.append(_burst(lanes, count))
    return count, bursts_ns


def _burst(lanes: Sequence[Lane], count: int) -> int:
    """Run `count` batches on each lane. Return the elapsed time in nanoseconds."""
    began_ns = time.monotonic_ns()
    for _ in range(count):
        for lane in lanes:
            lane.start()
    for lane in lanes:
        lane.finish()
    return time.monotonic_ns() - began_ns
