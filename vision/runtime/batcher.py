"""`Batcher`: forms a batch from the newest frame of each camera.

A batch takes whatever waits. Waiting for all cameras would make every batch wait for the slowest one: encoders pause
for 400 ms and more at key frames.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from vision.runtime.latest_slot import Clock, LatestSlot, Lease


class Batcher:
    """Takes whatever is fresh, at most one frame a camera, the camera that has waited longest for its turn first."""

    def __init__(self, slots: Sequence[LatestSlot], max_batch: int, *, clock: Clock = time.monotonic_ns) -> None:
        """
        Raises:
            ValueError: no slots, or slots that do not share one `changed`.
        """
        if not slots or any(slot.changed is not slots[0].changed for slot in slots):
            raise ValueError("a batcher needs slots that share one condition")
        self._slots = list(slots)
        self._changed = slots[0].changed
        self._max_batch = max_batch
        self._clock = clock

    @property
    def finished(self) -> bool:
        """True once no slot will ever have a frame again."""
        return all(slot.finished for slot in self._slots)

    def next(self) -> list[Lease]:
        """The next batch, 0 to `max_batch` frames. Never waits for one.

        One turn at the lock for all: with many cameras at work at once, each turn could take milliseconds to come.
        """
        batch: list[Lease] = []
        with self._changed:
            # Asked every millisecond while a batch is in flight, mostly in vain: looking first is a tenth of the time.
            fresh = [slot for slot in self._slots if slot.has_frame]
            for slot in sorted(fresh, key=lambda slot: slot.served_ns):
                if len(batch) == self._max_batch:
                    break
                lease = slot.take()
                if lease is not None:
                    batch.append(lease)
        return batch

    def wait_frame(self, timeout_s: float) -> bool:
        """Wait until a frame can be taken (True), all is finished, or the time is over (False)."""
        deadline_ns = self._clock() + int(timeout_s * 1e9)
        with self._changed:
            while True:
                now_ns = self._clock()
                fresh = [slot for slot in self._slots if slot.has_frame]
                due = [ns for slot in fresh if (ns := slot.bindable_ns(now_ns)) is not None]
                if due and min(due) <= now_ns:
                    return True
                if now_ns >= deadline_ns or self.finished:
                    return False
                self._changed.wait((min([deadline_ns, *due]) - now_ns) / 1e9)
