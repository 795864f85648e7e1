"""`InferenceLoop`: keeps the detector busy with batches of the newest frames. Runs in the inference thread."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from vision.detect.detector import Detector
from vision.errors import DeviceError
from vision.metrics import span
from vision.runtime.batcher import Batcher
from vision.runtime.latest_slot import Clock, Lease, release_together
from vision.runtime.submit_scheduler import SubmitScheduler
from vision.types import Detections, Result, Timing

POLL_S: Final = (
    0.001  # while a slot is free and another runs: how late a fresh frame or a finished batch is seen at worst
)
IDLE_S: Final = 0.1  # how late the loop sees that it should stop, with nothing to do
HANG_HINT: Final = "the device hangs: `dmesg` may say why; restart the program (systemd does)"


@dataclass(frozen=True, slots=True)
class Inferred:
    """One frame's result, and the lease on the frame: whoever is given it releases it."""

    result: Result
    lease: Lease


@dataclass(slots=True)
class _Batch:
    slot: int
    leases: list[Lease]
    submitted_ns: int


@dataclass(slots=True)
class InferenceLoop:
    """Keeps the detector's slots full: binds late, submits, waits for the oldest, hands results on in order."""

    detector: Detector
    batcher: Batcher
    deliver: Callable[[list[Inferred]], None]
    clock: Clock = time.monotonic_ns
    hang_s: float = 30.0  # longer than any inference: a batch this old means a device that hangs
    progress_ns: int = 0  # when the loop last did something useful, or knew that there was nothing to do
    ended: bool = False
    _free: deque[int] = field(default_factory=deque)
    _running: deque[_Batch] = field(default_factory=deque)
    _timer: SubmitScheduler = field(init=False)
    _last_size: int = 1

    def __post_init__(self) -> None:
        self._free.extend(range(self.detector.spec.batches_in_flight))
        self._timer = SubmitScheduler(self.detector.spec.parallel)

    def run(self) -> None:
        """Until all cameras are finished and every batch came back.

        Raises:
            DeviceError: the detector failed or hangs.
        """
        try:
            while self._step():
                pass
        finally:
            self.ended = True
            for batch in self._running:
                release_together(batch.leases)

    def _step(self) -> bool:
        now_ns = self.clock()
        bind_at_ns = self._timer.bind_at_ns(self._last_size) if self._running else 0
        if not self._free:
            self._collect(IDLE_S)
        elif now_ns < bind_at_ns:
            self._collect((bind_at_ns - now_ns) / 1e9)
        elif leases := self._bind():
            self._submit(leases)
        elif self._running:
            self._collect(POLL_S)
        elif self.batcher.finished:
            return False
        else:
            self.progress_ns = now_ns
            self.batcher.wait_frame(IDLE_S)
        return True

    def _bind(self) -> list[Lease]:
        with span("bind"):
            return self.batcher.next()

    def _submit(self, leases: list[Lease]) -> None:
        slot = self._free.popleft()
        try:
            with span("submit"):
                self.detector.submit(slot, [lease.frame for lease in leases])
        except BaseException:
            release_together(leases)
            raise
        now_ns = self.clock()
        self._last_size = len(leases)
        self._timer.submitted(len(leases), now_ns)
        self._running.append(_Batch(slot, leases, now_ns))

    def _collect(self, timeout_s: float) -> None:
        batch = self._running[0]
        try:
            with span("wait"):
                found = self.detector.wait(batch.slot, timeout_s)
        except TimeoutError:
            if self.clock() - batch.submitted_ns > self.hang_s * 1e9:
                raise DeviceError(
                    f"{self.detector.spec.name}: a batch of {len(batch.leases)} "
                    f"has not come back for {self.hang_s:.0f} s",
                    hint=HANG_HINT,
                ) from None
            return
        now_ns = self.progress_ns = self.clock()
        self._running.popleft()
        self._free.append(batch.slot)
        self._timer.done(now_ns)
        self.deliver([self._result(batch, lease, one, now_ns) for lease, one in zip(batch.leases, found, strict=True)])

    @staticmethod
    def _result(batch: _Batch, lease: Lease, found: Detections, now_ns: int) -> Inferred:
        meta = lease.frame.meta
        timing = Timing(meta.captured_ns, lease.taken_ns, batch.submitted_ns, now_ns)
        return Inferred(Result(meta, found, timing, lease.dropped_before), lease)
