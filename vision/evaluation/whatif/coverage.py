"""`Coverage` finds the periods without frames in an archive, and the times at which the clock was set back."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_PAUSE_US: Final = 300_000_000  # a longer time without frames is reported
_SET_BACK_US: Final = 1_000_000  # a smaller step back can come from the source, not from the clock


class Coverage:
    """Finder of gaps between the frames of a camera. Call `add` for all frames in order, and then `finish`.

    All times are in microseconds since 1970 (UTC).
    """

    def __init__(self, since_us: int, until_us: int) -> None:
        self.missing: list[tuple[int, int]] = []
        """Start and end of each time without frames that is longer than five minutes."""
        self.set_back: list[tuple[int, int]] = []
        """Times of each pair of successive frames in which the second time is earlier by more than a second."""
        self._since_us, self._until_us = since_us, until_us
        self._last_us = since_us

    def add(self, at_us: NDArray[np.int64]) -> None:
        """Add the capture times (F,) of the next frames. Ignore frames before the examined time range."""
        times_us = np.concatenate([[self._last_us], at_us[at_us >= self._since_us]])
        steps_us = np.diff(times_us)
        for steps, found in ((steps_us > _PAUSE_US, self.missing), (steps_us < -_SET_BACK_US, self.set_back)):
            for at in steps.nonzero()[0].tolist():
                found.append((int(times_us[at]), int(times_us[at + 1])))
        self._last_us = int(times_us[-1])

    def finish(self) -> None:
        """Add the end of the examined time range, so that `missing` also contains a gap after the last frame."""
        self.add(np.array([self._until_us]))
