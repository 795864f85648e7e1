"""`InferenceLoop`, which keeps the detector busy with batches of the newest frames, in the inference thread."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from msgspec import Struct

from vision.detect.detector import Detector
from vision.errors import DeviceError
from vision.metrics import span
from vision.runtime.batcher import Batcher, SubmitScheduler
from vision.runtime.latest_slot import Clock, Lease, discard
from vision.types import Detections, Result, Timing

POLL_S: Final = 0.001
"""Maximum delay until the loop notices a new frame or a finished batch while one slot is free and another is busy."""

IDLE_S: Final = 0.1
"""Maximum delay until an idle loop notices that it must stop."""

HANG_HINT: Final = "the device hangs: `dmesg` may show why; restart the program (systemd does this automatically)"


class InferredFrame(Struct, frozen=True):
    """The result of one frame, and the lease of the frame. The receiver must release the lease."""

    result: Result
    lease: Lease
    expires_ns: int | None
    """Monotonic time in ns after which the result is too old to be processed. None means never.

    The time that the detector needed for the frame is added. Otherwise, no result would be published if the detector
    needed longer than `max_frame_age_s`.
    """


@dataclass(slots=True)
class _Batch:
    slot: int
    leases: list[Lease]
    submitted_ns: int


@dataclass(slots=True)
class InferenceLoop:
    """Loop that forms each batch as late as possible, keeps the detector's slots full, and delivers the results."""

    detector: Detector
    batcher: Batcher
    deliver: Callable[[list[InferredFrame]], None]  # receives the results of each batch, in the order of the batches
    clock: Clock = time.monotonic_ns
    hang_s: float = 30.0  # if a batch takes longer, the device counts as hanging
    progress_ns: int = 0  # time when the loop last made progress or had nothing to do
    ended: bool = False
    _free: deque[int] = field(default_factory=deque)
    _running: deque[_Batch] = field(default_factory=deque)
    _scheduler: SubmitScheduler = field(init=False)
    _last_size: int = 1

    def __post_init__(self) -> None:
        self._free.extend(range(self.detector.spec.batches_in_flight))
        self._scheduler = SubmitScheduler(self.detector.spec.parallel)

    def run(self) -> None:
        """Run until all cameras and batches have finished.

        Raises:
            DeviceError: the detector failed, or a batch takes longer than `hang_s`.
            Exception: `deliver` or the detector raised this error.
        """
        try:
            while self._step():
                pass
        finally:
            self.ended = True
            for batch in self._running:
                discard(batch.leases)

    def _step(self) -> bool:
        now_ns = self.clock()
        form_at_ns = self._scheduler.form_at_ns(self._last_size) if self._running else 0
        if not self._free:
            self._collect(IDLE_S)
        elif now_ns < form_at_ns:
            self._collect((form_at_ns - now_ns) / 1e9)
        elif leases := self._form_batch():
            self._submit(leases)
        elif self._running:
            self._collect(POLL_S)
        elif self.batcher.finished:
            return False
        else:
            self.progress_ns = now_ns
            self.batcher.wait_frame(IDLE_S)
        return True

    def _form_batch(self) -> list[Lease]:
        with span("form_batch"):
            return self.batcher.form_batch()

    def _submit(self, leases: list[Lease]) -> None:
        slot = self._free.popleft()
        try:
            with span("submit"):
                self.detector.submit(slot, [lease.frame for lease in leases])
        except BaseException:
            discard(leases)
            raise
        now_ns = self.clock()
        self._last_size = len(leases)
        self._scheduler.submitted(len(leases), now_ns)
        self._running.append(_Batch(slot, leases, now_ns))

    def _collect(self, timeout_s: float) -> None:
        batch = self._running[0]
        try:
            with span("wait"):
                detections = self.detector.wait(batch.slot, timeout_s)
        except TimeoutError:
            self._check_hang(batch)
            return
        now_ns = self.progress_ns = self.clock()
        self._running.popleft()
        self._free.append(batch.slot)
        busy_ns = self._scheduler.done(now_ns)
        pairs = zip(batch.leases, detections, strict=True)
        self.deliver([_inferred(batch, lease, objects, now_ns, busy_ns) for lease, objects in pairs])

    def _check_hang(self, batch: _Batch) -> None:
        if self.clock() - batch.submitted_ns > self.hang_s * 1e9:
            raise DeviceError(
                f"{self.detector.spec.name}: a batch of {len(batch.leases)} has not finished for {self.hang_s:.0f} s",
                hint=HANG_HINT,
                code="batch-hangs",
            ) from None


def _inferred(batch: _Batch, lease: Lease, objects: Detections, now_ns: int, busy_ns: int) -> InferredFrame:
    meta = lease.frame.meta
    timing = Timing(lease.taken_ns, batch.submitted_ns, now_ns)
    expires_ns = None if lease.max_age_ns is None else meta.captured_ns + lease.max_age_ns + busy_ns
    return InferredFrame(Result(meta, objects, timing, lease.dropped_before), lease, expires_ns)
