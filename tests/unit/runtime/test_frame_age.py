"""Tests of the maximum age of frames: rejected frames, results that are too old, and the accounting of all frames."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.runtime.test_batcher import MS, Camera, ManualClock, allocate, check_accounts
from tests.unit.runtime.test_runtime import Collector, make_runtime
from vision.detect.fake import FakeDetector
from vision.errors import DeviceError
from vision.runtime.batcher import Batcher, SubmitScheduler
from vision.runtime.camera_set import FRAMES_HELD_BY_STAGES
from vision.runtime.inference_loop import InferenceLoop, InferredFrame
from vision.runtime.latest_slot import MAX_UNFINISHED, LatestSlot, Lease, finish_together, hand_over
from vision.runtime.results import ResultHandler
from vision.stages.stage import Stage
from vision.types import Detections, DropReason, Frame, Result, Timing


def slot_of(clock: ManualClock, name: str = "a", **options: object) -> LatestSlot:
    return LatestSlot(name, allocate, clock=clock, leases=4, **options)  # type: ignore[arg-type]


def take(camera: Camera) -> Lease:
    camera.write()
    lease = camera.slot.take()
    assert lease is not None
    return lease


def test_frame_is_refused_while_results_are_unfinished() -> None:
    clock = ManualClock()
    camera = Camera(slot_of(clock), clock)
    leases = [take(camera) for _ in range(MAX_UNFINISHED)]
    hand_over(leases, keep=False)
    for _ in range(3):
        camera.write()
    assert camera.slot.ready_ns(clock()) is None
    assert camera.slot.take() is None
    finish_together(leases[:1], [None])
    lease = camera.slot.take()
    assert lease is not None
    assert lease.dropped_before == {"superseded": 2}
    counts = camera.slot.counts()
    assert counts.dropped_by_stage == {"results": 2}
    assert counts.unfinished == MAX_UNFINISHED - 1
    check_accounts(camera.slot)


def test_frame_that_the_detector_did_not_take_is_counted_for_the_detector() -> None:
    clock = ManualClock()
    camera = Camera(slot_of(clock, max_frame_age_s=0.1), clock)
    hand_over([take(camera)], keep=False)
    camera.write()
    camera.write()
    clock.advance_ms(101)
    assert camera.slot.take() is None
    assert camera.slot.counts().dropped_by_stage == {"detector": 2}


def test_frame_of_a_frozen_camera_or_a_slow_decoder_is_counted_for_the_capture() -> None:
    clock = ManualClock()
    camera = Camera(slot_of(clock, max_frame_age_s=0.1), clock)
    hand_over([take(camera) for _ in range(MAX_UNFINISHED)], keep=False)
    camera.slot.drop(DropReason.STALE)
    camera.slot.drop(DropReason.CORRUPT)
    camera.slot.drop(DropReason.SUPERSEDED)  # by a capture worker, because the main process received no messages
    assert camera.slot.counts().dropped_by_stage == {"capture": 1, "results": 1}


def test_refused_frame_becomes_stale() -> None:
    clock = ManualClock()
    camera = Camera(slot_of(clock, max_frame_age_s=0.1), clock)
    hand_over([take(camera) for _ in range(MAX_UNFINISHED)], keep=False)
    camera.write()
    clock.advance_ms(101)
    with camera.slot.changed:
        assert camera.slot.ready_ns(clock()) is None
    counts = camera.slot.counts()
    assert (counts.dropped, counts.dropped_by_stage) == ({DropReason.STALE: 1}, {"results": 1})


def test_finished_result_wakes_the_batcher() -> None:
    clock = ManualClock()
    camera = Camera(slot_of(clock), clock)
    leases = [take(camera) for _ in range(MAX_UNFINISHED)]
    hand_over(leases, keep=False)
    camera.write()
    batcher = Batcher([camera.slot], 1)
    assert not batcher.wait_frame(0)
    timer = threading.Timer(0.05, finish_together, (leases[:1], [None]))
    timer.start()
    assert batcher.wait_frame(10)
    timer.join()


def test_lossless_camera_waits_for_the_results_and_has_no_limit_of_age() -> None:
    clock = ManualClock()
    camera = Camera(slot_of(clock, lossless=True, max_frame_age_s=0.1), clock)
    leases = [take(camera) for _ in range(MAX_UNFINISHED)]
    assert [lease.max_age_ns for lease in leases] == [None] * MAX_UNFINISHED
    hand_over(leases, keep=False)
    camera.write()
    clock.advance_ms(10_000)
    assert camera.slot.take() is None
    assert camera.slot.write_buffer(0) is None
    finish_together(leases, [None] * MAX_UNFINISHED)
    assert camera.slot.take() is not None
    assert camera.slot.counts().dropped == {}


@dataclass
class Site:
    """Cameras, and a results thread that the test itself executes on a manual clock."""

    clock: ManualClock = field(default_factory=ManualClock)
    stages: Sequence[Stage] = ()
    sink: Collector = field(default_factory=Collector)
    names: str = "ab"

    def __post_init__(self) -> None:
        self.cameras = {name: Camera(slot_of(self.clock, name, max_frame_age_s=0.1), self.clock) for name in self.names}
        self.handler = ResultHandler(self.stages, [self.sink], list(self.names), self.clock)

    def infer(self, names: str, busy_ms: int = 0) -> None:
        """Take a frame from each camera. Pass the results to the results thread `busy_ms` later."""
        leases = [take(self.cameras[name]) for name in names]
        taken_ns = self.clock()
        self.clock.advance_ms(busy_ms)
        timing = Timing(taken_ns, taken_ns, self.clock())
        self.handler.put(
            [
                InferredFrame(
                    Result(lease.frame.meta, Detections.empty(), timing, lease.dropped_before),
                    lease,
                    lease.frame.meta.captured_ns + 100 * MS + busy_ms * MS,
                )
                for lease in leases
            ]
        )

    def run(self) -> None:
        self.handler.end()
        self.handler.run()

    def published(self) -> dict[str, list[int]]:
        return {name: [result.meta.index for result in self.sink.results[name]] for name in self.names}


@pytest.mark.parametrize("at", ["stage", "sink"])
def test_result_that_is_too_old_at_its_turn_is_dropped(at: str) -> None:
    clock = ManualClock()

    def slow(result: Result) -> Result:
        clock.advance_ms(60)
        return result

    class SlowSink(Collector):
        def publish(self, result: Result) -> None:
            clock.advance_ms(60)
            super().publish(result)

    site = Site(clock, [slow], names="abcd") if at == "stage" else Site(clock, sink=SlowSink(), names="abcd")
    site.infer("abcd")
    site.run()
    assert site.published() == {"a": [0], "b": [0], "c": [], "d": []}
    for name, camera in site.cameras.items():
        counts = camera.slot.counts()
        late = 1 if name in "cd" else 0
        assert (counts.taken, counts.dropped[DropReason.STALE]) == (1 - late, late)
        assert counts.dropped_by_stage["results"] == late
        assert counts.unfinished == 0
        check_accounts(camera.slot)


def test_time_in_the_detector_does_not_make_a_result_too_old() -> None:
    """A program whose detector takes longer than the limit still publishes its results."""
    site = Site(names="a")
    site.infer("a", busy_ms=300)
    site.run()
    assert site.published() == {"a": [0]}


def test_next_result_reports_the_drops_of_a_result_that_was_too_old() -> None:
    site = Site()
    site.infer("ab")
    for _ in range(4):
        site.cameras["a"].write()
    site.infer("a")
    site.clock.advance_ms(101)
    site.run()
    site.infer("ab")
    site.run()
    assert site.published() == {"a": [6], "b": [1]}
    assert site.sink.results["a"][0].dropped_before == {"stale": 2, "superseded": 4}
    assert site.sink.results["b"][0].dropped_before == {"stale": 1}


@dataclass
class Together:
    """Stage that needs `takes_ms` per batch, and records the cameras of each batch."""

    clock: ManualClock
    takes_ms: int = 0
    batches: list[str] = field(default_factory=list)

    def __call__(self, result: Result) -> Result:
        raise AssertionError("one by one")

    def process_together(self, results: Sequence[Result]) -> list[Result]:
        self.clock.advance_ms(self.takes_ms)
        self.batches.append("".join(result.meta.camera_id for result in results))
        return list(results)


def test_first_stage_gets_the_whole_batch_without_results_that_are_too_old() -> None:
    clock = ManualClock()
    stage = Together(clock)
    site = Site(clock, [stage], names="abc")
    site.infer("a")
    clock.advance_ms(60)
    site.infer("bc")
    clock.advance_ms(60)
    site.run()
    assert stage.batches == ["bc"]
    assert site.published() == {"a": [], "b": [0], "c": [0]}


def test_queued_batches_are_processed_together_up_to_a_limit() -> None:
    names = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN"
    stage = Together(ManualClock())
    site = Site(stage.clock, [stage], names=names)
    for at in range(0, len(names), 4):
        site.infer(names[at : at + 4])
    site.run()
    assert stage.batches == [names[:32], names[32:]]
    assert site.published() == {name: [0] for name in names}
    assert [camera.slot.counts().unfinished for camera in site.cameras.values()] == [0] * len(names)


def test_refused_frame_does_not_wake_the_batcher() -> None:
    """A frame is rejected while results are unfinished. When one of these results is finished, the batcher wakes."""
    clock = ManualClock()
    camera = Camera(slot_of(clock), clock)
    leases = [take(camera) for _ in range(MAX_UNFINISHED)]
    hand_over(leases, keep=False)
    woken = Woken()
    camera.slot.changed = woken
    camera.write()
    camera.write()
    assert woken.count == 0
    finish_together(leases[:1], [None])
    assert woken.count == 1


class Woken(threading.Condition):
    """Condition variable that counts the calls of `notify_all`."""

    count = 0

    def notify_all(self) -> None:
        self.count += 1
        super().notify_all()


def test_result_that_becomes_too_old_in_the_first_stage_is_dropped() -> None:
    clock = ManualClock()
    site = Site(clock, [Together(clock, takes_ms=101)], names="ab")
    site.infer("ab")
    site.run()
    assert site.published() == {"a": [], "b": []}
    assert [camera.slot.counts().dropped_by_stage["results"] for camera in site.cameras.values()] == [1, 1]


class Later(Together):
    def __call__(self, result: Result) -> Result:
        return self.process_together([result])[0]


def test_later_stage_gets_one_result_after_the_other() -> None:
    clock = ManualClock()
    stage = Later(clock)
    site = Site(clock, [lambda result: result, stage], names="ab")
    site.infer("ab")
    site.run()
    assert stage.batches == ["a", "b"]


def test_failure_counts_the_frames_without_a_result_as_stopped() -> None:
    def fails(result: Result) -> Result:
        if result.meta.camera_id == "b":
            raise DeviceError("no")
        return result

    site = Site(stages=[fails], names="abc")
    site.infer("abc")
    site.infer("abc")
    with pytest.raises(DeviceError):
        site.handler.run()
    site.handler.abort()
    site.infer("c")
    site.handler.release_queued()
    assert site.published() == {"a": [0], "b": [], "c": []}
    for name, stopped in {"a": 1, "b": 2, "c": 3}.items():
        counts = site.cameras[name].slot.counts()
        assert (counts.dropped, counts.unfinished) == ({DropReason.STOPPED: stopped}, 0)
        check_accounts(site.cameras[name].slot)


def test_failing_detector_counts_its_frames_as_stopped() -> None:
    clock = ManualClock()
    changed = threading.Condition()
    cameras = [Camera(slot_of(clock, name, changed=changed), clock) for name in "ab"]
    for camera in cameras:
        camera.write()
    detector = FakeDetector(fail_at=0, clock=clock)
    loop = InferenceLoop(detector, Batcher([camera.slot for camera in cameras], 8, clock=clock), lambda _: None, clock)
    with pytest.raises(DeviceError):
        loop.run()
    for camera in cameras:
        counts = camera.slot.counts()
        assert (counts.dropped, counts.unfinished) == ({DropReason.STOPPED: 1}, 0)
        check_accounts(camera.slot)


@pytest.mark.parametrize(("parallel", "busy_ms"), [(1, [50, 50, 40]), (2, [50, 100, 90])])
def test_scheduler_returns_the_time_without_the_wait_for_earlier_batches(parallel: int, busy_ms: list[int]) -> None:
    scheduler = SubmitScheduler(parallel)
    for _ in range(2):
        scheduler.submitted(1, 0)
    found = [scheduler.done(50 * MS), scheduler.done(100 * MS)]
    scheduler.submitted(1, 110 * MS if parallel == 1 else 60 * MS)
    found.append(scheduler.done(150 * MS))
    assert found == [ms * MS for ms in busy_ms]


Step = st.sampled_from(
    ["write", "write", "take", "take", "hand over", "publish", "stale", "stopped", "drop", "skip", "advance"]
)


@given(st.lists(Step, max_size=80))
@settings(max_examples=100, deadline=None)
def test_every_frame_is_accounted_for_with_results(steps: list[str]) -> None:
    clock = ManualClock()
    camera = Camera(slot_of(clock, max_frame_age_s=0.1), clock)
    detector: list[Lease] = []
    results: list[Lease] = []
    published = 0
    reasons = {"stale": DropReason.STALE, "stopped": DropReason.STOPPED}
    for step in steps:
        if step == "write":
            camera.write()
        elif step == "take" and (lease := camera.slot.take()) is not None:
            detector.append(lease)
        elif step == "hand over" and detector:
            hand_over(detector[:1], keep=False)
            results.append(detector.pop(0))
        elif step in ("publish", *reasons) and results:
            finish_together([results.pop(0)], [reasons.get(step)])
            published += step == "publish"
        elif step == "drop":
            camera.slot.drop(DropReason.CORRUPT)
        elif step == "skip":
            camera.slot.drop(DropReason.STALE)
        elif step == "advance":
            clock.advance_ms(30)
        counts = camera.slot.counts()
        check_accounts(camera.slot)
        assert counts.unfinished == len(results) < MAX_UNFINISHED + 4
        assert counts.taken == published + len(detector) + len(results)
        late = counts.dropped[DropReason.SUPERSEDED] + counts.dropped[DropReason.STALE]
        assert sum(counts.dropped_by_stage.values()) == late


@dataclass
class Ages(Collector):
    """Sink that records the age of each result's frame, and then sleeps for `sleep_s` seconds."""

    sleep_s: float = 0.0
    ages_s: list[float] = field(default_factory=list)

    def publish(self, result: Result) -> None:
        self.ages_s.append((time.monotonic_ns() - result.meta.captured_ns) / 1e9)
        time.sleep(self.sleep_s)
        super().publish(result)


def sleep_stage(seconds: float) -> Callable[[Result], Result]:
    def slow(result: Result) -> Result:
        time.sleep(seconds)
        return result

    return slow


class SlowPixels:
    def with_frame(self, result: Result, frame: Frame) -> Result:
        time.sleep(0.05)
        return result


@pytest.mark.integration
@pytest.mark.parametrize("slow", ["stage", "pixel stage", "sink", "detector"])
def test_overload_keeps_frames_young_and_accounts_for_each(slow: str) -> None:
    """The cameras send three times as many frames as the slow part can process, because it needs 50 ms per frame."""
    sink = Ages(sleep_s=0.05 if slow == "sink" else 0.0)
    stages: dict[str, Stage] = {"stage": sleep_stage(0.05), "pixel stage": SlowPixels()}
    detector = FakeDetector(max_batch=1, service_ns=50 * MS if slow == "detector" else 0)
    chosen = (stages[slow],) if slow in stages else ()
    held = FRAMES_HELD_BY_STAGES if slow == "pixel stage" else 0
    runtime, _, cameras = make_runtime(
        ["synthetic:64x48@20?objects=1"] * 3, detector, stages=chosen, sink=sink, leases=2 + held, max_frame_age_s=0.3
    )
    report = runtime.run(threading.Event(), for_s=2.5)
    assert len(sink.ages_s) > 20
    # The time of one batch, and a delay of a busy machine. If it stalls, one frame per camera can be older.
    assert sorted(sink.ages_s)[-4] < 0.3 + 3 * 0.05
    fault: Counter[str] = Counter()
    for camera, status in zip(cameras, report.cameras, strict=True):
        counts = camera.slot.counts()
        results = sink.results[camera.slot.camera_id]
        assert counts.grabbed == len(results) + sum(counts.dropped.values())
        assert (counts.taken, counts.unfinished, counts.waiting) == (len(results), 0, 0)
        assert status.dropped_by_stage == counts.dropped_by_stage
        fault.update(counts.dropped_by_stage)
    assert fault.total() > 20
    assert fault["detector" if slow == "detector" else "results"] > 0.6 * fault.total()
