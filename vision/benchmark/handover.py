"""How late the program's threads go on after what they wait for: a timer, a frame in a slot, a batch in a queue.

What a turn of Python costs is measured where one follows the other. A thread that has slept pays more: it has to be
woken, another thread or another program has its core, what it needs is in no cache any more. On two cores of an EPYC
that do nothing else, a frame of one of 8 cameras waits 0.8 ms for its hand-overs at p50 and 2.5 ms at p99, where all
its turns together take 0.3 ms.

So the program is run with a detector that takes no time, for a moment: the site's pipeline, as many cameras as it has,
at its rate. How long frames are in there, less all turns of Python meanwhile, is what handing over takes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vision.benchmark.canned import StubDetector
from vision.benchmark.demand import Demand, demand
from vision.benchmark.pipeline import ThreadCosts, as_the_program_collects, private_publisher, without_traces
from vision.config import AppConfig, CameraConfig
from vision.pipelines import load_pipeline
from vision.runtime.builder import RunOptions
from vision.runtime.sink import Sink
from vision.runtime.status import Report
from vision.types import PixelFormat, Result

_KNOWN_AT: Final = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0)
_FRAMES_PER_S: Final = 200.0  # at least, so that a second has some that are late
_BUSY: Final = 0.3  # of one thread of Python, at most: a machine that never sleeps wakes nobody
_FASTEST: Final = 1000.0  # frames/s of a made-up camera
_WARM_PART: Final = 0.2

_Times: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Delays:
    """How often a hand-over takes how long."""

    count: int
    ms: tuple[float, ...]  # that 0, 25, 50, 75, 90, 95, 98, 99, 99.5 and 100 % of them take at most

    @staticmethod
    def of(delays_ms: _Times) -> Delays:
        """All 0 where there are none."""
        if not delays_ms.size:
            return Delays(0, (0.0,) * len(_KNOWN_AT))
        return Delays(delays_ms.size, tuple(np.quantile(delays_ms, _KNOWN_AT, method="inverted_cdf").tolist()))

    def quantiles_ms(self, count: int) -> Sequence[float]:
        """So many delays, the shortest first, that are distributed alike: straight lines between what is known."""
        found: list[float] = np.interp((np.arange(count) + 0.5) / count, _KNOWN_AT, self.ms).tolist()
        return found


@dataclass(frozen=True, slots=True)
class Handover:
    """What two hand-overs take, beyond the turns of Python."""

    frame: Delays  # a frame, from when it is there to the inference thread, by its camera's thread: both slept
    batch: Delays  # a batch, to the results thread, which slept


AT_ONCE: Final = Handover(Delays.of(np.empty(0)), Delays.of(np.empty(0)))


class Stamps(NamedTuple):
    """Whose a frame is, and when it was where, nanoseconds."""

    camera_id: str
    captured: int
    batched: int
    submitted: int
    inferred: int
    published: int


@dataclass
class _StampSink:
    """Keeps the stamps of every frame, and hands it on."""

    behind: Sink
    stamps: list[Stamps] = field(default_factory=list)

    def publish(self, result: Result) -> None:
        """Called by the results thread."""
        self.behind.publish(result)
        at = result.timing
        self.stamps.append(
            Stamps(
                result.meta.camera_id,
                at.captured_ns,
                at.batched_ns,
                at.submitted_ns,
                at.inferred_ns,
                time.monotonic_ns(),
            )
        )

    def report(self, report: Report) -> None:
        """Called by the main thread."""
        self.behind.report(report)


def measure_handover(
    site: AppConfig,
    class_names: Sequence[str],
    objects: int,
    demands: Sequence[Demand],
    turns: ThreadCosts,
    *,
    seconds: float,
) -> Handover:
    """Run the site's pipeline at the rate of `demands`, with made-up cameras and a detector that finds `objects` at
    once, publishing all.

    Raises:
        VisionError: whatever the pipeline raises.
    """
    cameras = stand_ins(site.cameras, demands, turns)
    retrieving = zip(cameras, _retrieving_ms(cameras, demands), strict=True)
    camera_ms = {camera.id: turns.camera_ms + retrieve_ms for camera, retrieve_ms in retrieving}
    site = without_traces(site).model_copy(update={"cameras": cameras, "rules": (), "cascade": None})
    detector = StubDetector(class_names, objects, max_batch=site.detect.max_batch)
    with ExitStack() as resources:
        stop = threading.Event()
        sink = _StampSink(private_publisher(site, resources))
        options = RunOptions(stop=stop, sink=sink, open_detector=lambda *_: detector)
        runtime = load_pipeline(site.pipeline)(site, options, resources)
        with as_the_program_collects():
            runtime.run(stop, for_s=seconds)
    return handover_of(sink.stamps[int(len(sink.stamps) * _WARM_PART) :], camera_ms, turns.results_ms)


def stand_ins(
    cameras: Sequence[CameraConfig], demands: Sequence[Demand], turns: ThreadCosts
) -> tuple[CameraConfig, ...]:
    """Recordings as they are, and a generator for every other camera. The frames of generators come together, as
    those of the site's own do; those of live cameras are spread evenly."""
    turn_ms = turns.camera_ms + turns.loop_ms + turns.results_ms
    rate_per_s = max(_FRAMES_PER_S, sum(each.fps for each in demands))
    fps = min(_FASTEST, min(rate_per_s, 1e3 * _BUSY / turn_ms if turn_ms else rate_per_s) / len(demands))
    found = []
    for number, (camera, each) in enumerate(zip(cameras, demands, strict=True)):
        if _is_recording(each):
            found.append(camera.model_copy(update={"max_fps": None, "loop": True}))
            continue
        later_s = 0.0 if each.in_step else number / len(demands) / fps
        source = (
            f"synthetic:{each.width_px}x{each.height_px}@{f'{fps:.6f}'[:8]}"
            f"?objects=1&seed={number}&format={each.pixel_format}&stall=1:{later_s:.6f}"
        )
        found.append(CameraConfig(id=camera.id, source=source))
    return tuple(found)


def _is_recording(demand: Demand) -> bool:
    return demand.in_step and not demand.drawn


def _retrieving_ms(cameras: Sequence[CameraConfig], demands: Sequence[Demand]) -> list[float]:
    """What `stand_ins` take to retrieve a frame; measured once for generators of one kind."""
    known: dict[tuple[int, int, PixelFormat], float] = {}
    found = []
    for camera, each in zip(cameras, demands, strict=True):
        kind = (each.width_px, each.height_px, each.pixel_format)
        if not _is_recording(each) and kind not in known:
            known[kind] = demand(camera, (each.pixel_format,)).retrieve_ms
        found.append(each.retrieve_ms if _is_recording(each) else known[kind])
    return found


def handover_of(stamps: Sequence[Stamps], camera_ms: Mapping[str, float], results_ms: float) -> Handover:
    """What frames waited for besides turns of Python, their own and those of others.

    Args:
        stamps: in the order in which they were published.
        camera_ms: one turn of each camera's thread, which ends when its frame is batched.
        results_ms: one turn of the results thread, which ends when a frame has been published.
    """
    if not stamps:
        return AT_ONCE
    captured, batched, submitted, inferred, published = np.array([one[1:] for one in stamps], np.float64).T / 1e6
    busy_ms = _busy(
        np.concatenate([batched - [camera_ms[one.camera_id] for one in stamps], batched, published - results_ms]),
        np.concatenate([batched, submitted, published]),
    )
    slept = np.concatenate([[True], published[:-1] <= inferred[1:]])  # the results thread, before it had the frame
    to_batch = batched - captured - (busy_ms(batched) - busy_ms(captured))
    to_results = published - inferred - (busy_ms(published) - busy_ms(inferred))
    return Handover(Delays.of(np.maximum(0.0, to_batch)), Delays.of(np.maximum(0.0, to_results[slept])))


def _busy(begins: _Times, ends: _Times) -> Callable[[_Times], _Times]:
    """For how long, up to a time, some turn went on."""
    order = np.argsort(begins)
    ends = np.maximum.accumulate(ends[order])
    begins = np.maximum(begins[order], np.concatenate([[-np.inf], ends[:-1]]))  # of turns that overlap, one counts
    lasted = np.cumsum(ends - begins)
    times = np.stack([begins, ends], axis=1).ravel()
    done = np.stack([lasted - (ends - begins), lasted], axis=1).ravel()
    return lambda at: np.interp(at, times, done)
