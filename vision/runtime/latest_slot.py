"""`LatestSlot`, which passes the newest frame of one camera from the camera thread to the inference thread.

A queue would grow without limit if a step after the slot were slower than the cameras. Therefore, only the newest frame
of each camera waits, and no further frame is taken while `MAX_UNFINISHED` results of the camera are unfinished. Every
grabbed frame is counted (``grabbed = taken + dropped + waiting``). Drops are counted by reason.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from msgspec import Struct

from vision.errors import Closed
from vision.types import DropReason, Frame, FrameBuffer, FrameMeta, PixelFormat, SlowStage, frame_shape

Allocate = Callable[[int, int, PixelFormat], FrameBuffer]
Clock = Callable[[], int]

EXTRA_BUFFERS: Final = 2
"""Number of buffers that a slot has in addition to its leases: one is being written, and one waits."""

MAX_UNFINISHED: Final = 2
"""Number of unfinished results of a camera at which no further frame of the camera is taken.

The stages process one result while another waits, so that the stages never wait for the detector.
"""


@dataclass(slots=True)
class SlotCounts:
    """Frame counters of one camera since the start."""

    grabbed: int = 0
    taken: int = 0  # frames taken by the reader, without those that were dropped afterwards
    dropped: Counter[DropReason] = field(default_factory=Counter)
    dropped_by_stage: Counter[SlowStage] = field(default_factory=Counter)  # superseded and stale frames
    waiting: int = 0
    unfinished: int = 0  # frames whose result was neither published nor dropped yet


class WaitingFrame(Struct, frozen=True):
    """A frame that waits in a slot until the inference thread takes it."""

    frame: Frame
    dropped_before: Mapping[str, int]  # number of drops since the previous frame that was not dropped, by reason

    @property
    def captured_ns(self) -> int:
        return self.frame.meta.captured_ns


@dataclass(slots=True, eq=False)
class Lease:
    """The right to use a frame that was taken from a slot. It ends with `release`, after which the buffer is reused."""

    frame: Frame
    dropped_before: Mapping[str, int]  # number of drops between the last leased frame and this one, by reason
    taken_ns: int  # time when the frame was taken
    max_age_ns: int | None  # age above which the frame must not be published; None means no limit
    slot: LatestSlot
    _is_released: bool = False

    def release(self) -> None:
        """Give the buffer back to the slot. Idempotent."""
        if not self._is_released:
            self._is_released = True
            self.slot.release(self.frame.buffer)


def release_together(leases: Sequence[Lease]) -> None:
    """Release all leases of a batch.

    The functions for batches acquire the cameras' shared lock only once, because acquiring the lock can be slow.
    """
    if leases:
        with leases[0].slot.changed:
            for lease in leases:
                lease.release()


def hand_over(leases: Sequence[Lease], *, keep: bool) -> None:
    """Count the results of a batch as unfinished, until `finish_together` is called for the leases.

    If `keep` is False, release the leases immediately, because no stage reads the pixels.
    """
    if leases:
        with leases[0].slot.changed:
            for lease in leases:
                lease.slot.begin_result()
            if not keep:
                release_together(leases)


def finish_together(leases: Sequence[Lease], reasons: Iterable[DropReason | None]) -> None:
    """Release leases for which `hand_over` was called, and count the results of their frames as finished.

    `reasons` contains, for each lease, the reason why its result was dropped, or None if the result was published.
    """
    if leases:
        with leases[0].slot.changed:
            for lease, reason in zip(leases, reasons, strict=True):
                lease.release()
                lease.slot.finish_result(reason)


def discard(leases: Sequence[Lease]) -> None:
    """Release leases that the detector did not finish, and count their frames as dropped because of a stop."""
    hand_over(leases, keep=False)
    finish_together(leases, [DropReason.STOPPED] * len(leases))


@dataclass(slots=True)
class _Buffers:
    """The frame buffers of one slot, which all have the same frame size and format (layout).

    Leases can still hold buffers of a previous layout.
    """

    layout: tuple[int, int, PixelFormat] | None = None  # height, width, format; None if there are no buffers
    all: list[FrameBuffer] = field(default_factory=list)
    free: list[FrameBuffer] = field(default_factory=list)
    writing: FrameBuffer | None = None


@dataclass(slots=True)
class _RateLimit:
    """Limit of the rate at which the reader takes frames of one camera, in frames per second."""

    interval_ns: int  # minimum time between two frames; 0 means no limit
    due_ns: int = 0  # time from which the next frame may be taken
    served_ns: int = -1  # time when the last frame was taken; -1 if there is none


class LatestSlot:
    """Slot for the newest frame of one camera. The camera thread writes frames, and the inference thread reads them.

    The writer owns one buffer, one complete frame waits, and the reader leases up to `leases` frames. A new frame
    replaces the waiting frame, which is dropped. In a lossless slot, the writer waits instead. The methods for the
    writer implement `vision.capture.source.FrameSink`, which lists the errors.
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
        """Create the slot without buffers, which `configure` allocates.

        Args:
            allocate: function that allocates one frame buffer, such as the detector's `frame_buffer`.
            leases: maximum number of frames that the reader holds at the same time. The slot has `EXTRA_BUFFERS` more
                buffers, so that the writer never waits for the reader, unless `lossless` is True.
            lossless: if True, the writer waits instead of dropping frames, and `max_fps` and `max_frame_age_s` are
                ignored.
            max_fps: maximum number of frames per second that the reader takes. None means no limit.
            max_frame_age_s: age in seconds above which a frame is dropped instead of taken. `Lease` passes this limit
                on to the steps after the slot. None means no limit.
            changed: condition that all slots of one `Batcher` must share. If it is None, create a condition.
        """
        self.camera_id = camera_id
        self.changed = changed or threading.Condition()
        self._allocate = allocate
        self._leases = leases
        self._lossless = lossless
        self._max_frame_age_ns = None if lossless or max_frame_age_s is None else int(max_frame_age_s * 1e9)
        self._clock = clock
        self._buffers = _Buffers()
        self._rate = _RateLimit(0 if lossless or max_fps is None else int(1e9 / max_fps))
        self._counts = SlotCounts()
        self._unreported: dict[str, int] = {}  # drops since the newest frame, by reason
        self._waiting: WaitingFrame | None = None
        self._leased = 0
        self._ended = False
        self._closed = False

    # --- methods for the camera thread --------------------------------------------------------------------------------

    def configure(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> None:
        """Allocate buffers for frames of this size and format, unless the slot already has them.

        Drop the waiting frame. Leased frames stay valid until they are released. The old buffers are freed first,
        because there may be too little memory for the old and the new buffers. If the size is invalid, raise
        `ValueError` and change nothing. If `allocate` raises an error, raise the same error. In this case, the slot has
        no buffers until the next call.
        """
        layout = (height_px, width_px, pixel_format)
        if layout == self._buffers.layout:
            return
        frame_shape(*layout)
        self._replace_buffers(None, ())
        self._replace_buffers(layout, [self._allocate(*layout) for _ in range(self._leases + EXTRA_BUFFERS)])

    def reopen(self, allocate: Allocate, *, max_fps: float | None, max_frame_age_s: float | None) -> None:
        """Prepare the slot for a new camera thread. Drop the waiting frame and the buffers, and continue the counters.

        The arguments have the same meaning as in the constructor.
        """
        self._replace_buffers(None, ())
        self.adjust(max_fps=max_fps, max_frame_age_s=max_frame_age_s)
        with self.changed:
            self._allocate, self._ended = allocate, False

    def adjust(self, *, max_fps: float | None, max_frame_age_s: float | None) -> None:
        """Change the limits of the rate and the age of frames."""
        with self.changed:
            self._max_frame_age_ns = None if self._lossless or max_frame_age_s is None else int(max_frame_age_s * 1e9)
            self._rate.interval_ns = 0 if self._lossless or max_fps is None else int(1e9 / max_fps)
            self._rate.due_ns = 0
            self.changed.notify_all()

    def forget_buffers(self) -> None:
        """Make the next `configure` allocate new buffers, because a call that hangs may write to the current set."""
        self._replace_buffers(None, ())

    def _replace_buffers(self, layout: tuple[int, int, PixelFormat] | None, buffers: Sequence[FrameBuffer]) -> None:
        with self.changed:
            self._drop_waiting(DropReason.EPOCH)
            old, self._buffers = self._buffers, _Buffers(layout, list(buffers), list(buffers))
        del old  # after releasing the lock, because freeing memory that the GPU reads waits for the GPU

    def write_buffer(self, timeout_s: float) -> FrameBuffer | None:
        """Return the buffer for the next frame. Until `commit`, every call returns the same buffer.

        Return None if no buffer becomes available within `timeout_s` seconds, because the slot has no buffers or, in a
        lossless slot, because a frame still waits or the reader holds all buffers. Raise `Closed` after `close`.
        """
        with self.changed:
            self.changed.wait_for(lambda: self._closed or self._writable(), timeout_s)
            if self._closed:
                raise Closed(f"camera {self.camera_id}: the slot is closed")
            if not self._writable():
                return None
            buffers = self._buffers
            if buffers.writing is None:
                if not buffers.free:
                    self._drop_waiting(self._overwrite_reason())
                buffers.writing = buffers.free.pop()
            return buffers.writing

    def _writable(self) -> bool:
        has_buffer = self._buffers.writing is not None or bool(self._buffers.free)
        if self._lossless:
            return self._waiting is None and has_buffer
        return has_buffer or self._waiting is not None

    def commit(self, meta: FrameMeta) -> None:
        """Make the buffer from `write_buffer` the newest frame. The buffer must contain the frame of `meta`.

        Raise `ValueError` if `write_buffer` has not returned a buffer, or if the buffers were replaced since that call.
        If the slot is closed, drop the frame.
        """
        with self.changed:
            buffer, self._buffers.writing = self._buffers.writing, None
            if buffer is None or self._buffers.layout is None:
                raise ValueError(f"camera {self.camera_id}: `commit` was called without `write_buffer`")
            self._put(Frame(meta, buffer))

    def _put(self, frame: Frame) -> None:
        """Count a frame as grabbed, and make it the waiting frame. If the slot is closed, drop the new frame."""
        self._counts.grabbed += 1
        self._drop_waiting(self._overwrite_reason())
        self._waiting = self._arrived(frame)
        if self._closed:
            self._drop_waiting(DropReason.STOPPED)
        elif not self._is_refused():
            self.changed.notify_all()  # otherwise, `release` or `finish_result` wakes the reader

    def _arrived(self, frame: Frame) -> WaitingFrame:
        """Return `frame`, which has just arrived, with the number of drops since the previous frame, by reason."""
        before, self._unreported = self._unreported, {}
        return WaitingFrame(frame, before)

    def drop(self, reason: DropReason) -> None:
        """Count a grabbed frame as dropped. The frame needs no buffer."""
        with self.changed:
            self._counts.grabbed += 1
            self._count_drop(reason)
            if reason is DropReason.STALE:
                self._counts.dropped_by_stage["capture"] += 1
            elif reason is DropReason.SUPERSEDED:
                self._counts.dropped_by_stage[self._awaited_stage()] += 1

    def flush(self, reason: DropReason) -> None:
        """Drop the waiting frame, if there is one, and count it under `reason`."""
        with self.changed:
            self._drop_waiting(reason)

    def end(self) -> None:
        """Mark the source as finished. The waiting frame can still be taken."""
        with self.changed:
            self._ended = True
            self.changed.notify_all()

    def close(self) -> None:
        """Drop the waiting frame, and make `write_buffer` raise `Closed`. Leases stay valid. Idempotent."""
        with self.changed:
            self._closed = True
            self._drop_waiting(DropReason.STOPPED)
            self.changed.notify_all()

    # --- methods for the inference thread -----------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """True if no frame waits and no more frames will arrive."""
        return self._closed or (self._ended and self._waiting is None)

    @property
    def served_ns(self) -> int:
        """Time in ns at which a frame of this camera was most recently taken, or -1 if no frame was taken yet."""
        return self._rate.served_ns

    @property
    def interval_s(self) -> float:
        """Minimum time in seconds between two frames that the reader takes. 0 means no limit."""
        return self._rate.interval_ns / 1e9

    @property
    def is_idle(self) -> bool:
        """True if no frame waits, is leased, or has an unfinished result."""
        with self.changed:
            return self._waiting is None and not self._leased and not self._counts.unfinished

    @property
    def has_frame(self) -> bool:
        """True if a frame waits, even if the reader may not take the frame yet."""
        return self._waiting is not None

    def counts(self) -> SlotCounts:
        """Return a consistent snapshot of the counters."""
        with self.changed:
            counts = self._counts
            dropped, by_stage = counts.dropped.copy(), counts.dropped_by_stage.copy()
            waiting = int(self._waiting is not None)
            return replace(counts, dropped=dropped, dropped_by_stage=by_stage, waiting=waiting)

    def ready_ns(self, now_ns: int) -> int | None:
        """Drop the waiting frame if it is stale. Otherwise, return the time in ns from which the frame may be taken.

        Return None if no frame waits, if the reader already holds all its leases, or if `MAX_UNFINISHED` results are
        unfinished. The caller must hold `changed`.
        """
        if self._waiting is None:
            return None
        if self._max_frame_age_ns is not None and now_ns - self._waiting.captured_ns > self._max_frame_age_ns:
            self._drop_waiting(DropReason.STALE)
            return None
        return None if self._is_refused() else self._rate.due_ns

    def _is_refused(self) -> bool:
        return self._leased >= self._leases or self._counts.unfinished >= MAX_UNFINISHED

    def take(self) -> Lease | None:
        """Lease the waiting frame. If the frame is stale, drop it.

        Return None if no frame may be taken, either because of `max_fps` or for a reason that `ready_ns` lists.
        """
        with self.changed:
            now_ns = self._clock()
            ready_ns = self.ready_ns(now_ns)
            if ready_ns is None or ready_ns > now_ns or self._waiting is None:
                return None
            waiting, self._waiting = self._waiting, None
            # The next due time depends on the last due time, not on the current time, so that jitter does not lower
            # the rate. If a camera is late by more than one interval, its schedule starts again.
            rate = self._rate
            rate.due_ns = max(rate.due_ns, now_ns - rate.interval_ns) + rate.interval_ns
            rate.served_ns = now_ns
            self._leased += 1
            self._counts.taken += 1
            self.changed.notify_all()
            return Lease(waiting.frame, waiting.dropped_before, now_ns, self._max_frame_age_ns, self)

    def release(self, buffer: FrameBuffer) -> None:
        """Take back a leased buffer.

        Reuse this buffer only if the buffers of the slot were not replaced during the lease.
        """
        with self.changed:
            self._leased -= 1
            if any(buffer is own for own in self._buffers.all):
                self._free(buffer)
            self.changed.notify_all()

    def begin_result(self) -> None:
        """Count one more unfinished result, of a frame that was taken. The caller must hold `changed`."""
        self._counts.unfinished += 1

    def finish_result(self, reason: DropReason | None) -> None:
        """Count a result as finished: published if `reason` is None, otherwise dropped after its frame was taken.

        The caller must hold `changed`. The `dropped_before` of subsequent leases does not include this drop.
        """
        counts = self._counts
        if counts.unfinished == MAX_UNFINISHED and self._waiting is not None:
            self.changed.notify_all()
        counts.unfinished -= 1
        if reason is not None:
            counts.taken -= 1
            counts.dropped[reason] += 1
            if reason is DropReason.STALE:
                counts.dropped_by_stage["results"] += 1

    def _free(self, buffer: FrameBuffer) -> None:
        """Make a buffer with the current frame size and format available for further frames."""
        self._buffers.free.append(buffer)

    def _drop_waiting(self, reason: DropReason) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return
        for before, frames in waiting.dropped_before.items():
            self._unreported[before] = self._unreported.get(before, 0) + frames
        self._count_drop(reason)
        if reason in (DropReason.SUPERSEDED, DropReason.STALE):
            self._counts.dropped_by_stage[self._awaited_stage()] += 1
        self._free(waiting.frame.buffer)  # of the current layout, because `configure` drops the waiting frame
        if self._lossless or self._ended:
            self.changed.notify_all()  # otherwise, no thread waits, because the writer could already write

    def _awaited_stage(self) -> SlowStage:
        """Return the step for which the waiting frame waits.

        This is ``results`` if too many results of the camera are unfinished, and otherwise ``detector``.
        """
        return "results" if self._counts.unfinished >= MAX_UNFINISHED else "detector"

    def _count_drop(self, reason: DropReason) -> None:
        self._counts.dropped[reason] += 1
        name = reason.value
        self._unreported[name] = self._unreported.get(name, 0) + 1

    def _overwrite_reason(self) -> DropReason:
        return DropReason.MAX_FPS if self._clock() < self._rate.due_ns else DropReason.SUPERSEDED
