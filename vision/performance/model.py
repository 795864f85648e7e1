"""What a site comes to on a machine, by rehearsal: cameras, slots, batches and threads as events on a made-up clock.

Formulas for queues assume what is not so here (arrivals by chance, queues without end), while the program's own rules
are short: one newest picture a camera, the camera that has waited longest first, a batch in each slot, bound when
`BindTimer` says so, one thread for results. So the rules are played through, with times that were measured. All of it
is pure, and the same every time for the same seed.

Python runs one thread at a time, so what the threads of cameras, loop and results do is one server in the rehearsal.

What shares the CPU slows each other down. `stretch` says by how much, from the cores that there are and the cores that
everything else wants; it depends on the outcome, so the rehearsal is repeated with the outcome of the one before.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from vision.batching import BindTimer
from vision.performance.demand import Demand
from vision.performance.samples import Durations

_ROUNDS: Final = 3
_START_NS: Final = 5e6  # within which the cameras begin that begin with the program
_PICTURES: Final = 40_000  # that a rehearsal plays through at most, where 5 seconds have no more
_QUEUED_BATCHES: Final = 64  # between detector and results thread: `vision.runtime`
_WARM_PART: Final = 0.1
_LEAST_CORES: Final = 0.05  # that the detector gets, however busy the machine: so that it ends


_EVEN: Final = Durations.constant(1.0)


@dataclass(frozen=True, slots=True)
class BatchCost:
    """One batch size."""

    alone_ms: float  # nothing else in flight
    interval_ms: float  # between two batches, all slots in use
    spread: Durations = _EVEN  # how far single batches are from their mean, whatever that is


@dataclass(frozen=True, slots=True)
class DetectorCost:
    """What was measured of a detector, as if it had had the machine for itself (`unhindered`)."""

    name: str
    max_batch: int
    slots: int  # batches in flight
    parallel: int  # of them, those that it works on at once
    batches: Mapping[int, BatchCost]  # by size
    cores: float  # that it keeps busy with all slots in use, where it has them for itself
    picture_bytes: int = 0  # of the pictures that it was measured with

    def cost(self, size: int) -> BatchCost:
        """Of the next larger size that was measured, since a batch is filled up to it; beyond the largest, more."""
        larger = [known for known in sorted(self.batches) if known >= size]
        if larger:
            return self.batches[larger[0]]
        largest = max(self.batches)
        factor = size / largest
        known = self.batches[largest]
        return BatchCost(known.alone_ms * factor, known.interval_ms * factor, known.spread)

    def best_rate_per_s(self, most: int) -> float:
        """Frames a second at the best batch size of at most `most`."""
        sizes = [size for size in self.batches if size <= max(most, min(self.batches))]
        return max(1e3 * size / self.batches[size].interval_ms for size in sizes)

    @property
    def cpu_ms(self) -> float:
        """CPU time of one picture in the largest batch."""
        size = max(self.batches)
        return self.cores * self.batches[size].interval_ms / size


@dataclass(frozen=True, slots=True)
class HostCost:
    """Everything besides the detector."""

    cores: float
    results_ms: float
    loop_ms: float
    camera_ms: float
    copy_gb_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class CameraForecast:
    """What becomes of one camera's pictures."""

    camera_id: str
    offered_per_s: float
    published_per_s: float
    dropped_per_s: float
    latency: Durations  # capture to publish


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a site comes to."""

    cameras: tuple[CameraForecast, ...]
    mean_batch: float
    detector_busy: float  # part of the time, of all that it can work on at once
    python_busy: float  # part of the time
    stretch: float  # how much longer the detector takes since others use its CPU
    slowed_cameras: float = 1.0  # part of their pictures that can be decoded at all

    @property
    def published_per_s(self) -> float:
        """Of all cameras."""
        return sum(camera.published_per_s for camera in self.cameras)

    @property
    def dropped_per_s(self) -> float:
        """Of all cameras."""
        return sum(camera.dropped_per_s for camera in self.cameras)


def forecast(
    demands: Sequence[Demand], detector: DetectorCost, host: HostCost, *, seconds: float = 30.0, seed: int = 1
) -> Forecast:
    """Rehearse `seconds` of a site, or fewer where they hold a great many pictures.

    Raises:
        ValueError: no cameras.
    """
    if not demands:
        raise ValueError("a site has at least one camera")
    seconds = min(seconds, max(5.0, _PICTURES / sum(each.fps for each in demands)))
    decode_cores = sum(each.fps * (each.cpu_ms + host.camera_ms) for each in demands) / 1e3
    slowed = min(1.0, host.cores * (1 - _LEAST_CORES) / decode_cores) if decode_cores else 1.0
    published = 0.0
    for _ in range(_ROUNDS):
        others = decode_cores * slowed + published * (host.results_ms + host.loop_ms) / 1e3
        left = max(_LEAST_CORES, host.cores - others)
        rehearsal = _Rehearsal(demands, detector, host, left_cores=left, slowed=slowed, seconds=seconds, seed=seed)
        outcome = rehearsal.run()
        published = outcome.published_per_s
    return outcome


def unhindered(wanted_cores: float, cores: float, others_cores: float) -> float:
    """What part of its time something would have taken without `others_cores` that kept it from `wanted_cores`."""
    return min(1.0, max(_LEAST_CORES, cores - others_cores) / wanted_cores) if wanted_cores > 0 else 1.0


def stretch(wanted_cores: float, cores: float, others_cores: float) -> float:
    """How many times as long something takes that keeps `wanted_cores` busy, with `cores` to share with others.

    The others are many short turns (a picture to decode, a result to send), which the scheduler serves first.
    """
    left = max(_LEAST_CORES, cores - others_cores)
    return max(1.0, wanted_cores / left)


@dataclass(slots=True)
class _Camera:
    demand: Demand
    interval_ns: float
    next_ns: float
    due_ns: float = 0.0  # earliest time of the next turn, by max_fps
    served_ns: float = -1.0
    waiting_ns: float | None = None  # capture time of the waiting picture
    offered: int = 0
    dropped: int = 0
    latencies_ns: list[int] = field(default_factory=list)


_Taken: TypeAlias = "tuple[tuple[_Camera, float], ...]"
"""The pictures of a batch: whose, and captured when."""

_LOOK: Final = -1  # an event that only asks whether a batch can begin


class _Rehearsal:
    """The program on a made-up clock, nanoseconds."""

    def __init__(
        self,
        demands: Sequence[Demand],
        detector: DetectorCost,
        host: HostCost,
        *,
        left_cores: float,
        slowed: float,
        seconds: float,
        seed: int,
    ) -> None:
        self._random = random.Random(seed)
        self._detector = detector
        self._host = host
        self._left_cores = left_cores
        self._slowed = slowed
        self._end_ns = seconds * 1e9
        self._warm_ns = self._end_ns * _WARM_PART
        self._cameras = [self._camera(each) for each in demands]
        self._timer = BindTimer(detector.parallel)  # the program's own
        self._in_flight = 0  # batches in slots
        self._last_size = 1
        self._server_free_ns = [0.0] * detector.parallel
        self._collected_ns = 0.0  # of the batch that was submitted last: they come back in order
        self._events: list[tuple[float, int, int, _Taken | None]] = []  # when, order, camera or _LOOK, batch that ends
        self._count = 0
        self._look_ns = -1.0
        self._queue_ns = 0.0  # work that the results thread may have before it
        self._python_free_ns = self._results_free_ns = self._copied_ns = 0.0
        self._busy_ns = self._python_ns = 0.0
        self._batches = self._frames = 0

    def _camera(self, demand: Demand) -> _Camera:
        interval_ns = 1e9 / (demand.fps * self._slowed)
        spread_ns = min(_START_NS, interval_ns) if demand.in_step else interval_ns
        return _Camera(demand, interval_ns, self._random.random() * spread_ns)

    def run(self) -> Forecast:
        for number, camera in enumerate(self._cameras):
            self._push(camera.next_ns, number, None)
        while self._events and self._events[0][0] < self._end_ns:
            now_ns, _, number, batch = heapq.heappop(self._events)
            if batch is not None:
                self._finish(now_ns, batch)
            elif number != _LOOK:
                self._arrive(now_ns, number)
            elif now_ns == self._look_ns:
                self._look_ns = -1.0
            self._start(now_ns)
        return self._outcome()

    def _push(self, at_ns: float, number: int, batch: _Taken | None) -> None:
        self._count += 1
        heapq.heappush(self._events, (at_ns, self._count, number, batch))

    def _arrive(self, now_ns: float, number: int) -> None:
        """A picture was captured."""
        camera = self._cameras[number]
        camera.next_ns += camera.interval_ns
        self._push(camera.next_ns, number, None)
        self._python(now_ns, self._host.camera_ms)
        if now_ns >= self._warm_ns:
            camera.offered += 1
            camera.dropped += camera.waiting_ns is not None
        camera.waiting_ns = now_ns
        if camera.due_ns > now_ns:
            self._look(camera.due_ns)  # when its turn has come

    def _python(self, now_ns: float, ms: float) -> float:
        """Run Python for so long, when no other thread does; returns the end."""
        self._python_free_ns = max(now_ns, self._python_free_ns) + ms * 1e6
        if now_ns >= self._warm_ns:
            self._python_ns += ms * 1e6
        return self._python_free_ns

    def _look(self, at_ns: float) -> None:
        """See then whether a batch can begin; the earliest such time is enough, since every look sets the next."""
        if self._look_ns < 0 or at_ns < self._look_ns:
            self._look_ns = at_ns
            self._push(at_ns, _LOOK, None)

    def _start(self, now_ns: float) -> None:
        """Begin as many batches as there is room and work for."""
        while self._in_flight < self._detector.slots:
            bind_at_ns = self._timer.bind_at_ns(self._last_size) if self._in_flight else 0
            # The queue to the results thread may be full, and the batch ahead not yet near its end.
            wait_until_ns = max(float(bind_at_ns), self._results_free_ns - self._queue_ns)
            if wait_until_ns > now_ns:
                self._look(wait_until_ns)
                return
            batch = self._take(now_ns)
            if not batch:
                due_ns = [each.due_ns for each in self._cameras if each.waiting_ns is not None]
                if due_ns:
                    self._look(min(due_ns))
                return
            self._begin(now_ns, batch)

    def _begin(self, now_ns: float, batch: Sequence[_Camera]) -> None:
        taken = []
        for camera in batch:
            if camera.waiting_ns is not None:
                taken.append((camera, camera.waiting_ns))
            camera.waiting_ns = None
            camera.served_ns = now_ns
            if camera.demand.max_fps is not None:
                turn_ns = 1e9 / camera.demand.max_fps
                camera.due_ns = max(camera.due_ns, now_ns - turn_ns) + turn_ns
        submitted_ns = self._python(now_ns, len(batch) * self._host.loop_ms)
        retrieved_ns = max(camera.demand.retrieve_ms for camera in batch) * 1e6
        end_ns = self._serve(self._copy(submitted_ns + retrieved_ns, batch), len(batch))
        self._collected_ns = max(end_ns, self._collected_ns)
        self._timer.submitted(len(batch), int(submitted_ns))
        self._in_flight += 1
        self._last_size = len(batch)
        self._queue_ns = _QUEUED_BATCHES * len(batch) * self._host.results_ms * 1e6
        if now_ns >= self._warm_ns:
            self._batches += 1
            self._frames += len(batch)
        self._push(self._collected_ns, _LOOK, tuple(taken))

    def _serve(self, ready_ns: float, size: int) -> float:
        """When a batch is done that the detector could begin with at `ready_ns`."""
        server = min(range(len(self._server_free_ns)), key=self._server_free_ns.__getitem__)
        start_ns = max(ready_ns, self._server_free_ns[server])
        others = sum(1 for free_ns in self._server_free_ns if free_ns > start_ns)
        end_ns = start_ns + self._service_ns(size, others)
        self._server_free_ns[server] = end_ns
        self._busy_ns += max(0.0, min(end_ns, self._end_ns) - max(start_ns, self._warm_ns))
        return end_ns

    def _take(self, now_ns: float) -> list[_Camera]:
        ready = [each for each in self._cameras if each.waiting_ns is not None and each.due_ns <= now_ns]
        for camera in ready:
            stale_ns = camera.demand.staleness_s * 1e9
            if camera.waiting_ns is not None and now_ns - camera.waiting_ns > stale_ns:
                camera.waiting_ns = None
                camera.dropped += now_ns >= self._warm_ns
        fresh = [each for each in ready if each.waiting_ns is not None]
        return sorted(fresh, key=lambda each: each.served_ns)[: self._detector.max_batch]

    def _copy(self, at_ns: float, batch: Sequence[_Camera]) -> float:
        """When the pictures are on the GPU. What was measured holds the copy of its own pictures already."""
        if self._host.copy_gb_per_s is None:
            return at_ns
        extra = sum(max(0, camera.demand.nbytes - self._detector.picture_bytes) for camera in batch)
        self._copied_ns = max(at_ns, self._copied_ns) + extra / self._host.copy_gb_per_s
        return self._copied_ns

    def _service_ns(self, size: int, others: int) -> float:
        """Between alone and, with all the detector can work on, its share of the measured rate."""
        cost, parallel = self._detector.cost(size), self._detector.parallel
        full_ms = cost.interval_ms * parallel
        alone_ms = min(cost.alone_ms, full_ms)
        mean_ms = alone_ms + (full_ms - alone_ms) * (others / (parallel - 1) if parallel > 1 else 1.0)
        # Fewer batches at once want fewer cores.
        slower = max(1.0, self._detector.cores * (others + 1) / parallel / self._left_cores)
        drawn = cost.spread.quantile_ms(self._random.random()) / cost.spread.mean_ms
        return mean_ms * drawn * slower * 1e6

    def _finish(self, now_ns: float, batch: _Taken) -> None:
        self._timer.done(int(now_ns))
        self._in_flight -= 1
        for camera, captured_ns in batch:
            published_ns = self._results_free_ns = self._python(now_ns, self._host.results_ms)
            if now_ns >= self._warm_ns:
                camera.latencies_ns.append(int(published_ns - captured_ns))

    def _outcome(self) -> Forecast:
        seconds = (self._end_ns - self._warm_ns) / 1e9
        lost = 1 / self._slowed - 1  # that the cameras send and nobody decodes
        cameras = tuple(
            CameraForecast(
                each.demand.camera_id,
                each.demand.fps,
                len(each.latencies_ns) / seconds,
                each.dropped / seconds + each.offered / seconds * lost,
                Durations.of(each.latencies_ns),
            )
            for each in self._cameras
        )
        whole_ns = seconds * 1e9
        return Forecast(
            cameras,
            self._frames / self._batches if self._batches else 0.0,
            min(1.0, self._busy_ns / whole_ns / self._detector.parallel),
            min(1.0, self._python_ns / whole_ns),
            max(1.0, self._detector.cores / self._left_cores),
            self._slowed,
        )
