"""Message numbers, track ids, epochs, and counters that continue when the process of a result worker is replaced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from vision.types import FrameMeta

SKIPPED_IDS: Final = 10_000
"""Number of track ids that the next worker of a camera skips after a worker has ended. A worker reports its ids only
once per second, so it may have used more ids than it reported."""


class CameraSequence:
    """The message numbers, track ids, and epochs of one camera, which continue when its result worker is replaced."""

    def __init__(self) -> None:
        self.seq = 0  # highest number that the worker has given to a detections message, or may have given
        self.last_id = 0  # highest track id, or an upper limit of it
        self.epochs = 0  # number of epochs that the ends of workers have added
        self.unreported: Counter[str] = Counter()  # drops that no message has reported yet, by reason
        self.carried: Counter[str] = Counter()  # drops that the next result must report
        self._first: tuple[int, int] | None = None  # epoch and index of the first frame after the end of a worker
        self._is_new = False

    def shifted(self, meta: FrameMeta) -> FrameMeta:
        """Return the description of a frame, with its epoch increased by the number of workers that have ended.

        If the epoch started because a worker ended, `index` counts from the first frame of this epoch.
        """
        if not self.epochs:
            return meta
        if self._is_new:
            self._first, self._is_new = (meta.epoch, meta.index), False
        if self._first is None or self._first[0] != meta.epoch:
            return replace(meta, epoch=meta.epoch + self.epochs)
        return replace(meta, epoch=meta.epoch + self.epochs, index=meta.index - self._first[1])

    def lost(self, drops: Mapping[str, int], unanswered: int) -> None:
        """Start a new epoch after the end of a worker.

        Args:
            drops: number of dropped frames by reason: the frames of the lost results, and the drops that these results
                would have reported.
            unanswered: number of results that were sent to the worker, and that the worker has not answered.
        """
        self.seq += unanswered
        self.last_id += SKIPPED_IDS
        self.carried = self.unreported + Counter(drops)
        self.unreported = Counter()
        self.epochs += 1
        self._is_new = True


class WorkerTotals:
    """Counters of the stages of a result worker, summed over all processes in which the worker has run."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self._last: dict[str, int] = {}  # counters of the current process

    def update(self, counters: dict[str, int]) -> None:
        """Update the sum with the counters of the current process, which are totals since the process started."""
        self.counters.update(counters)
        self.counters.subtract(self._last)
        self._last = counters

    def process_ended(self) -> None:
        """Keep the last counters of the ended process in the sum. The counters of the next process start at 0."""
        self._last = {}


@dataclass(slots=True)
class WorkerConfig:
    """The number of the configuration that a result worker uses, and the number of the newest configuration."""

    used: int = 0  # number of the configuration that the stages of the worker use
    newest: int = 0  # number of the newest configuration
    unsent: bytes | None = None  # message with the newest configuration; None if it was sent
