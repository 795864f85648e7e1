"""`LatestSlot`: the newest frame of one camera, between the camera's thread and the inference thread.

A queue in front of a detector that is slower than the cameras grows without limit. So there is no queue: each camera
has one waiting frame, the newest.

Every grabbed frame is accounted for: ``grabbed = taken + dropped + waiting``, and drops carry their reason.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vision.errors import Closed
from vision.types import DropReason, Frame, FrameMeta, PixelFormat, frame_shape

Allocate = Callable[[int, int, PixelFormat], NDArray[np.uint8]]
Clock = Callable[[], int]

EXTRA_BUFFERS: Final = 2
"""Of a slot than frames that its reader may hold: one is written, one waits."""


@dataclass(frozen=True, slots=True)
class SlotCounts:
    """What became of a camera's frames so far."""

    grabbed: int
    taken: int
    dropped: Mapping[DropReason, int]
    waiting: int


class Lease:
    """A frame that the reader may use until `release`. What was dropped since the camera's last lease comes with it."""

    __slots__ = ("_pixels", "_slot", "dropped_before", "frame", "taken_ns")

    def __init__(self, slot: LatestSlot, frame: Frame, dropped_before: Mapping[str, int], taken_ns: int) -> None:
        self.frame = frame
        self.dropped_before = dropped_before
        self.taken_ns = taken_ns
        self._pixels: NDArray[np.uint8] | None = frame.pixels
        self._slot = slot

    def release(self) -> None:
        """Give the buffer back to the camera. May be called twice."""
        pixels, self._pixels = self._pixels, None
        if pixels is not None:
            self._slot.give_back(pixels)

    @property
    def changed(self) -> threading.Condition:
        """The lock that `release` takes."""
        return self._slot.changed


def release_together(leases: Sequence[Lease]) -> None:
    """Release the leases of a batch in one turn at the lock that the cameras share: each turn may be a long wait."""
    if leases:
        with leases[0].changed:
            for lease in leases:
                lease.release()


class LatestSlot:
    """The newest frame of one camera, written by its thread and read by the inference thread.

    The writer owns one buffer, one whole frame waits, the reader leases as many as it has batches in flight.
    Writing over a waiting frame drops that frame: the only place where frames are dropped for lack of time, before any
    work was spent on them. A lossless slot makes the writer wait instead. Satisfies `vision.capture.source.FrameSink`.
    """

    def __init__(
        self,
        camera_id: str,
        allocate: Allocate,
        *,
        leases: int = 1,
        lossless: bool = False,
        max_fps: float | None = None,
        max_frame_age_s: float | None = None,
        clock: Clock = time.monotonic_ns,
        changed: threading.Condition | None = None,
    ) -> None:
        """
        Args:
            allocate: makes one frame's buffer; the detector's `frame_buffer`.
            leases: frames that the reader may hold at once, so that the writer never waits for it; there are two
                buffers more than that.
            lossless: no frame is dropped for lack of time; `max_fps` and `max_frame_age_s` do not apply.
            max_fps: most frames/s that the reader gets.
            max_frame_age_s: a frame older than this when its turn comes is dropped.
            changed: shared by the slots of one `Batcher`.
        """
        self.camera_id = camera_id
        self.changed = changed or threading.Condition()
        self._allocate = allocate
        self._leases = leases
        self._leased = 0
        self._lossless = lossless
        self._interval_ns = 0 if lossless or max_fps is None else int(1e9 / max_fps)
        self._max_frame_age_ns = None if lossless or max_frame_age_s is None else int(max_frame_age_s * 1e9)
        self._clock = clock
        self._layout: tuple[int, int, PixelFormat] | None = None
        self._buffers: list[NDArray[np.uint8]] = []  # all of this layout, whoever has them; leases may hold others too
        self._free: list[NDArray[np.uint8]] = []
        self._writing: NDArray[np.uint8] | None = None
        self._waiting: Frame | None = None
        self._due_ns = 0
        self._served_ns = -1
        self._ended = False
        self._closed = False
        self._grabbed = 0
        self._taken = 0
        self._dropped: Counter[DropReason] = Counter()
        self._unreported: Counter[str] = Counter()

    # the camera's side

    def configure(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> None:
        """Make the buffers for frames of this size and format, unless they are there already.

        A frame of the old ones that waits is dropped; leased frames stay whole until they are released. The old buffers
        go first, since memory may not hold both; where the new ones cannot be made there are none, until the next call.

        Raises:
            ValueError: the size is not possible in this format; then nothing has changed.
            OutOfMemory, MemoryError: from `allocate`; the buffers that it did give are freed.
        """
        layout = (height_px, width_px, pixel_format)
        if layout == self._layout:
            return
        frame_shape(*layout)
        self._replace_buffers(None, [])
        self._replace_buffers(layout, [self._allocate(*layout) for _ in range(self._leases + EXTRA_BUFFERS)])

    def _replace_buffers(self, layout: tuple[int, int, PixelFormat] | None, buffers: list[NDArray[np.uint8]]) -> None:
        with self.changed:
            self._drop_waiting(DropReason.EPOCH)
            old = self._buffers, self._free, self._writing
            self._layout, self._buffers, self._free, self._writing = layout, buffers, buffers.copy(), None
        del old  # not before the lock is free: freeing memory that the GPU reads waits for the GPU

    def write_buffer(self, timeout_s: float) -> NDArray[np.uint8] | None:
        """The buffer for the next frame; the same one again until it is committed.

        None: a lossless slot's reader has not taken the last frame in `timeout_s`.

        Raises:
            Closed: the slot was closed.
        """
        with self.changed:
            self.changed.wait_for(lambda: self._closed or self._writable(), timeout_s)
            if self._closed:
                raise Closed(f"camera {self.camera_id}: the slot is closed")
            if not self._writable():
                return None
            if self._writing is None:
                if not self._free:
                    self._drop_waiting(self._overwrite_reason())
                self._writing = self._free.pop()
            return self._writing

    def _writable(self) -> bool:
        if self._lossless:
            return self._waiting is None and (self._writing is not None or bool(self._free))
        return self._writing is not None or bool(self._free) or self._waiting is not None

    def commit(self, meta: FrameMeta) -> None:
        """The buffer last given holds the whole frame that `meta` describes; it becomes the newest."""
        with self.changed:
            pixels, self._writing = self._writing, None
            if pixels is None or self._layout is None:
                raise ValueError(f"camera {self.camera_id}: commit without a write_buffer before it")
            self._grabbed += 1
            self._drop_waiting(self._overwrite_reason())
            self._waiting = Frame(meta, pixels, self._layout[2])
            if self._closed:
                self._drop_waiting(DropReason.STOPPED)
            self.changed.notify_all()

    def drop(self, reason: DropReason) -> None:
        """Count a grabbed frame that is not worth its pixels."""
        with self.changed:
            self._grabbed += 1
            self._count_drop(reason)

    def flush(self, reason: DropReason) -> None:
        """Drop the frame that waits unread, if any."""
        with self.changed:
            self._drop_waiting(reason)

    def end(self) -> None:
        """The source is finished for good; what waits can still be taken."""
        with self.changed:
            self._ended = True
            self.changed.notify_all()

    def close(self) -> None:
        """Wake the writer with `Closed` and drop what waits. Leases stay valid. May be called twice."""
        with self.changed:
            self._closed = True
            self._drop_waiting(DropReason.STOPPED)
            self.changed.notify_all()

    # the reader's side

    @property
    def finished(self) -> bool:
        """True once nothing will come any more."""
        return self._closed or (self._ended and self._waiting is None)

    @property
    def has_frame(self) -> bool:
        """Whether a frame waits, be it due or not."""
        return self._waiting is not None

    def counts(self) -> SlotCounts:
        """A consistent snapshot."""
        with self.changed:
            return SlotCounts(self._grabbed, self._taken, dict(self._dropped), int(self._waiting is not None))

    def bindable_ns(self, now_ns: int) -> int | None:
        """When the waiting frame may be taken; at most `now_ns`: at once. Drops a stale one.

        None: there is none, or the reader holds as many leases as it may.
        """
        if self._waiting is None or self._leased >= self._leases:
            return None
        if self._max_frame_age_ns is not None and now_ns - self._waiting.meta.captured_ns > self._max_frame_age_ns:
            self._drop_waiting(DropReason.STALE)
            return None
        return self._due_ns

    def take(self) -> Lease | None:
        """Lease the waiting frame if it is fresh and the camera's rate allows it."""
        with self.changed:
            now_ns = self._clock()
            due_ns = self.bindable_ns(now_ns)
            if due_ns is None or due_ns > now_ns or self._waiting is None:
                return None
            frame, self._waiting = self._waiting, None
            # The next turn follows the last one's schedule, not the moment it was served, so that jitter does not
            # lower the rate; a camera that fell behind by more than a turn starts a new schedule.
            self._due_ns = max(self._due_ns, now_ns - self._interval_ns) + self._interval_ns
            self._served_ns = now_ns
            self._taken += 1
            self._leased += 1
            dropped_before = dict(self._unreported)
            self._unreported.clear()
            self.changed.notify_all()
            return Lease(self, frame, dropped_before, now_ns)

    @property
    def served_ns(self) -> int:
        """When a frame of this camera was last taken; -1 before the first."""
        return self._served_ns

    def give_back(self, pixels: NDArray[np.uint8]) -> None:
        """Take a released buffer back. One of an earlier `configure`, of whatever shape, goes with its lease."""
        with self.changed:
            self._leased -= 1
            if any(pixels is one for one in self._buffers):
                self._free.append(pixels)
            self.changed.notify_all()

    def _drop_waiting(self, reason: DropReason) -> None:
        frame, self._waiting = self._waiting, None
        if frame is None:
            return
        self._count_drop(reason)
        self._free.append(frame.pixels)  # nothing waits over a `configure`
        self.changed.notify_all()

    def _overwrite_reason(self) -> DropReason:
        return DropReason.MAX_FPS if self._clock() < self._due_ns else DropReason.SUPERSEDED

    def _count_drop(self, reason: DropReason) -> None:
        self._dropped[reason] += 1
        self._unreported[reason.value] += 1
