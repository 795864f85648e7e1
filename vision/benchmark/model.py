"""What a site comes to on a machine, by rehearsal: cameras, slots, batches and threads as events on a made-up clock.

Formulas for queues assume what is not so here (arrivals by chance, queues without end), while the program's own rules
are short: one newest frame a camera, the camera that has waited longest first, a batch in each slot, bound when
`SubmitScheduler` says so, one thread for results. So the rules are played through, with times that were measured.
All of it
is pure, and the same every time for the same seed.

Python runs one thread at a time, so what the threads of cameras, loop and results do is one server in the rehearsal.
A thread that has slept goes on later than it could, by a delay that is drawn from those that were measured
(`vision.benchmark.handover`): without the turns of other threads, which are rehearsed.

What shares the CPU slows each other down. `stretch` says by how much, from the cores that there are and the cores that
everything else wants; it depends on the outcome, so the rehearsal is repeated with the outcome of the one before.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal, TypeAlias

from vision.benchmark.demand import Demand
from vision.benchmark.handover import AT_ONCE, Handover
from vision.benchmark.samples import Durations
from vision.runtime.inference_loop import POLL_S
from vision.runtime.results import RESULT_QUEUE_SIZE
from vision.runtime.submit_scheduler import SubmitScheduler

_STARTS: Final = 4  # how near each other the frames of recordings come is chance, and another one with each start
_ROUNDS: Final = (1, 1, _STARTS)  # rehearsals of each
_FRAMES: Final = 20_000  # that a rehearsal plays through at most, where 5 seconds have no more
_WARM_PART: Final = 0.25  # as of a run that is measured: `vision.benchmark.pipeline`
_LEAST_CORES: Final = 0.05  # that the detector gets, however busy the machine: so that it ends
_POLL_NS: Final = POLL_S * 1e9
_DRAWS: Final = 1000

_State: TypeAlias = Literal["idle", "polls", "collects", "works", "blocked"]
"""What the inference thread does: it waits for a frame; for a frame or a batch; for a batch; it works; it waits for
room before the results thread."""

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
    frame_bytes: int = 0  # of the frames that it was measured with

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
        """CPU time of one frame in the largest batch."""
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
    handover: Handover = AT_ONCE


@dataclass(frozen=True, slots=True)
class CameraForecast:
    """What becomes of one camera's frames."""

    camera_id: str
    offered_per_s: float
    published_per_s: float
    dropped_per_s: float
    latency: Durations  # capture to publish


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a site comes to."""

    cameras: tuple[CameraForecast, ...]
    latency: Durations  # of all cameras
    mean_batch: float
    detector_busy: float  # part of the time, of all that it can work on at once
    python_busy: float  # part of the time
    stretch: float  # how much longer the detector takes since others use its CPU
    slowed_cameras: float = 1.0  # part of their frames that can be decoded at all

    @property
    def published_per_s(self) -> float:
        """Of all cameras."""
        return sum(camera.published_per_s for camera in self.cameras)

    @property
    def dropped_per_s(self) -> float:
        """Of all cameras."""
        return sum(camera.dropped_per_s for camera in self.cameras)


def forecast(
    demands: Sequence[Demand], detector: DetectorCost, host: HostCost, *, seconds: float = 20.0, seed: int = 1
) -> Forecast:
    """Rehearse `seconds` of a site from several starts, or fewer seconds where they hold a great many frames.

    Raises:
        ValueError: no cameras.
    """
    if not demands:
        raise ValueError("a site has at least one camera")
    seconds = min(seconds, max(5.0, _FRAMES / sum(each.fps for each in demands)))
    decode_cores = sum(each.fps * (each.cpu_ms + host.camera_ms) for each in demands) / 1e3
    slowed = min(1.0, host.cores * (1 - _LEAST_CORES) / decode_cores) if decode_cores else 1.0
    published = 0.0
    for starts in _ROUNDS:
        others = decode_cores * slowed + published * (host.results_ms + host.loop_ms) / 1e3
        left = max(_LEAST_CORES, host.cores - others)
        tally = _Tally([_Count() for _ in demands])
        for start in range(starts):
            rehearsal = _Rehearsal(
                demands, detector, host, tally, left_cores=left, slowed=slowed, seconds=seconds, seed=seed + start
            )
            rehearsal.run()
        outcome = _outcome(demands, detector, tally, left_cores=left, slowed=slowed)
        published = outcome.published_per_s
    return outcome


def unhindered(wanted_cores: float, cores: float, others_cores: float) -> float:
    """What part of its time something would have taken without `others_cores` that kept it from `wanted_cores`."""
    return min(1.0, max(_LEAST_CORES, cores - others_cores) / wanted_cores) if wanted_cores > 0 else 1.0


def stretch(wanted_cores: float, cores: float, others_cores: float) -> float:
    """How many times as long something takes that keeps `wanted_cores` busy, with `cores` to share with others.

    The others are many short turns (a frame to decode, a result to send), which the scheduler serves first.
    """
    left = max(_LEAST_CORES, cores - others_cores)
    return max(1.0, wanted_cores / left)


@dataclass(slots=True)
class _Count:
    """Of one camera."""

    offered: int = 0
    dropped: int = 0
    latencies_ns: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Tally:
    """What is counted in one rehearsal or several."""

    cameras: Sequence[_Count]
    seconds: float = 0.0
    batches: int = 0
    frames: int = 0
    busy_ns: float = 0.0  # of the detector
    python_ns: float = 0.0


@dataclass(slots=True)
class _Camera:
    demand: Demand
    count: _Count
    interval_ns: float
    next_ns: float = 0.0
    due_ns: float = -math.inf  # earliest time of the next turn, by max_fps; its schedule begins with the first
    served_ns: float = -1.0
    waiting_ns: float | None = None  # capture time of the waiting frame


_Frame: TypeAlias = "tuple[_Camera, float]"
"""Whose, and captured when."""


@dataclass(frozen=True, slots=True)
class _Batch:
    images: tuple[_Frame, ...]
    end_ns: float


class _Rehearsal:
    """The program on a made-up clock, nanoseconds."""

    def __init__(
        self,
        demands: Sequence[Demand],
        detector: DetectorCost,
        host: HostCost,
        tally: _Tally,
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
        self._tally = tally
        self._end_ns = seconds * 1e9
        self._warm_ns = self._end_ns * _WARM_PART
        self._cameras = [
            _Camera(each, count, 1e9 / (each.fps * slowed)) for each, count in zip(demands, tally.cameras, strict=True)
        ]
        self._timer = SubmitScheduler(detector.parallel)  # the program's own
        self._running: deque[_Batch] = deque()  # in slots, the oldest first
        self._last_size = 1
        self._server_free_ns = [0.0] * detector.parallel
        self._collected_ns = 0.0  # of the batch that was submitted last: they come back in order
        self._results: deque[_Frame] = deque()  # before the results thread
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._count = 0
        self._state: _State = "idle"
        self._step_ns = math.inf  # when the inference thread goes on
        self._asleep_ns = 0.0  # since when it waits
        self._noticed_ns = math.inf  # from when on it can take the frame that will wake it
        self._frame_ms = host.handover.frame.quantiles_ms(_DRAWS)
        self._batch_ms = host.handover.batch.quantiles_ms(_DRAWS)
        self._handling = False  # the results thread has a frame
        self._python_free_ns = self._copied_ns = 0.0

    def run(self) -> None:
        """Play it through, and add what counts to the tally."""
        for camera, first_ns in zip(self._cameras, self._beginnings(), strict=True):
            camera.next_ns = first_ns
            self._push(first_ns, partial(self._wake_camera, camera))
        while self._events and self._events[0][0] < self._end_ns:
            now_ns, _, event = heapq.heappop(self._events)
            event(now_ns)
        self._tally.seconds += (self._end_ns - self._warm_ns) / 1e9

    def _beginnings(self) -> list[float]:
        """When each camera gives its first frame. Recordings and generators are opened together: what is drawn in
        turns of Python, what is decoded by all cores."""
        drawn_ns = read_ns = 0.0
        found = []
        for camera in self._cameras:
            demand = camera.demand
            open_ns = (demand.open_ms + self._random.choice(self._frame_ms)) * 1e6
            if not demand.in_step:
                found.append(self._random.random() * camera.interval_ns)
            elif demand.drawn:
                drawn_ns += open_ns
                found.append(drawn_ns)
            else:
                read_ns += open_ns / max(1.0, self._host.cores)
                found.append(max(open_ns, read_ns))
        return found

    def _push(self, at_ns: float, event: Callable[[float], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (at_ns, self._count, event))

    def _python(self, now_ns: float, ms: float) -> float:
        """Run Python for so long, when no other thread does; returns the end."""
        self._python_free_ns = max(now_ns, self._python_free_ns) + ms * 1e6
        if now_ns >= self._warm_ns:
            self._tally.python_ns += ms * 1e6
        return self._python_free_ns

    def _woken_ns(self, now_ns: float, delays_ms: Sequence[float]) -> float:
        """When a thread goes on that slept until `now_ns`: the delays were measured without the turns of others."""
        return max(now_ns, self._python_free_ns) + self._random.choice(delays_ms) * 1e6

    # a camera's thread

    def _wake_camera(self, camera: _Camera, now_ns: float) -> None:
        """A frame is there."""
        captured_ns = camera.next_ns
        camera.next_ns += camera.interval_ns
        self._push(camera.next_ns, partial(self._wake_camera, camera))
        # The first frame finds nothing in any cache.
        delays_ms = self._frame_ms if camera.served_ns >= 0 else self._frame_ms[-1:]
        self._push(self._woken_ns(now_ns, delays_ms), partial(self._retrieve, camera, captured_ns))

    def _retrieve(self, camera: _Camera, captured_ns: float, now_ns: float) -> None:
        drawn_ms = camera.demand.retrieve_ms if camera.demand.drawn else 0.0
        read_ms = camera.demand.retrieve_ms - drawn_ms
        end_ns = self._python(now_ns, self._host.camera_ms + drawn_ms) + read_ms * 1e6
        self._push(end_ns, partial(self._commit, camera, captured_ns))

    def _commit(self, camera: _Camera, captured_ns: float, now_ns: float) -> None:
        if now_ns >= self._warm_ns:
            camera.count.offered += 1
            camera.count.dropped += camera.waiting_ns is not None
        camera.waiting_ns = captured_ns
        if self._state in ("idle", "polls"):
            self._notice(now_ns, camera.due_ns)

    # the inference thread

    def _notice(self, now_ns: float, due_ns: float) -> None:
        """A frame can be taken from `due_ns` on, and the inference thread waits for one."""
        at_ns = max(now_ns, due_ns)
        if at_ns >= self._noticed_ns:
            return
        self._noticed_ns = at_ns
        if self._state == "polls":
            at_ns = self._asleep_ns + math.ceil((at_ns - self._asleep_ns) / _POLL_NS) * _POLL_NS
        # Where a camera's thread wakes it, that was measured together with the camera's own delay.
        woken = self._state == "idle" and due_ns <= now_ns
        self._go_on(at_ns if woken else self._woken_ns(at_ns, self._batch_ms))

    def _go_on(self, at_ns: float) -> None:
        if at_ns < self._step_ns:
            self._step_ns = at_ns
            self._push(at_ns, self._wake_loop)

    def _wake_loop(self, now_ns: float) -> None:
        if now_ns != self._step_ns:
            return  # something woke it before
        self._step_ns = math.inf
        if self._state in ("polls", "collects") and self._running[0].end_ns <= now_ns:
            self._collect(now_ns)
        self._step(now_ns)

    def _step(self, now_ns: float) -> None:
        """`vision.runtime.inference_loop.InferenceLoop`: whatever can be done now."""
        form_at_ns = self._timer.form_at_ns(self._last_size) if self._running else 0
        if len(self._results) >= RESULT_QUEUE_SIZE:
            self._state = "blocked"  # until the results thread has taken one
        elif len(self._running) == self._detector.slots:
            self._sleep(now_ns, "collects")
        elif now_ns < form_at_ns:
            self._sleep(now_ns, "collects", form_at_ns)
        elif batch := self._take(now_ns):
            self._state = "works"
            self._go_on(self._submit(now_ns, batch))
        else:
            self._sleep(now_ns, "polls" if self._running else "idle")

    def _sleep(self, now_ns: float, waits: _State, until_ns: float = math.inf) -> None:
        """Until the oldest batch is done, a frame is noticed, or `until_ns`."""
        if self._running and self._running[0].end_ns <= now_ns:
            self._collect(now_ns)
            self._step(now_ns)
            return
        self._state, self._asleep_ns, self._noticed_ns = waits, now_ns, math.inf
        if until_ns < math.inf:
            self._go_on(self._woken_ns(until_ns, self._batch_ms))
        if self._running:
            # What it usually takes was measured with the batch.
            end_ns, usual_ms = self._running[0].end_ns, self._batch_ms[_DRAWS // 2]
            self._go_on(max(end_ns, self._woken_ns(end_ns, self._batch_ms) - usual_ms * 1e6))
        due_ns = [each.due_ns for each in self._cameras if each.waiting_ns is not None]
        if due_ns and waits != "collects":
            self._notice(now_ns, min(due_ns))

    def _take(self, now_ns: float) -> list[_Camera]:
        ready = [each for each in self._cameras if each.waiting_ns is not None and each.due_ns <= now_ns]
        for camera in ready:
            stale_ns = camera.demand.max_frame_age_s * 1e9
            if camera.waiting_ns is not None and now_ns - camera.waiting_ns > stale_ns:
                camera.waiting_ns = None
                camera.count.dropped += now_ns >= self._warm_ns
        fresh = [each for each in ready if each.waiting_ns is not None]
        return sorted(fresh, key=lambda each: each.served_ns)[: self._detector.max_batch]

    def _submit(self, now_ns: float, batch: Sequence[_Camera]) -> float:
        """Begin a batch; returns when the inference thread goes on."""
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
        end_ns = self._serve(self._copy(submitted_ns, batch), len(batch))
        self._collected_ns = max(end_ns, self._collected_ns)
        self._timer.submitted(len(batch), int(submitted_ns))
        self._running.append(_Batch(tuple(taken), self._collected_ns))
        self._last_size = len(batch)
        if now_ns >= self._warm_ns:
            self._tally.batches += 1
            self._tally.frames += len(batch)
        return submitted_ns

    def _serve(self, ready_ns: float, size: int) -> float:
        """When a batch is done that the detector could begin with at `ready_ns`."""
        server = min(range(len(self._server_free_ns)), key=self._server_free_ns.__getitem__)
        start_ns = max(ready_ns, self._server_free_ns[server])
        others = sum(1 for free_ns in self._server_free_ns if free_ns > start_ns)
        end_ns = start_ns + self._service_ns(size, others)
        self._server_free_ns[server] = end_ns
        self._tally.busy_ns += max(0.0, min(end_ns, self._end_ns) - max(start_ns, self._warm_ns))
        return end_ns

    def _copy(self, at_ns: float, batch: Sequence[_Camera]) -> float:
        """When the frames are on the GPU. What was measured holds the copy of its own frames already."""
        if self._host.copy_gb_per_s is None:
            return at_ns
        extra = sum(max(0, camera.demand.nbytes - self._detector.frame_bytes) for camera in batch)
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

    def _collect(self, now_ns: float) -> None:
        """The oldest batch is done: hand it on."""
        self._timer.done(int(now_ns))
        self._results.extend(self._running.popleft().images)
        if not self._handling:
            self._handling = True
            self._push(self._woken_ns(now_ns, self._batch_ms), self._handle)

    # the results thread

    def _handle(self, now_ns: float) -> None:
        if not self._results:
            self._handling = False
            return
        camera, captured_ns = self._results.popleft()
        published_ns = self._python(now_ns, self._host.results_ms)
        if now_ns >= self._warm_ns:
            camera.count.latencies_ns.append(int(published_ns - captured_ns))
        self._push(published_ns, self._handle)
        if self._state == "blocked":
            self._go_on(now_ns)


def _outcome(
    demands: Sequence[Demand], detector: DetectorCost, tally: _Tally, *, left_cores: float, slowed: float
) -> Forecast:
    seconds, whole_ns = tally.seconds, tally.seconds * 1e9
    lost = 1 / slowed - 1  # that the cameras send and nobody decodes
    cameras = tuple(
        CameraForecast(
            each.camera_id,
            each.fps,
            len(count.latencies_ns) / seconds,
            count.dropped / seconds + count.offered / seconds * lost,
            Durations.of(count.latencies_ns),
        )
        for each, count in zip(demands, tally.cameras, strict=True)
    )
    return Forecast(
        cameras,
        Durations.of([latency_ns for count in tally.cameras for latency_ns in count.latencies_ns]),
        tally.frames / tally.batches if tally.batches else 0.0,
        min(1.0, tally.busy_ns / whole_ns / detector.parallel),
        min(1.0, tally.python_ns / whole_ns),
        max(1.0, detector.cores / left_cores),
        slowed,
    )
