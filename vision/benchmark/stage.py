"""The whole detection stage through the `Detector` seam: frames on the host in, boxes on the host out.

The loop is that of the program: wait for the oldest batch, submit the next. So any detector can be measured, and what
is measured is what the program gets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from vision.benchmark.conditions import CpuMeter, CpuUse
from vision.benchmark.samples import Durations, relative_error
from vision.detect.detector import Detector
from vision.types import Frame

_WAIT_S: Final = 60.0  # for one batch: longer than any takes that is not lost
_LEAST: Final = 5  # batches, however slow
PAUSE_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Measured:
    """What a loop of batches came to."""

    durations: Durations  # of a batch, from submit until its detections are there
    frames_per_s: float
    cpu: CpuUse
    objects_per_frame: float
    rate_error: float | None  # relative standard error of `frames_per_s`


def measure_stage(
    detector: Detector,
    batches: Sequence[Sequence[Frame]],
    seconds: float,
    *,
    warm: Callable[[], bool] | None = None,
    clock: Callable[[], int] = time.monotonic_ns,
) -> Measured:
    """Keep as many batches in flight as are given, for `seconds`.

    Args:
        batches: one a slot, all of one size; slot k always gets batch k.
        warm: asked after each batch of the warm-up; it ends once this says True, at the earliest after each slot's
            second batch.
    """
    loop = _Loop(detector, batches, clock)
    for _ in range(2 * len(batches)):
        loop.turn()
    while warm is not None and not warm():
        loop.turn()
    measured = loop.measure(seconds)
    loop.drain()
    return measured


def measure_alone(
    detector: Detector,
    batch: Sequence[Frame],
    seconds: float,
    *,
    pause_s: float = PAUSE_S,
    warm: Callable[[], bool] | None = None,
    clock: Callable[[], int] = time.monotonic_ns,
    sleep: Callable[[float], object] = time.sleep,
) -> Measured:
    """One batch now and then, as on a site with much room. `frames_per_s` is without the pauses.

    With no pause between them, batches are faster than any that a camera sends: nanodet-g-416 on one core takes 37 ms
    in a row and 45 ms with 60 ms between two, since caches have forgotten the weights by then.
    """

    def once() -> tuple[int, int]:
        begin_ns = clock()
        detector.submit(0, batch)
        found = detector.wait(0, _WAIT_S)
        took_ns = clock() - begin_ns
        sleep(pause_s)
        return took_ns, sum(map(len, found))

    once()
    while warm is not None and not warm():
        once()
    meter, end_ns = CpuMeter(), clock() + int(seconds * 1e9)
    durations_ns: list[int] = []
    objects = 0
    while clock() < end_ns or len(durations_ns) < _LEAST:
        took_ns, found = once()
        durations_ns.append(took_ns)
        objects += found
    frames = len(durations_ns) * len(batch)
    rate_per_s = frames / (sum(durations_ns) / 1e9)
    error = relative_error(durations_ns)
    return Measured(Durations.of(durations_ns), rate_per_s, meter.read(), objects / frames, error)


class _Loop:
    def __init__(self, detector: Detector, batches: Sequence[Sequence[Frame]], clock: Callable[[], int]) -> None:
        self._detector = detector
        self._batches = batches
        self._clock = clock
        self._oldest = 0
        self._submitted_ns = [0] * len(batches)
        self._in_flight = 0
        for slot in range(len(batches)):
            self._submit(slot)

    def _submit(self, slot: int) -> None:
        self._submitted_ns[slot] = self._clock()
        self._detector.submit(slot, self._batches[slot])
        self._in_flight += 1

    def _wait(self) -> tuple[int, int]:
        """Of the oldest batch: how long it took, and how many objects it had."""
        slot = self._oldest
        found = self._detector.wait(slot, _WAIT_S)
        self._in_flight -= 1
        self._oldest = (slot + 1) % len(self._batches)
        return self._clock() - self._submitted_ns[slot], sum(map(len, found))

    def turn(self) -> tuple[int, int]:
        slot = self._oldest
        result = self._wait()
        self._submit(slot)
        return result

    def measure(self, seconds: float) -> Measured:
        durations_ns: list[int] = []
        objects = 0
        begin_ns, meter = self._clock(), CpuMeter()
        end_ns = begin_ns + int(seconds * 1e9)
        done_ns = [begin_ns]
        while done_ns[-1] < end_ns or len(durations_ns) < _LEAST:
            took_ns, found = self.turn()
            done_ns.append(self._clock())
            durations_ns.append(took_ns)
            objects += found
        frames = len(durations_ns) * len(self._batches[0])
        rate_per_s, cpu = frames / ((done_ns[-1] - begin_ns) / 1e9), meter.read()
        error = relative_error([end - begin for begin, end in pairwise(done_ns)])
        return Measured(Durations.of(durations_ns), rate_per_s, cpu, objects / frames, error)

    def drain(self) -> None:
        """Leave the detector with all slots free."""
        while self._in_flight:
            self._wait()
