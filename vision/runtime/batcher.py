"""`Batcher`, which forms batches of the newest frames, and `SubmitScheduler`, which decides when to form a batch.

A batch contains only the frames that are ready. Waiting for all cameras would delay every batch, because the encoder of
a camera pauses for 400 ms or more at a key frame.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from vision.runtime.latest_slot import Clock, LatestSlot, Lease

_MARGIN_NS: Final = 1_000_000  # time for work of the host before `submit`, and for errors of the estimates
_WEIGHT_OF_NEW: Final = 0.2  # weight of a new sample in the moving averages


class Batcher:
    """Source of batches with at most one frame per camera.

    A batch starts with the camera whose previous frame was taken longest ago. All slots must share one condition
    (`LatestSlot.changed`).
    """

    def __init__(self, slots: Sequence[LatestSlot], max_batch: int, *, clock: Clock = time.monotonic_ns) -> None:
        if (conditions := len({id(slot.changed) for slot in slots})) != 1:
            raise ValueError(f"expected slots with one shared condition, got {len(slots)} with {conditions} conditions")
        self._slots = list(slots)
        self._changed = slots[0].changed
        self._max_batch = max_batch
        self._clock = clock
        self.is_changing = False
        """True while slots are being added or removed. During this time, `finished` is False."""

    @property
    def slots(self) -> Sequence[LatestSlot]:
        """The slots, one for each camera, from which this object takes the frames of a batch.

        `add` and `remove` replace the list and never change it, so any thread can iterate over the returned list.
        """
        return self._slots

    def add(self, slot: LatestSlot) -> None:
        """Take frames from one more slot."""
        with self._changed:
            self._slots = [*self._slots, slot]
            self._changed.notify_all()

    def remove(self, slot: LatestSlot) -> None:
        """Take no more frames from a slot."""
        with self._changed:
            self._slots = [each for each in self._slots if each is not slot]

    @property
    def finished(self) -> bool:
        """True if no slot will provide another frame."""
        return not self.is_changing and all(slot.finished for slot in self._slots)

    def form_batch(self) -> list[Lease]:
        """Return the next batch of 0 to `max_batch` frames, without waiting for frames.

        If many cameras are busy, acquiring the lock can take milliseconds. Therefore, acquire it once for all slots,
        and only if a frame waits. This method runs every millisecond while a batch is in flight.
        """
        batch: list[Lease] = []
        if not any(slot.has_frame for slot in self._slots):
            return batch
        with self._changed:
            fresh = [slot for slot in self._slots if slot.has_frame]
            for slot in sorted(fresh, key=lambda slot: slot.served_ns):
                if len(batch) == self._max_batch:
                    break
                lease = slot.take()
                if lease is not None:
                    batch.append(lease)
        return batch

    def wait_frame(self, timeout_s: float) -> bool:
        """Wait until a frame can be taken, and return True.

        Return False if all slots have finished, or `timeout_s` seconds have passed, before a frame can be taken.
        """
        deadline_ns = self._clock() + int(timeout_s * 1e9)
        with self._changed:
            while True:
                now_ns = self._clock()
                fresh = [slot for slot in self._slots if slot.has_frame]
                ready = [ns for slot in fresh if (ns := slot.ready_ns(now_ns)) is not None]
                if ready and min(ready) <= now_ns:
                    return True
                if now_ns >= deadline_ns or self.finished:
                    return False
                self._changed.wait((min([deadline_ns, *ready]) - now_ns) / 1e9)


@dataclass(slots=True)
class _Running:
    size: int
    submitted_ns: int


@dataclass(slots=True)
class SubmitScheduler:
    """Scheduler that decides when to form the next batch: just before the detector can start to process it.

    Frames that are batched while the detector is busy become stale in its queue. For each batch size, the scheduler
    learns two durations:

    * `latency`: the time that the detector needs for a batch that it can start immediately
    * `interval`: the time between two results while the detector is never idle

    From these durations, the scheduler predicts when the running batches will finish. From this time, it subtracts the
    duration of the work on the next batch that can overlap with the running batches.

    In a simulation with batches of 50 ms in two slots, the throughput is the same as with immediate submission, but
    the median age of a frame when its result arrives drops from 100 ms to 51 ms (tests/unit/runtime/test_batcher.py).
    """

    parallel: int  # number of batches that the detector computes at the same time
    _running: list[_Running] = field(default_factory=list)
    _latency_ns: dict[int, float] = field(default_factory=dict)
    _interval_ns: dict[int, float] = field(default_factory=dict)
    _last_done_ns: int = 0
    _done_ns: deque[int] = field(default_factory=deque)  # when the last `parallel` batches finished, oldest first

    def submitted(self, size: int, now_ns: int) -> None:
        """Record that a batch of `size` frames was submitted."""
        self._running.append(_Running(size, now_ns))

    def done(self, now_ns: int) -> int:
        """Record that the oldest running batch has finished at `now_ns`.

        Return the time in ns that the detector spent on this batch, without the wait for the previous batches.
        """
        batch = self._running.pop(0)
        if batch.submitted_ns >= self._last_done_ns:
            self._learn(self._latency_ns, batch.size, now_ns - batch.submitted_ns)
        else:
            self._learn(self._interval_ns, batch.size, now_ns - max(self._last_done_ns, batch.submitted_ns))
        self._last_done_ns = now_ns
        self._done_ns.append(now_ns)
        began_ns = self._done_ns.popleft() if len(self._done_ns) > self.parallel else 0
        return now_ns - max(began_ns, batch.submitted_ns)

    def form_at_ns(self, size: int) -> int:
        """Return the time in ns at which to form a batch of about `size` frames.

        Return 0, which means immediately, if the detector is idle or the duration of the running batches is not known
        yet.
        """
        ahead = len(self._running) - self.parallel
        if ahead < 0:
            return 0
        end_ns = float(self._last_done_ns)
        for batch in self._running[: ahead + 1]:
            interval_ns = self._near(self._interval_ns, batch.size)
            latency_ns = self._near(self._latency_ns, batch.size)
            if interval_ns is None and latency_ns is None:
                return 0
            end_ns = max(
                end_ns + (interval_ns or 0.0), batch.submitted_ns + (latency_ns or 0.0) * (interval_ns is None)
            )
        return int(end_ns - self._fill_ns(size) - _MARGIN_NS)

    def _fill_ns(self, size: int) -> float:
        """Return the time in ns for which a batch of `size` frames can be processed together with the previous batches.

        Return 0 if this time is not known yet.
        """
        latency_ns, interval_ns = self._near(self._latency_ns, size), self._near(self._interval_ns, size)
        return max(0.0, latency_ns - interval_ns) if latency_ns is not None and interval_ns is not None else 0.0

    def _learn(self, table: dict[int, float], size: int, sample_ns: int) -> None:
        old_ns = table.get(size)
        table[size] = sample_ns if old_ns is None else old_ns + _WEIGHT_OF_NEW * (sample_ns - old_ns)

    @staticmethod
    def _near(table: dict[int, float], size: int) -> float | None:
        if size in table:  # the usual case, in which the search would take most of the time of `form_at_ns`
            return table[size]
        return table[min(table, key=lambda learned: abs(learned - size))] if table else None
