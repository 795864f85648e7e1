"""Tests of `LatestSlot`, `Batcher`, and `SubmitScheduler`: frame order, drops, accounting, and submission times."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vision.errors import Closed, OutOfMemory
from vision.runtime.batcher import Batcher, SubmitScheduler
from vision.runtime.latest_slot import LatestSlot, Lease, release_together
from vision.types import DropReason, FrameBuffer, FrameMeta, PixelFormat

MS = 1_000_000


@dataclass
class ManualClock:
    """Clock that the test advances."""

    now_ns: int = 1_000 * MS

    def __call__(self) -> int:
        return self.now_ns

    def advance_ms(self, ms: float) -> None:
        self.now_ns += int(ms * MS)


allocate = FrameBuffer.allocate


@dataclass
class Camera:
    """Writer of numbered frames into a slot, in the same way as a supervisor."""

    slot: LatestSlot
    clock: ManualClock
    index: int = 0
    size: tuple[int, int] = (4, 6)

    def __post_init__(self) -> None:
        self.configure()

    def configure(self, pixel_format: PixelFormat = "bgr") -> None:
        self.slot.configure(*self.size, pixel_format)

    def write(self) -> int:
        buffer = self.slot.write_buffer(0)
        assert buffer is not None
        buffer.require_host()[:] = self.index % 256
        height, width = self.size
        meta = FrameMeta(self.slot.camera_id, self.index, 0, self.clock(), self.clock(), width, height)
        self.slot.commit(meta)
        self.index += 1
        return meta.index


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


MakeCamera = Callable[..., Camera]


@pytest.fixture
def make(clock: ManualClock) -> MakeCamera:
    changed = threading.Condition()

    def camera(name: str = "a", **options: object) -> Camera:
        return Camera(LatestSlot(name, allocate, clock=clock, changed=changed, **options), clock)  # type: ignore[arg-type]

    return camera


def check_accounts(slot: LatestSlot) -> None:
    counts = slot.counts()
    assert counts.grabbed == counts.taken + sum(counts.dropped.values()) + counts.waiting


def test_lease_has_the_newest_frame_and_the_drops_before_it(make: MakeCamera) -> None:
    camera = make()
    for _ in range(5):
        camera.write()
    lease = camera.slot.take()
    assert lease is not None
    assert lease.frame.meta.index == 4
    assert (lease.frame.pixels == 4).all()
    assert lease.dropped_before == {"superseded": 4}
    assert camera.slot.take() is None
    check_accounts(camera.slot)


def test_drops_after_the_waiting_frame_are_reported_with_the_next(make: MakeCamera) -> None:
    """A frame waits for the reader. The camera drops subsequent frames, for which there is no buffer."""
    camera = make()
    camera.slot.drop(DropReason.CORRUPT)
    camera.write()
    camera.slot.drop(DropReason.STALE)
    first = camera.slot.take()
    assert first is not None and first.dropped_before == {"corrupt": 1}
    first.release()
    camera.write()
    camera.slot.drop(DropReason.CORRUPT)
    camera.write()  # replaces the waiting frame
    second = camera.slot.take()
    assert second is not None and second.dropped_before == {"stale": 1, "corrupt": 1, "superseded": 1}
    check_accounts(camera.slot)


def test_leased_pixels_are_never_written(make: MakeCamera) -> None:
    camera = make(leases=2)
    leases: list[Lease] = []
    for _ in range(2):
        camera.write()
        lease = camera.slot.take()
        assert lease is not None
        leases.append(lease)
    for _ in range(20):
        camera.write()
    assert [int(lease.frame.pixels[0, 0, 0]) for lease in leases] == [0, 1]
    leases[0].release()
    leases[0].release()  # a second release must not hand the buffer out twice
    for _ in range(20):
        camera.write()
    assert int(leases[1].frame.pixels[0, 0, 0]) == 1


def test_reader_without_free_leases_supersedes_waiting_frames(make: MakeCamera) -> None:
    camera = make(leases=2)
    for _ in range(2):
        camera.write()
        assert camera.slot.take() is not None
    for _ in range(5):  # the writer never waits for the reader
        assert camera.slot.write_buffer(0) is not None
        camera.write()
    assert camera.slot.ready_ns(camera.clock()) is None
    assert camera.slot.take() is None
    assert camera.slot.counts().dropped == {DropReason.SUPERSEDED: 4}


def test_batcher_waits_for_a_released_lease(make: MakeCamera) -> None:
    camera = make(leases=1)
    batcher = Batcher([camera.slot], 1)
    camera.write()
    [lease] = batcher.form_batch()
    camera.write()
    assert not batcher.wait_frame(0)
    assert batcher.form_batch() == []
    timer = threading.Timer(0.05, lease.release)
    timer.start()
    assert batcher.wait_frame(10)
    timer.join()
    [newer] = batcher.form_batch()
    assert newer.frame.meta.index == 1


def test_lease_of_another_size_counts_until_released(make: MakeCamera) -> None:
    camera = make(leases=1)
    camera.write()
    lease = camera.slot.take()
    assert lease is not None
    camera.slot.configure(6, 8, "bgr")
    camera.size = (6, 8)
    camera.write()
    assert camera.slot.take() is None
    lease.release()
    assert camera.slot.take() is not None


def test_buffers_are_reused(make: MakeCamera) -> None:
    camera = make(leases=1)
    seen: set[int] = set()
    for _ in range(50):
        camera.write()
        lease = camera.slot.take()
        assert lease is not None
        seen.add(lease.frame.pixels.__array_interface__["data"][0])
        lease.release()
    assert len(seen) <= 3


def test_lossless_writer_waits_and_nothing_is_dropped(make: MakeCamera) -> None:
    camera = make(lossless=True, leases=2, max_fps=1.0, max_frame_age_s=0.001)
    camera.write()
    assert camera.slot.write_buffer(0) is None
    camera.clock.advance_ms(10_000)
    lease = camera.slot.take()
    assert lease is not None
    assert lease.frame.meta.index == 0
    camera.write()
    assert camera.slot.take() is not None
    assert camera.slot.counts().dropped == {}


def test_lossless_writer_is_woken_by_the_reader(make: MakeCamera) -> None:
    camera = make(lossless=True)
    camera.write()
    got: list[object] = []
    writer = threading.Thread(target=lambda: got.append(camera.slot.write_buffer(10)))
    writer.start()
    lease = camera.slot.take()
    writer.join(60)
    assert lease is not None
    assert len(got) == 1
    assert got[0] is not None


@pytest.mark.parametrize(
    ("max_fps", "camera_fps", "expected"),
    [
        (10.0, 29.97, 10.0),
        (15.0, 29.97, 15.0),
        (12.0, 29.97, 12.0),
        (30.0, 29.97, 29.97),
        (60.0, 29.97, 29.97),
        (0.5, 10.0, 0.5),
    ],
)
def test_max_fps_is_kept(
    make: MakeCamera, clock: ManualClock, max_fps: float, camera_fps: float, expected: float
) -> None:
    camera = make(max_fps=max_fps)
    taken, seconds, step_ms = 0, 20, 1
    next_frame_ms = 0.0
    for ms in range(0, seconds * 1000, step_ms):
        while next_frame_ms <= ms:
            camera.write()
            next_frame_ms += 1000 / camera_fps
        lease = camera.slot.take()
        if lease is not None:
            taken += 1
            lease.release()
        clock.advance_ms(step_ms)
    assert taken / seconds == pytest.approx(expected, rel=0.03, abs=0.051)
    counts = camera.slot.counts()
    assert set(counts.dropped) <= {DropReason.MAX_FPS, DropReason.SUPERSEDED}
    if max_fps < camera_fps:
        assert counts.dropped[DropReason.MAX_FPS] > 0.4 * sum(counts.dropped.values())
    check_accounts(camera.slot)


@pytest.mark.parametrize(("age_ms", "kept"), [(0, True), (499, True), (501, False)])
def test_stale_frames_are_dropped_and_counted(make: MakeCamera, clock: ManualClock, age_ms: int, kept: bool) -> None:
    camera = make(max_frame_age_s=0.5)
    camera.write()
    clock.advance_ms(age_ms)
    assert (camera.slot.take() is not None) is kept
    assert camera.slot.counts().dropped.get(DropReason.STALE, 0) == (0 if kept else 1)
    check_accounts(camera.slot)


def test_new_size_keeps_old_leases_valid(make: MakeCamera) -> None:
    camera = make(leases=1)
    camera.write()
    old = camera.slot.take()
    assert old is not None
    camera.slot.configure(8, 10, "bgr")
    camera.size = (8, 10)
    camera.write()
    old.release()
    for _ in range(10):
        camera.write()
        lease = camera.slot.take()
        assert lease is not None
        assert lease.frame.pixels.shape == (8, 10, 3)
        lease.release()
    check_accounts(camera.slot)


@dataclass
class Allocator:
    """Allocator of at most `room` live frame buffers. When the pixels of a buffer are freed, it calls `when_freed`."""

    room: int = 1000
    live: list[weakref.ref[np.ndarray]] = field(default_factory=list)
    when_freed: Callable[[], object] = lambda: None

    def __call__(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> FrameBuffer:
        if self.count() == self.room:
            raise OutOfMemory("a frame: no room", code="no-room")
        buffer = FrameBuffer.allocate(height_px, width_px, pixel_format)
        weakref.finalize(buffer.require_host(), self.when_freed).atexit = False
        self.live.append(weakref.ref(buffer.require_host()))
        return buffer

    def count(self) -> int:
        self.live = [one for one in self.live if one() is not None]
        return len(self.live)


def layout_of(buffer: FrameBuffer) -> tuple[int, int, PixelFormat]:
    return buffer.height_px, buffer.width_px, buffer.pixel_format


def test_new_format_of_the_same_shape_gets_new_buffers(clock: ManualClock) -> None:
    """Buffers of the previous format, whether leased or waiting, must not be used again."""
    camera = Camera(LatestSlot("a", Allocator(), clock=clock, leases=2), clock)
    camera.configure("nv12")
    leases = []
    for _ in range(2):
        camera.write()
        lease = camera.slot.take()
        assert lease is not None
        leases.append(lease)
    camera.slot.configure(*camera.size, "i420")
    for lease in leases:
        lease.release()
    for _ in range(10):
        camera.write()
        lease = camera.slot.take()
        assert lease is not None
        assert lease.frame.pixel_format == "i420"
        assert layout_of(lease.frame.buffer) == (*camera.size, "i420")
        lease.release()
    check_accounts(camera.slot)


def test_waiting_frame_is_dropped_at_a_new_size(make: MakeCamera) -> None:
    camera = make()
    camera.write()
    camera.slot.configure(8, 10, "bgr")
    assert camera.slot.take() is None
    assert camera.slot.counts().dropped == {DropReason.EPOCH: 1}
    check_accounts(camera.slot)


def test_number_of_buffers_is_constant_when_a_size_returns(clock: ManualClock) -> None:
    allocate = Allocator()
    camera = Camera(LatestSlot("a", allocate, clock=clock, leases=1), clock)
    for _ in range(5):
        camera.write()
        lease = camera.slot.take()
        assert lease is not None
        camera.slot.configure(8, 10, "bgr")
        camera.slot.configure(*camera.size, "bgr")
        lease.release()
        del lease
        assert allocate.count() == 3


def test_failed_allocation_leaves_no_buffers(clock: ManualClock) -> None:
    """The slot frees the old buffers before the allocation, and keeps no buffer of the failed allocation."""
    allocate = Allocator(room=3)
    camera = Camera(LatestSlot("a", allocate, clock=clock, leases=1), clock)
    camera.write()
    allocate.room = 2
    with pytest.raises(OutOfMemory) as caught:
        camera.slot.configure(8, 10, "bgr")
    assert caught.value.code == "no-room"
    assert allocate.count() == 0
    assert camera.slot.write_buffer(0) is None
    allocate.room = 3
    for size in ((4, 6), (8, 10)):
        camera.size = size
        camera.configure()
        camera.write()
        lease = camera.slot.take()
        assert lease is not None
        assert lease.frame.pixels.shape == (*size, 3)
        lease.release()
        del lease
    check_accounts(camera.slot)


def is_held(lock: threading.Condition) -> bool:
    """Return True if another thread would have to wait for the reentrant lock."""
    found: list[bool] = []

    def look() -> None:
        taken = lock.acquire(blocking=False)
        found.append(not taken)
        if taken:
            lock.release()

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return found[0]


def test_buffers_are_freed_without_the_shared_lock(clock: ManualClock) -> None:
    """The lock must be free, because freeing a buffer waits for all GPU work."""
    changed = threading.Condition()
    freed: list[bool] = []
    allocate = Allocator(when_freed=lambda: freed.append(is_held(changed)))
    camera = Camera(LatestSlot("a", allocate, clock=clock, changed=changed, leases=2), clock)

    def again(*steps: Callable[[], object]) -> None:
        """Create free, written, waiting, and leased buffers. Then change the frame size, and run `steps`."""
        camera.write()
        leases = Batcher([camera.slot], 1, clock=clock).form_batch()
        camera.write()
        assert camera.slot.write_buffer(0) is not None
        camera.size = (camera.size[0] + 2, 6)
        camera.configure()
        for step in steps:
            step()
        release_together(leases)

    again()
    again(partial(camera.slot.flush, DropReason.EPOCH))
    again(camera.write, camera.write)
    again(camera.slot.close)
    assert freed == [False] * 16


def test_impossible_size_is_refused(make: MakeCamera) -> None:
    camera = make()
    with pytest.raises(ValueError) as caught:
        camera.slot.configure(5, 5, "nv12")
    assert "5x5" in str(caught.value)
    assert camera.slot.write_buffer(0) is not None


def test_close_wakes_the_writer_and_counts_the_waiting_frame(make: MakeCamera) -> None:
    camera = make(lossless=True)
    camera.write()
    raised = threading.Event()

    def write() -> None:
        try:
            camera.slot.write_buffer(10)
        except Closed:
            raised.set()

    writer = threading.Thread(target=write)
    writer.start()
    camera.slot.close()
    writer.join(60)
    assert raised.is_set()
    assert camera.slot.counts().dropped == {DropReason.STOPPED: 1}
    assert camera.slot.finished
    check_accounts(camera.slot)


def test_commit_after_close_is_counted(make: MakeCamera, clock: ManualClock) -> None:
    camera = make()
    assert camera.slot.write_buffer(0) is not None
    camera.slot.close()
    camera.slot.commit(FrameMeta("a", 0, 0, clock(), clock(), 6, 4))
    assert camera.slot.counts().dropped == {DropReason.STOPPED: 1}
    check_accounts(camera.slot)


def test_commit_needs_a_buffer(make: MakeCamera, clock: ManualClock) -> None:
    camera = make()
    with pytest.raises(ValueError):
        camera.slot.commit(FrameMeta("a", 0, 0, clock(), clock(), 6, 4))
    assert camera.slot.counts().grabbed == 0


def test_end_lets_the_last_frame_be_taken(make: MakeCamera) -> None:
    camera = make()
    camera.write()
    camera.slot.end()
    assert not camera.slot.finished
    assert camera.slot.take() is not None
    assert camera.slot.finished


def test_batch_has_one_frame_per_camera_longest_waiting_first(make: MakeCamera, clock: ManualClock) -> None:
    cameras = [make(name, leases=4) for name in "abcd"]
    batcher = Batcher([camera.slot for camera in cameras], 2, clock=clock)
    order: list[str] = []
    for _ in range(4):
        for camera in cameras:
            camera.write()
        clock.advance_ms(10)
        batch = batcher.form_batch()
        assert len({lease.frame.meta.camera_id for lease in batch}) == len(batch) == 2
        order += [lease.frame.meta.camera_id for lease in batch]
        for lease in batch:
            lease.release()
    assert order == list("abcdabcd")


def test_batch_never_waits_for_all_cameras(make: MakeCamera, clock: ManualClock) -> None:
    cameras = [make(name) for name in "abc"]
    batcher = Batcher([camera.slot for camera in cameras], 8, clock=clock)
    assert batcher.form_batch() == []
    cameras[1].write()
    assert [lease.frame.meta.camera_id for lease in batcher.form_batch()] == ["b"]


def test_batcher_refuses_slots_that_do_not_share_a_condition(clock: ManualClock) -> None:
    slots = [LatestSlot(name, allocate, clock=clock) for name in "ab"]
    with pytest.raises(ValueError):
        Batcher(slots, 2)
    with pytest.raises(ValueError):
        Batcher([], 2)


def test_wait_frame_wakes_on_a_frame_and_on_the_end() -> None:
    slot = LatestSlot("a", allocate)
    slot.configure(4, 6, "bgr")
    batcher = Batcher([slot], 1)
    assert not batcher.wait_frame(0.01)

    def write() -> None:
        assert slot.write_buffer(0) is not None
        slot.commit(FrameMeta("a", 0, 0, 0, 0, 6, 4))

    writer = threading.Timer(0.05, write)
    writer.start()
    assert batcher.wait_frame(10)
    writer.join()
    assert batcher.form_batch()
    ender = threading.Timer(0.05, slot.end)
    ender.start()
    assert not batcher.wait_frame(10)
    ender.join()
    assert batcher.finished


def test_wait_frame_waits_for_a_camera_to_be_due() -> None:
    slot = LatestSlot("a", allocate, max_fps=20.0)
    slot.configure(4, 6, "bgr")
    batcher = Batcher([slot], 1)
    for index in range(2):
        assert slot.write_buffer(0) is not None
        slot.commit(FrameMeta("a", index, 0, 0, 0, 6, 4))
        assert batcher.wait_frame(5)
        [lease] = batcher.form_batch()
        lease.release()


FORMATS: dict[str, PixelFormat] = {"as bgr": "bgr", "as nv12": "nv12", "as i420": "i420"}
Step = st.sampled_from(
    [
        "write",
        "write",
        "take",
        "take",
        "release",
        "drop",
        "flush",
        "advance",
        "advance",
        "size",
        "short of memory",
        *FORMATS,
    ]
)
Steps = st.builds(
    lambda before, end, after: [*before, end, *after],
    st.lists(Step, min_size=40, max_size=80),
    st.sampled_from(["close", "end"]),
    st.lists(Step, max_size=8),
)


@pytest.mark.integration
@settings(max_examples=200, deadline=None)
@given(Steps, st.booleans(), st.integers(1, 3))
def test_every_frame_is_accounted_for(steps: list[str], lossless: bool, leases: int) -> None:
    """The test also checks that the buffer of each frame was allocated for its size and format."""
    clock, allocate = ManualClock(), Allocator()
    slot = LatestSlot("a", allocate, clock=clock, lossless=lossless, leases=leases, max_fps=20.0, max_frame_age_s=0.1)
    camera = Camera(slot, clock)
    pixel_format: PixelFormat = "bgr"
    held: list[Lease] = []
    reported = 0
    for number, step in enumerate(steps):
        if step == "write" and not slot.finished:
            buffer = slot.write_buffer(0)
            if buffer is not None:
                assert layout_of(buffer) == (*camera.size, pixel_format)
                assert all(buffer is not lease.frame.buffer for lease in held)
                camera.write()
        elif step == "take" and len(held) < leases:
            lease = slot.take()
            if lease is not None:
                meta = lease.frame.meta
                assert layout_of(lease.frame.buffer) == (meta.height_px, meta.width_px, lease.frame.pixel_format)
                held.append(lease)
                reported += sum(lease.dropped_before.values())
        elif step == "release" and held:
            held.pop(0).release()
        elif step == "drop":
            slot.drop(DropReason.CORRUPT)
        elif step == "flush":
            slot.flush(DropReason.EPOCH)
        elif step == "size":
            camera.size = (4 + 2 * (number % 3), 6)
            camera.configure(pixel_format)
        elif step in FORMATS:
            pixel_format = FORMATS[step]
            camera.configure(pixel_format)
        elif step == "short of memory":
            allocate.room = allocate.count() + 1
            with suppress(OutOfMemory):
                slot.configure(16, 16, "bgr")
            allocate.room = 1000
            camera.configure(pixel_format)
        elif step == "advance":
            clock.advance_ms(30)
        elif step == "close":
            slot.close()
        elif step == "end":
            slot.end()
        check_accounts(slot)
        buffer = lease = None
        assert allocate.count() <= 2 * leases + 2, "those of this layout, and leased ones of others"
    assert reported <= sum(slot.counts().dropped.values())


@dataclass
class Simulation:
    """Simulation of a detector that needs `service_ms` per batch, and of a faster camera, with a virtual clock."""

    service_ms: float
    slots: int
    late: bool
    parallel: int = 1
    camera_ms: float = 1.0
    clock: ManualClock = field(default_factory=lambda: ManualClock(0))

    def run(self, seconds: float) -> tuple[float, float]:
        """Return the batches per second, and the median age of a frame, in ms, when its batch returns."""
        timer = SubmitScheduler(self.parallel)
        running: list[tuple[int, int]] = []  # captured, done
        ages: list[float] = []
        free_at = [0] * self.parallel
        for tick in range(int(seconds * 10_000)):
            now = self.clock.now_ns = tick * MS // 10
            while running and running[0][1] <= now:
                captured, done = running.pop(0)
                timer.done(done)
                ages.append((done - captured) / MS)
            if len(running) < self.slots and (not self.late or now >= timer.form_at_ns(1)):
                worker = min(range(self.parallel), key=lambda worker: free_at[worker])
                done = max(now, free_at[worker]) + int(self.service_ms * MS)
                free_at[worker] = done
                running.append((now - now % int(self.camera_ms * MS), done))
                timer.submitted(1, now)
        return len(ages) / seconds, float(np.median(ages))


@pytest.mark.integration
@pytest.mark.parametrize("service_ms", [5.0, 20.0, 50.0])
def test_late_batches_keep_the_rate_and_lower_the_age(service_ms: float) -> None:
    early_rate, early_age = Simulation(service_ms, slots=2, late=False).run(10)
    late_rate, late_age = Simulation(service_ms, slots=2, late=True).run(10)
    assert late_rate >= 0.99 * early_rate
    assert early_age - late_age >= 0.7 * service_ms  # the shorter wait in the queue of the detector


def test_batches_are_formed_at_once_if_slots_run_in_parallel() -> None:
    early = Simulation(50.0, slots=2, late=False, parallel=2).run(10)
    assert Simulation(50.0, slots=2, late=True, parallel=2).run(10) == early
