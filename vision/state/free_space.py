"""`FreeSpace` checks whether a disk still has the free space that the outputs of the program must leave."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

_SHARE: Final = 0.05
_MOST_BYTES: Final = 500_000_000
_INTERVAL_S: Final = 1.0


class FreeSpace:
    """The free space of the disk that contains `folder`, and a reserve of 5 % of the disk, but at most 500 MB."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._checked_s = -_INTERVAL_S
        self._low = False

    def is_low(self, *, now: bool = False, times: float = 1.0, promised_bytes: int = 0) -> bool:
        """Return True if the free space is less than `times` the reserve. `promised_bytes` of it count as used.

        Query the file system at most once per second, or in each call if `now` is True. If the query fails, return the
        previous result.
        """
        if now or self._clock() - self._checked_s >= _INTERVAL_S:
            self._checked_s = self._clock()
            try:
                disk = os.statvfs(self._folder)
            except OSError:
                return self._low
            reserve = min(_SHARE * disk.f_blocks * disk.f_frsize, _MOST_BYTES)
            self._low = disk.f_bavail * disk.f_frsize - promised_bytes < times * reserve
        return self._low
